"""GPU kernels count bad input on the device. ``check_errors`` reads the counters and raises."""

from __future__ import annotations

import ctypes
import sys

import torch

from .load import cuda_library, cuda_loaded


def check_errors() -> None:
    """Wait for every CUDA device in use and raise an error if its kernels found bad input.

    Ops do not wait for the device. On CUDA tensors a bad index therefore reads nothing, gives zeros
    and is counted. Call this function where a wait is acceptable, such as at the end of a batch, a
    step or a test. The error describes the first finding since the last call and gives the number
    of all. The counter is then reset to zero. On other devices ops raise at once, so this function
    has nothing to do there. It does nothing either if there are no CUDA kernels.

    Raises:
        IndexError: an index was out of range. The message gives position, index, table and rows.
        ValueError: offsets, codes, or the widths or rows of tables were invalid.
        RuntimeError: CUDA failed.
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
    """Read and clear a device's findings: count, kind, position, value, table and limit."""
    found = (ctypes.c_int64 * 6)()
    status = library.lirank_take_errors(device, found)
    if status:
        raise RuntimeError(f"check_errors: CUDA error {status} while waiting for the device")
    return list(found)


def _describe(found: list[int], where: str = "") -> Exception:
    """The exception that reports one finding."""
    from ..kernels import errors

    count, kind, position, value, table, limit = found
    more = f"; this is the first of {count} such findings{where}" if count > 1 else where
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
