"""A whole residual cross net in one kernel, for inference: low-rank stack and attention stack.

With t_l = h_l u_l^T + bias_l and x_l = x_0 (1 + t_1 + ... + t_l), no x_l has to be kept: a
program takes ROWS rows and holds the h_l of all its layers, (ROWS, r) each, on chip. For layer l
it walks over the columns: x_0, times 1 + the sum of the t before l, gives x_(l-1), which goes
into the product with v_l at once. A last walk multiplies x_0 by both stacks' sums and writes.
The only intermediates that leave the chip are keys and values of attention, 8 r bytes a row:
they lie in the program's own rows of the output, which nobody needs before the last walk, or
in scratch of their own where a row is shorter than that (r > d / 4 in bfloat16, d / 2 in float32).

Attention as in ``cross_attention``: the row's maximum in closed form, one exp2 a pair. Here a
program walks over the keys of all its rows at once; key j of each row is one load, from L1.

Bytes, L layers a stack, items of e bytes. Memory: x_0 once, the result once, 2 B d e: B=4096,
d=1024 in bfloat16 are 17 MB, 5.0 us at 3.35 TB/s (H100, datasheet); layer by layer a stack of two
moves 6 B d e or more, both 100 MB. From L2, per tile of ROWS: the weights, (L + L (L + 1) / 2)
r d e for a low-rank stack (5 r d e for 4 at L = 2), (3 L + L (L + 1) / 2) r d e with attention.
Walks over x_0 after the first find it in L1, where nothing else goes (weights arrive by
cp.async.cg, around it), while ROWS * d * e fits beside 52 KB of shared memory: d <= 2048 in
bfloat16 at 32 rows; in L2 beyond. Keeping x_l in the output instead would read the weights 2 L
times, but move 3 L ROWS d e of activations where this moves (L + 2): more while (L - 1) r <
4 ROWS, at L = 2 up to r = 128; and the sum of the stacks would need a second (B, d).

Where: token_dim 1, not float64, one rank in all layers of a stack, at most LAYERS layers and padded
ranks that add up to STACK; and up to LAYERS and JOINT over both stacks they are one launch, else
two: attention, then the low-rank stack, which adds. All else goes layer by layer, and so does what
is timed to be faster that way: large ranks in large batches, where the weights bind.

Dropped: evict_last for x_0 (in L2 it would push the weights out); more layers in a launch (they
are unrolled: 8 of rank 16 in float32 spill, and compile for half a minute).
"""

from __future__ import annotations

import math

import torch
import triton
import triton.language as tl
from torch import Tensor

from .cross_tiles import keep, padded, precision, product, tile, turned
from .launch import batch_class, cdiv, choose, dot, launch, rows, size_class

LOG2E = math.log2(math.e)
LAYERS = 4  # of one launch
SUM, MEAN, CONCAT = tl.constexpr(0), tl.constexpr(1), tl.constexpr(2)


@triton.jit
def _factor(
    hidden,
    layers,
    column,
    rank,
    d,
    r,
    EACH: tl.constexpr,
    PRECISION: tl.constexpr,
    ROWS: tl.constexpr,
    COLUMNS: tl.constexpr,
):
    """1 + the sum of h u^T + bias over the layers done; a layer is EACH tensors, the last u, bias.

    Its columns behind d are of no use to anyone: what is multiplied by them is 0.
    """
    t = tl.full((ROWS, COLUMNS), 1.0, tl.float32)
    for i in tl.static_range(len(hidden)):
        u, bias = layers[EACH * i + EACH - 2], layers[EACH * i + EACH - 1]
        t = product(hidden[i], turned(u, rank, column, r, r, d), t, PRECISION)
        t += tl.load(bias + column, mask=column < d, other=0).to(tl.float32)[None, :]
    return t


@triton.jit
def _operand(
    x, hidden, layers, row, column, rank, x_row, n, d, r,
    EACH: tl.constexpr, PRECISION: tl.constexpr, ROWS: tl.constexpr, COLUMNS: tl.constexpr,
):  # fmt: skip
    """What enters the next layer, rounded as a layer's result is."""
    a = tile(x, row, column, x_row, n, d)
    if len(hidden) > 0:
        t = _factor(hidden, layers, column, rank, d, r, EACH, PRECISION, ROWS, COLUMNS)
        a = (a.to(tl.float32) * t).to(a.dtype)
    return a


@triton.jit
def _low_rank(
    x, layers, row, rank, x_row, n, d, r,
    LAYERS: tl.constexpr, PRECISION: tl.constexpr, RANK: tl.constexpr, ROWS: tl.constexpr,
    COLUMNS: tl.constexpr,
):  # fmt: skip
    """x v^T of every layer."""
    hidden = ()
    for i in tl.static_range(LAYERS):
        h = tl.zeros((ROWS, RANK), tl.float32)
        for start in range(0, d, COLUMNS):
            column = (start + tl.arange(0, COLUMNS)).to(tl.int64)
            a = _operand(
                x, hidden, layers, row, column, rank, x_row, n, d, r, 3, PRECISION, ROWS, COLUMNS
            )
            h = dot(a, turned(layers[3 * i], column, rank, d, d, r), h, PRECISION)
        hidden = hidden + (h,)  # noqa: RUF005 - Triton reads no unpacking
    return hidden


