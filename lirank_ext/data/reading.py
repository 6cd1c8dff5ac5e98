"""What a user says about the columns of files."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any


@dataclass(frozen=True)
class Reading:
    """How to read columns, where the user knows better than their values say.

    Attributes:
        numeric, categorical: columns to read as such, whatever they look like.
        ignore: columns to leave out.
        lists: columns whose cells hold several values, with the text that separates them.
        names: names of the columns, for CSV files without a header line.
        missing: texts that stand for a missing value; see :class:`lirank_ext.models.Schema`. None
            takes the usual ones.
        weight: column of the rows' weights.
        group: column of the groups within which rank metrics compare rows.
    """

    numeric: Sequence[str] = ()
    categorical: Sequence[str] = ()
    ignore: Sequence[str] = ()
    lists: Mapping[str, str] = field(default_factory=dict)
    names: Sequence[str] = ()
    missing: Sequence[str] | None = None
    weight: str | None = None
    group: str | None = None

    @classmethod
    def from_values(cls, values: Mapping[str, Any]) -> Reading:
        """From the values of a command line, by name; others are passed over."""
        known = {f.name for f in dataclasses.fields(cls)}
        given = {n: v for n, v in values.items() if n in known and v is not None}
        return cls(**{**given, "lists": dict(given.get("lists", ()))})

    def given(self) -> dict[str, Any]:
        """What the user said, in plain values."""
        values = {f.name: getattr(self, f.name) for f in dataclasses.fields(self)}
        # No missing texts at all is something said, and other empty values are not.
        said = {n: v for n, v in values.items() if v or (n == "missing" and v is not None)}
        return {n: _plain(v) for n, v in said.items()}


def _plain(value: Any) -> Any:
    if isinstance(value, (str, Mapping)):
        return value if isinstance(value, str) else dict(value)
    return list(value)
