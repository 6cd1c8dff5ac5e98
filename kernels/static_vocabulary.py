"""Look-ups in a static vocabulary on GPUs.

One program takes BLOCK keys: hash, pilot, slot, row, tag, as in ``csrc/static_vocabulary_table.h``.
A table on the device is checked there, without a wait: every program reads the 64 bytes of its
header and takes its share of the parts. Each key's own part is checked again before it leads
anywhere, so that no table, however damaged, leads outside its memory; what it cannot answer gets
``oov``.

Bytes: a key and a row, and two sectors of 32 bytes from the table, pilot and tag (10M keys: 13 MB,
all in L2; then 64 bytes a key from L2). 16 bytes a key of streams: 1M keys 5 us at 3.35 TB/s
(H100, datasheet), 12 us for the sectors at 5.5 TB/s. L2 is the limit: on an H100 4M look-ups among
1M keys took 76 us with the first plan, when it still read the word behind every tag. Other plans
read keys and tags past L1, which leaves L1 to the pilots (0.3 bytes a key).

Dropped: a table at an odd address read byte by byte (it is copied; it is one only where it was cut
out of something); keys loaded before the header is read (8 bytes a thread spilled on sm_90).
"""

from __future__ import annotations

from functools import cache

import torch
import triton
import triton.language as tl
from torch import Tensor

from .bags import VOCABULARY, findings, report
from .hashing import _finalize
from .launch import batch_class, cdiv, choose, launch, size_class
from .quantized_embedding_layout import aligned

_MAGIC = tl.constexpr(int.from_bytes(b"LIRVOC01", "little"))
_MOST_KEYS, _MOST_PARTS = tl.constexpr(1 << 40), tl.constexpr(1 << 25)
_MOST_TAG_BITS = tl.constexpr(32)


@triton.jit
def _up(size):
    return (size + 7) // 8 * 8


