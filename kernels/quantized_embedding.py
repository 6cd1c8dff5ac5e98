"""Row-wise quantized tables on GPUs: where nvcc was not there to build the CUDA kernels.

``_quantize``: one row a program, read twice (the second time from L1): the extremes, then the
codes. No contraction of multiply and add and correctly rounded divisions: the bits of the
reference. ``_dequantize``, ``_pack``, ``_unpack``: ROWS rows and a block of columns a program.

``_quantized_bags``: BAGS bags of one table and BYTES bytes of codes a program, one id of each bag
a step, UNROLL steps under way together. Rows are read as ``kernels/_rowwise.py`` says, the sums of
their columns stay in registers. Many tables are one launch: a program finds the place of its table
in ``rows`` and ``dims`` on the device, then takes every ``each``-th block of its bags, so that the
search is paid a few thousand times a launch, not once a block.
``_quantized_dot``: the gradient of the weights, <grad of the bag, row>, by the same walk.

Bytes: quantizing reads 4 D and writes D + 8 a row (float32, 8 bits); 1M rows of D=64: 328 MB, 98
us at 3.35 TB/s (H100, datasheet). A look-up reads code_bytes + 8, whole sectors of 32 bytes:
96 for D=64 at 8 bits; 1M of them and 256 bytes written each are 352 MB, 105 us.

Dropped: descriptors of the tables in a workspace (an allocation and a launch more); a column a
lane (a byte a load, eight times the loads); reports of bad ids inside the pooling loop (atomics
there keep loads from moving up); a sum of the mids apart (Triton gives it a layout of its own and
loads every pair twice).
"""

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor

from lirank_ext.library._old_checks import check, check_device, check_dtype
from lirank_ext.ops import _rowwise
from lirank_ext.ops._quantized_reference import (
    check_bag_call,
    check_bags_call,
    check_bits,
    check_packed,
    check_rows,
    check_weight,
    read_tables,
)

from ._bags import (
    CODES,
    REGISTERS,
    ROW,
    TABLES,
    contiguous,
    findings,
    ids_at,
    report,
    shape,
    spans,
    tell_ids,
    unroll,
)
from ._launch import (
    cdiv,
    launch,
    multiprocessors,
    next_power_of_2,
)
from ._rowwise import (
    aligned,
    byte_block,
    even,
    form,
    keep_columns,
    load_codes,
    load_pair,
    odd,
    places,
)

# ---- rows ----------------------------------------------------------------------------------


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


@triton.jit(do_not_specialize=["n"])
def _dequantize(codes, scale, mid, out, n, dim, ROWS: tl.constexpr, COLUMNS: tl.constexpr):
    row = tl.program_id(0).to(tl.int64) * ROWS + tl.arange(0, ROWS)
    column = tl.program_id(1) * COLUMNS + tl.arange(0, COLUMNS)
    inside = (row < n)[:, None] & (column < dim)[None, :]
    s, m = tl.load(scale + row, mask=row < n, other=0), tl.load(mid + row, mask=row < n, other=0)
    at = row[:, None] * dim + column[None, :]
    code = tl.load(codes + at, mask=inside, other=0).to(tl.float32)
    tl.store(out + at, m[:, None] + code * s[:, None], mask=inside)


