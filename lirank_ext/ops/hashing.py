"""MurmurHash3 of ids and of strings: a hash table's row without a vocabulary."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from ..library.checks import (
    check,
    check_device,
    check_dim,
    check_dtype,
    check_index_dtype,
    free_size,
    refuse,
)
from ..library.op import op
from .hashing_text import hash_text

C1 = 0x87C37B91114253D5 - (1 << 64)
C2 = 0x4CF5AD432745937F
F1 = 0xFF51AFD7ED558CCD - (1 << 64)
F2 = 0xC4CEB9FE1A85EC53 - (1 << 64)


@op
def murmur_hash(ids: Tensor, seed: int = 0) -> Tensor:
    """Low 64 bits of MurmurHash3_x64_128 over each id's 8 little-endian bytes.

    Bit-equal to ``mmh3.hash64(id.to_bytes(8, "little", signed=True), seed, signed=True)[0]``.
    LiRank (arXiv 2402.06859) hashes ids this way instead of keeping a vocabulary; the hash is
    Austin Appleby's, in the public domain.

    Args:
        ids: int64 or int32, any shape, strided or not; negative ids too. An int32 id has the hash
            of the same number as int64.
        seed: from 0 to 2^32 - 1.

    Returns:
        int64 hashes, shape of ``ids``.

    Raises:
        ValueError, TypeError, RuntimeError: ``ids`` or ``seed`` do not fit.

    Examples:
        >>> lirank_ext.murmur_hash(torch.tensor([0, 1, -1]))
        tensor([ 2945182322382062539,    19144387141682250, -6853156495446839949])
    """
    return murmur(ids.long(), seed)


@murmur_hash.check
def _(a) -> None:
    check_seed(a, a.seed)
    check_index_dtype(a, "ids")


@murmur_hash.fake
def _(a):
    return torch.empty_like(a.ids, dtype=torch.int64, memory_format=torch.contiguous_format)


def hash_strings(strings: Any, seed: int = 0) -> Tensor:
    """Low 64 bits of MurmurHash3_x64_128 over the UTF-8 bytes of each string.

    Bit-equal to ``mmh3.hash64(bytes, seed, signed=True)[0]``. Strings are read where they lie:
    only text that is not ASCII is turned into UTF-8, key by key, and nothing is kept.

    Args:
        strings: a sequence of str or bytes; a NumPy array of strings (``U``, ``S``, object), of
            one dimension; an Arrow array, chunked or not, of strings or binary; or the pair
            (bytes, offsets) of tensors, uint8 (total,) and int64 (n + 1,), where key i is
            ``bytes[offsets[i]:offsets[i + 1]]`` and ``offsets`` begins with 0. The pair is the
            op ``torch.ops.lirank.hash_strings``.
        seed: from 0 to 2^32 - 1.

    Returns:
        int64 hashes, (n,); on the device of the tensor pair, else on the CPU.

    Raises:
        ValueError, TypeError, RuntimeError: a missing key, a key that is no text, a lone
            surrogate (which has no UTF-8), offsets that do not fit, or ``seed`` out of range.

    Examples:
        >>> lirank_ext.hash_strings(["news", "jobs", "news"])
        tensor([ 922231461339870867, 2302286176393429925,  922231461339870867])
    """
    check_seed("hash_strings", seed)
    if isinstance(strings, (tuple, list)) and any(isinstance(s, Tensor) for s in strings[:2]):
        if len(strings) != 2 or not all(isinstance(s, Tensor) for s in strings):
            wanted = "wanted the two tensors (bytes, offsets)"
            refuse("hash_strings", "strings", f"{wanted}, got {len(strings)} items", TypeError)
        return _hash_strings(*strings, seed)
    return hash_text(strings, seed, _hash_strings)


def check_seed(a: Any, seed: int) -> None:
    if isinstance(seed, float):
        refuse(a, "seed", f"wanted an int, got {seed}", TypeError)
    check(0 <= seed < 1 << 32, a, "seed", "a number from 0 to 2^32 - 1", seed)


@op(name="hash_strings")
def _hash_strings(bytes: Tensor, offsets: Tensor, seed: int = 0) -> Tensor:
    """The definition: blocks of 16 bytes, one after another, then the rest of each key."""
    _check_offsets(bytes, offsets)
    start, end = offsets[:-1], offsets[1:]
    length = end - start
    h1, h2 = torch.full_like(length, seed), torch.full_like(length, seed)
    alive, block = (length >= 16).nonzero().squeeze(1), 0
    while alive.numel():
        at = start[alive] + 16 * block
        k1, k2 = _mixed(*_words(bytes, at, at + 16))
        a, b = h1[alive] ^ k1, h2[alive]
        h1[alive] = a = (rotate(a, 27) + b) * 5 + 0x52DCE729
        h2[alive] = (rotate(b ^ k2, 31) + a) * 5 + 0x38495AB5
        block += 1
        alive = alive[length[alive] >= 16 * (block + 1)]
    k1, k2 = _mixed(*_words(bytes, start + length // 16 * 16, end))
    return _low_half(h1 ^ k1, h2 ^ k2, length)


@_hash_strings.check
def _(a) -> None:
    check_seed(a, a.seed)
    check_dtype(a, "bytes", torch.uint8)
    check_dim(a, "bytes", 1)
    check_dtype(a, "offsets", torch.int64)
    check_dim(a, "offsets", 1)
    check(a.offsets.shape[0] > 0, a, "offsets", "at least one offset")
    check_device(a, "offsets", a.bytes.device)


@_hash_strings.fake
def _(a):
    return a.offsets.new_empty(free_size(a.offsets.shape[0] - 1))


def _check_offsets(data: Tensor, offsets: Tensor) -> None:
    op, first, last = "hash_strings", int(offsets[0]), int(offsets[-1])
    check(first == 0, op, "offsets", "0 as the first offset", first)
    falls = offsets.diff() < 0
    if falls.any():
        at = int(falls.nonzero()[0]) + 1
        text = f"{int(offsets[at])} after {int(offsets[at - 1])} at position {at}"
        check(False, op, "offsets", "offsets that never decrease", text)
    total = data.shape[0]
    check(last <= total, op, "offsets", f"offsets up to {total}, the number of bytes", last)


def shift_right(x: Tensor, by: int) -> Tensor:
    """Of the unsigned number: int64's own shift would drag the sign along."""
    return x >> by & (1 << 64 - by) - 1


