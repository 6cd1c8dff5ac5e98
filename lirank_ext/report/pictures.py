"""The pictures of a report, each an SVG with a sentence that says what it shows."""

from __future__ import annotations

import io
import re
from collections.abc import Callable
from dataclasses import dataclass
from html import escape
from typing import Any

import numpy as np

from ..data.packages import need
from .latency import Latency
from .layers import Maps
from .measure import BINS, Task
from .quantized import EDGES, Quantized
from .segments import Segment

INK, SOFT, GRID = "#1f2933", "#7b8794", "#e4e7eb"
BLUE, ORANGE, GREEN = "#2f6fb2", "#d9722e", "#3a8f5c"
STYLE = {
    "svg.fonttype": "none",  # text stays text: small, and read by screen readers
    "svg.hashsalt": "lirank",
    "font.family": "sans-serif",
    "font.sans-serif": ["DejaVu Sans"],
    "font.size": 10,
    "text.color": INK,
    "axes.labelcolor": INK,
    "axes.edgecolor": SOFT,
    "axes.titlesize": 10,
    "axes.titleweight": "bold",
    "axes.titlelocation": "left",
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.grid": True,
    "axes.axisbelow": True,
    "grid.color": GRID,
    "xtick.color": SOFT,
    "ytick.color": SOFT,
    "xtick.labelcolor": INK,
    "ytick.labelcolor": INK,
    "legend.frameon": False,
    "image.cmap": "Blues",
}


@dataclass
class Picture:
    """A picture for a page.

    Attributes:
        svg: to be put into HTML; no other file is needed.
        alt: what it shows, for those who do not see it.
        caption: how to read it.
    """

    svg: str
    alt: str
    caption: str

    def html(self, width: float) -> str:
        """A figure with its caption, at most ``width`` rem wide."""
        named = f'<svg role="img" aria-label="{escape(self.alt)}" '
        return (
            f'<figure style="max-width: {width:g}rem">{self.svg.replace("<svg ", named, 1)}\n'
            f"<figcaption>{escape(self.caption)}</figcaption></figure>"
        )

    def _repr_html_(self) -> str:
        """What a notebook shows."""
        return self.html(48)


def _drawn(name: str, size: tuple[float, float], draw: Callable[[Any], None]) -> str:
    """An SVG by a function of a figure; the name keeps its ids apart from those of others."""
    with need("matplotlib", "report").rc_context(STYLE):
        figure = need("matplotlib.figure", "report").Figure(figsize=size, layout="constrained")
        draw(figure)
        stream = io.StringIO()
        nothing = dict.fromkeys(("Date", "Creator", "Format", "Type"))
        figure.savefig(stream, format="svg", metadata=nothing, transparent=True)
    text = stream.getvalue()
    text = text[text.index("<svg") :]
    text = re.sub(r"<metadata>.*?</metadata>", "", text, flags=re.DOTALL)
    text = re.sub(r' (xmlns(:\w+)?|version)="[^"]*"', "", text)  # HTML needs none of them
    text = re.sub(r'(\bid="|href="#|url\(#)', rf"\g<1>{name}-", text)
    text = text.replace("'DejaVu Sans'", "'DejaVu Sans', system-ui, sans-serif")
    return re.sub(r'^<svg [^>]*?viewBox="([^"]*)"[^>]*>', r'<svg viewBox="\1">', text).strip()


def reliability(task: Task, name: str) -> Picture:
    """Predicted probability against observed share, and how the probabilities spread."""
    parts = task.parts(BINS)
    predicted, observed, error = (
        np.array([p[key] for p in parts]) for key in ("predicted", "observed", "error")
    )
    top = min(1.0, 1.12 * float(max(predicted.max(), (observed + error).max())))

    def draw(figure: Any) -> None:
        above, below = figure.subplots(2, 1, sharex=True, height_ratios=(4, 1))
        above.plot([0, top], [0, top], color=SOFT, linewidth=1, linestyle=(0, (4, 3)))
        above.annotate("perfect", (0.93 * top, 0.95 * top), color=SOFT, ha="right", va="bottom")
        above.errorbar(
            predicted, observed, 2 * error, color=BLUE, marker="o", markersize=5, linewidth=1.4
        )
        above.set(ylabel="observed share", xlim=(0, top), ylim=(0, top))
        edges = np.linspace(0, top, 41)
        below.hist(task.probabilities, edges, weights=task.weights, color=BLUE, alpha=0.45)
        below.set(xlabel="predicted probability", ylabel="rows", yticks=[])
        below.grid(visible=False)

    worst = parts[int(np.argmax(np.abs(observed - predicted)))]
    return Picture(
        _drawn(f"{name}-reliability", (5.2, 4.6), draw),
        f"Reliability diagram of {task.name}: {len(parts)} bins with as many rows each. The "
        f"largest gap is at a mean probability of {worst['predicted']:.3f}, where "
        f"{worst['observed']:.3f} of the labels are 1.",
        f"Each dot is one of {len(parts)} bins with as many rows. On the dashed line, "
        "probabilities are right. Bars are two standard errors. Below: how the probabilities "
        "spread.",
    )


