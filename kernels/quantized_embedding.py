"""Row-wise quantized tables on GPUs: where nvcc was not there to build the CUDA kernels.

``_quantize``: one row a program, read twice (the second time from L1): the extremes, then the
codes. No contraction of multiply and add and correctly rounded divisions: the bits of the
reference. ``_quantized_bag``: BAGS bags and COLUMNS columns a program, one id of each bag a
step, as in ``hashed_embedding``; a row is read where ``csrc/rowwise.h`` puts it, a byte a lane.

Bytes: quantizing reads 4 D and writes D + 8 a row (float32, 8 bits); 1M rows of D=64: 328 MB, 98
us at 3.35 TB/s (H100, datasheet). A look-up reads code_bytes + 8, whole sectors of 32 bytes:
96 for D=64 at 8 bits; 1M of them and 256 bytes written each are 352 MB, 105 us.

Dropped: four codes a lane from one 32-bit load (the tile must be split again, through shared
memory, before it can be stored by columns).
"""

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor

from lirank_ext.ops import _rowwise
from lirank_ext.ops._quantized_reference import check_bag_call, check_weight

from ._bags import INDEX, ROW, columns, findings, keep, pool, report, shape, spans
from ._launch import launch


@triton.jit(do_not_specialize=["n"])
def _quantize(
    weight,
    codes,
    scales,
    mids,
    errors,
    n,
    dim,
    HALF: tl.constexpr,
    COLUMNS: tl.constexpr,
):
    row = tl.program_id(0).to(tl.int64)
    high = tl.full((COLUMNS,), -float("inf"), tl.float32)
    low = tl.full((COLUMNS,), float("inf"), tl.float32)
    finite = tl.full((COLUMNS,), 1, tl.int32)
    for start in range(0, dim, COLUMNS):
        column = start + tl.arange(0, COLUMNS)
        w = tl.load(weight + row * dim + column, mask=column < dim, other=0).to(tl.float32)
        finite = finite & (tl.abs(w) < float("inf")).to(tl.int32)
        high = tl.maximum(high, tl.where(column < dim, w, -float("inf")))
        low = tl.minimum(low, tl.where(column < dim, w, float("inf")))
    largest, smallest, steps = tl.max(high, 0), tl.min(low, 0), 2.0 * HALF - 1.0
    scale = tl.div_rn(largest - smallest, tl.full((), 0, tl.float32) + steps)
    middle = largest * HALF + smallest * (HALF - 1.0)
    mid = tl.div_rn(middle, tl.full((), 0, tl.float32) + steps)
    good = (tl.abs(scale) < float("inf")) & (tl.abs(mid) < float("inf"))
    good = good & (tl.min(finite, 0) == 1)
    report(errors, ROW, good == 0, row, row, 0, n)
    constant = scale == 0
    scale, mid = tl.where(constant, 1.0, scale), tl.where(constant, largest, mid)
    tl.store(scales + row, scale)
    tl.store(mids + row, mid)
    for start in range(0, dim, COLUMNS):
        column = start + tl.arange(0, COLUMNS)
        w = tl.load(weight + row * dim + column, mask=column < dim, other=0).to(tl.float32)
        x = tl.div_rn(w - mid, tl.zeros((COLUMNS,), tl.float32) + scale)
        x = tl.minimum(tl.maximum(x, -1.0 * HALF - 1.0), 1.0 * HALF)
        x = (x + 12582912.0) - 12582912.0  # 1.5 * 2^23: to the nearest integer, ties to even
        x = tl.minimum(tl.maximum(x, -1.0 * HALF), HALF - 1.0)
        code = tl.where(constant | (good == 0), 0.0, x).to(tl.int8)
        tl.store(codes + row * dim + column, code, mask=column < dim)


