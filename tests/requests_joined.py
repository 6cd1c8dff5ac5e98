"""Features of requests and their candidates, and the joined rows that they stand for."""

from __future__ import annotations

import torch

from lirank_ext.models import Schema

Features = dict[str, torch.Tensor]


def features_of(
    schema: Schema, own: set[str], rows: int, generator: torch.Generator, length: int = 6
) -> Features:
    """Random features of the columns ``own``, of which histories have up to ``length`` steps."""

    def hashes(*shape: int) -> torch.Tensor:
        return torch.randint(-(2**40), 2**40, shape, generator=generator)

    found: Features = {}
    numeric = [name for name in schema.numeric if name in own]
    if numeric:
        found["numeric"] = torch.randn(rows, len(numeric), generator=generator)
        found["numeric"][:1, 0] = float("nan")
    for table, columns in schema.tables().items():
        each = sum(c.name in own for c in columns)
        if each:
            bags = rows * each
            lengths = torch.randint(0, 4, (bags,), generator=generator)
            found[f"ids/{table}"] = hashes(int(lengths.sum()))
            found[f"offsets/{table}"] = lengths.cumsum(0) - lengths
    for history in schema.history:
        if history.name in own:
            key = f"history/{history.name}"
            lengths = torch.randint(0, length + 2, (rows,), generator=generator)
            found[f"{key}/lengths"] = lengths
            found[f"{key}/items"] = hashes(rows, length)
            if history.actions:
                found[f"{key}/actions"] = hashes(rows, length)
    if schema.popularity in own:
        found["popularity"] = torch.randint(0, 50, (rows,), generator=generator)
    return found


def draw(
    schema: Schema, counts: torch.Tensor, seed: int = 0, length: int = 6
) -> tuple[Features, Features]:
    """Features of the requests and of their candidates."""
    generator = torch.Generator().manual_seed(seed)
    own = set(schema.request)
    names = [*schema.numeric, *(c.name for c in schema.categorical)]
    names += [h.name for h in schema.history] + [schema.popularity or ""]
    request = features_of(schema, own, len(counts), generator, length)
    return request, features_of(schema, set(names) - own, int(counts.sum()), generator, length)


def join(schema: Schema, request: Features, items: Features, counts: torch.Tensor) -> Features:
    """The features of the rows ``[request_r; item_i]``."""
    own = set(schema.request)
    rows = torch.arange(len(counts)).repeat_interleave(counts)
    joined: Features = {}
    if schema.numeric:
        columns, places = [], [0, 0]
        for name in schema.numeric:
            side = 0 if name in own else 1
            columns.append((items if side else request)["numeric"][:, places[side]])
            columns[-1] = columns[-1] if side else columns[-1][rows]
            places[side] += 1
        joined["numeric"] = torch.stack(columns, 1)
    for table, columns in schema.tables().items():
        bags = []
        for row, of_request in enumerate(rows.tolist()):
            places = [0, 0]
            for column in columns:
                side = 0 if column.name in own else 1
                each = sum((c.name not in own) == side for c in columns)
                at = (row if side else of_request) * each + places[side]
                bags.append(_bag(items if side else request, table, at))
                places[side] += 1
        lengths = torch.tensor([len(bag) for bag in bags], dtype=torch.int64)
        joined[f"ids/{table}"] = torch.cat([torch.zeros(0, dtype=torch.int64), *bags])
        joined[f"offsets/{table}"] = lengths.cumsum(0) - lengths
    keys = [key for key in (*request, *items) if key.startswith("history/") or key == "popularity"]
    for key in keys:
        joined[key] = items[key] if key in items else request[key][rows]
    return joined


def _bag(features: Features, table: str, at: int) -> torch.Tensor:
    ids, offsets = features[f"ids/{table}"], features[f"offsets/{table}"].tolist()
    return ids[offsets[at] : [*offsets, len(ids)][at + 1]]
