"""MurmurHash3 of 64-bit ids and of strings on GPUs: where nvcc was not there to build the CUDA one.

One program takes BLOCK ids; 16 bytes an id move, and 8 multiplications of 64 bits (each a few
32-bit ones) hide behind them: 1M ids are 16 MB, 5 us at 3.35 TB/s (H100, datasheet).

Strings: one warp a program and a key a lane, byte by byte: texts start anywhere, and a wider load
would leave the buffer at its ends. Neighbors read neighboring texts, so lines are shared in L1.
Keys of about the same length are assumed: a long one holds its 31 neighbors up, and no others.
"""

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor

from .bags import OFFSETS, findings, report
from .launch import cdiv, launch


@triton.jit
def _rotate(x, by: tl.constexpr):
    return (x << by) | (x >> (64 - by))


@triton.jit
def _finalize(k):
    k = (k ^ (k >> 33)) * 0xFF51AFD7ED558CCD
    k = (k ^ (k >> 33)) * 0xC4CEB9FE1A85EC53
    return k ^ (k >> 33)


@triton.jit
def murmur(ids, seed):
    """Low 64 bits of MurmurHash3_x64_128 of each id; uint64."""
    k = ids.to(tl.int64).to(tl.uint64, bitcast=True) * 0x87C37B91114253D5
    s = seed.to(tl.uint64)
    h1 = (_rotate(k, 31) * 0x4CF5AD432745937F) ^ s ^ 8
    h2 = s ^ 8
    h1 = h1 + h2
    return _finalize(h1) + _finalize(h2 + h1)


@triton.jit
def _mixed(k1, k2):
    return (
        _rotate(k1 * 0x87C37B91114253D5, 31) * 0x4CF5AD432745937F,
        _rotate(k2 * 0x4CF5AD432745937F, 33) * 0x87C37B91114253D5,
    )


@triton.jit
def _word(text, at, end):
    """8 bytes from ``at`` on as a little-endian number; those from ``end`` on are 0."""
    word = tl.zeros(at.shape, tl.uint64)
    for i in tl.static_range(8):
        byte = tl.load(text + at + i, mask=at + i < end, other=0)
        word = word | (byte.to(tl.uint64) << 8 * i)
    return word


@triton.jit(do_not_specialize=["n", "total", "seed"])
def _hash_strings(
    text, offsets, out, errors, n, total: tl.int64, seed: tl.int64, BLOCK: tl.constexpr
):
    key = tl.program_id(0).to(tl.int64) * BLOCK + tl.arange(0, BLOCK)
    begin = tl.load(offsets + key, mask=key < n, other=0)
    end = tl.load(offsets + key + 1, mask=key < n, other=0)
    bad = (begin < 0) | (end < begin) | (end > total) | ((key == 0) & (begin != 0))
    bad = bad & (key < n)
    report(errors, OFFSETS, bad, key, begin, end, total)
    length = tl.where(bad, 0, end - begin)
    h1 = tl.zeros((BLOCK,), tl.uint64) + seed.to(tl.uint64)
    h2 = h1
    for block in range(0, tl.max(length, 0) // 16):
        at = begin + block * 16
        whole = length >= 16 * (block + 1)
        stop = tl.where(whole, at + 16, at)  # nothing more is read of a key that is through
        k1, k2 = _mixed(_word(text, at, stop), _word(text, at + 8, stop))
        a = (_rotate(h1 ^ k1, 27) + h2) * 5 + 0x52DCE729
        b = (_rotate(h2 ^ k2, 31) + a) * 5 + 0x38495AB5
        h1, h2 = tl.where(whole, a, h1), tl.where(whole, b, h2)
    at, stop = begin + length // 16 * 16, begin + length
    k1, k2 = _mixed(_word(text, at, stop), _word(text, at + 8, stop))
    size = length.to(tl.uint64)
    h1, h2 = h1 ^ k1 ^ size, h2 ^ k2 ^ size
    h1 = h1 + h2
    found = _finalize(h1) + _finalize(h2 + h1)
    found = tl.where(bad, 0, found.to(tl.int64, bitcast=True))
    tl.store(out + key, found, mask=key < n)


@triton.jit(do_not_specialize=["n", "seed"])
def _murmur_hash(ids, out, n, seed: tl.int64, BLOCK: tl.constexpr):
    at = tl.program_id(0).to(tl.int64) * BLOCK + tl.arange(0, BLOCK)
    h = murmur(tl.load(ids + at, mask=at < n, other=0), seed)
    tl.store(out + at, h.to(tl.int64, bitcast=True), mask=at < n)


def murmur_hash(a) -> Tensor:
    """The op on a GPU."""
    ids = a.ids.contiguous()
    out, n = torch.empty_like(ids, dtype=torch.int64), ids.numel()
    launch(_murmur_hash, (cdiv(n, 1024),), ids, out, n, a.seed, BLOCK=1024, num_warps=4)
    return out


def hash_strings(a) -> Tensor:
    """The op on a GPU; a key whose offsets do not fit is counted, and gets 0."""
    text, offsets = a.bytes.contiguous(), a.offsets.contiguous()
    n = offsets.shape[0] - 1
    out = torch.empty(n, dtype=torch.int64, device=offsets.device)
    args = (text, offsets, out, findings(out.device), n, text.numel(), a.seed)
    launch(_hash_strings, (cdiv(n, 32),), *args, BLOCK=32, num_warps=1)
    return out
