"""Look-up in a static vocabulary: the row of a key by a minimal perfect hash."""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

from ..library.checks import check_device, check_dim, check_dtype, refuse
from ..library.op import op
from .hashing import finalize, shift_right

MAGIC = int.from_bytes(b"LIRVOC01", "little")
KEYS_PER_PART, MOST_KEYS, MOST_TAG_BITS = 1 << 15, 1 << 40, 32
HEADER_BYTES = 64
PILOT = 0x9E3779B97F4A7C15 - (1 << 64)
SLOT = 0xD6E8FEB86659FD93 - (1 << 64)
TAG = 0xA0761D6478BD642F - (1 << 64)
_LOW = (1 << 32) - 1


class Header(NamedTuple):
    """The first 64 bytes of a table; see ``csrc/static_vocabulary_table.h`` for the rest."""

    magic: int
    keys: int
    parts: int
    buckets: int
    spare: int
    tag_bits: int
    seed: int
    string_seed: int


class Layout(NamedTuple):
    """Where each section begins, in bytes, and the size of it all."""

    row_base: int
    pilots: int
    remap: int
    tags: int
    size: int


@op
def vocabulary_lookup(keys: Tensor, table: Tensor, oov: int = -1) -> Tensor:
    """Row of each key in the table that ``lirank_ext.nn.StaticVocabulary`` builds.

    A minimal perfect hash after PTHash (Pibiri and Trani, SIGIR 2021) and PtrHash (Groot
    Koerkamp, SEA 2025), in the place of LiRank's BBHash (arXiv 2402.06859, section 4.2).

    Args:
        keys: int64, any shape: ids, or the hashes of strings under the table's string seed.
        table: uint8, (bytes,); the buffer ``StaticVocabulary.table``.
        oov: the result for a key that the table does not know.

    Returns:
        int64, shape of ``keys``. A known key gets a row of its own in [0, n), another ``oov``. An
        unknown key is taken for a known one with a probability of ``2 ** -tag_bits``.

    Raises:
        ValueError, TypeError, RuntimeError: dtypes do not fit, or ``table`` is no such table.
    """
    h, table, flat = read_header(table), table.contiguous(), keys.reshape(-1)
    base, at = _row_base(table, h), layout(h)
    hashes = hash_keys(flat, h.seed)
    part = part_of(hashes, h.parts)
    pilot = table[at.pilots + part * h.buckets + bucket_of(hashes, h.buckets)].long()
    first = base[part]
    size = base[part + 1] - first
    slot = slot_of(hashes, pilot, size + h.spare)
    beyond = slot - size
    led = at.remap + 2 * (part * h.spare + beyond.clamp(min=0))
    led = table[led].long() | table[led + 1].long() << 8
    row = first + torch.where(beyond < 0, slot, led)
    known = row < h.keys
    if h.tag_bits:
        bit = torch.where(known, row, 0) * h.tag_bits
        five = torch.arange(5, device=keys.device)
        stored = (table[(at.tags + bit // 8).unsqueeze(1) + five].long() << 8 * five).sum(1)
        stored = stored >> bit % 8 & (1 << h.tag_bits) - 1
        known = known & (stored == tag_of(hashes, h.tag_bits))
    return torch.where(known, row, oov).reshape(keys.shape)


@vocabulary_lookup.check
def _(a) -> None:
    check_dtype(a, "keys", torch.int64)
    check_dtype(a, "table", torch.uint8)
    check_dim(a, "table", 1)
    check_device(a, "table", a.keys.device)
    if a.table.shape[0] < HEADER_BYTES:
        _refuse_table("too few bytes")


@vocabulary_lookup.fake
def _(a):
    return torch.empty_like(a.keys, memory_format=torch.contiguous_format)


def layout(header: Header) -> Layout:
    def up(size: int) -> int:
        return (size + 7) // 8 * 8

    pilots = HEADER_BYTES + 8 * (header.parts + 1)
    remap = pilots + up(header.parts * header.buckets)
    tags = remap + up(2 * header.parts * header.spare)
    size = tags + up((header.keys * header.tag_bits + 7) // 8) + 8
    return Layout(HEADER_BYTES, pilots, remap, tags, size)


def new_header(keys: int, tag_bits: int, seed: int, string_seed: int) -> Header:
    """What follows from the number of keys alone: parts, buckets and spare slots of a part."""
    parts = max(1, -(-keys // KEYS_PER_PART))
    mean = -(-keys // parts)
    buckets = (5 * mean + 16) // 17 + 1
    return Header(MAGIC, keys, parts, buckets, mean // 100 + 4, tag_bits, seed, string_seed)


def _refuse_table(what: str) -> None:
    text = f"wanted the table of a StaticVocabulary, got {what}"
    refuse("vocabulary_lookup", "table", text)


def read_header(table: Tensor) -> Header:
    """The header of a table whose sizes fit; else ValueError."""
    if table.shape[0] < HEADER_BYTES:
        _refuse_table("too few bytes")
    h = Header(*table[:HEADER_BYTES].clone().view(torch.int64).tolist())
    if h.magic != MAGIC:
        _refuse_table("bytes that do not begin with LIRVOC01")
    sane = 0 <= h.keys <= MOST_KEYS and 1 <= h.parts <= MOST_KEYS // KEYS_PER_PART
    sane = sane and 1 <= h.buckets <= 1 << 16 and 1 <= h.spare <= 1 << 16
    if not (sane and 0 <= h.tag_bits <= MOST_TAG_BITS):
        _refuse_table("sizes out of range in its header")
    if layout(h).size != table.shape[0]:
        _refuse_table("another number of bytes than its header states")
    return h


def _row_base(table: Tensor, h: Header) -> Tensor:
    base = table[HEADER_BYTES : layout(h).pilots].clone().view(torch.int64)
    size = base.diff()
    good = (base[0] == 0) & (base[-1] == h.keys) & (size >= 0).all()
    if not (good & (size <= (1 << 16) - h.spare).all()):
        _refuse_table("parts out of order")
    return base


def hash_keys(keys: Tensor, seed: int) -> Tensor:
    """One to one: different keys never share a hash."""
    return finalize(keys ^ seed)


def part_of(hashes: Tensor, parts: int) -> Tensor:
    return shift_right(hashes, 32) * parts >> 32


def bucket_of(hashes: Tensor, buckets: int) -> Tensor:
    """255/256 x^2 (1 + x) / 2 + x / 256: the first buckets take the most."""
    x = hashes & _LOW
    skewed = shift_right(shift_right(x * x, 33) * (x + (1 << 32)), 32)
    return (skewed - (skewed >> 8) + (x >> 8)) * buckets >> 32


def slot_of(hashes: Tensor, pilots: Tensor, slots: Tensor | int) -> Tensor:
    return shift_right((hashes ^ (pilots + 1) * PILOT) * SLOT, 32) * slots >> 32


def tag_of(hashes: Tensor, tag_bits: int) -> Tensor:
    return shift_right(hashes * TAG, 64 - tag_bits) if tag_bits else hashes * 0