@triton.jit(do_not_specialize=["n"])
def _pack(
    codes,
    scale,
    mid,
    packed,
    errors,
    n: tl.int64,
    dim,
    BITS: tl.constexpr,
    ROWS: tl.constexpr,
    BYTES: tl.constexpr,
):
    row = tl.program_id(0).to(tl.int64) * ROWS + tl.arange(0, ROWS)
    byte = tl.program_id(1) * BYTES + tl.arange(0, BYTES)
    count, stride, first, pair = places(0, dim, n, BITS)
    beside = (byte < stride) & ((byte < count) | (byte >= count + 8))  # not where the pair lies
    at = codes + row[:, None] * dim
    here = (row < n)[:, None]
    if BITS == 8:
        stored = tl.load(at + byte[None, :], mask=here & (byte < dim)[None, :], other=0)
    else:
        low = tl.load(at + 2 * byte[None, :], mask=here & (2 * byte < dim)[None, :], other=-8)
        odd_column = 2 * byte + 1
        high = tl.load(at + odd_column[None, :], mask=here & (odd_column < dim)[None, :], other=-8)
        bad = (tl.minimum(low, high) < -8) | (tl.maximum(low, high) > 7)
        report(errors, CODES, tl.max(bad.to(tl.int32), 1) > 0, row, row, 0, n)
        stored = (low.to(tl.int32) + 8 & 15) | ((high.to(tl.int32) + 8 & 15) << 4)
    to = packed + row[:, None] * stride + byte[None, :]
    tl.store(to, stored.to(tl.uint8), mask=here & beside[None, :])
    if tl.program_id(1) == 0:
        both = (packed + first + row * pair).to(tl.pointer_type(tl.float32))
        tl.store(both, tl.load(scale + row, mask=row < n, other=0), mask=row < n)
        tl.store(both + 1, tl.load(mid + row, mask=row < n, other=0), mask=row < n)


