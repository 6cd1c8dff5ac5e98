"""Where Triton kernels count the bad input that they find, in the layout of ``errors.cuh``."""

from __future__ import annotations

from collections.abc import Iterator
from functools import cache

import torch
from torch import Tensor

INDEX, OFFSETS, TABLES, ROW, CODES, VOCABULARY = range(1, 7)

_buffers: list[Tensor] = []


def findings(device: torch.device) -> Tensor:
    """Count, kind, position, value, table and limit, on the device."""
    if device.type == "meta":
        return torch.empty(6, dtype=torch.int64, device=device)
    index = device.index
    if device.type == "cuda" and index is None:
        index = torch.cuda.current_device()
    return _buffer(device.type, index)


@cache
def _buffer(kind: str, index: int | None) -> Tensor:
    buffer = torch.zeros(6, dtype=torch.int64, device=torch.device(kind, index))
    _buffers.append(buffer)
    return buffer


def take() -> Iterator[tuple[list[int], str]]:
    """What was found on each device that has findings, cleared there, and the device in words."""
    for buffer in _buffers:
        if buffer.is_cuda:  # kernels may run on other streams than the current one
            torch.cuda.synchronize(buffer.device)
        found = buffer.tolist()
        if found[0]:
            buffer.zero_()
            yield found, f" on {buffer.device}"
