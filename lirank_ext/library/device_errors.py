"""Bad input that GPU kernels found: counted on the device, raised by ``check_errors``."""

from __future__ import annotations

import ctypes
import sys

import torch

from .load import cuda_library, cuda_loaded


def check_errors() -> None:
    """Wait for every CUDA device in use and raise what the kernels found wrong since last time.

    No op waits for the device, so on CUDA tensors a bad index reads nothing, gives zeros and is
    counted. Call this where a wait does not hurt: at the end of a batch, a step or a test. The
    first finding is named, the others are counted, and the counter starts again at zero. Other
    devices refuse at once; there, and without CUDA kernels, this does nothing.

    Raises:
        IndexError: an index was out of range; position, index, table and rows are named.
        ValueError: offsets, widths or rows of tables, or codes did not fit.
        RuntimeError: CUDA itself failed.
    """
    counted = sys.modules.get("lirank_ext.kernels.errors")  # there once a Triton kernel has run
    for found, where in counted.take() if counted else ():
        raise _describe(found, where)
    if not cuda_loaded or not torch.cuda.is_initialized():
        return
    for device in range(torch.cuda.device_count()):
        found = _take(cuda_library(), device)
        if found[0]:
            raise _describe(found, f" on cuda:{device}")


def _take(library: ctypes.CDLL, device: int) -> list[int]:
    """Count, kind, position, value, table and limit of what was found; cleared on the device."""
    found = (ctypes.c_int64 * 6)()
    status = library.lirank_take_errors(device, found)
    if status:
        raise RuntimeError(f"check_errors: CUDA error {status} while waiting for the device")
    return list(found)


def _describe(found: list[int], where: str = "") -> Exception:
    """The exception that reports one finding."""
    from ..kernels import errors

    count, kind, position, value, table, limit = found
    more = f"; {count} such findings{where}, this the first" if count > 1 else where
    if kind == errors.INDEX:
        text = f"indices[{position}] = {value} is out of range for table {table} with {limit} rows"
        return IndexError(f"lirank: {text}{more}")
    if kind == errors.OFFSETS:
        text = f"argument 'offsets': wanted 0 first, no decrease and at most {limit}, got {value} "
        return ValueError(f"lirank: {text}to {table} at position {position}{more}")
    if kind == errors.TABLES:
        text = f"argument 'packed', 'dims' or total_dim: wanted {table} bytes and {position} "
        return ValueError(f"lirank: {text}columns by rows and dims, got {limit} and {value}{more}")
    if kind == errors.ROW:
        text = f"got row {position} that is not finite, too wide, or not among {limit} rows"
        return ValueError(f"lirank: {text}{more}")
    if kind == errors.VOCABULARY:
        what = "a damaged header" if position < 0 else f"part {position} with its rows out of order"
        text = f"argument 'table': wanted the table of a StaticVocabulary, got {what}"
        return ValueError(f"lirank: {text}{more}")
    return ValueError(
        f"lirank: argument 'codes': wanted [-8, 7], got row {position} with others{more}"
    )
