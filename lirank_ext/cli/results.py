"""What commands print and write at their end."""

from __future__ import annotations

import json
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

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

    headings = {"auc": ">AUC", "log_loss": ">log-loss"}
    headings |= {"pr_auc": ">PR AUC", "observed_to_expected": ">observed / expected"}
    for name, heading in {"gauc": ">GAUC", "ndcg": ">NDCG"}.items():
        if any(values.get(name) is not None for values in tasks.values()):
            headings[name] = heading
    rows = [[t, *(cell(v.get(n)) for n in headings), f"{v['rows']:,}"] for t, v in tasks.items()]
    print_table(title, ("task", *headings.values(), ">rows"), rows)


def print_check(check: Mapping[str, Any]) -> None:
    """Print the ranker beside its two rivals; on stderr where it is behind one."""
    rows = []
    for task, models in check["tasks"].items():
        for name, v in models.items():
            gain = f"{v['gain']:+.4f} ± {v['error']:.4f}" if v["error"] else ""
            figures = ["-" if v[n] is None else f"{v[n]:.4f}" for n in ("auc", "log_loss")]
            rows.append([task, name, *figures, gain])
    title = f"Check, on {check['rows']:,} rows to validate on; rivals saw {check['sample']:,} rows"
    print_table(title, ("task", "model", ">AUC", ">log-loss", ">AUC above the ranker"), rows)
    for sentence in check["warnings"]:
        print(sentence, file=sys.stderr)


def report_broken(broken: BadRows) -> None:
    """Name the rows that were skipped, on stderr."""
    if broken.count:
        print(broken.summary(), file=sys.stderr)