@triton.jit
def _mixed(
    q,
    k,
    v,
    scratch,
    place,
    rank,
    valid,
    r,
    SKIP: tl.constexpr,
    RANK: tl.constexpr,
    ROWS: tl.constexpr,
):
    """Attention among the components of each row; q in powers of two."""
    known = (rank < r)[None, :]
    at = scratch + place[:, None] * (2 * r) + rank[None, :]
    tl.store(at, k, mask=valid[:, None] & known)
    tl.store(at + r, v, mask=valid[:, None] & known)
    high = tl.max(tl.where(known, k, -float("inf")), 1)
    low = tl.min(tl.where(known, k, float("inf")), 1)
    nearest = tl.where(q < 0, low[:, None], high[:, None])
    total, weighted = tl.zeros((ROWS, RANK), tl.float32), tl.zeros((ROWS, RANK), tl.float32)
    first = scratch + place * (2 * r)
    tl.debug_barrier()  # other threads stored what is loaded next
    for j in range(0, r):
        key = tl.load(first + j, mask=valid, other=0)
        value = tl.load(first + r + j, mask=valid, other=0)
        e = tl.exp2(q * (key[:, None] - nearest))
        total += e
        weighted += e * value[:, None]
    tl.debug_barrier()  # the next layer, or the result, is stored in the same place
    o = weighted / total
    if SKIP:
        o += v
    return tl.where(known, o, 0.0)


@triton.jit
def _attention(
    x, layers, logs, scratch, row, place, rank, scale, x_row, n, d, r,
    LAYERS: tl.constexpr, SKIP: tl.constexpr, PRECISION: tl.constexpr, RANK: tl.constexpr,
    ROWS: tl.constexpr, COLUMNS: tl.constexpr,
):  # fmt: skip
    """What enters u in every layer."""
    hidden = ()
    for i in tl.static_range(LAYERS):
        q = tl.zeros((ROWS, RANK), tl.float32)
        k = tl.zeros((ROWS, RANK), tl.float32)
        v = tl.zeros((ROWS, RANK), tl.float32)
        for start in range(0, d, COLUMNS):
            column = (start + tl.arange(0, COLUMNS)).to(tl.int64)
            a = _operand(
                x, hidden, layers, row, column, rank, x_row, n, d, r, 5, PRECISION, ROWS, COLUMNS
            )
            q = dot(a, turned(layers[5 * i], column, rank, d, d, r), q, PRECISION)
            k = dot(a, turned(layers[5 * i + 1], column, rank, d, d, r), k, PRECISION)
            v = dot(a, turned(layers[5 * i + 2], column, rank, d, d, r), v, PRECISION)
        q *= tl.full((), scale, tl.float32)
        if len(logs) > 0:
            q *= tl.exp(-tl.load(logs[i]).to(tl.float32))
        o = _mixed(q, k, v, scratch, place, rank, row < n, r, SKIP, RANK, ROWS)
        hidden = hidden + (o,)  # noqa: RUF005
    return hidden


@triton.jit(do_not_specialize=["n"])
def _cross_net(
    x, low, high, logs, scratch, out, n, d, r, s, x_row, scratch_row, scale: tl.float64,
    LOW: tl.constexpr, HIGH: tl.constexpr, SKIP: tl.constexpr, MERGE: tl.constexpr,
    ADD: tl.constexpr, PRECISION: tl.constexpr, RANK: tl.constexpr, WIDE: tl.constexpr,
    ROWS: tl.constexpr, COLUMNS: tl.constexpr,
):  # fmt: skip
    """LOW layers of rank r, HIGH with attention of rank s; ADD: to what is in ``out``."""
    place = tl.arange(0, ROWS)
    first_row = tl.program_id(0).to(tl.int64) * ROWS
    row = first_row + place
    rank, wide = tl.arange(0, RANK).to(tl.int64), tl.arange(0, WIDE).to(tl.int64)
    mine = scratch
    if HIGH > 0:
        mine += first_row * scratch_row // 4  # bytes a row; ROWS of them are whole float32
    first = _low_rank(x, low, row, rank, x_row, n, d, r, LOW, PRECISION, RANK, ROWS, COLUMNS)
    second = _attention(
        x,
        high,
        logs,
        mine,
        row,
        place,
        wide,
        scale,
        x_row,
        n,
        d,
        s,
        HIGH,
        SKIP,
        PRECISION,
        WIDE,
        ROWS,
        COLUMNS,
    )
    for start in range(0, d, COLUMNS):
        column = (start + tl.arange(0, COLUMNS)).to(tl.int64)
        a = tile(x, row, column, x_row, n, d).to(tl.float32)
        y = tl.zeros((ROWS, COLUMNS), tl.float32)
        if LOW > 0:
            y = a * _factor(first, low, column, rank, d, r, 3, PRECISION, ROWS, COLUMNS)
        if MERGE == CONCAT and LOW > 0:
            keep(out, y, row, column, 2 * d, n, d)
        if HIGH > 0:
            z = a * _factor(second, high, column, wide, d, s, 5, PRECISION, ROWS, COLUMNS)
            if MERGE == CONCAT:
                keep(out + d, z, row, column, 2 * d, n, d)
            y += z
        if MERGE != CONCAT:
            if ADD:
                y += tile(out, row, column, d, n, d).to(tl.float32)
            if MERGE == MEAN:
                y *= 0.5
            keep(out, y, row, column, d, n, d)