@triton.jit
def _sections(keys, parts, buckets, spare, tag_bits):
    """Where pilots, remap and tags begin, and the size of it all."""
    pilots = 64 + 8 * (parts + 1)
    remap = pilots + _up(parts * buckets)
    tags = remap + _up(2 * parts * spare)
    return pilots, remap, tags, tags + _up((keys * tag_bits + 7) // 8) + 8


@triton.jit
def _scale(fraction, n):
    return fraction * n.to(tl.uint64) >> 32


@triton.jit
def _bucket(hashed, buckets):
    """255/256 x^2 (1 + x) / 2 + x / 256: the first buckets take the most."""
    x = hashed & 0xFFFFFFFF
    skewed = (x * x >> 33) * (x + 4294967296) >> 32
    return _scale(skewed - (skewed >> 8) + (x >> 8), buckets)


@triton.jit
def _size_is_good(size, spare):
    return (size >= 0) & (size <= 65536 - spare)


@triton.jit
def _check_parts(errors, base, keys, parts, spare, BLOCK: tl.constexpr):
    """This program's share of the parts has its rows in order; what is not is reported."""
    jump = tl.num_programs(0).to(tl.int64) * BLOCK
    for start in range(tl.program_id(0).to(tl.int64) * BLOCK, parts, jump):
        part = start + tl.arange(0, BLOCK)
        here = part < parts
        first = tl.load(base + part, mask=here, other=0)
        after = tl.load(base + part + 1, mask=here, other=0)
        bad = (_size_is_good(after - first, spare) == 0) | ((part == 0) & (first != 0))
        bad = bad | ((part + 1 == parts) & (after != keys))
        report(errors, VOCABULARY, bad & here, part, first, after, keys)


@triton.jit(do_not_specialize=["n", "oov"])
def _vocabulary_lookup(
    keys,
    table,
    out,
    errors,
    n,
    size: tl.int64,
    oov: tl.int64,
    BLOCK: tl.constexpr,
    CACHE: tl.constexpr,
):
    at = tl.program_id(0).to(tl.int64) * BLOCK + tl.arange(0, BLOCK)
    header = table.to(tl.pointer_type(tl.int64))
    magic, known = tl.load(header), tl.load(header + 1)
    parts, buckets, spare = tl.load(header + 2), tl.load(header + 3), tl.load(header + 4)
    tag_bits, seed = tl.load(header + 5), tl.load(header + 6)
    sane = (magic == _MAGIC) & (known >= 0) & (known <= _MOST_KEYS)
    sane = sane & (parts >= 1) & (parts <= _MOST_PARTS) & (buckets >= 1) & (buckets <= 65536)
    sane = sane & (spare >= 1) & (spare <= 65536) & (tag_bits >= 0) & (tag_bits <= _MOST_TAG_BITS)
    pilots, remap, tags, wanted = _sections(known, parts, buckets, spare, tag_bits)
    if sane & (wanted == size):
        base = header + 8
        _check_parts(errors, base, known, parts, spare, BLOCK)
        key = tl.load(keys + at, mask=at < n, other=0, cache_modifier=CACHE)
        hashed = _finalize((key ^ seed).to(tl.uint64, bitcast=True))
        part = _scale(hashed >> 32, parts).to(tl.int64)
        bucket = _bucket(hashed, buckets).to(tl.int64)
        pilot = tl.load(table + pilots + part * buckets + bucket, mask=at < n, other=0)
        first = tl.load(base + part, mask=at < n, other=0)
        rows = tl.load(base + part + 1, mask=at < n, other=0) - first
        good = (at < n) & (first >= 0) & _size_is_good(rows, spare)
        stirred = hashed ^ ((pilot.to(tl.uint64) + 1) * 0x9E3779B97F4A7C15)
        slot = _scale(stirred * 0xD6E8FEB86659FD93 >> 32, rows + spare).to(tl.int64)
        beyond = slot - rows
        led = (table + remap).to(tl.pointer_type(tl.uint16)) + part * spare + beyond
        led = tl.load(led, mask=good & (beyond >= 0), other=0).to(tl.int64)
        row = first + tl.where(beyond < 0, slot, led)
        good = good & (row < known)
        if tag_bits > 0:
            bit = row * tag_bits
            word = (table + tags).to(tl.pointer_type(tl.uint32)) + bit // 32
            low = tl.load(word, mask=good, other=0, cache_modifier=CACHE).to(tl.uint64)
            # A tag of 1, 2, 4, 8, 16 or 32 bits never goes on in the next word.
            more = good & (bit % 32 + tag_bits > 32)
            high = tl.load(word + 1, mask=more, other=0, cache_modifier=CACHE).to(tl.uint64)
            stored = (low | (high << 32)) >> (bit % 32).to(tl.uint64)
            tag = (hashed * 0xA0761D6478BD642F) >> (64 - tag_bits).to(tl.uint64)
            mask = (tl.full((), 1, tl.uint64) << tag_bits.to(tl.uint64)) - 1
            good = good & ((stored & mask) == tag)
        tl.store(out + at, tl.where(good, row, oov), mask=at < n)
    else:
        blame = tl.program_id(0) == 0
        report(errors, VOCABULARY, blame, tl.program_id(0).to(tl.int64) - 1, magic, size, wanted)
        tl.store(out + at, tl.full((BLOCK,), oov, tl.int64), mask=at < n)


@cache
def _unread(device: torch.device) -> Tensor:
    """Where plans that are only timed count their findings."""
    return torch.zeros(6, dtype=torch.int64, device=device)


_PLANS = (
    {"BLOCK": 256, "CACHE": "", "num_warps": 4},
    {"BLOCK": 256, "CACHE": ".cg", "num_warps": 4},
    {"BLOCK": 128, "CACHE": ".cg", "num_warps": 4},
)


def vocabulary_lookup(a) -> Tensor:
    """The op on a GPU; no scratch. A table that lies on an odd address is copied.

    One program at least is launched, so that a damaged table is found where there are no keys.
    """
    keys, table = a.keys.contiguous(), aligned(a.table)
    out, n, size = torch.empty_like(keys), keys.numel(), table.numel()

    def look_up(plan, errors):
        args = (keys, table, out, errors, n, size, a.oov)
        launch(_vocabulary_lookup, (max(1, cdiv(n, plan["BLOCK"])),), *args, **plan)

    choose(
        ("vocabulary", size_class(size), batch_class(n)),
        _PLANS,
        lambda plan: look_up(plan, findings(keys.device)),
        lambda plan: look_up(plan, _unread(keys.device)),
    )
    return out
