"""The HTML page of a report: one file, without scripts, that needs nothing else."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from html import escape
from pathlib import Path

from .._version import __version__
from . import pictures
from .measure import Figures, Task
from .quantized import Quantized
from .segments import Segment

STYLE = """
:root { color-scheme: light; }
body { margin: 0 auto; max-width: 60rem; padding: 1.5rem 1.25rem 4rem; color: #1f2933;
  background: #fff; font: 16px/1.55 system-ui, "DejaVu Sans", sans-serif; }
h1 { font-size: 1.7rem; margin: 0 0 .25rem; }
h2 { font-size: 1.25rem; margin: 2.75rem 0 .5rem; padding-top: 1rem;
  border-top: 1px solid #e4e7eb; }
h3 { font-size: 1rem; margin: 1.5rem 0 .25rem; }
p { max-width: 44rem; margin: .4rem 0; }
.about { color: #52606d; }
nav { display: flex; flex-wrap: wrap; gap: .25rem 1rem; margin: 1rem 0; }
a { color: #2f6fb2; }
figure { margin: 1rem 0; }
figure svg { display: block; width: 100%; height: auto; }
figcaption { color: #52606d; font-size: .875rem; max-width: 44rem; }
.wide { overflow-x: auto; }
table { border-collapse: collapse; margin: .75rem 0; font-variant-numeric: tabular-nums; }
th, td { padding: .3rem .9rem .3rem 0; text-align: right; border-bottom: 1px solid #e4e7eb; }
th:first-child, td:first-child { text-align: left; }
thead th { font-weight: 600; border-bottom: 2px solid #cbd2d9; }
tbody th { font-weight: 400; }
.note { background: #fff7e6; border-left: 4px solid #d9722e; padding: .5rem .75rem; }
@media print { nav { display: none; } figure { break-inside: avoid; } }
"""


def draw(figures: Figures, model: str, files: Sequence[str]) -> str:
    """The page.

    Args:
        figures: what was measured.
        model: folder of the model.
        files: that it was measured on.
    """
    sections: dict[str, list[str]] = {"Quality": [_metrics(figures)]}
    several = len(figures.tasks) > 1
    for number, task in enumerate(figures.tasks):
        of = f" of {task.name}" if several else ""
        name = f"task{number}"
        sections[f"Calibration{of}"] = [
            pictures.reliability(task, name).html(32),
        ]
        sections[f"Lift and gain{of}"] = [
            pictures.lift_and_gain(task, name).html(50),
            _tenths(task),
        ]
        sections[f"AUC by segment{of}"] = _segments(task, figures.metrics[task.name]["auc"], name)
    sections["Quantized rows"] = _quantized(figures.quantized, [t.name for t in figures.tasks])
    sections["Cross layers"] = _maps(figures)
    sections["Latency"] = _latency(figures)
    ids = {title: f"s{i}" for i, title in enumerate(sections)}
    links = "".join(f'<a href="#{ids[title]}">{escape(title)}</a>' for title in sections)
    body = "\n".join(
        f'<section><h2 id="{ids[title]}">{escape(title)}</h2>\n' + "\n".join(parts) + "</section>"
        for title, parts in sections.items()
    )
    names = [Path(file).name for file in files]
    model = Path(model).absolute().name
    on = ", ".join(names[:3]) + (f" and {len(files) - 3} more" if len(files) > 3 else "")
    about = (
        f"{figures.rows:,} rows of {on}; {len(figures.columns)} columns; {figures.numbers:,} "
        f"numbers in the model; on {figures.device}; lirank_ext {__version__}"
    )
    return (
        '<!DOCTYPE html>\n<html lang="en"><head><meta charset="utf-8">\n'
        '<meta name="viewport" content="width=device-width, initial-scale=1">\n'
        f"<title>{escape(model)}: report</title>\n<style>{STYLE}</style></head>\n<body>\n"
        f'<header><h1>{escape(model)}</h1><p class="about">{escape(about)}.</p></header>\n'
        f'<nav aria-label="Sections">{links}</nav>\n<main>\n{body}\n</main></body></html>\n'
    )


def _table(columns: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    head = "".join(f'<th scope="col">{escape(c)}</th>' for c in columns)
    lines = "".join(
        f'<tr><th scope="row">{escape(first)}</th>'
        + "".join(f"<td>{escape(cell)}</td>" for cell in rest)
        + "</tr>"
        for first, *rest in rows
    )
    table = f"<table><thead><tr>{head}</tr></thead><tbody>{lines}</tbody></table>"
    return f'<div class="wide">{table}</div>'


def _number(value: float | None, form: str = ".4f") -> str:
    return "–" if value is None or value != value else format(value, form)


def _change(value: float | None) -> str:
    return "–" if value is None else f"{round(value, 5) + 0.0:+.5f}"


def _metrics(figures: Figures) -> str:
    names = {"auc": "AUC", "log_loss": "log-loss", "base_log_loss": "log-loss of the mean"}
    names |= {"pr_auc": "PR AUC", "observed_to_expected": "observed / expected"}
    for name, heading in {"gauc": "GAUC", "ndcg": "NDCG"}.items():
        if any(values[name] is not None for values in figures.metrics.values()):
            names[name] = heading
    rows = [[task, *(_number(v[n]) for n in names)] for task, v in figures.metrics.items()]
    return _table(["task", *names.values()], rows)


def _tenths(task: Task) -> str:
    rows = [
        [
            str(i),
            f"{p['rows']:,}",
            f"{p['predicted']:.4f}",
            f"{p['observed']:.4f}",
            f"{p['lift']:.2f}",
        ]
        for i, p in enumerate(task.parts(10), 1)
    ]
    return _table(["tenth", "rows", "predicted", "observed", "lift"], rows)


def _segments(task: Task, whole: float | None, name: str) -> list[str]:
    if not task.segments:
        return ["<p>No column of the model has 2 to 12 values; name one with --segment.</p>"]
    parts = []
    for number, (column, found) in enumerate(task.segments.items()):
        parts.append(f"<h3>{escape(column)}</h3>")
        if any(s.auc is not None for s in found):
            picture = pictures.auc_by_segment(column, found, whole, f"{name}-{number}")
            parts.append(picture.html(40))
        parts.append(_segment_table(column, found))
    return parts


def _segment_table(column: str, found: list[Segment]) -> str:
    rows = [
        [s.value, f"{s.rows:,}", _number(s.auc), _number(s.error), f"{s.observed:.4f}",
         f"{s.predicted:.4f}"]
        for s in found
    ]  # fmt: skip
    names = ["rows", "AUC", "standard error", "observed", "predicted"]
    return _table([column, *names], rows)


def _quantized(quantized: Quantized | str, tasks: list[str]) -> list[str]:
    if isinstance(quantized, str):
        return [f"<p>{escape(quantized)}</p>"]
    names = ["bytes of tables", "of float", "largest change of a probability"]
    rows = [
        [f"int{e.bits}", f"{e.bytes_after:,}", f"{e.bytes_after / e.bytes_before:.0%}",
         f"{e.score_change:.5f}", *(_change(change) for change in e.auc_change)]
        for e in quantized.effects
    ]  # fmt: skip
    names += [f"change of AUC{f' of {t}' if len(tasks) > 1 else ''}" for t in tasks]
    return [pictures.row_errors(quantized).html(40), _table(["tables", *names], rows)]


def _maps(figures: Figures) -> list[str]:
    parts, maps = [], figures.maps
    if maps.products is not None:
        width = 20 + 1.6 * len(maps.columns)
        parts.append(pictures.products(maps).html(min(58, width)))
    if maps.attention is not None:
        parts.append(pictures.attention(maps).html(34))
    else:
        parts.append("<p>The model has no attention cross layer.</p>")
    return parts


def _latency(figures: Figures) -> list[str]:
    times = figures.latency
    parts = [
        f"<p>A measurement on this machine: {escape(times.machine)}; {times.threads} CPU "
        f"threads; {escape(figures.device)}.</p>"
    ]
    if times.disturbed:
        parts.append(
            '<p class="note">Other processes used the cores meanwhile: on a quiet machine the '
            "times are shorter.</p>"
        )
    return [*parts, pictures.latency(times).html(50)]
