"""The quick workloads on a GPU within a time limit, each beside the floor of its roofline.

``python -m lirank_ext.benchmarks.gpu_run [--seconds 150] [--compile] [--json FILE]``. Families
take turns, so that every one has figures when time is up; the file is written anew after each.
A floor is what the workload must move or compute, at the rate that this GPU reached in the same
run; exponentials at 16 a clock and multiprocessor. Compiled providers are left out unless asked
for: compiling them takes longer than all the rest.
"""

from __future__ import annotations

import argparse
import json
import sys
import time
from collections.abc import Iterator
from dataclasses import dataclass
from itertools import chain, zip_longest

import torch

from lirank_ext._table import print_line, print_table
from lirank_ext.benchmarks import harness
from lirank_ext.benchmarks.ceilings import Ceilings
from lirank_ext.benchmarks.report import OURS, Measured, Report, _time

COMPILED = ("compile", "max-autotune")
COLUMNS = ("op", "shape", ">median", ">floor", ">of floor", "bound by", ">best other")


@dataclass
class Options:
    device: str
    seconds: float
    compiled: bool
    json: str | None


def workloads(options: Options) -> Iterator[harness.Workload]:
    """One of each family, then the next of each."""
    families = (m.workloads(options.device, False, True) for m in harness.modules())
    for workload in chain.from_iterable(zip_longest(*families)):
        if workload is not None:
            if not options.compiled:
                for name in [n for n in workload.providers if n.startswith(COMPILED)]:
                    del workload.providers[name]
            yield workload


def exp_rate(device: str) -> float | None:
    """Exponentials a second, by the programming guide and this GPU's clock."""
    if device != "cuda":
        return None
    properties = torch.cuda.get_device_properties(0)
    clock = getattr(properties, "clock_rate", 0) * 1e3  # kHz
    return 16 * properties.multi_processor_count * clock or None


def cells(measured: Measured, exps: float | None) -> list[str]:
    """Our time beside its floor and the fastest of the others."""
    head = [f"{measured.op}, {measured.direction}", measured.label]
    ours = next((t for t in measured.timings if t.provider == OURS), None)
    if ours is None:
        problems = "; ".join(f"{n}: {p}" for n, p in measured.refused.items())
        return [*head, f"NOT TIMED: {problems}", "", "", "", ""]
    floor = None if ours.fraction is None else ours.fraction * ours.median
    if floor is None and measured.ceiling == "exp" and exps:
        floor = measured.amount / exps
    others = [t for t in measured.timings if t.provider != OURS]
    best = min(others, key=lambda t: t.median, default=None)
    return [
        *head,
        _time(ours.median),
        "" if floor is None else _time(floor),
        "" if floor is None else f"{floor / ours.median:.0%}",
        measured.ceiling,
        "" if best is None else f"{best.provider} {_time(best.median)}, {best.ratio:.2f}x ours",
    ]


def run(options: Options) -> tuple[Report, bool]:
    """The report, and whether there was time for all; making inputs costs time as well."""
    ceilings, whole = Ceilings(options.device, 0.1), True
    report, deadline = Report(options.device, ceilings), time.monotonic() + options.seconds
    for workload in workloads(options):
        if report.measured and time.monotonic() > deadline:
            whole = False
            break
        print(f"{workload.op} {workload.label} {workload.direction}", file=sys.stderr, flush=True)
        report.measured.append(harness.measure(workload, options.device, ceilings, 0.2))
        if options.json:
            with open(options.json, "w", encoding="utf-8") as file:
                json.dump(report.as_json(), file, indent=1)
    for measured in report.measured:
        harness.set_fractions(measured, ceilings)
    return report, whole


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--seconds", type=float, default=150.0, help="after which none is begun")
    parser.add_argument("--device", choices=("cpu", "cuda"), default="cuda")
    parser.add_argument("--compile", action="store_true", help="torch.compile and max-autotune too")
    parser.add_argument("--json", metavar="FILE")
    args = parser.parse_args()
    report, whole = run(Options(args.device, args.seconds, args.compile, args.json))
    exps = exp_rate(args.device)
    rows = [cells(m, exps) for m in report.measured]
    print_table("", COLUMNS, rows, ["bad" if m.refused else "" for m in report.measured])
    for name, rate in report.ceilings.measured.items():
        print_line(f"ceiling: {name}: {rate:.4g}")
    if not whole:
        print_line(f"Not all workloads: the {args.seconds:.0f} seconds were over.")
    return 1 if report.failed else 0


if __name__ == "__main__":
    sys.exit(main())
