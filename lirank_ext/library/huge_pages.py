"""Huge pages for tables that are read at random."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from .load import extension

SMALLEST = 4 << 20  # bytes; a smaller table's pages fit the processor's own list of them


def use_huge_pages(tables: nn.Module | Tensor) -> int:
    """Move large CPU tables to huge pages, in place, where Linux gives them.

    A row drawn at random from a table beyond the cache costs a page walk besides its memory
    lines, which huge pages save: ``bench --op quantized_embedding`` shows torch's tables on both.
    Tables that this package quantizes are moved when they are made; call this for float tables,
    and for tables that came another way, such as ``torch.load`` of a whole tensor. Values,
    addresses and dtypes stay as they are. Without Linux, its transparent huge pages ("madvise" or
    "always" in ``/sys/kernel/mm/transparent_hugepage/enabled``) or the compiled library, nothing
    happens.

    Args:
        tables: a module (its parameters and buffers count) or a tensor.

    Returns:
        Bytes for which huge pages were asked: whole pages of 2 MiB inside contiguous CPU tensors
        of at least 4 MiB.
    """
    if extension is None:
        return 0
    found = [tables]
    if isinstance(tables, nn.Module):
        found = [*tables.parameters(), *tables.buffers()]
    return sum(extension.move_to_huge_pages(t.data_ptr(), t.nbytes) for t in found if _is_large(t))


def _is_large(t: Tensor) -> bool:
    """Whether the tensor has memory of its own that is worth moving (a fake one has none)."""
    plain = type(t) in (Tensor, nn.Parameter) and t.device.type == "cpu"
    return plain and t.layout == torch.strided and t.is_contiguous() and t.nbytes >= SMALLEST
