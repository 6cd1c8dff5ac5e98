"""Isotonic calibration on GPUs: Triton kernels and their launchers.

A logit lies in bucket i = floor((clamp(x) - lower) / step). Without an embedding the sum over
the buckets is a prefix sum: a program builds it once in registers (k <= 1024) or reads it from
a table that another kernel wrote (beyond), then walks over its share of the samples with two
gathers and a multiply-add each. With an embedding a program takes a tile of samples and reads
of their rows only the columns up to the highest bucket among them.

Backward without an embedding: grad_weight needs, per bucket, the sum of g and of g * part. A
program keeps them as a (HIGH, LOW) matrix, the bucket's number split into two digits, so that
a tile of samples is one small matrix product onehot(high digit) x (onehot(low digit) * g),
about k multiply-adds a sample on tensor cores and no atomics. float32 goes through in three
bfloat16 passes, g = g1 + g2 + g3 to the last bit, and a one-hot factor is exact. Programs
write theirs to scratch (programs, 2, k); torch adds them up in a fixed order, and one more
program turns the sums into the gradient. Bit-equal run to run.

Bytes: forward 2 items a sample, backward 3 (logits, grad, grad_logits). 1M fp32 samples:
8.4 MB, 2.5 us at 3.35 TB/s (H100, datasheet), backward 3.8 us. With an embedding (B, k) both
are bound by its rows: B * k items read at most, and written by the backward.

Assumes: k < 2^24; sizes below 2^31 samples take 32-bit counters, larger ones 64-bit.
Dropped: one kernel that recomputes the prefix for every k (registers beyond 1024 buckets);
histograms by sorting a tile (55 exchange steps for 1024 samples); the product in tf32x3, which
spilled 7 KB a thread with float32 on sm_90; tiles of 128 samples there (48 bytes spilled);
float atomics, whose order, and so whose sums, change from run to run.
"""

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor

from .launch import (
    batch_class,
    cdiv,
    choose,
    compute_type,
    dot,
    launch,
    multiprocessors,
    next_power_of_2,
    rows,
    size_class,
)

IN_REGISTERS = 1024  # buckets whose prefix sums a program builds by itself
CHUNK = 1024  # buckets per step of the kernels that walk over all of them


@triton.jit
def _bucket(x, k, lower, step):
    """Index and how far into the bucket; NaN gives bucket 0 and part NaN."""
    k_float = tl.full((), k, x.dtype)  # k = 1 arrives as a constant, which has no .to
    z = x - lower
    z = tl.where(z < 0, 0.0, z)
    z = tl.where(z > k_float * step, k_float * step, z)
    index = z * (1.0 / step)
    index = tl.where(index > 0, index, 0.0)
    index = tl.floor(tl.where(index < k_float - 1, index, k_float - 1))
    part = z - index * step
    part = tl.where(part < 0, 0.0, part)
    part = tl.where(part > step, step, part)
    return index.to(tl.int32), part


@triton.jit
def _relu(x):
    return tl.where(x < 0, 0.0, x)  # keeps NaN


@triton.jit
def _prefix(weight, bias, table, k, lower: tl.float64, step: tl.float64, CHUNK: tl.constexpr):
    """table[i] = lower + bias + step * sum of relu(weight) below i, in float64; one program."""
    column = tl.arange(0, CHUNK)
    running = tl.full((), lower, tl.float64) + tl.load(bias).to(tl.float64)
    for start in range(0, k, CHUNK):
        at = start + column
        slope = _relu(tl.load(weight + at, mask=at < k, other=0).to(tl.float64)) * step
        total = tl.cumsum(slope, 0)
        tl.store(table + at, running + total - slope, mask=at < k)
        running += tl.sum(slope, 0)


