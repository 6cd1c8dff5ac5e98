"""What commands print and write at their end."""

from __future__ import annotations

import json
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING

from .._table import print_table
from ..errors import UserError

if TYPE_CHECKING:
    from ..data.broken import BadRows
    from ..training.metrics import Figures


def write_json(path: str | None, content: object) -> None:
    """Write figures where ``--json`` names a file."""
    if path is None:
        return
    try:
        Path(path).write_text(json.dumps(content, indent=1) + "\n", encoding="utf-8")
    except OSError as error:
        raise UserError(f"cannot write {path}: {error.strerror}") from error


def print_metrics(title: str, tasks: Mapping[str, Figures]) -> None:
    """Print a row of metrics for every task."""

    def cell(value: float | None) -> str:
        return "-" if value is None else f"{value:.4f}"

    names = ("auc", "log_loss", "observed_to_expected")
    rows = [[t, *(cell(v[n]) for n in names), f"{v['rows']:,}"] for t, v in tasks.items()]
    columns = ("task", ">AUC", ">log-loss", ">observed / expected", ">rows")
    print_table(title, columns, rows)


def report_broken(broken: BadRows) -> None:
    """Name the rows that were skipped, on stderr."""
    if broken.count:
        print(broken.summary(), file=sys.stderr)
