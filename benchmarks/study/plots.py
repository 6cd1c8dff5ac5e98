"""The pictures of the report."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from lirank_ext.data.packages import need

from .bandit import cautious
from .results import Results, Row

COLORS = {"+": "#2a7f3f", "-": "#b3352b", "0": "#8a8a8a", "?": "#8a8a8a"}
NAMES = {"thompson": "Thompson", "greedy": "greedy"}
LINEAR = 0.005  # linear up to here, logarithmic beyond
TICKS = (-0.1, -0.05, -0.02, -0.01, -0.003, 0, 0.003, 0.01, 0.02, 0.05, 0.1)
MEANING = {"+": "better", "-": "worse", "0": "inside the noise", "?": "one seed: not judged"}


def _figure(rows: int, columns: int, width: float, height: float) -> tuple[Any, Any]:
    need("matplotlib").use("Agg")
    plot = need("matplotlib.pyplot")
    figure, axes = plot.subplots(rows, columns, figsize=(width, height), squeeze=False)
    return figure, axes


def _save(figure: Any, path: Path) -> Path:
    figure.tight_layout()
    figure.savefig(path, dpi=110)
    need("matplotlib.pyplot").close(figure)
    return path


def ablations(results: Results, rows: Sequence[Row], path: Path) -> Path:
    """AUC of every comparison with its noise, beside the paper's sign."""
    shown = [row for row in rows if "auc" in row.differences]
    figure, axes = _figure(1, 1, 11, 1.3 + 0.32 * len(shown))
    axis = axes[0][0]
    for place, row in enumerate(shown):
        gap = row.differences["auc"]
        color = COLORS[gap.sign]
        bound = 0.0 if np.isinf(gap.bound) else gap.bound
        axis.barh(place, 2 * bound, left=-bound, height=0.62, color="#e4e4e4", zorder=1)
        fill = "white" if gap.sign == "?" else color
        spread = np.nan_to_num(gap.deviation)
        axis.errorbar(gap.mean, place, xerr=spread, fmt="o", color=color, mfc=fill, capsize=3)
    axis.set_yticks(range(len(shown)), [_named(row) for row in shown], fontsize=9)
    # Ids and histories change the AUC ten times as much as all else.
    axis.set_xscale("symlog", linthresh=LINEAR)
    axis.set_xticks(TICKS, [f"{tick:+g}" if tick else "0" for tick in TICKS], fontsize=8)
    axis.set_xlim(*_limits(shown))
    axis.grid(axis="x", alpha=0.3)
    axis.axvline(0, color="black", linewidth=0.8)
    axis.set_ylim(len(shown) - 0.4, -0.6)
    axis.set_xlabel("difference in AUC (band: the noise)")
    axis.set_title(results.data.title)
    signs = {row.differences["auc"].sign for row in shown}
    for sign in (s for s in MEANING if s in signs):
        fill = "white" if sign == "?" else COLORS[sign]
        axis.plot([], [], "o", color=COLORS[sign], mfc=fill, label=MEANING[sign])
    axis.legend(loc="lower left", fontsize=8)
    return _save(figure, path)


def _named(row: Row) -> str:
    against = "" if " over " in row.label else f" vs {row.against}"
    return f"{row.label}{against}  (paper: {row.sign or 'nothing'})"


def _limits(rows: Sequence[Row]) -> tuple[float, float]:
    ends = [0.0]
    for row in rows:
        gap = row.differences["auc"]
        bound = 0.0 if np.isinf(gap.bound) else gap.bound
        spread = float(np.nan_to_num(gap.deviation))
        ends += [gap.mean - spread, gap.mean + spread, -bound, bound]
    return 1.2 * min(ends) - 0.001, 1.2 * max(ends) + 0.001


