"""``python -m lirank_ext.benchmarks.study --data DIR --out DIR [--quick]``."""

from __future__ import annotations

import argparse
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import replace
from itertools import chain
from pathlib import Path
from typing import Any

import torch

from lirank_ext.errors import UserError

from . import bandit, report
from .data import Prepared, adult, movielens
from .plan import QUICK, Plan
from .records import Records
from .results import Results
from .runs import produces, run
from .variants import variants

DATA_SETS = ("adult", "ml-1m", "obd")
INCREMENTAL = "incremental"


def main(arguments: Sequence[str] | None = None) -> int:
    """Run what is not there yet and write the report; 2 and one sentence where that fails."""
    options = _parser().parse_args(arguments)
    plan = QUICK if options.quick else Plan()
    if options.seeds is not None:
        plan = replace(plan, seeds=options.seeds)
    torch.set_num_threads(1)
    try:
        path = Study(options.data, options.out, plan, options.only).run(
            [] if options.report else options.seed
        )
    except UserError as error:
        print(f"study: {error}", file=sys.stderr)
        return 2
    print(path)
    return 0


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="python -m lirank_ext.benchmarks.study", description=__doc__.splitlines()[0]
    )
    parser.add_argument("--data", type=Path, required=True, help="folder with ml-1m, adult, obd")
    parser.add_argument("--out", type=Path, required=True, help="folder of records and report")
    parser.add_argument("--quick", action="store_true", help="few rows, two seeds")
    parser.add_argument("--seeds", type=int, help="runs of every row")
    parser.add_argument(
        "--seed", type=int, action="append", help="run this one alone: several can share a folder"
    )
    parser.add_argument("--only", choices=DATA_SETS, action="append", help="leave out the others")
    parser.add_argument("--report", action="store_true", help="report what is there, run nothing")
    return parser


class Study:
    """All data sets, variants and seeds.

    Args:
        data: folder with ``ml-1m``, ``adult`` and ``obd``; absent ones are named and left out,
            save Adult, which ships with the package.
        out: folder of the records and the report.
        plan: sizes.
        only: data sets to take; None takes all.
    """

    def __init__(
        self, data: Path, out: Path, plan: Plan, only: Sequence[str] | None = None
    ) -> None:
        self.source, self.out, self.plan = data, out, plan
        self.only = [name for name in DATA_SETS if name in (only or DATA_SETS)]
        self.records = Records(out)
        self.skipped: list[str] = []

    def run(self, seeds: Sequence[int] | None = None) -> Path:
        """Run what is missing, seed by seed, and report all that is there.

        Args:
            seeds: to run; None runs those of the plan, [] none.

        Raises:
            DataError: a data set can't be read.
            StudyError: a record is of other settings.
        """
        prepared = self._prepared()
        bandits = self._bandit_folder() if "obd" in self.only else None
        for seed in range(self.plan.seeds) if seeds is None else seeds:
            for data in prepared:
                self._train(data, seed)
            if bandits is not None:
                self._bandit(bandits, seed)
        return self._report(prepared, bandits)

    # Data sets

    def _prepared(self) -> list[Prepared]:
        found = []
        if "adult" in self.only:
            path = self.source / "adult" / "adult.parquet"
            found.append(adult(path if path.is_file() else None, self.plan))
        if "ml-1m" in self.only:
            if (self.source / "ml-1m").is_dir():
                found.append(movielens(self.source / "ml-1m", self.plan))
            else:
                self._skip("MovieLens-1M", "ml-1m")
        return found

    def _bandit_folder(self) -> Path | None:
        folder = self.source / "obd"
        if folder.is_dir():
            return folder
        self._skip("Open Bandit", "obd")
        return None

    def _skip(self, title: str, folder: str) -> None:
        line = f"{title}: left out, as the data folder has no {folder}"
        self.skipped.append(line)
        self._say(line)

    # Runs

    def _settings(self, data: Prepared | None) -> dict[str, Any]:
        """What a record depends on; the number of seeds is not of it."""
        settings = self.plan.to_dict()
        del settings["seeds"], settings["resamples"]
        settings["rows"] = None if data is None else data.fingerprint()
        return settings

    def _names(self, data: Prepared) -> list[str]:
        names = [v.name for v in variants(data, self.plan) if not v.name.startswith("int")]
        return [*names, INCREMENTAL] if data.schema.history else names

    def _train(self, data: Prepared, seed: int) -> None:
        settings = self._settings(data)
        for name in self._names(data):
            there = [self.records.find(data.name, n, seed, settings) for n in produces(name)]
            if all(there):
                continue
            key = {"data": data.name, "seed": seed, "settings": settings}
            self._timed(
                f"{data.name} {name} seed {seed}",
                lambda name=name, key=key: run(
                    name, data, self.plan, seed, self._keeper(data, key)
                ),
            )

    def _keeper(self, data: Prepared, key: dict[str, Any]) -> Callable[..., None]:
        from .runs import Bench

        def keep(name: str, scores: Any, **more: Any) -> None:
            metrics = Bench(data, self.plan, key["seed"]).record(scores)
            self.records.keep({"name": name, **key, **metrics, **more}, scores)

        return keep

    def _bandit(self, folder: Path, seed: int) -> None:
        settings = self._settings(None)
        if self.records.find("obd", "thompson", seed, settings):
            return

        def call() -> None:
            found = bandit.evaluate(folder, self.plan, seed)
            record = {"data": "obd", "name": "thompson", "seed": seed, "settings": settings}
            self.records.keep({**record, **found})

        self._timed(f"obd seed {seed}", call)

    def _timed(self, what: str, call: Callable[[], None]) -> None:
        start, used = time.monotonic(), time.process_time()
        call()
        wall, used = time.monotonic() - start, time.process_time() - used
        self._say(f"{what}: {used:.0f} s of processor time, {wall:.0f} s in all")

    def _say(self, text: str) -> None:
        print(text, file=sys.stderr, flush=True)

    # Report

    def _report(self, prepared: list[Prepared], bandits: Path | None) -> Path:
        found, unfinished = [], []
        for data in prepared:
            runs, missing = self._runs(data)
            unfinished += missing
            if runs:
                found.append(Results(data, self.plan, self.records, runs))
        done = []
        if bandits is not None:
            settings = self._settings(None)
            seeds = range(self.plan.seeds)
            done = [self.records.find("obd", "thompson", seed, settings) for seed in seeds]
        done = [record for record in done if record]
        bandit_runs = {"runs": done} if done else None
        return report.write(self.out, self.plan, found, bandit_runs, self.skipped, unfinished)

    def _runs(self, data: Prepared) -> tuple[dict[str, list[dict]], list[str]]:
        """The finished runs by name, and a line on those that lack seeds."""
        settings, runs, missing = self._settings(data), {}, []
        for name in chain.from_iterable(map(produces, self._names(data))):
            seeds = range(self.plan.seeds)
            done = [self.records.find(data.name, name, seed, settings) for seed in seeds]
            done = [record for record in done if record]
            if done:
                runs[name] = done
            if len(done) < self.plan.seeds:
                missing.append(f"{name} ({len(done)})")
        if not missing:
            return runs, []
        line = f"{data.title}: fewer than {self.plan.seeds} seeds were run of {', '.join(missing)}"
        return runs, [line]


if __name__ == "__main__":
    sys.exit(main())
