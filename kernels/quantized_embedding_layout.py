"""Packed rows inside Triton kernels: their layout, and codes in registers.

The layout is the one of ``csrc/quantized_embedding_layout.h``.

Codes are read eight bytes a lane: rows start on 8 bytes and ``code_bytes`` is a multiple of 8, so
that both the address and the mask allow it. Half-byte codes stay in two tiles, even and odd
columns, until they are stored. A code plus its bias is a byte u, and the float with the bits
0x4B0000uu is 2^23 + u: an xor and a subtraction at full rate, where a conversion runs at a quarter.
"""

from __future__ import annotations

import triton
import triton.language as tl
from torch import Tensor

from .launch import next_power_of_2


@triton.jit
def form(dim, BITS: tl.constexpr):
    """Bytes of a row's codes, bytes of a row, and whether all pairs lie behind all codes."""
    size = dim
    if BITS == 4:
        size = (dim + 1) // 2
    codes = (size + 7) // 8 * 8
    apart = codes % 64 == 0
    row = codes + 8
    row = tl.where((apart == 0) & (row > 48) & (row < 64), 64, row)
    return codes, row, apart


@triton.jit
def places(base, dim, rows, BITS: tl.constexpr):
    """code_bytes, stride of the codes, place of row 0's pair, stride of the pairs."""
    codes, row, apart = form(dim, BITS)
    first = base + tl.where(apart, rows * codes, codes)
    return codes, tl.where(apart, codes, row), first, tl.where(apart, 8, row)


@triton.jit
def load_pair(packed, at, valid):
    """(scale, mid) at these bytes, in one load; zeros where there is no row."""
    both = tl.load((packed + at).to(tl.pointer_type(tl.int64)), mask=valid, other=0)
    scale = both.to(tl.int32).to(tl.float32, bitcast=True)
    return scale, (both >> 32).to(tl.int32).to(tl.float32, bitcast=True)


@triton.jit
def load_codes(packed, at, valid, byte, code_bytes):
    """(rows, bytes) of codes from these row starts on; what is stored, padding included."""
    inside = valid[:, None] & (byte < code_bytes)[None, :]
    place = tl.multiple_of(at[:, None], [8, 8]) + byte[None, :]
    return tl.load(packed + place, mask=inside, other=0).to(tl.int32)


@triton.jit
def even(stored, BITS: tl.constexpr):
    """Codes as float32: of every column (8 bits), or of the even ones."""
    if BITS == 8:
        code = (stored ^ 0x4B000080).to(tl.float32, bitcast=True) - 8388736.0
    else:
        code = ((stored & 15) ^ 0x4B000000).to(tl.float32, bitcast=True) - 8388616.0
    return code


@triton.jit
def odd(stored):
    """Codes of the odd columns where there are two a byte."""
    return ((stored >> 4) ^ 0x4B000000).to(tl.float32, bitcast=True) - 8388616.0


@triton.jit
def pooled(low, high, length, MEAN: tl.constexpr):
    """The sums of bags of these lengths, or their means."""
    if MEAN:
        share = 1.0 / tl.maximum(length, 1).to(tl.float32)[:, None]
        low, high = low * share, high * share
    return low, high


@triton.jit
def keep_columns(out, low, high, valid, start, dim, BITS: tl.constexpr, BYTES: tl.constexpr):
    """Store the sums of the bytes from ``start`` on in the rows that start at ``out``."""
    if BITS == 8:
        column, found = start + tl.arange(0, BYTES), low
    else:
        column, found = 2 * start + tl.arange(0, 2 * BYTES), tl.interleave(low, high)
    inside = valid[:, None] & (column < dim)[None, :]
    tl.store(out[:, None] + column[None, :], found.to(out.dtype.element_ty), mask=inside)


def aligned(packed: Tensor) -> Tensor:
    """Rows on 8 bytes, one behind the other; a table cut out at an odd byte is copied."""
    packed = packed.contiguous()
    return packed if packed.data_ptr() % 8 == 0 else packed.clone()


def code_bytes(dim: int, bits: int) -> int:
    """``form`` on the host: bytes of a row's codes."""
    return ((dim if bits == 8 else (dim + 1) // 2) + 7) // 8 * 8


def row_bytes(dim: int, bits: int) -> int:
    """``form`` on the host: bytes of a row."""
    codes = code_bytes(dim, bits)
    return 64 if codes % 64 and 48 < codes + 8 < 64 else codes + 8


def byte_block(code_bytes: int) -> int:
    """Bytes of codes that a program takes at a time."""
    return min(256, max(8, next_power_of_2(code_bytes)))


__all__ = [
    "aligned",
    "byte_block",
    "code_bytes",
    "even",
    "form",
    "keep_columns",
    "load_codes",
    "load_pair",
    "odd",
    "places",
    "pooled",
    "row_bytes",
]