# ---- launchers ---------------------------------------------------------------------------


def _limits(dtype: torch.dtype) -> tuple[int, int]:
    """(JOINT, STACK): the padded ranks of one launch; beyond, registers spill on sm_80."""
    return (256, 512) if dtype == torch.bfloat16 else (128, 128)


def _plans(dtype: torch.dtype, total: int) -> tuple[dict[str, int], ...]:
    """Tiles that spill on no architecture (benchmarks/results/triton_resources.md)."""
    few = {"ROWS": 16, "COLUMNS": 32, "num_warps": 8, "num_stages": 2}
    if dtype != torch.bfloat16 or total > 256:
        return (few,)
    return ({**few, "ROWS": 32}, {**few, "num_warps": 4})


def _rank_of(stack: list[Tensor], each: int) -> int | None:
    """The rank of all layers, or None where they differ."""
    ranks = {u.shape[1] for u in stack[each - 2 :: each]}
    return ranks.pop() if len(ranks) == 1 else None


def _totals(low: list[Tensor], high: list[Tensor]) -> tuple[int, int] | None:
    r, s = _rank_of(low, 3), _rank_of(high, 5)
    if r is None or s is None:
        return None
    return padded(r) * (len(low) // 3), padded(s) * (len(high) // 5)


def fits(x: Tensor, low: list[Tensor], high: list[Tensor], token_dim: int) -> bool:
    """Whether ``forward`` takes this net."""
    totals, layers = _totals(low, high), max(len(low) // 3, len(high) // 5)
    if totals is None or token_dim != 1 or x.dtype == torch.float64 or layers > LAYERS:
        return False
    return max(totals) <= _limits(x.dtype)[1]


def _scratch(out: Tensor, r: int) -> tuple[Tensor, int]:
    """Room for keys and values, and its bytes per row: the output's own where that suffices."""
    row = out.shape[1] * out.element_size()
    if row < 8 * r:
        return out.new_empty((out.shape[0], 2 * r), dtype=torch.float32), 8 * r
    items = 4 // out.element_size()
    flat = out.view(-1)
    return flat[: flat.numel() // items * items].view(torch.float32), row


def forward(x, low, high, temperature, logs, skip, merge, layered) -> Tensor:
    """The net on checked arguments; ``layered`` is the same layer by layer, timed beside it.

    Scratch: none, or (B, 2 r) float32 where the output's rows are too short for it.
    """
    n, d = x.shape
    x = rows(x)
    low, high = tuple(t.contiguous() for t in low), tuple(t.contiguous() for t in high)
    r, s, totals = low[1].shape[1], high[3].shape[1], _totals(low, high)
    result = {"out": x.new_empty(n, 2 * d if merge == CONCAT.value else d)}
    scratch, scratch_row = _scratch(result["out"], s)
    passes, scale = precision(), LOG2E if logs else LOG2E / temperature

    def one(c, first, second, merge, add):
        args = (x, first, second, tuple(logs) if second else (), scratch, result["out"])
        sizes = (n, d, r, s, x.stride(0), scratch_row, scale, len(first) // 3, len(second) // 5)
        ranks = (padded(r) if first else 16, padded(s) if second else 16)
        grid = (cdiv(n, c["ROWS"]),)
        launch(_cross_net, grid, *args, *sizes, skip, merge, add, passes, *ranks, **c)

    def run(c):
        if c is None:
            result["out"] = layered()
        elif joint:
            one(c, low, high, merge, False)
        else:
            one(c, (), high, merge if merge == CONCAT.value else SUM.value, False)
            one(c, low, (), merge, merge != CONCAT.value)

    layers = len(low) // 3 + len(high) // 5
    joint = sum(totals) <= _limits(x.dtype)[0] and layers <= LAYERS
    plans = _plans(x.dtype, sum(totals) if joint else max(totals))
    key = ("net", x.dtype, passes, layers, totals, size_class(d), batch_class(n))
    choose(key, (*plans, None), run)
    return result["out"]
