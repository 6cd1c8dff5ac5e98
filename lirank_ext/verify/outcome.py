"""What a comparison showed, and how it is told."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from ..library.build_info import build_info
from .cases import Case


@dataclass
class Outcome:
    """What one case showed: the error as a share of what is allowed, and what was wrong."""

    case: Case
    error: float = 0.0
    allowed: float = 0.0
    problem: str = ""

    @property
    def passed(self) -> bool:
        return not self.problem


@dataclass
class Row:
    """One op on one backend."""

    op: str
    backend: str
    device: str = "cpu"
    outcomes: list[Outcome] = field(default_factory=list)
    absent: str = ""

    @property
    def passed(self) -> bool:
        return bool(self.outcomes) and all(o.passed for o in self.outcomes)

    @property
    def failures(self) -> list[Outcome]:
        return [o for o in self.outcomes if not o.passed]

    @property
    def worst(self) -> Outcome:
        """The first failure, else the outcome that comes closest to its allowance."""
        return worse(self.outcomes)

    @property
    def verdict(self) -> str:
        if self.absent:
            return f"absent: {self.absent}"
        if not self.outcomes:
            return "FAILED: there are no cases"
        if not self.failures:
            return "passed"
        first = self.failures[0]
        return f"FAILED {len(self.failures)}; {first.case.label}: {first.problem}"

    def cells(self) -> list[str]:
        """The row as text: op, backend, cases, worst error by the allowed one, dtype, verdict.

        What is allowed depends on the dtype: the errors of half precision are large, and right.
        """
        error, dtype = "", ""
        if self.outcomes and not self.absent:
            worst = self.worst
            measured = worst.allowed > 0
            share = worst.error / worst.allowed if measured else 0.0
            error = f"{share:.0%}" if measured else "bit-equal" if worst.passed else "-"
            dtype = _narrowest(worst.case) if measured else ""
        cases = str(len(self.outcomes)) if not self.absent else ""
        return [self.op, self.backend, cases, error, dtype, self.verdict]

    def as_json(self) -> dict[str, Any]:
        found: dict[str, Any] = {"op": self.op, "backend": self.backend, "device": self.device}
        if self.absent or not self.outcomes:
            return found | {"cases": 0, "passed": False, "absent": self.absent, "failures": []}
        failures = [{"case": o.case.label, "problem": o.problem} for o in self.failures]
        found |= {"cases": len(self.outcomes), "passed": self.passed, "absent": ""}
        worst = {"case": self.worst.case.label, "error": self.worst.error}
        return found | worst | {"allowed": self.worst.allowed, "failures": failures}


def _narrowest(case: Case) -> str:
    """The floating dtype in which a case computes, or "" if it has no such argument."""
    given = case.args.values() if isinstance(case.args, dict) else case.args
    found: list[torch.dtype] = []
    for value in given:
        map_tensors(value, lambda t: found.append(t.dtype) if t.is_floating_point() else None)
    return str(min(found, key=lambda d: d.itemsize)).removeprefix("torch.") if found else ""


def map_tensors(value: Any, function: Callable[[Tensor], Any]) -> Any:
    if isinstance(value, Tensor):
        return function(value)
    if isinstance(value, (list, tuple)):
        return type(value)(map_tensors(v, function) for v in value)
    return value


def worse(outcomes: list[Outcome]) -> Outcome:
    for outcome in outcomes:
        if not outcome.passed:
            return outcome
    return max(outcomes, key=lambda o: o.error / (o.allowed or 1.0))


def passed(rows: list[Row]) -> bool:
    """Something ran, and nothing that ran failed."""
    ran = [row for row in rows if not row.absent]
    return bool(ran) and all(row.passed for row in ran)


def summary(rows: list[Row]) -> str:
    """What was compared with what, in one line."""
    ran = [row for row in rows if not row.absent]
    cases = sum(len(row.outcomes) for row in ran)
    kinds = ", ".join(dict.fromkeys(r.backend for r in ran))
    failed = sum(not row.passed for row in ran)
    verdict = f"{failed} of {len(ran)} rows FAILED" if failed else f"all {len(ran)} rows passed"
    absent = len(rows) - len(ran)
    verdict += f"; {absent} absent, not counted as passed." if absent else "."
    return (
        f"{cases} cases on the backends {kinds} (CPU: {build_info()['cpu']}), forward and "
        f"backward, compared with the references in float64: {verdict}"
    )


def as_json(rows: list[Row], seed: int) -> dict[str, Any]:
    """Everything in the table, and the build it is about."""
    found: dict[str, Any] = {"build": build_info(), "seed": seed, "passed": passed(rows)}
    return found | {"summary": summary(rows), "rows": [row.as_json() for row in rows]}
