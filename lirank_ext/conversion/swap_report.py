"""What ``lirank_ext.swap`` did, module by module."""

from __future__ import annotations

from dataclasses import dataclass

from .._table import plain_table
from ..library.load import extension, why_no_extension


@dataclass(frozen=True)
class SwapRow:
    """One module that ``swap`` replaced, or a candidate that it left.

    Attributes:
        paths: paths of the module in the model. A shared module has several. The model itself has
            the path "".
        source: type of the module.
        target: type of the module after the call, or None if it was left.
        reason: why the module was left, or a note about the replacement. It may be empty.
    """

    paths: tuple[str, ...]
    source: str
    target: str | None
    reason: str = ""

    @property
    def path(self) -> str:
        return self.paths[0]


@dataclass(frozen=True)
class SwapReport:
    """What ``swap`` did, or would do in a dry run. It prints as a table."""

    rows: tuple[SwapRow, ...]
    dry_run: bool = False

    @property
    def replaced(self) -> tuple[SwapRow, ...]:
        """The rows of what was replaced."""
        return tuple(row for row in self.rows if row.target is not None)

    @property
    def left(self) -> tuple[SwapRow, ...]:
        """The rows of what was left, each with its reason."""
        return tuple(row for row in self.rows if row.target is None)

    def __str__(self) -> str:
        verb = "to be replaced (dry run)" if self.dry_run else "replaced"
        title = f"swap: {len(self.replaced)} {verb}, {len(self.left)} left"
        if not self.rows:
            return title
        cells = [
            (", ".join(p or "(the model)" for p in r.paths), r.source, r.target or "left", r.reason)
            for r in self.rows
        ]
        table = plain_table(title, ("module", "was", "now", "note"), cells).rstrip()
        if extension is None and self.replaced:
            table += f"\nNo faster on a CPU here: the references run ({why_no_extension})."
        return table