@triton.jit
def packed_rows(
    table, row, valid, column, dim, first, pair, stride, BITS: tl.constexpr, COMPUTE: tl.constexpr
):
    """(rows, columns) of a packed table: pair at first + row * pair, codes at row * stride."""
    inside = valid[:, None] & (column < dim)[None, :]
    at = (table + first + row * pair).to(tl.pointer_type(tl.float32))
    scale, mid = tl.load(at, mask=valid, other=0), tl.load(at + 1, mask=valid, other=0)
    if BITS == 8:
        byte = tl.load(table + row[:, None] * stride + column[None, :], mask=inside, other=0)
        code = byte.to(tl.int8, bitcast=True).to(COMPUTE)
    else:
        place = row[:, None] * stride + (column // 2)[None, :]
        byte = tl.load(table + place, mask=inside, other=0).to(tl.int32)
        code = (((byte >> ((column % 2) * 4)[None, :]) & 15) - 8).to(COMPUTE)
    return mid.to(COMPUTE)[:, None] + code * scale.to(COMPUTE)[:, None]


@triton.jit(do_not_specialize=["bags", "known", "count"])
def _quantized_bag(
    table,
    ids,
    offsets,
    weights,
    out,
    errors,
    bags,
    known,
    count,
    fixed,
    dim,
    rows: tl.int64,
    first: tl.int64,
    pair: tl.int64,
    stride: tl.int64,
    BITS: tl.constexpr,
    MEAN: tl.constexpr,
    BAGS: tl.constexpr,
    COLUMNS: tl.constexpr,
):
    bag = tl.program_id(0).to(tl.int64) * BAGS + tl.arange(0, BAGS)
    column = tl.program_id(1) * COLUMNS + tl.arange(0, COLUMNS)
    begin, length = spans(offsets, errors, bag, bags, known, count, fixed)
    total = tl.zeros((BAGS, COLUMNS), tl.float32)
    for step in range(0, tl.max(length, 0)):
        inside, place = step < length, begin + step
        row = tl.load(ids + place, mask=inside, other=0).to(tl.int64)
        valid = inside & (row >= 0) & (row < rows)
        if tl.program_id(1) == 0:
            report(errors, INDEX, inside & (valid == 0), place, row, 0, rows)
        found = packed_rows(table, row, valid, column, dim, first, pair, stride, BITS, tl.float32)
        total = pool(total, weights, place, valid, found, MEAN)
    keep(out, total, length, bag, column, bags, dim, MEAN)


def quantize_rows(weight: Tensor, bits: int = 8) -> tuple[Tensor, Tensor, Tensor]:
    """The op on a GPU; a row that is not finite is counted, and gets codes 0."""
    check_weight(weight, bits)
    weight = weight.detach().contiguous()
    n, dim = weight.shape
    codes = torch.empty((n, dim), dtype=torch.int8, device=weight.device)
    scale, mid = (torch.empty(n, dtype=torch.float32, device=weight.device) for _ in range(2))
    c = {"HALF": 1 << (bits - 1), "COLUMNS": min(1024, max(32, triton.next_power_of_2(dim)))}
    c |= {"num_warps": 1 if dim <= 256 else 4, "enable_fp_fusion": False}
    launch(_quantize, (n,), weight, codes, scale, mid, findings(weight.device), n, dim, **c)
    return codes, scale, mid


def quantized_embedding_bag(
    packed: Tensor,
    indices: Tensor,
    offsets: Tensor | None,
    dim: int,
    bits: int = 8,
    mode: str = "sum",
    per_sample_weights: Tensor | None = None,
    include_last_offset: bool = False,
    output_dtype: torch.dtype = torch.float32,
) -> Tensor:
    """The op on a GPU; no scratch."""
    check_bag_call("quantized_embedding_bag", packed, indices, offsets, dim, bits, mode,
                   per_sample_weights, include_last_offset, output_dtype)  # fmt: skip
    sizes, form = shape(indices, offsets, include_last_offset), _rowwise.layout(dim, bits)
    given = (indices, offsets, per_sample_weights)
    ids, offsets, weights = (None if t is None else t.contiguous() for t in given)
    packed = packed.contiguous()
    out = torch.empty((sizes[0], dim), dtype=output_dtype, device=packed.device)
    rows = packed.shape[0]
    first = rows * form.code_bytes if form.apart else form.code_bytes
    pair, stride = (8, form.code_bytes) if form.apart else (form.row_bytes, form.row_bytes)
    c = {"BAGS": 16 if columns(dim) <= 32 else 8, "COLUMNS": columns(dim), "num_warps": 4}
    grid = (triton.cdiv(sizes[0], c["BAGS"]), triton.cdiv(dim, c["COLUMNS"]))
    args = (packed, ids, offsets, weights, out, findings(out.device), *sizes, dim)
    launch(_quantized_bag, grid, *args, rows, first, pair, stride, bits, mode == "mean", **c)
    return out