def lift_and_gain(task: Task, name: str) -> Picture:
    """The share of all labels of 1 among the highest scores, and the lift of each tenth."""
    shares, found = task.gain()
    tenths = task.parts(10)
    mean = float(np.average(task.labels, weights=task.weights))

    def draw(figure: Any) -> None:
        gain, lift = figure.subplots(1, 2)
        gain.plot([0, mean, 1], [0, 1, 1], color=SOFT, linewidth=1, linestyle=(0, (4, 3)))
        gain.plot([0, 1], [0, 1], color=SOFT, linewidth=1, linestyle=(0, (1, 2)))
        gain.plot(shares, found, color=BLUE, linewidth=2)
        gain.fill_between(shares, shares, found, color=BLUE, alpha=0.1)
        gain.set(title="Gain", xlabel="share of the rows, highest first", xlim=(0, 1))
        gain.set(ylabel="share of all labels of 1", ylim=(0, 1.02))
        places, heights = range(1, len(tenths) + 1), [p["lift"] for p in tenths]
        lift.bar(places, heights, 0.8, color=BLUE)
        lift.axhline(1, color=SOFT, linewidth=1, linestyle=(0, (4, 3)))
        for place, height in zip(places, heights, strict=True):
            lift.annotate(f"{height:.1f}", (place, height), ha="center", va="bottom", fontsize=8)
        lift.set(title="Lift", xlabel="tenth of the rows, highest first", xticks=list(places))
        lift.set(ylabel="share of 1 by that of all rows")
        lift.grid(visible=False, axis="x")

    first = float(np.interp(0.1, shares, found))
    return Picture(
        _drawn(f"{name}-gain", (8.4, 3.7), draw),
        f"Gain and lift of {task.name}: the tenth of the rows with the highest scores holds "
        f"{first:.0%} of all labels of 1, {tenths[0]['lift']:.1f} times the average.",
        "Left: dashed is a perfect order, dotted a random one. Right: 1 is the average of all "
        "rows; a good ranker falls from left to right.",
    )


def auc_by_segment(column: str, found: list[Segment], whole: float | None, name: str) -> Picture:
    """A dot with its error for each value of a column."""
    ranked = [s for s in found if s.auc is not None]

    def draw(figure: Any) -> None:
        axes = figure.subplots()
        places = np.arange(len(ranked))[::-1]
        errors = [2 * (s.error or 0) for s in ranked]
        values = [s.auc for s in ranked]
        axes.errorbar(values, places, xerr=errors, color=BLUE, marker="o", linestyle="")
        if whole is not None:
            axes.axvline(whole, color=SOFT, linewidth=1, linestyle=(0, (4, 3)))
            axes.annotate("all rows", (whole, len(ranked) - 0.35), color=SOFT, ha="center",
                          backgroundcolor="white")  # fmt: skip
        axes.set_yticks(places, [f"{_short(s.value)}  ({s.rows:,})" for s in ranked])
        axes.set(xlabel="AUC", ylim=(-0.6, len(ranked)))
        # The errors of a few rows reach beyond what an AUC can be.
        axes.set(xlim=(max(0.0, axes.get_xlim()[0]), min(1.005, axes.get_xlim()[1])))
        axes.grid(visible=False, axis="y")

    spoken = ", ".join(f"{s.value} {s.auc:.3f}" for s in ranked)
    return Picture(
        _drawn(f"{name}-segment", (6.4, 1.1 + 0.32 * max(2, len(ranked))), draw),
        f"AUC by {column}: {spoken}.",
        "The AUC among the rows of one value, with the number of rows. Bars are two standard "
        "errors. Values whose labels are all the same are left out.",
    )


