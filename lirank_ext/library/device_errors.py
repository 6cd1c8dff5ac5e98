"""GPU kernels count bad input on the device. ``check_errors`` reads the counters and raises."""

from __future__ import annotations

import ctypes
from collections.abc import Iterator
from functools import cache

import torch
from torch import Tensor

from .load import cuda_library, cuda_loaded

_INDEX, _OFFSETS, _TABLES, _ROW, _CODES, _VOCABULARY = range(1, 7)


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
    for found, where in take_findings():
        raise _describe(found, where)
    if not cuda_loaded or not torch.cuda.is_initialized():
        return
    for device in range(torch.cuda.device_count()):
        found = _take(cuda_library(), device)
        if found[0]:
            raise _describe(found, f" on cuda:{device}")


_buffers: list[Tensor] = []


def findings(device: torch.device) -> Tensor:
    """The device's buffer of findings, which Triton kernels write.

    It holds count, kind, position, value, table and limit (``kernels/errors.cuh``).
    """
    if device.type == "meta":
        return torch.empty(6, dtype=torch.int64, device=device)
    index = device.index
    if device.type == "cuda" and index is None:
        index = torch.cuda.current_device()
    return _buffer(device.type, index)


@cache
def _buffer(kind: str, index: int | None) -> Tensor:
    made = torch.zeros(6, dtype=torch.int64, device=torch.device(kind, index))
    _buffers.append(made)
    return made


def take_findings() -> Iterator[tuple[list[int], str]]:
    """Yield the findings of each device that has any, with the device in words, and clear them."""
    for buffer in _buffers:
        if buffer.is_cuda:  # kernels may run on streams other than the current one
            torch.cuda.synchronize(buffer.device)
        found = buffer.tolist()
        if found[0]:
            buffer.zero_()
            yield found, f" on {buffer.device}"


def _take(library: ctypes.CDLL, device: int) -> list[int]:
    """Read and clear a device's findings: count, kind, position, value, table and limit."""
    found = (ctypes.c_int64 * 6)()
    status = library.lirank_take_errors(device, found)
    if status:
        raise RuntimeError(f"check_errors: CUDA error {status} while waiting for the device")
    return list(found)


def _describe(found: list[int], where: str = "") -> Exception:
    """The exception that reports one finding."""
    count, kind, position, value, table, limit = found
    more = f"; this is the first of {count} such findings{where}" if count > 1 else where
    if kind == _INDEX:
        text = f"indices[{position}] = {value} is out of range for table {table} with {limit} rows"
        return IndexError(f"lirank: {text}{more}")
    if kind == _OFFSETS:
        text = f"argument 'offsets': wanted 0 first, no decrease and at most {limit}, got {value} "
        return ValueError(f"lirank: {text}to {table} at position {position}{more}")
    if kind == _TABLES:
        text = f"argument 'packed', 'dims' or total_dim: wanted {table} bytes and {position} "
        return ValueError(f"lirank: {text}columns by rows and dims, got {limit} and {value}{more}")
    if kind == _ROW:
        text = f"got row {position} that is not finite, too wide, or not among {limit} rows"
        return ValueError(f"lirank: {text}{more}")
    if kind == _VOCABULARY:
        what = "a damaged header" if position < 0 else f"part {position} with its rows out of order"
        text = f"argument 'table': wanted the table of a StaticVocabulary, got {what}"
        return ValueError(f"lirank: {text}{more}")
    return ValueError(
        f"lirank: argument 'codes': wanted [-8, 7], got row {position} with others{more}"
    )