def history(results: Results, path: Path) -> Path:
    """Quality and cost by the length of the history."""
    lengths = [n for n in results.plan.lengths if f"history-{n}" in results.runs]
    figure, axes = _figure(1, 2, 9, 3.4)
    names = ["ids", *(f"history-{n}" for n in lengths)]
    x = [0, *lengths]
    values = [results.metric(name, "auc") for name in names]
    spread = [v.std(ddof=1) if len(v) > 1 else 0 for v in values]
    axes[0][0].errorbar(x, [v.mean() for v in values], yerr=spread, marker="o", capsize=3)
    axes[0][0].set_ylabel("AUC, mean of both tasks")
    seconds = [np.mean([r["seconds"] for r in results.runs[name]]) for name in names]
    axes[0][1].plot(x, seconds, "o-")
    axes[0][1].set_ylabel("processor seconds of a training")
    axes[0][1].set_ylim(bottom=0)
    for axis in axes[0]:
        axis.set_xlabel("length of the history (0: none)")
        axis.set_xticks(x)
        axis.grid(alpha=0.3)
    return _save(figure, path)


def increments(results: Results, path: Path) -> Path:
    """Quality round by round, and what the updates cost."""
    names = {
        "retrained": "full retraining",
        "incremental": "incremental, penalty",
        "unpenalised": "incremental, no penalty",
        "stale": "no update",
    }
    names = {n: text for n, text in names.items() if n in results.runs}
    figure, axes = _figure(1, 2, 9, 3.4)
    colors = [f"C{i}" for i in range(len(names))]
    for name, color in zip(names, colors, strict=True):
        each = np.array([r["auc_of_iteration"] for r in results.runs[name]])
        spread = each.std(0, ddof=1) if len(each) > 1 else np.zeros(each.shape[1])
        rounds = np.arange(1, each.shape[1] + 1)
        axes[0][0].errorbar(rounds, each.mean(0), yerr=spread, marker="o", capsize=3, color=color)
    axes[0][0].set_xlabel("round (one test set for all)")
    axes[0][0].set_xticks(rounds)
    axes[0][0].set_ylabel("AUC, mean of both tasks")
    seconds = [np.mean([r["seconds"] for r in results.runs[n]]) for n in names]
    bars = axes[0][1].barh(list(names.values()), seconds, color=colors)
    axes[0][1].bar_label(bars, fmt="%.1f s", padding=3)
    axes[0][1].set_xlim(right=1.2 * max(seconds) or 1)
    for label, color in zip(axes[0][1].get_yticklabels(), colors, strict=True):
        label.set_color(color)
    axes[0][1].invert_yaxis()
    axes[0][1].set_xlabel("processor seconds of all rounds")
    return _save(figure, path)


def bandit(found: dict[str, Any], path: Path) -> Path:
    """Values of the policies with their intervals."""
    first = found["runs"][0]
    bars = [
        ("logged Thompson, as logged", first["logged"]["rate"], first["logged"]["interval"]),
        ("uniform, as logged", first["uniform"]["rate"], first["uniform"]["interval"]),
    ]
    check = first["uniform_from_logged"]
    bars.append(("uniform, from the Thompson log (SNIPS)", check["snips"], cautious(check)))
    for run in found["runs"]:
        for policy in ("thompson", "greedy"):
            value, label = run["values"][policy], f"learned, {NAMES[policy]}, seed {run['seed']}"
            bars.append((f"{label} (SNIPS)", value["snips"], cautious(value)))
    figure, axes = _figure(1, 1, 9, 1.2 + 0.32 * len(bars))
    axis = axes[0][0]
    for place, (label, value, interval) in enumerate(bars):
        color = "#4477aa" if "learned" in label else "#333333"
        axis.plot([100 * v for v in interval], [place, place], color=color)
        axis.plot(100 * value, place, "o", color=color)
    axis.set_yticks(range(len(bars)), [label for label, *_ in bars], fontsize=9)
    axis.invert_yaxis()
    axis.set_xlim(left=0)
    axis.grid(axis="x", alpha=0.3)
    axis.set_xlabel("clicks per 100 impressions, with 95 % interval (by the rows in effect)")
    axis.set_title("Open Bandit logs")
    return _save(figure, path)
