"""Inputs for the hashes of ids and strings; every result must be equal to the bit."""

from __future__ import annotations

import torch

from . import Case

LARGEST = (1 << 32) - 1


def _ids(generator, *shape):
    return torch.randint(-(1 << 63), (1 << 63) - 1, shape, generator=generator)


def _pair(generator, lengths):
    """Random bytes, zeros and 255 among them, cut into keys of these lengths."""
    offsets = torch.tensor([0, *lengths]).cumsum(0)
    data = torch.randint(0, 256, (int(offsets[-1]),), generator=generator, dtype=torch.uint8)
    return data, offsets


def _ids_cases(generator) -> list[Case]:
    def good(label, *args, big=False):
        return Case("murmur_hash", label, args, exact=True, big=big)

    edges = torch.tensor([0, 1, -1, 1 << 32, -(1 << 32), (1 << 63) - 1, -(1 << 63)])
    wide = _ids(generator, 9, 14)
    found = [good(f"{n} ids", _ids(generator, n)) for n in (0, 1, 3, 37)]
    found += [good(f"edges, seed {s}", edges, s) for s in (0, 1, 1 << 31, LARGEST)]
    found += [
        good("one id without dimensions", edges[2]),
        good("strided", wide[:, ::3], 5),
        good("transposed", wide.t(), 5),
        good("several tasks", _ids(generator, 50_001), 7, big=True),
    ]
    refused = [
        ("int32 ids", (edges.int(),), "'ids'"),
        ("float ids", (edges.double(),), "'ids'"),
        ("seed -1", (edges, -1), "'seed'"),
        ("seed 2^32", (edges, LARGEST + 1), "'seed'"),
    ]
    return found + [Case("murmur_hash", label, a, raises=name) for label, a, name in refused]


def _string_cases(generator) -> list[Case]:
    def good(label, *args, big=False):
        return Case("hash_strings", label, args, exact=True, big=big)

    data, offsets = _pair(generator, [3, 0, 20, 16, 7])
    no_bytes = torch.empty(0, dtype=torch.uint8)
    mixed = torch.randint(0, 40, (20_000,), generator=generator).tolist()
    found = [
        good("a few", data, offsets),
        good("no keys", no_bytes, torch.zeros(1, dtype=torch.int64)),
        good("empty keys alone", no_bytes, torch.zeros(4, dtype=torch.int64), 9),
        good("lengths 0 to 64", *_pair(generator, range(65)), LARGEST),
        good("bytes behind the last key", data, offsets[:-1], 1),
        good("strided", data.repeat_interleave(2)[::2], offsets.repeat_interleave(2)[::2], 3),
        good("one long key among short", *_pair(generator, [2, 70_001, 5]), 3, big=True),
        good("several tasks", *_pair(generator, mixed), 3, big=True),
    ]
    refused = [
        ("int8 bytes", (data.char(), offsets), "'bytes'"),
        ("bytes of two dimensions", (data.reshape(2, -1), offsets), "'bytes'"),
        ("int32 offsets", (data, offsets.int()), "'offsets'"),
        ("offsets of two dimensions", (data, offsets.reshape(2, 3)), "'offsets'"),
        ("no offsets", (data, offsets[:0]), "'offsets'"),
        ("offsets not from 0", (data, offsets[1:]), "'offsets'"),
        ("negative offset", (data, offsets - 1), "'offsets'"),
        ("decreasing", (data, offsets[[0, 3, 1, 4]]), "'offsets'"),
        ("past the end", (data, offsets + torch.tensor([0, 0, 0, 0, 0, 1])), "'offsets'"),
        ("far past the end, then back", (data, torch.tensor([0, 1 << 62, 5])), "'offsets'"),
        ("seed -1", (data, offsets, -1), "'seed'"),
        ("seed 2^32", (data, offsets, LARGEST + 1), "'seed'"),
    ]
    return found + [Case("hash_strings", label, a, raises=name) for label, a, name in refused]


def cases(generator: torch.Generator) -> list[Case]:
    return _ids_cases(generator) + _string_cases(generator)
