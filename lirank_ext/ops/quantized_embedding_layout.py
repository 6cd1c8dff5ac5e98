"""The packed layout of row-wise quantized tables: ``csrc/quantized_embedding_layout.h``."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from ..library.checks import check, check_dim, check_dtype

# Columns of a table. Sizes in bytes then stay far below 2^63.
WIDEST = 1 << 30


@dataclass(frozen=True)
class Layout:
    """Bytes of one row: codes, share of the table, and whether the pairs lie behind all codes."""

    code_bytes: int
    row_bytes: int
    apart: bool


def layout(dim: int, bits: int) -> Layout:
    """Layout of a table of width ``dim``; ``row_bytes`` is the second axis of a packed tensor."""
    size = dim if bits == 8 else (dim + 1) // 2
    codes = (size + 7) // 8 * 8
    apart = codes % 64 == 0
    row = codes + 8
    if not apart and 48 < row < 64:
        row = 64
    return Layout(codes, row, apart)


def pack(codes: Tensor, scale: Tensor, mid: Tensor, bits: int) -> Tensor:
    """Codes (N, D) int8 and pairs (N,) float32 to uint8 (N, row_bytes)."""
    rows, dim = codes.shape
    form = layout(dim, bits)
    if bits == 8:
        stored = codes.contiguous().view(torch.uint8)
    else:
        shifted = torch.nn.functional.pad((codes + 8).to(torch.uint8), (0, dim % 2))
        stored = shifted[:, 0::2] | (shifted[:, 1::2] << 4)
    stored = torch.nn.functional.pad(stored, (0, form.code_bytes - stored.shape[1]))
    pairs = torch.stack([scale, mid], 1).contiguous().view(torch.uint8).reshape(rows, 8)
    if form.apart:
        # Not a view of another tensor: modules tell rows cut out of a table by that.
        whole = stored.new_empty(rows, form.row_bytes)
        flat = whole.view(-1)
        flat[: stored.numel()] = stored.reshape(-1)
        flat[stored.numel() :] = pairs.reshape(-1)
        return whole
    row = torch.cat([stored, pairs], 1)
    return torch.nn.functional.pad(row, (0, form.row_bytes - row.shape[1])).contiguous()


def split(packed: Tensor, dim: int, bits: int) -> tuple[Tensor, Tensor]:
    """The bytes of the codes and those of (scale, mid) of each row."""
    rows, form = packed.shape[0], layout(dim, bits)
    if form.apart:
        flat = packed.reshape(-1)
        stored = flat[: rows * form.code_bytes].reshape(rows, form.code_bytes)
        return stored, flat[rows * form.code_bytes :].reshape(rows, 8)
    return packed[:, : form.code_bytes], packed[:, form.code_bytes : form.code_bytes + 8]


def unpack(packed: Tensor, dim: int, bits: int) -> tuple[Tensor, Tensor, Tensor]:
    """The inverse of :func:`pack`."""
    rows, (stored, pairs) = packed.shape[0], split(packed, dim, bits)
    # A copy lies where floats may lie; a table may begin at any byte.
    pairs = pairs.clone(memory_format=torch.contiguous_format).view(torch.float32).reshape(rows, 2)
    if bits == 8:
        codes = stored[:, :dim].clone(memory_format=torch.contiguous_format).view(torch.int8)
    else:
        both = torch.stack([stored & 15, stored >> 4], 2).flatten(1)
        codes = both[:, :dim].to(torch.int8) - 8
    # Copies: an op's result must not share memory with its input, even where it could be a view.
    return codes, pairs[:, 0].clone(), pairs[:, 1].clone()


def look_up(packed: Tensor, ids: Tensor, dim: int, bits: int) -> Tensor:
    """The rows of these ids in float64."""
    codes, scale, mid = unpack(packed, dim, bits)
    ids = ids.long()
    codes, scale, mid = codes[ids].double(), scale[ids].double(), mid[ids].double()
    return mid.unsqueeze(1) + codes * scale.unsqueeze(1)


def check_bits(a: Any) -> None:
    check(a.bits in (4, 8), a, "bits", "8 or 4")


def check_width(a: Any, dim: int) -> None:
    check(dim > 0, a, "dim", "a positive width", dim)
    check(dim <= WIDEST, a, "dim", f"at most {WIDEST} columns", dim)


def check_packed(a: Any, *names: str) -> None:
    """These arguments are tables of width ``a.dim`` at ``a.bits`` bits."""
    check_bits(a)
    check_width(a, a.dim)
    wanted = layout(a.dim, a.bits).row_bytes
    text = f"{wanted} bytes a row for dim {a.dim} at {a.bits} bits"
    for name in names:
        check_dtype(a, name, torch.uint8)
        check_dim(a, name, 2)
        check(getattr(a, name).shape[1] == wanted, a, name, text)
