"""The results of a benchmark run, as a table, as JSON, or as a picture."""

from __future__ import annotations

import datetime
import json
import math
import os
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import torch

from lirank_ext import build_info
from lirank_ext._table import print_line, print_table
from lirank_ext.benchmarks.ceilings import Ceilings
from lirank_ext.errors import UserError
from lirank_ext.library import processor
from lirank_ext.library.processor import Disturbance

OURS = "lirank"
FASTEST = "the fastest of the others"


def _is_partly_ours(provider: str) -> bool:
    """Whether it is our op in another dtype, or a peer on huge pages from this package."""
    return OURS in provider or "huge pages" in provider


@dataclass
class Timing:
    """The time of one provider, in seconds per call.

    Attributes:
        ratio: how many times faster we are. It is the median over the repeats of the provider's
            time divided by ours.
        extra: peak bytes in use minus those before the call.
        fraction: share of the ceiling. It is above 1 if the provider does not have to move or
            compute everything that the workload counts.
    """

    provider: str
    median: float
    p20: float
    p80: float
    repeats: int
    ratio: float
    extra: int | None
    fraction: float | None = None


@dataclass
class Measured:
    """A workload with its timings, and the refused providers with the reasons.

    Attributes:
        amount: number of bytes, operations or exponentials to compare with the ceiling.
        others: cores that other processes used meanwhile, or None where that is not known.
        preempted: how often a second this process had to leave a core.
        disturbed: whether the threads had to share cores with other processes.
    """

    op: str
    label: str
    direction: str
    items: int
    unit: str
    bytes: int
    ceiling: str
    amount: int
    gather: tuple[int, int]
    timings: list[Timing] = field(default_factory=list)
    refused: dict[str, str] = field(default_factory=dict)
    others: float | None = None
    preempted: float = 0.0
    disturbed: bool = False

    def saw(self, seen: Disturbance, threads: int) -> None:
        """Take down what else the processor did while this was timed by so many threads."""
        self.others, self.preempted = seen.others, seen.preempted
        self.disturbed = seen.disturbs(threads)

    @property
    def kind(self) -> str:
        """The word at the start of the label, such as int8, or "" if there is none."""
        first = self.label.split(maxsplit=1)[0] if self.label else ""
        return first if first.isalnum() and not first.isdigit() else ""

    def cells(self) -> list[list[str]]:
        """The rows of the table, one for each provider that was timed or refused."""
        head = [self.op if self.direction == "forward" else f"{self.op}, {self.direction}"]
        head.append(self.label)
        rows = []
        for t in self.timings:
            ours = t.provider == OURS
            rows.append(
                [
                    *head,
                    t.provider,
                    _time(t.median),
                    f"{_time(t.p20)} - {_time(t.p80)}",
                    "" if ours else f"{t.ratio:.2f}x{'?' if self.disturbed else ''}",
                    f"{t.median / self.items * 1e9:.2f} /{self.unit}" if self.items else "",
                    f"{self.bytes / t.median / 1e9:.3g}" if self.bytes else "",
                    "" if t.fraction is None else f"{t.fraction:.0%} {self.ceiling}",
                    "" if t.extra is None else _size(t.extra),
                ]
            )
            head = ["", ""]
        for name, problem in self.refused.items():
            rows.append([*head, name, f"NOT TIMED: {problem}", *[""] * 6])
            head = ["", ""]
        return rows

    def styles(self) -> list[str]:
        timed = ["good" if t.provider == OURS else "" for t in self.timings]
        return timed + ["bad"] * len(self.refused)


COLUMNS = ("op", "shape", "provider", ">median", ">p20 - p80", ">lirank is", ">ns per item")
COLUMNS += (">GB/s", ">of ceiling", ">extra memory")


