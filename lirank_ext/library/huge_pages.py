"""Huge pages for tables that are read at random."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from .load import extension

SMALLEST = 4 << 20  # in bytes; the page addresses of a smaller table fit in the processor's TLB


def use_huge_pages(tables: nn.Module | Tensor) -> int:
    """Move large CPU tables to huge pages, in place, if Linux provides them.

    Reading a random row of a table that is larger than the cache costs a page walk in addition to
    the memory access. Huge pages avoid it. ``bench --op quantized_embedding`` measures torch's
    tables both ways. Tables that this package quantizes are moved when they are made. Call this
    function for float tables, and for tables that were made otherwise, such as by ``torch.load`` of
    a whole tensor. Values, addresses and dtypes do not change. The function does nothing without
    the compiled library, or on systems without transparent huge pages. On Linux,
    ``/sys/kernel/mm/transparent_hugepage/enabled`` must be "madvise" or "always".

    Args:
        tables: a tensor, or a module whose parameters and buffers are moved.

    Returns:
        The number of bytes for which huge pages were requested. Only whole pages of 2 MiB inside
        contiguous CPU tensors of at least 4 MiB count.
    """
    if extension is None:
        return 0
    found = [tables]
    if isinstance(tables, nn.Module):
        found = [*tables.parameters(), *tables.buffers()]
    return sum(extension.move_to_huge_pages(t.data_ptr(), t.nbytes) for t in found if _is_large(t))


def _is_large(t: Tensor) -> bool:
    """Whether the tensor has memory that is worth moving. Fake tensors have none."""
    plain = type(t) in (Tensor, nn.Parameter) and t.device.type == "cpu"
    return plain and t.layout == torch.strided and t.is_contiguous() and t.nbytes >= SMALLEST
