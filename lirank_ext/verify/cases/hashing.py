"""Inputs for the hashes of ids and strings; every result must be equal to the bit."""

from __future__ import annotations

import torch

from . import Case, cases_of

LARGEST = (1 << 32) - 1


def _ids(generator, *shape):
    return torch.randint(-(1 << 63), (1 << 63) - 1, shape, generator=generator)


def _pair(generator, lengths):
    """Random bytes, zeros and 255 among them, cut into keys of these lengths."""
    offsets = torch.tensor([0, *lengths]).cumsum(0)
    data = torch.randint(0, 256, (int(offsets[-1]),), generator=generator, dtype=torch.uint8)
    return data, offsets


def _ids_cases(generator) -> list[Case]:
    case = cases_of("murmur_hash")
    edges = torch.tensor([0, 1, -1, 1 << 32, -(1 << 32), (1 << 63) - 1, -(1 << 63)])
    wide = _ids(generator, 9, 14)
    good = {f"{n} ids": {"ids": _ids(generator, n)} for n in (0, 1, 3, 37)}
    good |= {f"edges, seed {s}": {"ids": edges, "seed": s} for s in (0, 1, 1 << 31, LARGEST)}
    good |= {
        "one id without dimensions": {"ids": edges[2]},
        "strided": {"ids": wide[:, ::3], "seed": 5},
        "transposed": {"ids": wide.t(), "seed": 5},
        "int32": {"ids": wide.int(), "seed": 5},
    }
    made = [case(label, **args, exact=True) for label, args in good.items()]
    made.append(case("several tasks", ids=_ids(generator, 50_001), seed=7, exact=True, big=True))
    refused = {
        "int16 ids": {"ids": edges.short()},
        "float ids": {"ids": edges.double()},
        "seed -1": {"seed": -1},
        "seed 2^32": {"seed": LARGEST + 1},
    }
    for label, change in refused.items():
        made.append(case(label, **{"ids": edges} | change, raises=f"'{next(iter(change))}'"))
    return made


def _string_cases(generator) -> list[Case]:
    case = cases_of("hash_strings")
    data, offsets = _pair(generator, [3, 0, 20, 16, 7])
    no_bytes = torch.empty(0, dtype=torch.uint8)
    mixed = torch.randint(0, 40, (20_000,), generator=generator).tolist()
    strided = data.repeat_interleave(2)[::2], offsets.repeat_interleave(2)[::2]
    good = [
        ("a few", (data, offsets), 0),
        ("no keys", (no_bytes, torch.zeros(1, dtype=torch.int64)), 0),
        ("empty keys alone", (no_bytes, torch.zeros(4, dtype=torch.int64)), 9),
        ("lengths 0 to 64", _pair(generator, range(65)), LARGEST),
        ("bytes behind the last key", (data, offsets[:-1]), 1),
        ("strided", strided, 3),
        ("one long key among short", _pair(generator, [2, 70_001, 5]), 3),
        ("several tasks", _pair(generator, mixed), 3),
    ]
    made = [
        case(label, bytes=b, offsets=o, seed=seed, exact=True, big=b.numel() > 10_000)
        for label, (b, o), seed in good
    ]
    refused = [
        ("int8 bytes", {"bytes": data.char()}),
        ("bytes of two dimensions", {"bytes": data.reshape(2, -1)}),
        ("int32 offsets", {"offsets": offsets.int()}),
        ("offsets of two dimensions", {"offsets": offsets.reshape(2, 3)}),
        ("no offsets", {"offsets": offsets[:0]}),
        ("offsets not from 0", {"offsets": offsets[1:]}),
        ("negative offset", {"offsets": offsets - 1}),
        ("decreasing", {"offsets": offsets[[0, 3, 1, 4]]}),
        ("past the end", {"offsets": offsets + torch.tensor([0, 0, 0, 0, 0, 1])}),
        ("far past the end, then back", {"offsets": torch.tensor([0, 1 << 62, 5])}),
        ("seed -1", {"seed": -1}),
        ("seed 2^32", {"seed": LARGEST + 1}),
    ]
    good_pair = {"bytes": data, "offsets": offsets}
    for label, change in refused:
        made.append(case(label, **good_pair | change, raises=f"'{next(iter(change))}'"))
    return made


def cases(generator: torch.Generator) -> list[Case]:
    return _ids_cases(generator) + _string_cases(generator)