@dataclass
class Report:
    """All workloads of one run, and the machine they ran on."""

    device: str
    ceilings: Ceilings
    measured: list[Measured] = field(default_factory=list)
    absent: list[str] = field(default_factory=list)
    about: dict[str, Any] | None = None  # the machine of an earlier run

    @classmethod
    def load(cls, path: str | Path) -> Report:
        """The report of an earlier run, from the JSON that it wrote.

        Raises:
            UserError: the file is no such JSON.
        """
        try:
            found = json.loads(Path(path).read_text(encoding="utf-8"))
            ceilings = Ceilings("cpu")
            ceilings.measured = found["ceilings"]
            measured = [
                Measured(**{**m, "timings": [Timing(**t) for t in m["timings"]]})
                for m in found["measured"]
            ]
            absent = found["absent_peers"]
        except OSError as error:
            raise UserError(f"cannot read {path}: {error.strerror}") from error
        except (ValueError, KeyError, TypeError) as error:
            raise UserError(f"{path}: wanted JSON that bench --json wrote") from error
        return cls(found["machine"]["device"], ceilings, measured, absent, found["machine"])

    @property
    def machine(self) -> dict[str, Any]:
        """The machine and the build of the run."""
        return machine(self.device) if self.about is None else self.about

    @property
    def failed(self) -> bool:
        """Whether a provider disagreed with the reference, or nothing was measured."""
        return not self.measured or any(m.refused for m in self.measured)

    def summary(self) -> list[list[str]]:
        """The rows of the summary, one for each op and provider.

        A row has the geometric mean of the ratios, the worst ratio and its shape, and how many
        ratios are below 1. Further rows compare with the fastest other provider at each shape.
        """
        groups: dict[tuple[str, str, str], list[tuple[float, str]]] = {}
        for m in self.measured:
            for t in m.timings:
                if t.provider != OURS:
                    key = (m.op, m.direction, t.provider)
                    groups.setdefault(key, []).append((t.ratio, m.label))
        fastest: dict[tuple[str, str, str], list[tuple[float, str]]] = {}
        for m in self.measured:
            others = [t.ratio for t in m.timings if not _is_partly_ours(t.provider)]
            if others:
                key = (f"{m.op} {m.kind}".strip(), m.direction, FASTEST)
                fastest.setdefault(key, []).append((min(others), m.label))
        rows = []
        for (op, direction, provider), ratios in [*groups.items(), *fastest.items()]:
            mean = math.exp(sum(math.log(r) for r, _ in ratios) / len(ratios))
            worst, where = min(ratios)
            name = op if direction == "forward" else f"{op}, {direction}"
            row = [name, provider, str(len(ratios)), f"{mean:.2f}x", f"{worst:.2f}x", where]
            rows.append([*row, str(sum(ratio < 1 for ratio, _ in ratios))])
        return rows

    def show(self) -> None:
        """Print the tables on standard output."""
        rows = [row for m in self.measured for row in m.cells()]
        styles = [style for m in self.measured for style in m.styles()]
        print_table("", COLUMNS, rows, styles)
        columns = ("op", "provider", ">shapes", ">geometric mean", ">worst", "worst shape")
        columns += (">below 1",)
        print_table("How many times faster lirank is", columns, self.summary())
        for name, rate in self.ceilings.measured.items():
            print_line(f"ceiling: {name}: {rate:.4g}", "dim")
        info = self.machine
        print_line(", ".join(f"{k}: {v}" for k, v in info.items() if k != "build"), "dim")
        if self.absent:
            print_line(f"Peers not installed: {', '.join(self.absent)}.", "dim")
        if line := self.disturbance():
            print_line(line, "bad")
        refused = [f"{m.op} {m.label}: {n}" for m in self.measured for n in m.refused]
        if refused:
            print_line(f"Not timed, because they failed: {'; '.join(refused)}.", "bad")

    def disturbance(self) -> str:
        """What to know before these figures are used; empty where nothing disturbed them."""
        found = [m for m in self.measured if m.disturbed]
        if not found:
            return ""
        most = max(m.others or 0.0 for m in found)
        return (
            f"Disturbed: other processes used up to {most:.1f} cores while {len(found)} of "
            f"{len(self.measured)} shapes were timed. Their times and ratios (marked ?) may be far "
            "off: run again on an idle machine, or with fewer --threads."
        )

    def as_json(self) -> dict[str, Any]:
        """The machine, the ceilings and all figures, in seconds and bytes."""
        return {
            "machine": self.machine,
            "ceilings": self.ceilings.measured,
            "absent_peers": self.absent,
            "measured": [asdict(m) for m in self.measured],
        }

    def _ratios(self, fastest: bool) -> dict[str, list[float]]:
        """The ratios of every shape by op and provider, or those of the fastest other provider."""
        groups: dict[str, list[float]] = {}
        for m in self.measured:
            others = [t for t in m.timings if t.provider != OURS]
            if not fastest:
                for t in others:
                    name = f"{m.op} {m.direction}\nvs {t.provider}"
                    groups.setdefault(name, []).append(t.ratio)
                continue
            ratios = [t.ratio for t in others if not _is_partly_ours(t.provider)]
            if ratios and m.direction == "forward":
                groups.setdefault(f"{m.op} {m.kind}".strip(), []).append(min(ratios))
        return groups

    def plot(self, path: str, fastest: bool = False) -> None:
        """Draw the speed-ups, with a dot per shape and a line per op and provider.

        Args:
            path: of the picture, by whose ending its format is chosen.
            fastest: a line per op, with the fastest other provider of each shape; forward only.
        """
        from matplotlib import rc_context
        from matplotlib.figure import Figure

        groups = self._ratios(fastest)
        figure = Figure(
            figsize=(9, 1.6 + (0.32 if fastest else 0.45) * len(groups)), layout="constrained"
        )
        axes = figure.subplots()
        for y, ratios in enumerate(groups.values()):
            color = "#3b82c4" if min(ratios) >= 1 else "#e07b39"
            axes.plot([min(ratios), max(ratios)], [y, y], color=color, linewidth=1)
            axes.scatter(ratios, [y] * len(ratios), color=color, s=28, zorder=3)
        axes.axvline(1, color="#5b6470", linewidth=1, linestyle="--")
        axes.set_xscale("log")
        axes.xaxis.set_major_formatter("{x:g}x")
        axes.set_yticks(range(len(groups)), groups, fontsize=8)
        axes.set_ylim(max(len(groups), 1) - 0.5, -0.5)
        axes.set_xlabel(
            f"time of {FASTEST if fastest else 'the provider'} / time of lirank_ext\n"
            "a dot is a shape; right of 1x lirank_ext is faster; orange: slower on some shape"
        )
        axes.grid(axis="x", which="both", color="#e3e7ec", linewidth=0.6)
        info = self.machine
        threads = f"{info['threads']} thread{'s' if info['threads'] > 1 else ''}"
        text = f"{info['device']}, {info['isa']}, {threads}, torch {info['torch']}"
        axes.set_title(f"{text}, {info['date']}", fontsize=9)
        with rc_context({"svg.fonttype": "path", "svg.hashsalt": "lirank"}):
            figure.savefig(Path(path), dpi=150, facecolor="white")


def machine(device: str) -> dict[str, Any]:
    """The machine and the build on which the figures were measured."""
    cpu = processor.name()
    return {
        "device": torch.cuda.get_device_name() if device == "cuda" else cpu,
        "cpu": cpu,
        "cores": os.cpu_count(),
        "threads": torch.get_num_threads(),
        "isa": build_info()["cpu"],
        "torch": torch.__version__,
        "date": datetime.date.today().isoformat(),
        "build": build_info(),
    }


def _time(seconds: float) -> str:
    for scale, unit in ((1, "s"), (1e3, "ms"), (1e6, "us")):
        if seconds * scale >= 1:
            return f"{seconds * scale:.3g} {unit}"
    return f"{seconds * 1e9:.3g} ns"


def _size(count: int) -> str:
    if count < 1 << 20:
        return f"{count / 1024:.0f} KiB"
    return f"{count / 2**20:.1f} MiB"
