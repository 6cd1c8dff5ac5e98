"""From records to differences between rows."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import Any

import numpy as np

from .data import Prepared
from .judge import METRICS, Difference, Measured, difference, measured, standard_error, verdict
from .plan import Plan
from .records import Records
from .variants import Contrast, contrasts, variants


@dataclass
class Row:
    """A comparison and what came of it.

    Attributes:
        name, label, against: of the variant or contrast.
        paper, sign: the paper's figures and sign.
        differences: by metric, empty where there is nothing to compare with.
        verdict: of the AUC.
        runs: the records of the row itself.
    """

    name: str
    label: str
    against: str
    paper: str
    sign: str
    differences: dict[str, Difference]
    verdict: str
    runs: list[dict[str, Any]]

    def as_json(self) -> dict[str, Any]:
        """Plain values."""
        found = asdict(self)
        del found["runs"]
        for name, gap in self.differences.items():
            found["differences"][name].update(bound=gap.bound, sign=gap.sign)
        return found


class Results:
    """The finished runs of a data set, compared.

    Args:
        data: whose test rows were scored.
        plan: sizes.
        records: of all data sets.
        runs: the records of this data set, by name and then in order of the seeds.
    """

    def __init__(
        self, data: Prepared, plan: Plan, records: Records, runs: dict[str, list[dict]]
    ) -> None:
        self.data, self.plan, self.records, self.runs = data, plan, records, runs
        self.known: dict[tuple[str, int], dict[str, Measured]] = {}

    def variants(self) -> list[Row]:
        """A row per variant that has a run."""
        found = variants(self.data, self.plan)
        return [self._row(v, v.name, v.against) for v in found if v.name in self.runs]

    def contrasts(self) -> list[Row]:
        """A row per contrast whose both sides have a run."""
        found = contrasts(self.data, self.plan)
        return [
            self._row(c, c.name, c.against)
            for c in found
            if c.name in self.runs and c.against in self.runs
        ]

    def _row(self, what: Any | Contrast, name: str, against: str) -> Row:
        gaps = {m: self._difference(name, against, m) for m in METRICS} if against else {}
        gaps = {m: gap for m, gap in gaps.items() if gap is not None}
        said = verdict(gaps["auc"].sign, what.paper.sign) if gaps else ""
        runs = self.runs[name]
        return Row(name, what.label, against, what.paper.text, what.paper.sign, gaps, said, runs)

    def _difference(self, name: str, against: str, metric: str) -> Difference | None:
        seeds = [r["seed"] for r in self.runs.get(against, [])]
        seeds = [r["seed"] for r in self.runs[name] if r["seed"] in seeds]
        if not seeds:
            return None
        each, errors = [], []
        for seed in seeds:
            mine, other = self._of(name, seed)[metric], self._of(against, seed)[metric]
            each.append(mine.value - other.value)
            errors.append(standard_error(mine.influence - other.influence, self.data.clusters))
        return difference(each, errors)

    def _of(self, name: str, seed: int) -> dict[str, Measured]:
        if (name, seed) not in self.known:
            record = next(r for r in self.runs[name] if r["seed"] == seed)
            self.known[name, seed] = measured(self.records.scores(record), self.data.labels)
        return self.known[name, seed]

    def metric(self, name: str, metric: str) -> np.ndarray:
        """A metric of every seed of a row."""
        return np.array([self._of(name, r["seed"])[metric].value for r in self.runs[name]])