@triton.jit(do_not_specialize=["n"])
def _calibrate(
    logits, weight, bias, table, out, n, k, lower: tl.float64, step: tl.float64,
    COMPUTE: tl.constexpr, BUCKETS: tl.constexpr, BLOCK: tl.constexpr, SLOPES: tl.constexpr,
    AHEAD: tl.constexpr,
):  # fmt: skip
    """SLOPES: slopes too are gathered from what a program keeps, and not read from memory.
    AHEAD: a tile is loaded before the one in front of it is used."""
    low, width = tl.full((), lower, COMPUTE), tl.full((), step, COMPUTE)
    if AHEAD:
        at = tl.program_id(0).to(tl.int64) * BLOCK + tl.arange(0, BLOCK)
        following = tl.load(logits + at, mask=at < n, other=0)
    if BUCKETS > 0:
        column = tl.arange(0, BUCKETS)
        if SLOPES:
            rises = _relu(tl.load(weight + column, mask=column < k, other=0).to(COMPUTE))
        slope = _relu(tl.load(weight + column, mask=column < k, other=0).to(tl.float64)) * step
        base = tl.full((), lower, tl.float64) + tl.load(bias).to(tl.float64)
        prefix = (base + tl.cumsum(slope, 0) - slope).to(COMPUTE)
    jump = tl.num_programs(0).to(tl.int64) * BLOCK
    for start in range(tl.program_id(0).to(tl.int64) * BLOCK, n, jump):
        at = start + tl.arange(0, BLOCK)
        if AHEAD:
            x = following.to(COMPUTE)
            following = tl.load(logits + at + jump, mask=at + jump < n, other=0)
        else:
            x = tl.load(logits + at, mask=at < n, other=0).to(COMPUTE)
        index, part = _bucket(x, k, low, width)
        if BUCKETS > 0:
            below = tl.gather(prefix, index, 0)
        else:
            below = tl.load(table + index).to(COMPUTE)
        if SLOPES:
            rise = tl.gather(rises, index, 0)
        else:
            rise = _relu(tl.load(weight + index).to(COMPUTE))
        y = rise * part + below
        tl.store(out + at, y.to(out.dtype.element_ty), mask=at < n)


@triton.jit(do_not_specialize=["n"])
def _calibrate_rows(
    logits,
    weight,
    bias,
    embedding,
    out,
    n,
    k,
    lower: tl.float64,
    step: tl.float64,
    COMPUTE: tl.constexpr,
    ROWS: tl.constexpr,
    COLUMNS: tl.constexpr,
):
    low, width = tl.full((), lower, COMPUTE), tl.full((), step, COMPUTE)
    row = tl.program_id(0).to(tl.int64) * ROWS + tl.arange(0, ROWS)
    x = tl.load(logits + row, mask=row < n, other=0).to(COMPUTE)
    index, part = _bucket(x, k, low, width)
    total = tl.zeros((ROWS, COLUMNS), COMPUTE)
    for start in range(0, tl.max(index, 0) + 1, COLUMNS):
        column = start + tl.arange(0, COLUMNS)
        wanted = (row < n)[:, None] & (column[None, :] <= index[:, None])
        e = tl.load(embedding + row[:, None] * k + column[None, :], mask=wanted, other=0)
        w = tl.load(weight + column, mask=column < k, other=0).to(COMPUTE)
        slope = _relu(e.to(COMPUTE) + w[None, :])
        v = tl.where(column[None, :] < index[:, None], width, part[:, None])
        total += tl.where(wanted, slope * v, 0.0)
    y = tl.sum(total, 1) + (low + tl.load(bias).to(COMPUTE))
    tl.store(out + row, y.to(out.dtype.element_ty), mask=row < n)


@triton.jit
def _keep_gradient(grad_logits, gradient, at, n, x, k, low, width):
    """Store the gradients of the logits at these places: 0 for those outside all buckets."""
    inside = (x >= low) & (x <= low + tl.full((), k, width.dtype) * width)
    dx = tl.where(inside, gradient, 0.0)
    tl.store(grad_logits + at, dx.to(grad_logits.dtype.element_ty), mask=at < n)


