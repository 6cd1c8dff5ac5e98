"""Rows of one request that stand together in a file, scored as candidates of that request."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator, Sequence

import numpy as np
import pyarrow as pa
import torch

from ..data.errors import DataError
from ..data.features import Converter, Rows
from ..data.files import Chunk
from ..models import LiRank, Schema


def request_features(schema: Schema, columns: Sequence[str]) -> list[str]:
    """The features that are made of these columns of the files.

    Raises:
        DataError: no feature is made of one of them.
    """
    sources = schema.sources
    for column in columns:
        if column not in sources.values():
            known = ", ".join(dict.fromkeys(sources.values()))
            raise DataError(
                f"--request {column}: the model reads no such column (it reads {known})"
            )
    return [name for name, source in sources.items() if source in columns]


class Requests:
    """Scores rows by ``LiRank.score``; the rows of a request stand together.

    Args:
        model: the model.
        converter: makes its features.
        column: rows that follow each other and have the same value in it are of one request.

    Raises:
        DataError: the schema names no column of the request.
    """

    def __init__(self, model: LiRank, converter: Converter, column: str) -> None:
        self.model, self.converter, self.column = model, converter, column
        schema = converter.schema
        self.request = set(schema.request)
        if not self.request:
            raise DataError(
                f"--group-by {column}: the model does not know which columns are the same for all "
                "rows of a request; name them with --request, or in schema.request"
            )
        names = [*schema.numeric, *(c.name for c in schema.categorical), schema.popularity or ""]
        self.items = {*names, *(h.name for h in schema.history)} - self.request

    def values(self, chunk: Chunk, rows: Rows) -> np.ndarray:
        """A number for each of the rows, which is the same for the rows of a request."""
        values = chunk.table[self.column]
        if isinstance(values, pa.ChunkedArray):
            values = values.combine_chunks()
        if not pa.types.is_dictionary(values.type):
            values = values.dictionary_encode(null_encoding="encode")
        codes = values.indices.fill_null(-1).to_numpy(zero_copy_only=False)
        return codes[rows.numbers - chunk.first]

    def score(self, rows: Rows, values: np.ndarray, size: int, device: torch.device) -> Iterator:
        """Probabilities (n, T) of the rows, ``size`` rows at a time."""
        for begin in range(0, len(rows), size):
            part = np.arange(begin, min(begin + size, len(rows)))
            yield self._score(rows.take(part), values[part], device)

    def _score(self, rows: Rows, values: np.ndarray, device: torch.device) -> torch.Tensor:
        starts = np.flatnonzero(np.concatenate([[True], values[1:] != values[:-1]]))
        counts = np.diff(starts, append=len(rows))
        requests = rows.take(starts)
        self._check_same(rows, requests.take(np.repeat(np.arange(len(starts)), counts)))
        batches = (
            self.converter.batch(requests, self.request),
            self.converter.batch(rows, self.items),
        )
        request, items = (batch.to(device).features for batch in batches)
        counted = torch.from_numpy(counts).to(device)
        return self.model.score(request, items, counted).sigmoid()

    def _check_same(self, rows: Rows, first: Rows) -> None:
        """Refuse rows whose columns of the request differ from those of the request's first."""
        schema = self.converter.schema
        for i, name in enumerate(schema.numeric):
            if name in self.request:
                a, b = rows.numeric[:, i], first.numeric[:, i]
                self._refuse(name, (a != b) & ~(np.isnan(a) & np.isnan(b)), rows, first)
        for key, (ids, lengths) in rows.bags.items():
            kind, _, name = key.partition("/")
            name = name.partition("/")[0] if kind == "history" else name
            if name not in self.request or kind == "popularity":
                continue
            other_ids, other_lengths = first.bags[key]
            differ = lengths != other_lengths
            if not differ.any():
                row = np.repeat(np.arange(len(lengths)), lengths)
                differ[row[ids != other_ids]] = True
            self._refuse(name, differ, rows, first)

    def _refuse(self, name: str, differ: np.ndarray, rows: Rows, first: Rows) -> None:
        if differ.any():
            at = int(np.flatnonzero(differ)[0])
            raise DataError(
                f"--group-by {self.column}: column '{name}' belongs to the request, but differs "
                f"between rows {first.numbers[at] + 1} and {rows.numbers[at] + 1}, which have the "
                f"same {self.column}"
            )


def with_request(schema: Schema, columns: Sequence[str]) -> Schema:
    """The schema with these columns of the files as those of the request."""
    return dataclasses.replace(schema, request=request_features(schema, columns))
