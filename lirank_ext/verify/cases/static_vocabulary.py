"""Inputs for look-ups in static vocabularies, and tables that must be refused."""

from __future__ import annotations

import torch

from ...nn.static_vocabulary import StaticVocabulary
from . import Case, cases_of

case = cases_of("vocabulary_lookup")


def _ids(generator, *shape):
    return torch.randint(-(1 << 63), (1 << 63) - 1, shape, generator=generator)


def _with(table: torch.Tensor, number: int, value: int) -> torch.Tensor:
    """A table whose 64-bit number at this position is another."""
    changed = table.clone()
    changed[8 * number : 8 * number + 8].view(torch.int64)[0] = value
    return changed


def cases(generator: torch.Generator) -> list[Case]:
    made = []
    for n, tag_bits in ((0, 8), (1, 8), (300, 0), (300, 8), (300, 13), (300, 32), (40_000, 5)):
        keys = _ids(generator, n)
        table = StaticVocabulary.build(keys, tag_bits).table
        label = f"{n} keys, tag {tag_bits}"
        mixed = torch.cat([keys, _ids(generator, 200)])
        made.append(case(label, keys=mixed, table=table, exact=True, big=n > 300))
    keys, table = mixed[:300], StaticVocabulary.build(mixed[:300]).table
    square, odd = keys.reshape(20, 15), torch.cat([table[:1], table])[1:]
    made += [
        case("strided", keys=square[::2, ::3], table=table, oov=-7, exact=True),
        case("table at an odd address", keys=keys, table=odd, exact=True),
        case("no dimensions", keys=keys[3], table=table, oov=1 << 40, exact=True),
        case("no keys", keys=keys[:0], table=table, exact=True),
        case("int32 keys", keys=keys.int(), table=table, raises="'keys'"),
        case("float keys", keys=keys.double(), table=table, raises="'keys'"),
    ]
    refused = {
        "int8 table": table.char(),
        "table of two dimensions": table.reshape(1, -1),
        "no table": table[:0],
        "table cut short": table[:-1],
        "table too long": torch.cat([table, table[:8]]),
        "another magic number": _with(table, 0, 7),
        "fewer keys stated": _with(table, 1, 200),
        "keys beyond counting": _with(table, 1, (1 << 63) - 1),
        "no parts": _with(table, 2, 0),
        "negative buckets": _with(table, 3, -1),
        "buckets beyond counting": _with(table, 3, 1 << 60),
        "no spare slots": _with(table, 4, 0),
        "tag of 33 bits": _with(table, 5, 33),
        "rows not from 0": _with(table, 8, 1),
        "rows past the last": _with(table, 9, 301),
        "rows of a huge part": _with(table, 9, -(1 << 63)),
    }
    made += [case(label, keys=keys, table=t, raises="'table'") for label, t in refused.items()]
    return made
