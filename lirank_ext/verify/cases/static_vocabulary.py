"""Inputs for look-ups in static vocabularies, and tables that must be refused."""

from __future__ import annotations

import torch

from ...nn.static_vocabulary import StaticVocabulary
from . import Case

OP = "vocabulary_lookup"


def _ids(generator, *shape):
    return torch.randint(-(1 << 63), (1 << 63) - 1, shape, generator=generator)


def _with(table: torch.Tensor, number: int, value: int) -> torch.Tensor:
    """A table whose 64-bit number at this position is another."""
    changed = table.clone()
    changed[8 * number : 8 * number + 8].view(torch.int64)[0] = value
    return changed


def cases(generator: torch.Generator) -> list[Case]:
    found = []
    for n, tag_bits in ((0, 8), (1, 8), (300, 0), (300, 8), (300, 13), (300, 32), (40_000, 5)):
        keys = _ids(generator, n)
        table = StaticVocabulary.build(keys, tag_bits).table
        label = f"{n} keys, tag {tag_bits}"
        mixed = torch.cat([keys, _ids(generator, 200)])
        found.append(Case(OP, label, (mixed, table), exact=True, big=n > 300))
    keys, table = mixed[:300], StaticVocabulary.build(mixed[:300]).table
    square = keys.reshape(20, 15)
    found += [
        Case(OP, "strided", (square[::2, ::3], table, -7), exact=True),
        Case(OP, "table at an odd address", (keys, torch.cat([table[:1], table])[1:]), exact=True),
        Case(OP, "no dimensions", (keys[3], table, 1 << 40), exact=True),
        Case(OP, "no keys", (keys[:0], table), exact=True),
    ]
    refused = [
        ("int32 keys", keys.int(), table, "keys"),
        ("float keys", keys.double(), table, "keys"),
        ("int8 table", keys, table.char(), "table"),
        ("table of two dimensions", keys, table.reshape(1, -1), "table"),
        ("no table", keys, table[:0], "table"),
        ("table cut short", keys, table[:-1], "table"),
        ("table too long", keys, torch.cat([table, table[:8]]), "table"),
        ("another magic number", keys, _with(table, 0, 7), "table"),
        ("fewer keys stated", keys, _with(table, 1, 200), "table"),
        ("keys beyond counting", keys, _with(table, 1, (1 << 63) - 1), "table"),
        ("no parts", keys, _with(table, 2, 0), "table"),
        ("negative buckets", keys, _with(table, 3, -1), "table"),
        ("buckets beyond counting", keys, _with(table, 3, 1 << 60), "table"),
        ("no spare slots", keys, _with(table, 4, 0), "table"),
        ("tag of 33 bits", keys, _with(table, 5, 33), "table"),
        ("rows not from 0", keys, _with(table, 8, 1), "table"),
        ("rows past the last", keys, _with(table, 9, 301), "table"),
        ("rows of a huge part", keys, _with(table, 9, -(1 << 63)), "table"),
    ]
    return found + [Case(OP, label, tuple(args), raises=f"'{n}'") for label, *args, n in refused]
