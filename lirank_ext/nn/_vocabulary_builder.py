"""Builds the table of a static vocabulary in NumPy, for installations without the extension.

The steps are those of ``csrc/static_vocabulary_builder.h``, where comments explain them. The table
is the same, byte for byte. Building it takes about 100 times as long.
"""

from __future__ import annotations

import heapq
from collections import deque

import numpy as np
import torch

from ..ops.static_vocabulary import PILOT, SLOT, bucket_of, hash_keys, layout, new_header, part_of
from ..ops.static_vocabulary import tag_of as tags_of

FREE, RECENT, PILOTS = -1, 16, 256
_STIR = np.arange(1, PILOTS + 1, dtype=np.uint64) * np.uint64(PILOT + (1 << 64))


def _slots_of_pilots(hashes: np.ndarray, slots: int) -> np.ndarray:
    """(keys, 256): the slot of each key under each pilot."""
    stirred = (hashes[:, None].view(np.uint64) ^ _STIR) * np.uint64(SLOT + (1 << 64))
    return ((stirred >> np.uint64(32)) * np.uint64(slots) >> np.uint64(32)).astype(np.int32)


class Part:
    """Searches the pilots of one part, whose hashes are sorted by bucket, then by value."""

    def __init__(self, hashes: np.ndarray, buckets: np.ndarray, count: int, slots: int) -> None:
        self.start = np.searchsorted(buckets, np.arange(count + 1))
        self.size = np.diff(self.start)
        self.slots = _slots_of_pilots(hashes, slots)
        self.owner = np.full(slots, FREE, dtype=np.int64)
        self.pilots = np.zeros(count, dtype=np.uint8)
        self.recent: deque[int] = deque([FREE] * RECENT, maxlen=RECENT)
        self.evictions, self.most_evictions = 0, 20 * count + 1000

    def place_all(self) -> bool:
        order = np.argsort(-self.size, kind="stable")
        return all(self._place(int(b)) for b in order[self.size[order] > 0])

    def slot_of_keys(self) -> np.ndarray:
        pilots = np.repeat(self.pilots, self.size)
        return self.slots[np.arange(len(self.slots)), pilots]

    def _keys(self, bucket: int) -> np.ndarray:
        return self.slots[self.start[bucket] : self.start[bucket + 1]]

    def _mark(self, bucket: int, owner: int) -> None:
        self.owner[self._keys(bucket)[:, self.pilots[bucket]]] = owner

    def _place(self, bucket: int) -> bool:
        waiting = [(-int(self.size[bucket]), -bucket)]
        while waiting:
            b = -heapq.heappop(waiting)[1]
            pilot = self._first_free(b)
            if pilot is None:
                pilot = self._cheapest(b)
                self.evictions += 1
                if pilot is None or self.evictions > self.most_evictions:
                    return False
                for other in np.unique(self.owner[self._keys(b)[:, pilot]]).tolist():
                    if other != FREE:
                        self._mark(other, FREE)
                        heapq.heappush(waiting, (-int(self.size[other]), -other))
                self.recent.append(b)
            self.pilots[b] = pilot
            self._mark(b, b)
        return True

    def _first_free(self, bucket: int) -> int | None:
        keys = self._keys(bucket)
        for pilot in np.flatnonzero((self.owner[keys] == FREE).all(0)).tolist():
            if len(keys) == 1 or len(np.unique(keys[:, pilot])) == len(keys):
                return pilot
        return None

    def _cheapest(self, bucket: int) -> int | None:
        keys = self._keys(bucket)
        owner = self.owner[keys]
        size = np.where(owner == FREE, 0, self.size[owner])
        cost = (size * size).sum(0)
        ordered = np.sort(keys, axis=0)
        bad = (ordered[1:] == ordered[:-1]).any(0)
        bad |= (np.isin(owner, self.recent) & (owner != FREE)).any(0)
        if bad.all():
            return None
        cost = np.where(bad, np.iinfo(np.int64).max, cost)
        from_here = (self.evictions * 37 + np.arange(PILOTS)) % PILOTS
        return int(from_here[cost[from_here].argmin()])


class VocabularyBuilder:
    """Has the interface of the extension's builder."""

    def __init__(
        self, keys: np.ndarray, tag_bits: int, seed: int, string_seed: int, table: np.ndarray
    ) -> None:
        self.header = h = new_header(len(keys), tag_bits, seed, string_seed)
        self.at, self.table, self.parts, self.done = layout(h), table, h.parts, 0
        self.duplicate_hash = 0
        hashes = hash_keys(torch.from_numpy(keys), seed)
        part, bucket = part_of(hashes, h.parts), bucket_of(hashes, h.buckets)
        order = np.lexsort((hashes.numpy().view(np.uint64), bucket.numpy(), part.numpy()))
        self.hashes, self.bucket = hashes.numpy()[order], bucket.numpy()[order]
        self.base = np.searchsorted(part.numpy()[order], np.arange(h.parts + 1))
        table[:] = 0
        table[:64].view(np.int64)[:] = h
        table[64 : self.at.pilots].view(np.int64)[:] = self.base

    def step(self, count: int) -> str:
        for part in range(self.done, min(self.parts, self.done + count)):
            result = self._build(part)
            if result != "placed":
                return result
            self.done += 1
        return "done" if self.done == self.parts else "building"

    def _build(self, p: int) -> str:
        h, at = self.header, self.at
        first, last = int(self.base[p]), int(self.base[p + 1])
        n, hashes = last - first, self.hashes[first:last]
        twice = np.flatnonzero(hashes[1:] == hashes[:-1])
        if len(twice):
            self.duplicate_hash = int(hashes[twice[0]])
            return "duplicate"
        if n + h.spare > 1 << 16:
            return "failed"
        part = Part(hashes, self.bucket[first:last], h.buckets, n + h.spare)
        if not part.place_all():
            return "failed"
        begin = at.pilots + p * h.buckets
        self.table[begin : begin + h.buckets] = part.pilots
        remap = np.zeros(h.spare, dtype=np.uint16)
        used = part.owner != FREE
        remap[used[n:]] = np.flatnonzero(~used[:n])
        begin = at.remap + 2 * p * h.spare
        self.table[begin : begin + 2 * h.spare] = remap.view(np.uint8)
        slot = part.slot_of_keys()
        row = first + np.where(slot < n, slot, remap[np.maximum(slot - n, 0)])
        self._write_tags(row, tags_of(torch.from_numpy(hashes), h.tag_bits).numpy())
        return "placed"

    def _write_tags(self, row: np.ndarray, tag: np.ndarray) -> None:
        bit = row * self.header.tag_bits
        tag = tag << bit % 8
        for byte in range(5 if self.header.tag_bits else 0):
            at = self.at.tags + bit // 8 + byte
            np.bitwise_or.at(self.table, at, (tag >> 8 * byte & 255).astype(np.uint8))