@triton.jit(do_not_specialize=["n"])
def _unpack(
    packed,
    codes,
    scale,
    mid,
    n: tl.int64,
    dim,
    BITS: tl.constexpr,
    ROWS: tl.constexpr,
    COLUMNS: tl.constexpr,
):
    row = tl.program_id(0).to(tl.int64) * ROWS + tl.arange(0, ROWS)
    column = tl.program_id(1) * COLUMNS + tl.arange(0, COLUMNS)
    _, stride, first, pair = places(0, dim, n, BITS)
    inside = (row < n)[:, None] & (column < dim)[None, :]
    at = packed + row[:, None] * stride
    if BITS == 8:
        code = tl.load(at + column[None, :], mask=inside, other=0)
    else:
        byte = tl.load(at + (column // 2)[None, :], mask=inside, other=0).to(tl.int32)
        code = ((byte >> (column % 2 * 4)[None, :]) & 15) - 8
    tl.store(codes + row[:, None] * dim + column[None, :], code.to(tl.int8), mask=inside)
    if tl.program_id(1) == 0:
        s, m = load_pair(packed, first + row * pair, row < n)
        tl.store(scale + row, s, mask=row < n)
        tl.store(mid + row, m, mask=row < n)


# ---- look-ups ------------------------------------------------------------------------------


@triton.jit
def find_table(errors, rows, dims, tables, index, size, width, BITS: tl.constexpr):
    """Whether rows and dims fit the tensor, and base, rows, dim and first column of this table."""
    tight = tl.zeros((128,), tl.int64)
    whole, before_tight, before_whole = tight, tight, tight
    total, column, wrong = tight, tight, tight
    for start in range(0, tables, 128):
        at = start + tl.arange(0, 128)
        n = tl.load(rows + at, mask=at < tables, other=0)
        dim = tl.load(dims + at, mask=at < tables, other=8)
        _, row_bytes, _ = form(dim, BITS)
        # Widths have 31 bits, so that columns are counted in 32.
        bad = (n < 0) | (n > size) | (dim <= 0) | (dim > width) | (dim > 2147483000)
        # Beyond 2^62 a product of 64 bits may have turned over: then this one is large.
        bad = bad | (n.to(tl.float32) * row_bytes.to(tl.float32) > 4.0e18)
        bad = (bad | (n * row_bytes > size)) & (at < tables)
        here = (at < tables) & (bad == 0)
        used = tl.where(here, n * row_bytes, 0)
        padded = (used + 63) // 64 * 64
        dim = tl.where(here, dim, 0)
        wrong += bad.to(tl.int64)
        tight += used
        whole += padded
        total += dim
        before_tight += tl.where(at < index, used, 0)
        before_whole += tl.where(at < index, padded, 0)
        column += tl.where(at < index, dim, 0)
    all_tight, all_whole, all_columns = tl.sum(tight, 0), tl.sum(whole, 0), tl.sum(total, 0)
    fits = (tl.sum(wrong, 0) == 0) & (all_columns == width)
    fits = fits & ((size == all_tight) | (size == all_whole))
    blame = (fits == 0) & (tl.program_id(0) == 0)
    report(errors, TABLES, blame, all_columns, width, all_tight, size)
    base = tl.where(size == all_whole, tl.sum(before_whole, 0), tl.sum(before_tight, 0))
    dim = tl.load(dims + index).to(tl.int32)
    return fits, base, tl.load(rows + index), dim, tl.sum(column, 0)


@triton.jit
def _pool(
    packed,
    ids,
    weights,
    begin,
    length,
    start,
    base,
    rows,
    dim,
    BITS: tl.constexpr,
    UNROLL: tl.constexpr,
    BAGS: tl.constexpr,
    BYTES: tl.constexpr,
):
    """Sums of the columns whose codes lie in the bytes from ``start`` on."""
    codes, stride, first, pair = places(base, dim, rows, BITS)
    byte = start + tl.arange(0, BYTES)
    low, high = tl.zeros((BAGS, BYTES), tl.float32), tl.zeros((BAGS, BYTES), tl.float32)
    for step in range(0, tl.max(length, 0), UNROLL):
        for ahead in tl.static_range(UNROLL):
            inside, place = step + ahead < length, begin + step + ahead
            row, valid = ids_at(ids, place, inside, rows)
            scale, mid = load_pair(packed, first + row * pair, valid)
            stored = load_codes(packed, base + row * stride, valid, byte, codes)
            if weights is not None:
                weight = tl.load(weights + place, mask=valid, other=0).to(tl.float32)
                scale, mid = scale * weight, mid * weight
            low += even(stored, BITS) * scale[:, None] + mid[:, None]
            if BITS == 4:
                high += odd(stored) * scale[:, None] + mid[:, None]
    return low, high


@triton.jit
def _pool_block(
    packed,
    ids,
    offsets,
    weights,
    out,
    errors,
    index,
    block,
    base,
    rows,
    dim,
    column,
    width,
    bags,
    known,
    count,
    fixed,
    BITS: tl.constexpr,
    MEAN: tl.constexpr,
    UNROLL: tl.constexpr,
    BAGS: tl.constexpr,
    BYTES: tl.constexpr,
):
    """One block of the bags of one table."""
    codes, _, _ = form(dim, BITS)
    before = index * bags
    bag = block * BAGS + tl.arange(0, BAGS)
    begin, length = spans(offsets, errors, before + bag, before + bags, known, count, fixed)
    tell_ids(errors, ids, begin, length, rows, index, UNROLL)
    to = out + bag * width + column
    for start in range(0, codes, BYTES):
        low, high = _pool(packed, ids, weights, begin, length, start, base, rows, dim, BITS,
                          UNROLL, BAGS, BYTES)  # fmt: skip
        if MEAN:
            share = 1.0 / tl.maximum(length, 1).to(tl.float32)[:, None]
            low, high = low * share, high * share
        keep_columns(to, low, high, bag < bags, start, dim, BITS, BYTES)


@triton.jit
def _zero(out, n, BLOCK: tl.constexpr):
    """All programs together write zeros."""
    jump = tl.num_programs(0).to(tl.int64) * BLOCK
    for start in range(tl.program_id(0).to(tl.int64) * BLOCK, n, jump):
        at = start + tl.arange(0, BLOCK)
        tl.store(out + at, tl.zeros((BLOCK,), out.dtype.element_ty), mask=at < n)


@triton.jit(do_not_specialize=["each", "tables", "one_rows", "bags", "known", "count", "fixed"])
def _quantized_bags(
    packed,
    rows,
    dims,
    ids,
    offsets,
    weights,
    out,
    errors,
    each,
    tables,
    size: tl.int64,
    width,
    one_rows: tl.int64,
    bags,
    known,
    count,
    fixed,
    BITS: tl.constexpr,
    MEAN: tl.constexpr,
    UNROLL: tl.constexpr,
    BAGS: tl.constexpr,
    BYTES: tl.constexpr,
):
    program = tl.program_id(0)
    if rows is None:
        _pool_block(packed, ids, offsets, weights, out, errors, 0, program.to(tl.int64), 0,
                    one_rows, width, 0, width, bags, known, count, fixed, BITS, MEAN, UNROLL,
                    BAGS, BYTES)  # fmt: skip
    else:  # 32 bits are divided: 64 are a call
        index, first = (program // each).to(tl.int64), (program % each).to(tl.int64)
        fits, base, n, dim, column = find_table(errors, rows, dims, tables, index, size, width,
                                                BITS)  # fmt: skip
        if fits:
            for block in range(first, tl.cdiv(bags, BAGS), each):
                _pool_block(packed, ids, offsets, weights, out, errors, index, block, base, n,
                            dim, column, width, bags, known, count, fixed, BITS, MEAN, UNROLL,
                            BAGS, BYTES)  # fmt: skip
        else:
            _zero(out, bags.to(tl.int64) * width, BAGS * BYTES)


# ---- gradient of the weights -----------------------------------------------------------------


@triton.jit
def gradient_at(grad, column, valid, dim):
    """(bags, columns) of the gradient whose rows start at ``grad``, as float32."""
    inside = valid[:, None] & (column < dim)[None, :]
    return tl.load(grad[:, None] + column[None, :], mask=inside, other=0).to(tl.float32)


@triton.jit
def sum_of_gradient(grad, valid, dim, BAGS: tl.constexpr, COLUMNS: tl.constexpr):
    """Of all columns of each bag: what its mids are multiplied with."""
    total = tl.zeros((BAGS, COLUMNS), tl.float32)
    for start in range(0, dim, COLUMNS):
        total += gradient_at(grad, start + tl.arange(0, COLUMNS), valid, dim)
    return tl.sum(total, 1)


@triton.jit
def dot_codes(
    packed,
    at,
    valid,
    grad,
    here,
    dim,
    BITS: tl.constexpr,
    BAGS: tl.constexpr,
    BYTES: tl.constexpr,
):
    """<gradient of the bag, codes of the row that starts at ``at``>."""
    codes, _, _ = form(dim, BITS)
    total = tl.zeros((BAGS, BYTES), tl.float32)
    for start in range(0, codes, BYTES):
        byte = start + tl.arange(0, BYTES)
        stored = load_codes(packed, at, valid, byte, codes)
        if BITS == 8:
            total += even(stored, BITS) * gradient_at(grad, byte, here, dim)
        else:
            total += even(stored, BITS) * gradient_at(grad, 2 * byte, here, dim)
            total += odd(stored) * gradient_at(grad, 2 * byte + 1, here, dim)
    return tl.sum(total, 1)


@triton.jit
def _dot_block(
    grad,
    packed,
    ids,
    offsets,
    out,
    errors,
    index,
    block,
    base,
    rows,
    dim,
    column,
    width,
    bags,
    known,
    count,
    fixed,
    BITS: tl.constexpr,
    BAGS: tl.constexpr,
    BYTES: tl.constexpr,
):
    """One block of the bags of one table."""
    _, stride, first, pair = places(base, dim, rows, BITS)
    before = index * bags
    bag = block * BAGS + tl.arange(0, BAGS)
    begin, length = spans(offsets, errors, before + bag, before + bags, known, count, fixed)
    tell_ids(errors, ids, begin, length, rows, index, 1)
    mine, here = grad + bag * width + column, bag < bags
    alone = sum_of_gradient(mine, here, dim, BAGS, BYTES)
    for step in range(0, tl.max(length, 0)):
        inside, place = step < length, begin + step
        row, valid = ids_at(ids, place, inside, rows)
        scale, mid = load_pair(packed, first + row * pair, valid)
        dot = dot_codes(packed, base + row * stride, valid, mine, here, dim, BITS, BAGS, BYTES)
        tl.store(out + place, tl.where(valid, scale * dot + mid * alone, 0.0), mask=inside)


@triton.jit(do_not_specialize=["each", "tables", "one_rows", "bags", "known", "count", "fixed"])
def _quantized_dot(
    grad,
    packed,
    rows,
    dims,
    ids,
    offsets,
    out,
    errors,
    each,
    tables,
    size: tl.int64,
    width,
    one_rows: tl.int64,
    bags,
    known,
    count,
    fixed,
    BITS: tl.constexpr,
    BAGS: tl.constexpr,
    BYTES: tl.constexpr,
):
    program = tl.program_id(0)
    if rows is None:
        _dot_block(grad, packed, ids, offsets, out, errors, 0, program.to(tl.int64), 0, one_rows,
                   width, 0, width, bags, known, count, fixed, BITS, BAGS, BYTES)  # fmt: skip
    else:
        index, first = (program // each).to(tl.int64), (program % each).to(tl.int64)
        fits, base, n, dim, column = find_table(errors, rows, dims, tables, index, size, width,
                                                BITS)  # fmt: skip
        if fits:
            for block in range(first, tl.cdiv(bags, BAGS), each):
                _dot_block(grad, packed, ids, offsets, out, errors, index, block, base, n, dim,
                           column, width, bags, known, count, fixed, BITS, BAGS,
                           BYTES)  # fmt: skip


# ---- launchers: rows -------------------------------------------------------------------------


def quantize_rows(weight: Tensor, bits: int = 8) -> tuple[Tensor, Tensor, Tensor]:
    """The op on a GPU; a row that is not finite is counted, and gets codes 0."""
    check_weight(weight, bits)
    weight = weight.detach().contiguous()
    n, dim = weight.shape
    codes = torch.empty((n, dim), dtype=torch.int8, device=weight.device)
    scale, mid = (torch.empty(n, dtype=torch.float32, device=weight.device) for _ in range(2))
    c = {"HALF": 1 << (bits - 1), "COLUMNS": min(1024, max(32, next_power_of_2(dim)))}
    c |= {"num_warps": 1 if dim <= 256 else 4, "enable_fp_fusion": False}
    launch(_quantize, (n,), weight, codes, scale, mid, findings(weight.device), n, dim, **c)
    return codes, scale, mid


def _check_pairs(op: str, codes: Tensor, scale: Tensor, mid: Tensor) -> None:
    check_rows(op, codes, scale, mid)
    for name, t in (("scale", scale), ("mid", mid)):
        check_dtype(op, name, t, torch.float32)  # the references take float64 too


def _tile(n: int, dim: int, name: str) -> tuple[tuple[int, int], dict[str, int]]:
    """Grid and constants of a kernel that takes ROWS rows and a block of columns a program."""
    block = min(128, max(16, next_power_of_2(dim)))
    c = {"ROWS": 2048 // block, name: block, "num_warps": 4}
    return (cdiv(n, c["ROWS"]), cdiv(dim, block)), c


def dequantize_rows(codes: Tensor, scale: Tensor, mid: Tensor) -> Tensor:
    """The op on a GPU, with the bits of the reference."""
    _check_pairs("dequantize_rows", codes, scale, mid)
    codes, scale, mid = contiguous(codes, scale, mid)
    n, dim = codes.shape
    out = torch.empty((n, dim), dtype=torch.float32, device=codes.device)
    grid, c = _tile(n, dim, "COLUMNS")
    launch(_dequantize, grid, codes, scale, mid, out, n, dim, **c, enable_fp_fusion=False)
    return out


def pack_rows(codes: Tensor, scale: Tensor, mid: Tensor, bits: int = 8) -> Tensor:
    """The op on a GPU; a code that does not fit is cut off, and its row counted."""
    _check_pairs("pack_rows", codes, scale, mid)
    check_bits("pack_rows", bits)
    codes, scale, mid = contiguous(codes, scale, mid)
    n, dim = codes.shape
    check(dim > 0, "pack_rows", "dim", "a positive width", dim)
    row_bytes = _rowwise.layout(dim, bits).row_bytes
    packed = torch.empty((n, row_bytes), dtype=torch.uint8, device=codes.device)
    grid, c = _tile(n, row_bytes, "BYTES")
    launch(_pack, grid, codes, scale, mid, packed, findings(codes.device), n, dim, bits, **c)
    return packed


def unpack_rows(packed: Tensor, dim: int, bits: int = 8) -> tuple[Tensor, Tensor, Tensor]:
    """The op on a GPU."""
    check_packed("unpack_rows", packed, dim, bits)
    packed, n = aligned(packed), packed.shape[0]
    codes = torch.empty((n, dim), dtype=torch.int8, device=packed.device)
    scale, mid = (torch.empty(n, dtype=torch.float32, device=packed.device) for _ in range(2))
    grid, c = _tile(n, dim, "COLUMNS")
    launch(_unpack, grid, packed, codes, scale, mid, n, dim, bits, **c)
    return codes, scale, mid


# ---- launchers: look-ups ---------------------------------------------------------------------


def _plan(packed: Tensor, bags: int, tables: int, width: int, bits: int):
    """Grid, programs a table, and constants for tables of about this width."""
    block = byte_block(_rowwise.layout(max(1, width // tables), bits).code_bytes)
    c = {"BAGS": min(32, max(4, 1024 // block)), "BYTES": block}
    c |= {"num_warps": max(1, min(4, c["BAGS"] * block // 256))} | REGISTERS
    blocks = cdiv(bags, c["BAGS"])
    if tables == 1:
        each = blocks
    else:  # about 64 blocks of threads a multiprocessor: enough to even out long and short bags
        each = min(blocks, cdiv(64 * multiprocessors(packed), tables))
    return (each * tables,), each, c


def _rows_and_dims(op: str, packed: Tensor, rows: Tensor, dims: Tensor) -> list[Tensor]:
    check_device(op, "rows", rows, packed.device)
    check_device(op, "dims", dims, packed.device)
    return contiguous(rows, dims)


def _check_grad(op: str, grad: Tensor, bags: int, width: int) -> None:
    fits = grad.dim() == 2 and grad.shape[0] == bags and grad.shape[1] == width
    check(fits, op, "grad", f"shape ({bags}, {width})", grad)


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
    """The op on a GPU; no scratch. A table that lies on an odd address is copied."""
    check_bag_call("quantized_embedding_bag", packed, indices, offsets, dim, bits, mode,
                   per_sample_weights, include_last_offset, output_dtype)  # fmt: skip
    sizes = shape(indices, offsets, include_last_offset)
    packed, given = aligned(packed), contiguous(indices, offsets, per_sample_weights)
    out = torch.empty((sizes[0], dim), dtype=output_dtype, device=packed.device)
    grid, each, c = _plan(packed, sizes[0], 1, dim, bits)
    table = (each, 1, packed.numel(), dim, packed.shape[0])
    args = (packed, None, None, *given, out, findings(out.device), *table, *sizes)
    constants = (bits, mode == "mean", unroll(sizes[0], sizes[2]))
    launch(_quantized_bags, grid, *args, *constants, **c)
    return out


def quantized_embedding_bags(
    packed: Tensor,
    rows: Tensor,
    dims: Tensor,
    indices: Tensor,
    offsets: Tensor,
    bits: int = 8,
    mode: str = "sum",
    per_sample_weights: Tensor | None = None,
    output_dtype: torch.dtype = torch.float32,
    total_dim: int = -1,
) -> Tensor:
    """The op on a GPU, all tables in one launch; no scratch.

    Without ``total_dim`` the width of the result has to be waited for; with it nothing waits, and
    rows and dims that do not fit are counted on the device, with zeros for a result.
    """
    op = "quantized_embedding_bags"
    check_bags_call(op, packed, rows, dims, indices, offsets, bits, mode, per_sample_weights,
                    output_dtype)  # fmt: skip
    rows, dims = _rows_and_dims(op, packed, rows, dims)
    if total_dim < 0:
        total_dim = sum(dim for _, dim in read_tables(op, packed, rows, dims, bits))
    tables, known = rows.shape[0], offsets.shape[0]
    bags, count = (known - 1) // tables, indices.numel()
    packed, given = aligned(packed), contiguous(indices, offsets, per_sample_weights)
    out = torch.empty((bags, total_dim), dtype=output_dtype, device=packed.device)
    grid, each, c = _plan(packed, bags, tables, total_dim, bits)
    sizes = (each, tables, packed.numel(), total_dim, 0, bags, known, count, 0)
    args = (packed, rows, dims, *given, out, findings(out.device), *sizes)
    launch(_quantized_bags, grid, *args, bits, mode == "mean", unroll(known - 1, count), **c)
    return out


def quantized_embedding_bag_backward(
    grad: Tensor,
    packed: Tensor,
    indices: Tensor,
    offsets: Tensor | None,
    dim: int,
    bits: int,
    include_last_offset: bool,
) -> Tensor:
    """Gradient of per_sample_weights; zeros for ids in no bag. No scratch."""
    op = "quantized_embedding_bag_backward"
    check_bag_call(op, packed, indices, offsets, dim, bits, "sum", None, include_last_offset,
                   torch.float32)  # fmt: skip
    sizes = shape(indices, offsets, include_last_offset)
    _check_grad(op, grad, sizes[0], dim)
    packed, (grad, ids, offsets) = aligned(packed), contiguous(grad, indices, offsets)
    out = torch.zeros(indices.shape, dtype=torch.float32, device=packed.device)
    grid, each, c = _plan(packed, sizes[0], 1, dim, bits)
    table = (each, 1, packed.numel(), dim, packed.shape[0])
    args = (grad, packed, None, None, ids, offsets, out, findings(out.device), *table, *sizes)
    launch(_quantized_dot, grid, *args, bits, **c)
    return out


def quantized_embedding_bags_backward(
    grad: Tensor,
    packed: Tensor,
    rows: Tensor,
    dims: Tensor,
    indices: Tensor,
    offsets: Tensor,
    bits: int,
) -> Tensor:
    """The same over several tables, in one launch."""
    op = "quantized_embedding_bags_backward"
    check_bags_call(op, packed, rows, dims, indices, offsets, bits, "sum", None, torch.float32)
    rows, dims = _rows_and_dims(op, packed, rows, dims)
    tables, known = rows.shape[0], offsets.shape[0]
    bags, count, width = (known - 1) // tables, indices.numel(), grad.shape[-1]
    _check_grad(op, grad, bags, width)
    packed, (grad, ids, offsets) = aligned(packed), contiguous(grad, indices, offsets)
    out = torch.zeros(indices.shape, dtype=torch.float32, device=packed.device)
    grid, each, c = _plan(packed, bags, tables, width, bits)
    sizes = (each, tables, packed.numel(), width, 0, bags, known, count, 0)
    args = (grad, packed, rows, dims, ids, offsets, out, findings(out.device), *sizes)
    launch(_quantized_dot, grid, *args, bits, **c)
    return out