def row_errors(quantized: Quantized) -> Picture:
    """Histograms of the relative errors of rows."""

    def draw(figure: Any) -> None:
        axes = figure.subplots()
        for effect, color in zip(quantized.effects, (BLUE, ORANGE), strict=True):
            axes.stairs(effect.counts, EDGES, fill=True, color=color, alpha=0.55)
            peak = int(np.argmax(effect.counts))
            place = (EDGES[peak], effect.counts[peak])
            text = f"int{effect.bits}, median {effect.median:.2g}"
            axes.annotate(text, place, color=color, ha="center", va="bottom", weight="bold")
        shown = [i for e in quantized.effects for i, count in enumerate(e.counts) if count]
        low, high = EDGES[min(shown)] / 2, EDGES[max(shown) + 1] * 2
        axes.set(xscale="log", xlabel="relative error of a row", ylabel="rows")
        axes.set(xlim=(low, high))
        axes.yaxis.set_major_formatter("{x:,.0f}")
        axes.margins(y=0.15)

    spoken = "; ".join(
        f"int{e.bits} median {e.median:.2g}, largest {e.largest:.2g}" for e in quantized.effects
    )
    return Picture(
        _drawn("rows", (6.4, 3.4), draw),
        f"Histogram of the relative error of {quantized.rows:,} quantized rows: {spoken}.",
        "Length of the difference of a row and its quantized row, by the length of the row.",
    )


def products(maps: Maps) -> Picture:
    """What the first low-rank cross layer adds to a column from another."""
    assert maps.products is not None
    names, sizes = maps.columns, maps.products
    width = 2.8 + 0.3 * len(names)

    def draw(figure: Any) -> None:
        axes = figure.subplots()
        image = axes.imshow(sizes, vmin=0)
        axes.set_xticks(range(len(names)), [_short(n) for n in names], rotation=60, ha="right",
                        rotation_mode="anchor")  # fmt: skip
        axes.set_yticks(range(len(names)), [_short(n) for n in names])
        axes.set(xlabel="by this column", ylabel="this column is multiplied")
        axes.grid(visible=False)
        figure.colorbar(image, ax=axes, shrink=0.8, label="mean size of the product")

    a, b = np.unravel_index(int(np.argmax(sizes)), sizes.shape)
    left = f" The {maps.left_out} columns with the smallest products are left out."
    return Picture(
        _drawn("products", (width + 0.9, width), draw),
        f"Map of the first low-rank cross layer: the largest product is that of {names[a]} by "
        f"{names[b]}.",
        "What the first low-rank cross layer adds to the columns at the left by multiplying them "
        f"with the columns below, averaged over {maps.rows:,} rows."
        + (left if maps.left_out else ""),
    )


def attention(maps: Maps) -> Picture:
    """The mean attention weights of the first attention cross layer."""
    weights = maps.attention
    assert weights is not None
    tokens = len(weights)
    times = weights * tokens

    def draw(figure: Any) -> None:
        axes = figure.subplots()
        low, high = min(0.999, float(times.min())), max(1.001, float(times.max()))
        norm = need("matplotlib.colors", "report").TwoSlopeNorm(1, low, high)
        image = axes.imshow(times, cmap="RdBu_r", norm=norm)
        axes.set(xlabel="token that is attended to", ylabel="token that attends")
        axes.grid(visible=False)
        figure.colorbar(image, ax=axes, shrink=0.8, label="weight, by a uniform one")

    received = times.mean(0)
    return Picture(
        _drawn("attention", (5.4, 4.6), draw),
        f"Attention map of the first attention cross layer over {tokens} tokens: the one that is "
        f"attended to most gets {received[0]:.2f} times a uniform weight, the least "
        f"{received[-1]:.2f} times.",
        f"Mean attention weights over {maps.rows:,} rows, where 1 is uniform. Tokens are parts of "
        "a hidden vector and have no names; those that get most weight stand first.",
    )


def latency(times: Latency) -> Picture:
    """Histograms of the time of a request."""

    def draw(figure: Any) -> None:
        panels = figure.subplots(1, len(times.seconds))
        for axes, (rows, seconds) in zip(panels, times.seconds.items(), strict=True):
            values = seconds * 1e3
            p50, p99 = times.quantile(rows, 0.5), times.quantile(rows, 0.99)
            # A few stragglers would squeeze all others into one bar.
            top = float(np.quantile(values, 0.98)) * 1.15
            axes.hist(np.minimum(values, top), 30, color=GREEN, alpha=0.7)
            axes.axvline(p50, color=INK, linewidth=1)
            axes.set(
                title=f"{rows} row{'s' if rows > 1 else ''}: p50 {p50:.3g} ms, p99 {p99:.3g} ms"
            )
            axes.set(xlabel="milliseconds", ylabel="requests")

    spoken = "; ".join(
        f"{rows} rows take {times.quantile(rows, 0.5):.3g} ms at the median and "
        f"{times.quantile(rows, 0.99):.3g} ms at the 99th percentile" for rows in times.seconds
    )  # fmt: skip
    return Picture(
        _drawn("latency", (8.4, 3.1), draw),
        f"Histograms of the latency on this machine: {spoken}.",
        "From hashed features to probabilities, one request after the other. The last bar holds "
        "all slower ones; the line is the median.",
    )


def _short(text: str, most: int = 24) -> str:
    return text if len(text) <= most else text[: most - 1] + "…"