def rotate(x: Tensor, by: int) -> Tensor:
    return x << by | shift_right(x, 64 - by)


def finalize(k: Tensor) -> Tensor:
    k = (k ^ shift_right(k, 33)) * F1
    k = (k ^ shift_right(k, 33)) * F2
    return k ^ shift_right(k, 33)


def _low_half(h1: Tensor, h2: Tensor, length: Tensor | int) -> Tensor:
    h1, h2 = h1 ^ length, h2 ^ length
    h1 = h1 + h2
    return finalize(h1) + finalize(h2 + h1)


def murmur(ids: Tensor, seed: int) -> Tensor:
    """The hash of 8 bytes; products and sums wrap around at 2^64 as unsigned ones do."""
    ids = ids.contiguous()
    h1 = rotate(ids * C1, 31) * C2 ^ seed
    return _low_half(h1, torch.full_like(ids, seed), 8)


def _words(data: Tensor, start: Tensor, end: Tensor) -> tuple[Tensor, Tensor]:
    """16 bytes from ``start`` as two little-endian numbers; those from ``end`` on read as 0."""
    at = start.unsqueeze(1) + torch.arange(16, device=data.device)
    byte = data[at.clamp(max=max(data.shape[0] - 1, 0))].long() if data.shape[0] else at * 0
    byte = torch.where(at < end.unsqueeze(1), byte, 0).reshape(-1, 2, 8)
    words = (byte << 8 * torch.arange(8, device=data.device)).sum(2)
    return words[:, 0], words[:, 1]


def _mixed(k1: Tensor, k2: Tensor) -> tuple[Tensor, Tensor]:
    return rotate(k1 * C1, 31) * C2, rotate(k2 * C2, 33) * C1
