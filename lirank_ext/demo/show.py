"""The demo's table and picture."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from .._table import print_table
from ..data.packages import need
from .measure import CANDIDATES, Reading, reliability
from .prepare import Prepared

COLORS = ("#9aa5b1", "#3b82c4", "#e07b39")


def headline(readings: list[Reading]) -> str:
    """What came out, in one line."""
    first, last = readings[0], readings[-1]
    bytes_ = f"{_megabytes(first.embedding_bytes)} to {_megabytes(last.embedding_bytes)}"
    saved = 1 - last.embedding_bytes / first.embedding_bytes
    size = min(first.latency)
    return (
        f"AUC {first.auc:.4f} to {last.auc:.4f}, embeddings {bytes_} (-{saved:.0%}), "
        f"p50 at batch {size} {first.latency[size][0]:.2f} to {last.latency[size][0]:.2f} ms"
    )


def show(data: Prepared, readings: list[Reading]) -> None:
    """Print what was measured, a row per figure and a column per variant."""
    rows = []
    for name, value, text, relative in _figures(readings[0]):
        values = [value(reading) for reading in readings]
        change = f"{values[-1] / values[0]:.2f}x" if relative else f"{values[-1] - values[0]:+.5f}"
        rows.append([name, *map(text, values), change])
    sizes = f"{len(data.train):,} rows to train, {len(data.test):,} to test"
    columns = ("", *(f">{reading.name}" for reading in readings), ">change")
    print_table(f"{data.name}: {data.task} ({sizes})", columns, rows)


def _figures(reading: Reading) -> list[tuple[str, Callable, Callable, bool]]:
    """Name, value of a reading, its text, and whether the change is a ratio."""
    figures = [
        ("AUC", lambda r: r.auc, "{:.5f}".format, False),
        ("log-loss", lambda r: r.log_loss, "{:.5f}".format, False),
        ("observed / expected", lambda r: r.observed_over_expected, "{:.4f}".format, False),
        ("embeddings", lambda r: r.embedding_bytes, _megabytes, True),
        ("whole model", lambda r: r.model_bytes, _megabytes, True),
    ]
    for size in reading.latency:
        for i, what in enumerate(("p50", "p99")):
            name = f"{what} at batch {size}"
            figures.append((name, lambda r, s=size, i=i: r.latency[s][i], "{:.3f} ms".format, True))
    for i, how in enumerate(("as rows", "by score")):
        name = f"p50 of {CANDIDATES} candidates, {how}"
        figures.append((name, lambda r, i=i: r.candidates[i], "{:.3f} ms".format, True))
    return figures


def _megabytes(number: int) -> str:
    return f"{number / 1e6:.2f} MB"


def draw(path: Path, data: Prepared, readings: list[Reading]) -> None:
    """Draw the reliability curves and the bars of bytes and latency into a PNG file."""
    figure = need("matplotlib.figure").Figure(figsize=(15, 5.4), dpi=120, layout="constrained")
    figure.suptitle(f"{data.name} ({data.task}): {headline(readings)}", fontsize=12)
    left, middle, right = figure.subfigures(1, 3, width_ratios=(4, 2, 6))
    _draw_reliability(left.subplots(), data, readings)
    sizes = [reading.embedding_bytes / 1e6 for reading in readings]
    _draw_bars(middle.subplots(), readings, sizes, [], "smaller")
    middle.suptitle("Embedding tables, MB", fontsize=12)
    right.suptitle(
        "Latency of a request in milliseconds: p50 as a bar, p99 in brackets", fontsize=12
    )
    batches = list(readings[0].latency)
    for axes, batch in zip(right.subplots(1, len(batches)), batches, strict=True):
        p50, p99 = zip(*(reading.latency[batch] for reading in readings), strict=True)
        _draw_bars(axes, readings, p50, [f"({value:.3g})" for value in p99], "faster")
        axes.set_ylabel("ms" if batch == batches[0] else "")
        axes.set_title(f"batch {batch}", fontsize=11)
    figure.savefig(path)


def _draw_reliability(axes: Any, data: Prepared, readings: list[Reading]) -> None:
    labels = data.labels(data.test)
    axes.plot([0, 1], [0, 1], color="black", linewidth=0.8, linestyle=":", label="perfect")
    # Before and after all but coincide: a broad line below a thin one shows both.
    styles = ({"linewidth": 7, "alpha": 0.6}, {"linewidth": 1.5, "marker": "o", "markersize": 5})
    chosen = ((readings[0], COLORS[0]), (readings[-1], COLORS[-1]))
    for (reading, color), style in zip(chosen, styles, strict=True):
        predicted, observed = reliability(reading.probabilities, labels)
        label = f"{reading.name}: observed / expected {reading.observed_over_expected:.3f}"
        axes.plot(predicted, observed, color=color, label=label, **style)
    axes.set(xlabel="predicted probability (bins of as many rows)", ylabel="observed share")
    axes.set(title="Calibration on the test rows", xlim=(0, 1), ylim=(0, 1))
    axes.legend(loc="upper left", frameon=False)


def _draw_bars(
    axes: Any,
    readings: list[Reading],
    values: Sequence[float],
    notes: Sequence[str],
    better: str,
) -> None:
    """A bar per variant with its value, a note, and how it compares with the first."""
    height = max(values)
    for i, (value, color) in enumerate(zip(values, COLORS, strict=True)):
        axes.bar(i, value, 0.85, color=color)
        text, ratio = f"{value:.3g}" if value < 100 else f"{value:,.0f}", values[0] / value
        text += f"\n{notes[i]}" if notes else ""
        if round(ratio, 1) != 1:
            text += f"\n{ratio:.1f}x" + (f"\n{better}" if ratio > 1 else "")
        # A short bar has no room for it: above it then.
        inside = value > 0.4 * height
        place = (value / 2, "center") if inside else (value + 0.02 * height, "bottom")
        axes.annotate(text, (i, place[0]), ha="center", va=place[1], fontsize=10)
    axes.set_ylim(0, 1.2 * height)
    names = [
        reading.name.replace(" + ", "\n+ ").replace("plain ", "plain\n") for reading in readings
    ]
    axes.set_xticks(range(len(readings)), names, fontsize=9)
    axes.spines[["top", "right"]].set_visible(False)
