"""A LiRank model on requests and their candidates: what belongs to a request once per request."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn
from torch.nn.functional import linear

from ..nn._common import check_shape, refuse
from ..nn.cross import score_net
from ..nn.gated_mlp import GatedMLP
from ..nn.request_sharing import (
    Rows,
    Runs,
    arrange,
    check_counts,
    inverse,
    is_watched,
    split_linear,
)
from .blocks import by_rows, safe
from .schema import History

if TYPE_CHECKING:
    from .blocks import Interactions, SeparateHead, SharedHead
    from .lirank import LiRank

Features = Mapping[str, Tensor]
OWNER = "LiRank.score"


@dataclass
class Side:
    """The columns of the requests, or those of the candidates.

    Attributes:
        numeric: ranges of these columns among the schema's numeric columns.
        columns: by table, the places of these columns among the table's.
        histories: names of the histories whose encoding is the same for all candidates (requests),
            or not (candidates).
        runs: ranges of these columns in the input of the interactions.
    """

    numeric: list[tuple[int, int]]
    columns: dict[str, list[int]]
    histories: list[str]
    runs: list[tuple[int, int]]


def sides_of(model: LiRank) -> tuple[Side, Side]:
    """The columns of the requests and of the candidates.

    Raises:
        ValueError: the schema names no request column.
    """
    schema = model.config.schema
    own = set(schema.request)
    if not own:
        refuse(OWNER, "Schema.request", "at least one column", schema.request)
    of_request = {h.name: h.name in own and h.candidate in own for h in schema.history}
    sides = []
    for mine in (True, False):
        runs: list[tuple[int, int]] = []
        numeric: list[tuple[int, int]] = []
        place = 0
        if model.config.numeric.enabled:
            _add_places(numeric, [name in own for name in schema.numeric], mine, 0, 1)
            runs += numeric
            place = len(schema.numeric)
        columns = {}
        for table, members in model.columns.items():
            flags = [c.name in own for c in members]
            columns[table] = [i for i, flag in enumerate(flags) if flag == mine]
            _add_places(runs, flags, mine, place, model.config.embedding.dim)
            place += len(members) * model.config.embedding.dim
        histories = []
        for history in schema.history if model.histories else ():
            width = model.histories[safe(history.name)].out_dim
            if of_request[history.name] == mine:
                histories.append(history.name)
            _add_places(runs, [of_request[history.name]], mine, place, width)
            place += width
        columns = {table: places for table, places in columns.items() if places}
        sides.append(Side(numeric, columns, histories, runs))
    return sides[0], sides[1]


def _known_sides(model: LiRank) -> tuple[Side, Side]:
    """:func:`sides_of`, kept with the model: finding them takes as long as a few ops."""
    if torch.compiler.is_compiling():
        return sides_of(model)
    schema = model.config.schema
    known = model.__dict__.get("_sides")
    if known is None or known[0] is not schema or known[1] != schema.request:
        known = model.__dict__["_sides"] = (schema, list(schema.request), sides_of(model))
    return known[2]


def _add_places(
    runs: list[tuple[int, int]], flags: Sequence[bool], mine: bool, first: int, width: int
) -> None:
    """Add the columns whose flag is ``mine``; each is ``width`` wide, and neighbors are joined."""
    for i, flag in enumerate(flags):
        start = first + i * width
        if flag != mine:
            continue
        if runs and runs[-1][1] == start:
            runs[-1] = (runs[-1][0], start + width)
        else:
            runs.append((start, start + width))


class Scoring:
    """One call of :meth:`LiRank.score`."""

    def __init__(self, model: LiRank, request: Features, items: Features, counts: Tensor) -> None:
        self.model, self.schema = model, model.config.schema
        self.features = (request, items)
        self.sides = _known_sides(model)
        requests, candidates = self._size(0), self._size(1)
        if requests is None or candidates is None:
            whose = "the requests" if requests is None else "the candidates"
            refuse(
                OWNER, "Schema.request", f"some column to be that of {whose}", self.schema.request
            )
        numbers = check_counts(OWNER, counts, requests, candidates)
        self.counts, self.rows = counts, Rows(counts, candidates, numbers)

    def _size(self, side: int) -> int | None:
        """How many requests, or candidates, the features have. None if no column is theirs."""
        of = self.sides[side]
        if of.numeric:
            return self._get(side, "numeric").shape[0]
        for table, places in of.columns.items():
            offsets = self._get(side, f"offsets/{table}")
            if offsets.shape[0] % len(places):
                wanted = f"{len(places)} bags for every row"
                refuse(OWNER, f"offsets/{table}", wanted, tuple(offsets.shape))
            return offsets.shape[0] // len(places)
        for history in self.schema.history if self.model.histories else ():
            if (history.name in self.schema.request) == (side == 0):
                return self._get(side, f"history/{history.name}/lengths").shape[0]
        return None

    def _get(self, side: int, key: str) -> Tensor:
        features, whose = self.features[side], ("request", "items")[side]
        if key not in features:
            got = f"none (given features: {', '.join(features)})"
            refuse(OWNER, f"{whose}['{key}']", "a tensor", got)
        return features[key]

    def logits(self) -> Tensor:
        """Calibrated logits (N, T)."""
        model = self.model
        bags = [self._bags(i) for i in range(2)]
        if self._each_has_one_candidate() or model.training or is_watched(model):
            logits = model.head(self._joined(bags))
        else:
            logits = self._shared(bags)
        if model.effects is not None:
            logits = model.add_effects(logits, {"popularity": self._popularity()})
        return model.calibrate(logits, lambda: self._calibration_features(bags))

    def _shared(self, bags: list[dict[str, Tensor]]) -> Tensor:
        request, items = (self._part(bags, side) for side in range(2))
        if items is None:
            return self.rows.spread(self.model.head(request))
        if request is None:
            return self.model.head(items)
        parts = (request, items, self.counts, self.rows, self._runs())
        return Shared(*parts).head(self.model.head)

    def _each_has_one_candidate(self) -> bool:
        """Whether there is nothing to share. Then plain layers on joined rows are faster."""
        numbers = self.rows.numbers
        return numbers is not None and max(numbers, default=0) <= 1

    def _runs(self) -> Runs | None:
        runs = [*self.sides[0].runs, *self.sides[1].runs]
        return None if runs == sorted(runs) else runs

    def _bags(self, side: int) -> dict[str, Tensor]:
        """Pooled embeddings (rows, columns, dim) of this side's columns of every table."""
        pooled, size = {}, (self.counts.shape[0], self.rows.items)[side]
        for table, places in self.sides[side].columns.items():
            ids, offsets = (self._get(side, f"{key}/{table}") for key in ("ids", "offsets"))
            if self.rows.numbers is not None:
                check_shape(OWNER, f"offsets/{table}", offsets, size * len(places))
            out = self.model.tables[safe(table)](ids, offsets)
            pooled[table] = by_rows(OWNER, out, size, len(places), f"offsets/{table}")
        return pooled

    def _column(self, bags: list[dict[str, Tensor]], name: str) -> tuple[int, Tensor]:
        """The side that has a categorical column, and its pooled embeddings."""
        table, place = self.model.place_of(name)
        side = 0 if name in self.schema.request else 1
        return side, bags[side][table][:, self.sides[side].columns[table].index(place)]

    def _of_items(self, bags: list[dict[str, Tensor]], name: str) -> Tensor:
        """Pooled embeddings of a categorical column, a row for every candidate."""
        side, values = self._column(bags, name)
        return values if side else self.rows.spread(values)

    def _numbers(self, side: int) -> Tensor:
        numbers, columns = self._get(side, "numeric"), self.sides[side].numeric
        size = (self.counts.shape[0], self.rows.items)[side]
        width = sum(stop - start for start, stop in columns)
        check_shape(OWNER, f"{('request', 'items')[side]}['numeric']", numbers, size, width)
        return numbers

    def _part(self, bags: list[dict[str, Tensor]], side: int) -> Tensor | None:
        """The request's part (R, d_u) or the candidates' part (N, d - d_u) of the input.

        None if no column of the input is theirs.
        """
        model, of, parts = self.model, self.sides[side], []
        if of.numeric:
            numbers = self._numbers(side)
            if model.normalize is None:
                parts.append(numbers.nan_to_num())
            else:
                parts.append(
                    model.normalize.of_columns(numbers, lambda t: arrange(t, of.numeric, 0))
                )
        parts += [bag.flatten(1) for bag in bags[side].values()]
        parts += [
            self._history(bags, history, side)
            for history in self.schema.history
            if history.name in of.histories
        ]
        return torch.cat(parts, dim=1) if parts else None

    def _history(self, bags: list[dict[str, Tensor]], history: History, side: int) -> Tensor:
        """An encoded history, a row for every row of ``side``."""
        model, owner = self.model, 0 if history.name in self.schema.request else 1
        encoder = model.histories[safe(history.name)]
        table, _ = model.place_of(history.candidate)
        past = [self._get(owner, f"history/{history.name}/{k}") for k in ("items", "lengths")]
        if history.actions:
            past.append(self._get(owner, f"history/{history.name}/actions"))
        candidate = self._column(bags, history.candidate)
        inputs = (model.tables[safe(table)], candidate[1], *past)
        if owner == 0 and candidate[0] == 1:
            return encoder.score(self.counts, *inputs)
        if owner == 1 and candidate[0] == 0:
            inputs = (inputs[0], self.rows.spread(candidate[1]), *past)
        return encoder(*inputs[:4], past[2] if history.actions else None)

    def _joined(self, bags: list[dict[str, Tensor]]) -> Tensor:
        """The input of the interactions (N, input_dim), as ``forward`` makes it."""
        model, features = self.model, {}
        if model.config.numeric.enabled and self.schema.numeric:
            sides = [i for i in range(2) if self.sides[i].numeric]
            numbers = [self._numbers(i) if i else self.rows.spread(self._numbers(i)) for i in sides]
            order = inverse([run for i in sides for run in self.sides[i].numeric])
            features["numeric"] = arrange(torch.cat(numbers, dim=1), order, 1)
        for history in self.schema.history if model.histories else ():
            side = 0 if history.name in self.schema.request else 1
            for part in ("items", "lengths", *(["actions"] if history.actions else [])):
                key = f"history/{history.name}/{part}"
                values = self._get(side, key)
                features[key] = values if side else self.rows.spread(values)
        whole = {table: self._joined_bags(bags, table) for table in model.columns}
        return model.join_input(features, whole)

    def _joined_bags(self, bags: list[dict[str, Tensor]], table: str) -> Tensor:
        """Pooled embeddings (N, columns, dim) of all columns of a table, in their order."""
        sides = [i for i in range(2) if table in bags[i]]
        parts = [bags[i][table] if i else self.rows.spread(bags[i][table]) for i in sides]
        if len(parts) == 1:
            return parts[0]
        places = [place for i in sides for place in self.sides[i].columns[table]]
        runs = inverse([(place, place + 1) for place in places])
        if runs == sorted(runs):
            return torch.cat(parts, dim=1)
        order = torch.tensor([start for start, _ in runs], device=parts[0].device)
        return torch.cat(parts, dim=1).index_select(1, order)

    def _popularity(self) -> Tensor:
        if self.schema.popularity in self.schema.request:
            return self.rows.spread(self._get(0, "popularity"))
        return self._get(1, "popularity")

    def _calibration_features(self, bags: list[dict[str, Tensor]]) -> Tensor | None:
        columns = self.model.config.calibration.columns
        if not columns:
            return None
        return torch.cat([self._of_items(bags, name) for name in columns], dim=1)


