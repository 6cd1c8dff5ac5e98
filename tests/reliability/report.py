"""Writes docs/reliability.md from page.md and the JSON of the last runs.

    python tests/reliability/report.py

The figures of the runs lie in ``tests/reliability/results``. ``mended.json`` there lists what was
found and mended, and the test that keeps it so. An ``equivalent.json``, if there is one, says why a
mutant survives.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Iterable
from pathlib import Path
from typing import Any

HERE = Path(__file__).resolve().parent
RESULTS = HERE / "results"
TEMPLATE = HERE / "page.md"
PAGE = HERE.parents[1] / "docs" / "reliability.md"


def read(name: str) -> dict[str, Any] | None:
    path = RESULTS / f"{name}.json"
    return json.loads(path.read_text("utf-8")) if path.exists() else None


def table(head: Iterable[str], rows: Iterable[Iterable[Any]]) -> str:
    lines = [list(head), ["---"] * len(list(head)), *rows]
    return "".join(f"| {' | '.join(str(cell) for cell in row)} |\n" for row in lines)


def random_calls() -> str:
    text = "## Random calls against the reference\n\n"
    found = read("fuzz")
    if found is None:
        return f"{text}Not run. `make fuzz` runs them.\n"
    total, seconds = sum(found["calls"].values()), found["seconds"]
    text += f"{total} calls in {seconds / 60:.0f} minutes from seed {found['seed']}: "
    text += f"{len(found['findings']) or 'no'} findings. Command: "
    text += f'`make fuzz SECONDS={seconds:g} ARGS="--seed {found["seed"]}"`.'
    from lirank_ext.verify.random_calls import GENERATORS

    missed = sorted(f"`{op}`" for op in set(GENERATORS) - set(found["calls"]))
    text += f" Not reached: {', '.join(missed)}." if missed else ""
    calls = sorted((f"`{op}`", n) for op, n in found["calls"].items())
    return f"{text}\n\n" + table(("op", "calls"), calls)


def sanitizers() -> str:
    text = "## Sanitizers\n\n"
    found = read("sanitize")
    if found is None:
        return f"{text}Not run. `make sanitize` runs them.\n"
    text += "Command: `make sanitize`. Reports are those that have a frame of this library.\n\n"
    rows = [
        (
            f"`{r['run']}`",
            r["cases"],
            f"{r['seconds'] / 60:.0f}",
            len(r["reports"]) or "none",
            "failed" if r["exit"] or r.get("passed") is False else "passed",
        )
        for r in found["runs"]
    ]
    text += table(("run", "cases or calls", "minutes", "reports", "the comparison"), rows)
    reports = dict.fromkeys(report for r in found["runs"] for report in r["reports"])
    listed = "".join(f"- `{report.splitlines()[0]}`\n" for report in reports)
    return text + (f"\n{listed}" if listed else "")


def bytes_searched() -> str:
    text = "## Bytes, searched by coverage\n\n"
    found = read("bytes")
    if found is None:
        return f"{text}Not run. `make fuzz-bytes` runs the search.\n"
    text += "libFuzzer, by atheris. Command: `make fuzz-bytes`. "
    text += "A finding becomes a seed and a test.\n\n"
    head = ("what is read", "executions", "minutes", "places reached", "finding")
    rows = []
    for t in found["targets"]:
        finding = t["finding"].replace("|", "/")[:80] or "none"
        minutes = f"{t['seconds'] / 60:.1f}"
        rows.append((f"`{t['target']}`", t["executions"], minutes, t["covered"], finding))
    return text + table(head, rows)


def code(text: str) -> str:
    """A line of C++ in a cell of a table."""
    return f"`{text.strip()}`".replace("|", "\\|")


def mutants() -> str:
    text = "## Mutants of the kernels\n\n"
    found = read("mutants")
    if found is None:
        return f"{text}Not run. `make mutants` runs them.\n"
    count, by = found["verdicts"], found["by"]
    counted = count["caught"] + count["survived"]
    share = f"{100 * count['caught'] / counted:.0f} %" if counted else "none"
    text += (
        f"{sum(count.values())} of {found['drawn']} small changes, drawn by seed {found['seed']}, "
        f"were judged on the {found['isa']} kernels. {count['does not compile']} do not compile, "
        f"{count['the same program']} compile to the same program. Of the other {counted}, "
        f"{count['caught']} were caught ({share}): {by['verify']} by `verify` and its random "
        f"calls, {by['tests']} by the tests; {found['untested']} survivors were not tried by the "
        "tests. Command: `make mutants`, which goes on where it stopped.\n"
    )
    if not found["survivors"]:
        return text
    why = read("equivalent") or {}
    rows = [
        (
            f"`{s['file']}:{s['line'] + 1}`",
            code(s["old"]),
            code(s["new"]),
            why.get(s["name"], "a gap in the tests, or not yet explained"),
        )
        for s in found["survivors"]
    ]
    return f"{text}\nSurvivors:\n\n" + table(("where", "was", "became", "why it lives"), rows)


def mended() -> str:
    found = read("mended") or {"findings": []}
    rows = [(f["by"], f["found"], f"`{f['test']}`") for f in found["findings"]]
    return "## Found and mended\n\n" + table(("by", "what was wrong", "kept by"), rows)


def machine() -> str:
    found = read("machine")
    return found["text"] if found else ""


SECTIONS = (machine, random_calls, sanitizers, bytes_searched, mutants, mended)


def page() -> str:
    text = TEMPLATE.read_text("utf-8")
    for section in SECTIONS:
        text = text.replace(f"{{{section.__name__}}}", section())
    return text


if __name__ == "__main__":
    PAGE.write_text(page(), "utf-8")
    sys.exit(0)