@triton.jit(do_not_specialize=["n"])
def _histogram(
    grad, logits, weight, grad_logits, partial, n, k, lower: tl.float64, step: tl.float64,
    COMPUTE: tl.constexpr, PASS: tl.constexpr, PASSES: tl.constexpr, HIGH: tl.constexpr,
    LOW: tl.constexpr, BLOCK: tl.constexpr,
):  # fmt: skip
    """grad_logits, and this program's sums of g and g * part for HIGH * LOW buckets."""
    low, width = tl.full((), lower, COMPUTE), tl.full((), step, COMPUTE)
    first = tl.program_id(1) * (HIGH * LOW)
    high, digit = tl.arange(0, HIGH), tl.arange(0, LOW)
    counts, parts = tl.zeros((HIGH, LOW), COMPUTE), tl.zeros((HIGH, LOW), COMPUTE)
    jump = tl.num_programs(0).to(tl.int64) * BLOCK
    for start in range(tl.program_id(0).to(tl.int64) * BLOCK, n, jump):
        at = start + tl.arange(0, BLOCK)
        x = tl.load(logits + at, mask=at < n, other=0).to(COMPUTE)
        g = tl.load(grad + at, mask=at < n, other=0).to(COMPUTE)
        index, part = _bucket(x, k, low, width)
        if tl.program_id(1) == 0:
            slope = _relu(tl.load(weight + index).to(COMPUTE))
            _keep_gradient(grad_logits, g * slope, at, n, x, k, low, width)
        mine = index - first
        left = (high[:, None] == (mine // LOW)[None, :]) & (mine >= 0)[None, :]
        right = (mine % LOW)[:, None] == digit[None, :]
        onehot = left.to(COMPUTE).to(PASS)
        count, share = g, tl.where(at < n, g * part, 0.0)
        for _ in tl.static_range(PASSES):
            count_now, share_now = count.to(PASS).to(COMPUTE), share.to(PASS).to(COMPUTE)
            to_counts = tl.where(right, count_now[:, None], 0.0).to(PASS)
            to_parts = tl.where(right, share_now[:, None], 0.0).to(PASS)
            counts = dot(onehot, to_counts, counts, "ieee")
            parts = dot(onehot, to_parts, parts, "ieee")
            count -= count_now
            share -= share_now
    padded = tl.num_programs(1) * (HIGH * LOW)
    at = first + high[:, None] * LOW + digit[None, :]
    mine = partial + tl.program_id(0).to(tl.int64) * 2 * padded
    tl.store(mine + at, counts)
    tl.store(mine + padded + at, parts)


@triton.jit
def _weight_gradient(
    sums, weight, grad_weight, grad_bias, padded, k, step: tl.float64, CHUNK: tl.constexpr
):
    """grad_weight[i] = [w_i > 0] * (parts[i] + step * sum of counts above i); one program."""
    column = tl.arange(0, CHUNK)
    above = tl.full((), 0.0, tl.float64)
    width = tl.full((), step, tl.float64)
    steps = tl.cdiv(k, CHUNK)
    for i in range(0, steps):
        at = (steps - 1 - i) * CHUNK + column
        count = tl.load(sums + at, mask=at < k, other=0)
        part = tl.load(sums + padded + at, mask=at < k, other=0)
        total = tl.sum(count, 0)
        higher = above + (total - tl.cumsum(count, 0))
        w = tl.load(weight + at, mask=at < k, other=0)
        found = tl.where(w > 0, part + width * higher, 0.0)
        tl.store(grad_weight + at, found.to(grad_weight.dtype.element_ty), mask=at < k)
        above += total
    tl.store(grad_bias, above.to(grad_bias.dtype.element_ty))


@triton.jit(do_not_specialize=["n"])
def _calibrate_rows_backward(
    grad, logits, weight, embedding, grad_logits, grad_embedding, partial, partial_bias, n, k,
    lower: tl.float64, step: tl.float64,
    COMPUTE: tl.constexpr, ROWS: tl.constexpr, COLUMNS: tl.constexpr,
):  # fmt: skip
    """A block of columns for this program's share of the rows; the first block does the rest."""
    low, width = tl.full((), lower, COMPUTE), tl.full((), step, COMPUTE)
    column = tl.program_id(0) * COLUMNS + tl.arange(0, COLUMNS)
    w = tl.load(weight + column, mask=column < k, other=0).to(COMPUTE)
    total, total_bias = tl.zeros((COLUMNS,), COMPUTE), tl.zeros((ROWS,), COMPUTE)
    jump = tl.num_programs(1).to(tl.int64) * ROWS
    for start in range(tl.program_id(1).to(tl.int64) * ROWS, n, jump):
        row = start + tl.arange(0, ROWS)
        x = tl.load(logits + row, mask=row < n, other=0).to(COMPUTE)
        g = tl.load(grad + row, mask=row < n, other=0).to(COMPUTE)
        index, part = _bucket(x, k, low, width)
        if tl.program_id(0) == 0:
            e = tl.load(embedding + row * k + index, mask=row < n, other=0).to(COMPUTE)
            slope = _relu(e + tl.load(weight + index).to(COMPUTE))
            _keep_gradient(grad_logits, g * slope, row, n, x, k, low, width)
            total_bias += g
        valid = (row < n)[:, None] & (column < k)[None, :]
        at = row[:, None] * k + column[None, :]
        e = tl.load(embedding + at, mask=valid, other=0).to(COMPUTE)
        v = tl.where(column[None, :] < index[:, None], width, part[:, None])
        v = tl.where(column[None, :] <= index[:, None], v, 0.0)
        de = tl.where(e + w[None, :] > 0, g[:, None] * v, 0.0)
        tl.store(grad_embedding + at, de.to(grad_embedding.dtype.element_ty), mask=valid)
        total += tl.sum(tl.where(valid, de, 0.0), 0)
    tl.store(partial + tl.program_id(1).to(tl.int64) * k + column, total, mask=column < k)
    if tl.program_id(0) == 0:
        tl.store(partial_bias + tl.program_id(1), tl.sum(total_bias, 0))


# ---- launchers ---------------------------------------------------------------------------


def isotonic_calibration(a) -> Tensor:
    """The op on a GPU; scratch: k float64 values where k > IN_REGISTERS."""
    out = torch.empty_like(a.logits, memory_format=torch.contiguous_format)
    x, w, b = a.logits.contiguous(), rows(a.weight), a.bias
    n, k, compute = x.numel(), w.shape[0], compute_type(x)
    if a.embedding is not None:
        e = a.embedding.contiguous()

        def run(c):
            grid = (cdiv(n, c["ROWS"]),)
            launch(_calibrate_rows, grid, x, w, b, e, out, n, k, a.lower, a.step, compute, **c)

        choose(("rows", x.dtype, size_class(k), batch_class(n)), _ROWS, run)
        return out
    table = None
    if k > IN_REGISTERS:
        table = torch.empty(k, dtype=torch.float64, device=w.device)
        launch(_prefix, (1,), w, b, table, k, a.lower, a.step, CHUNK=CHUNK, num_warps=8)
    buckets = 0 if k > IN_REGISTERS else max(16, next_power_of_2(k))

    def run(c):
        grid = (min(cdiv(n, c["BLOCK"]), 8 * multiprocessors(x)),)
        args = (x, w, b, table, out, n, k, a.lower, a.step, compute, buckets)
        launch(_calibrate, grid, *args, **c)

    plans = _SAMPLES if buckets else _SAMPLES[:2]
    choose(("samples", x.dtype, buckets, batch_class(n)), plans, run)
    return out


def isotonic_calibration_backward(a) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Gradients for logits, weight, bias and embedding (zeros (k,) where there is none).

    Scratch: the partial sums of at most four programs a multiprocessor, 2 * k values each.
    """
    g, x, w = a.grad.contiguous(), a.logits.contiguous(), rows(a.weight)
    dx = torch.empty_like(x)
    if a.embedding is None:
        dw, db = torch.empty_like(w), torch.empty_like(a.bias)
        _samples_backward(g, x, w, a.lower, a.step, dx, dw, db)
        return dx, dw, db, torch.zeros_like(dw)
    e = a.embedding.contiguous()
    de = torch.empty_like(e)
    n, k = x.numel(), w.shape[0]
    wide = torch.float64 if x.dtype == torch.float64 else torch.float32
    c = {"ROWS": 16, "COLUMNS": min(128, max(16, next_power_of_2(k))), "num_warps": 4}
    programs = max(1, min(cdiv(n, 4 * c["ROWS"]), 4 * multiprocessors(x)))
    partial = torch.empty((programs, k), dtype=wide, device=x.device)
    partial_bias = torch.empty((programs,), dtype=wide, device=x.device)
    grid = (cdiv(k, c["COLUMNS"]), programs)  # the second axis ends at 65,535
    args = (g, x, w, e, dx, de, partial, partial_bias, n, k, a.lower, a.step, compute_type(x))
    launch(_calibrate_rows_backward, grid, *args, **c)
    total, total_bias = partial.sum(0), partial_bias.sum()
    return dx, total.to(w.dtype), total_bias.to(a.bias.dtype).reshape(a.bias.shape), de


def _samples_backward(g, x, w, lower, step, dx, dw, db):
    n, k = x.numel(), w.shape[0]
    half = max(4, (min(k, CHUNK) - 1).bit_length()) // 2
    low = max(16, 1 << half)
    high = max(16, next_power_of_2(cdiv(min(k, CHUNK), low)))
    chunks = cdiv(k, high * low)
    programs = max(1, min(cdiv(n, 1024), 4 * multiprocessors(x)))
    double = x.dtype == torch.float64
    wide = torch.float64 if double else torch.float32
    partial = torch.empty((programs, 2, chunks * high * low), dtype=wide, device=x.device)
    constants = {"COMPUTE": compute_type(x), "PASS": compute_type(x) if double else tl.bfloat16}
    constants |= {"PASSES": 1 if double else 3}
    constants |= {"HIGH": high, "LOW": low, "BLOCK": 64, "num_warps": 4}
    grid = (programs, chunks)
    launch(_histogram, grid, g, x, w, dx, partial, n, k, lower, step, **constants)
    sums = partial.sum(0, dtype=torch.float64)
    args = (sums, w, dw, db, sums.shape[1], k, step)
    launch(_weight_gradient, (1,), *args, CHUNK=CHUNK, num_warps=8)


# Slopes of 32 samples lie in up to 16 lines of L1, which are read one after another; in shared
# memory only those conflict that lie in one bank.
_SAMPLES = (
    {"BLOCK": 1024, "SLOPES": False, "AHEAD": False, "num_warps": 4},
    {"BLOCK": 2048, "SLOPES": False, "AHEAD": False, "num_warps": 8},
    {"BLOCK": 1024, "SLOPES": True, "AHEAD": False, "num_warps": 4},
    {"BLOCK": 1024, "SLOPES": True, "AHEAD": True, "num_warps": 4},
)
_ROWS = (
    {"ROWS": 16, "COLUMNS": 64, "num_warps": 4},
    {"ROWS": 4, "COLUMNS": 256, "num_warps": 4},
)