class Shared:
    """The input of the interactions in its two parts, and the interactions on it.

    Args:
        request: (R, d_u).
        items: (N, d - d_u).
        counts, rows: which request a candidate belongs to.
        runs: the columns of the input that are in ``request`` and ``items``, or None where the
            input has them in this order.
    """

    def __init__(
        self, request: Tensor, items: Tensor, counts: Tensor, rows: Rows, runs: Runs | None
    ) -> None:
        self.request, self.items, self.counts, self.rows = request, items, counts, rows
        self.runs = runs

    def head(self, head: SharedHead | SeparateHead) -> Tensor:
        """Logits (N, T)."""
        if not isinstance(head.interactions, nn.ModuleList):
            top = head.towers_of
            return top.after_first(self._first(head.interactions, top.first_layers()))
        logits = [
            tower.after_first(self._first(inner, [tower.layers[0]])[0])
            for inner, tower in zip(head.interactions, head.towers, strict=True)
        ]
        return torch.cat(logits, dim=1).index_select(1, head.column)

    def _first(self, inner: Interactions, layers: Sequence[nn.Linear]) -> Sequence[Tensor]:
        """What the first layers after the interactions make of their result."""
        weight, bias = layers[0].weight, layers[0].bias
        if len(layers) > 1:
            weight = torch.cat([layer.weight for layer in layers])
            zeros = (layer.weight.new_zeros(len(layer.weight)) for layer in layers)
            biases = [layer.bias for layer in layers]
            bias = torch.cat([z if b is None else b for z, b in zip(zeros, biases, strict=True)])
        if inner.cross is None and inner.mlp is None:
            weight = arrange(weight, self.runs, 1)
            out = split_linear(self.request, self.items, self.rows, weight, bias)
        elif inner.cross is None:
            out = linear(self._mlp(inner.mlp), weight, bias)
        elif inner.mlp is None:
            out = self._cross(inner.cross, weight, bias)
        else:
            crossed = inner.out_dim - inner.mlp.dims[-1]
            out = self._cross(inner.cross, weight[:, :crossed], bias)
            out = torch.addmm(out, self._mlp(inner.mlp), weight[:, crossed:].t())
        return out.split([len(layer.weight) for layer in layers], dim=1)

    def _cross(self, cross: nn.Module, weight: Tensor, bias: Tensor | None) -> Tensor:
        return score_net(cross, self.request, self.items, self.counts, weight, bias, self.runs)

    def _mlp(self, mlp: GatedMLP) -> Tensor:
        first = mlp.layers[0]
        weight = arrange(first.weight, self.runs, 1)
        return mlp.after_first(
            split_linear(self.request, self.items, self.rows, weight, first.bias)
        )
