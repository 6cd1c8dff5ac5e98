"""The study as Markdown."""

from __future__ import annotations

import json
import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

import lirank_ext

from . import plots
from .bandit import cautious
from .plan import Plan
from .results import Results, Row

NOTES = """\
Signs alone are compared with the paper's: its Feed figures are relative gains in replayed
contributions, its Ads and Jobs figures relative gains in AUC, on traffic that is not public, and
sizes, baselines and tuning differ.

How to read the tables. Every difference is taken seed by seed, on the same test rows, against the
row named; mean ± standard deviation over the seeds. Two noises bound it: what the seeds alone may
move the mean by, t(0.975, n - 1) · sd / √n, and what other test rows may move it by, 1.96 paired
standard errors (DeLong's for the AUC; rows of one user count as one draw). **A difference of at
most the larger of the two is called inside the noise**, whatever its mean; that is no proof of
equality. No correction is made for the number of rows. AUC and log-loss are means over both tasks;
miscalibration is the mean of |ln(observed / expected)|.
"""


def write(
    folder: Path,
    plan: Plan,
    results: Sequence[Results],
    bandit: dict[str, Any] | None,
    skipped: Sequence[str],
    unfinished: Sequence[str],
) -> Path:
    """Write study.md, its pictures and study.json.

    Args:
        folder: where to.
        plan: sizes.
        results: of every data set that was trained on.
        bandit: of the Open Bandit logs, or None.
        skipped: a line for every data set that is absent.
        unfinished: a line for every run that is missing.
    """
    folder.mkdir(parents=True, exist_ok=True)
    parts, data = [_head(plan, skipped, unfinished)], {"plan": plan.to_dict()}
    for found in results:
        text, content = _data_set(folder, found)
        parts.append(text)
        data[found.data.name] = content
    if bandit is not None:
        parts.append(_bandit(folder, bandit))
        data["obd"] = bandit
    parts.append(_how(plan, results))
    (folder / "study.json").write_text(_json(data), encoding="utf-8")
    path = folder / "study.md"
    path.write_text("\n".join(parts), encoding="utf-8")
    return path


def _json(data: Any) -> str:
    """JSON has no NaN and no infinity: both are null."""

    def plain(value: Any) -> Any:
        if isinstance(value, dict):
            return {k: plain(v) for k, v in value.items()}
        if isinstance(value, (list, tuple)):
            return [plain(v) for v in value]
        return None if isinstance(value, float) and not math.isfinite(value) else value

    return json.dumps(plain(data), indent=1, allow_nan=False) + "\n"


def _head(plan: Plan, skipped: Sequence[str], unfinished: Sequence[str]) -> str:
    lines = ["# The paper's ablations on public data", "", NOTES]
    if plan.seeds < 3:
        lines += ["**A quick run: it shows that the study works, and measures nothing.**", ""]
    lines += [f"- {line}" for line in (*skipped, *unfinished)]
    return "\n".join(lines) + ("\n" if skipped or unfinished else "")


def _table(header: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    lines = [" | ".join(cells) for cells in (header, ["---"] * len(header), *rows)]
    return "".join(f"| {line} |\n" for line in lines)


def _gap(row: Row, metric: str, digits: int = 4) -> str:
    if metric not in row.differences:
        return ""
    gap = row.differences[metric]
    deviation = "" if math.isnan(gap.deviation) else f" ± {gap.deviation:.{digits}f}"
    mark = "" if gap.sign in "+-" else " (noise)" if gap.sign == "0" else ""
    return f"{gap.mean:+.{digits}f}{deviation}{mark}"


def _bound(row: Row) -> str:
    if "auc" not in row.differences or math.isinf(row.differences["auc"].bound):
        return ""
    return f"{row.differences['auc'].bound:.4f}"


def _data_set(folder: Path, found: Results) -> tuple[str, dict[str, Any]]:
    data, rows, pairs = found.data, found.variants(), found.contrasts()
    parts = [f"## {data.title}\n", *(f"{text}\n" for text in data.about), _reference(found)]
    parts += [_short(rows + pairs), _still_learning(found)]
    parts.append(_verdicts(rows + pairs))
    picture = plots.ablations(found, rows + pairs, folder / f"{data.name}.png")
    parts.append(f"![differences in AUC]({picture.name})\n")
    parts.append(_sizes(found, rows))
    if "history-" in "".join(found.runs) and "ids" in found.runs:
        picture = plots.history(found, folder / f"{data.name}-history.png")
        parts.append(f"![history]({picture.name})\n")
    if {"incremental", "retrained"} <= set(found.runs):
        parts.append(_increments(folder, found))
    content = {
        "about": data.about,
        "rows": [row.as_json() for row in rows],
        "contrasts": [row.as_json() for row in pairs],
        "settings": next(iter(found.runs.values()))[0]["settings"],
        "runs": [_less(run) for runs in found.runs.values() for run in runs],
    }
    return "\n".join(parts), content


def _less(run: dict[str, Any]) -> dict[str, Any]:
    return {k: v for k, v in run.items() if k not in ("settings", "data", "scored")}


def _short(rows: Sequence[Row]) -> str:
    """The comparisons by what came of their sign."""
    groups: dict[str, list[str]] = {}
    for row in rows:
        if row.against:
            said = row.verdict if row.sign else f"{row.verdict} (the paper has no sign)"
            groups.setdefault(said, []).append(row.label)
    return "".join(f"- {said}: {'; '.join(names)}.\n" for said, names in groups.items())


def _still_learning(found: Results) -> str:
    trained = [r for runs in found.runs.values() for r in runs if "best_step" in r]
    last = sum(r["best_step"] > 0.9 * r["steps"] for r in trained)
    return (
        f"Every row is trained for the same number of epochs ({found.data.epochs}). {last} of "
        f"{len(trained)} trainings validated best at their end, so a row that learns faster than "
        "another shows it here, and might not after a longer training.\n"
    )


def _reference(found: Results) -> str:
    lines = []
    for name in ("base", "ids"):
        if name in found.runs:
            auc, loss = (found.metric(name, m) for m in ("auc", "log_loss"))
            text = f"{name}: AUC {auc.mean():.4f}, log-loss {loss.mean():.4f}"
            tasks = found.runs[name][0]["tasks"]
            each = (np.mean([r["tasks"][t]["auc"] for r in found.runs[name]]) for t in tasks)
            text += f" ({'; '.join(f'{t} {v:.4f}' for t, v in zip(tasks, each, strict=True))})"
            lines.append(f"- {text}")
    return "\n".join(lines) + "\n"


def _verdicts(rows: Sequence[Row]) -> str:
    header = ("what", "against", "paper", "paper's sign", "AUC", "noise", "verdict on the sign")
    header += ("log-loss", "miscalibration")
    cells = [
        (
            row.label,
            row.against,
            row.paper,
            row.sign,
            _gap(row, "auc"),
            _bound(row),
            f"**{row.verdict}**" if "not repro" in row.verdict else row.verdict,
            _gap(row, "log_loss"),
            _gap(row, "miscalibration", 3),
        )
        for row in rows
        if row.against
    ]
    return _table(header, cells)


def _sizes(found: Results, rows: Sequence[Row]) -> str:
    header = ("row", "seeds", "dense parameters", "table parameters", "table bytes")
    header += ("observed / expected, by task", "processor seconds")
    cells = []
    for row in rows:
        first = row.runs[0]
        size = first.get("table_bytes", 4 * first["table_parameters"])
        ratios = [
            np.mean([r["tasks"][t]["observed_to_expected"] for r in row.runs])
            for t in first["tasks"]
        ]
        seconds = [r["seconds"] for r in row.runs if "seconds" in r]
        cells.append(
            (
                row.label,
                str(len(row.runs)),
                f"{first['dense_parameters']:,}",
                f"{first['table_parameters']:,}",
                f"{size:,}",
                ", ".join(f"{r:.3f}" for r in ratios),
                f"{np.mean(seconds):.1f}" if seconds else "as ids",
            )
        )
    return _table(header, cells)


def _increments(folder: Path, found: Results) -> str:
    picture = plots.increments(found, folder / f"{found.data.name}-increments.png")
    runs = found.runs
    rounds = runs["incremental"][0]["rounds"]
    header = ("updates", "AUC, mean of the rounds", "AUC after the last", "processor seconds")
    cells = []
    for name in ("retrained", "incremental", "unpenalised", "stale"):
        each = np.array([r["auc_of_iteration"] for r in runs.get(name, [])])
        if not len(each):
            continue
        seconds = np.mean([r["seconds"] for r in runs[name]])
        mean, last = each.mean(1), each[:, -1]
        cells.append((name, _spread(mean), _spread(last), f"{seconds:.1f}"))
    times = {n: np.mean([r["seconds"] for r in runs[n]]) for n in ("incremental", "retrained")}
    saved = 1 - times["incremental"] / times["retrained"]
    bare = np.mean([r["seconds"] for r in runs["unpenalised"]]) / times["retrained"]
    text = (
        f"Incremental training: a cold start on the oldest {found.plan.cold_share:.0%} of the "
        f"training rows, then {len(rounds)} rounds of about {rounds[0]:,} newer rows, one epoch "
        "each, with the diagonal Fisher penalty on the dense weights (exact gradients of "
        f"{found.plan.fisher_rows} rows; forgetting factor {runs['incremental'][0]['forgetting']:g}"
        ", cold weight 0: free choices); full retraining starts anew on all rows so far, in every "
        f"round. It took {saved:.0%} less processor time, most of what is left for the Fisher "
        f"information, row by row; without the penalty it took {1 - bare:.0%} less (paper: 96 %, "
        "with increments of a day against 14 to 21 days)."
    )
    return f"{text}\n\n{_table(header, cells)}\n![increments]({picture.name})\n"


def _spread(values: np.ndarray) -> str:
    spread = f" ± {values.std(ddof=1):.4f}" if len(values) > 1 else ""
    return f"{values.mean():.4f}{spread}"


def _bandit(folder: Path, found: dict[str, Any]) -> str:
    picture = plots.bandit(found, folder / "obd.png")
    first = found["runs"][0]
    train, test, logged = first["rows"]
    header = ("policy", "judged on", "clicks per 100 impressions", "95 % interval")
    header, cells = (*header, "by the rows in effect", "rows in effect"), []
    for name, text in (("logged", "Thompson, as logged"), ("uniform", "uniform, as logged")):
        value = first[name]
        cells.append((text, "its own log", *_percent(value["rate"], value["interval"]), "", ""))
    check = first["uniform_from_logged"]
    for kind in ("ips", "snips"):
        cells.append(("uniform", f"the Thompson log, {kind.upper()}", *_value(check, kind)))
    for run in found["runs"]:
        for policy, value in run["values"].items():
            for kind in ("ips", "snips"):
                label = f"learned, {plots.NAMES[policy]}, seed {run['seed']}"
                cells.append((label, f"the uniform log, {kind.upper()}", *_value(value, kind)))
    text = (
        f"A small ranker and the Neural-Linear posterior of its last layer learn from the earlier "
        f"half of the uniform log ({train:,} impressions, {first['train_clicks']} clicks); the "
        f"policy is judged on the later half ({test:,} impressions, "
        f"{first['uniform_test']['clicks']} clicks) by inverse propensities, plain (IPS) and "
        f"self-normalized (SNIPS). Its intervals are by bootstrap, which cannot draw a click that "
        "was not logged and is too narrow where a policy's items have hardly any; beside them "
        "stands Clopper and Pearson's for as many rows as the weights are worth. The logged "
        f"Thompson policy wrote {logged:,} impressions; the uniform policy's value from that log "
        "checks the estimator."
    )
    parts = ["## Open Bandit logs\n", text + "\n", _table(header, cells), _bandit_verdict(found)]
    return "\n".join([*parts, f"![policies]({picture.name})\n"])


def _percent(value: float, interval: Sequence[float] | None) -> tuple[str, str]:
    if interval is None:
        return f"{100 * value:.3f}", "none: no logged click was its choice"
    return f"{100 * value:.3f}", f"{100 * interval[0]:.3f} to {100 * interval[1]:.3f}"


def _value(found: dict[str, Any], kind: str) -> tuple[str, ...]:
    wide = _percent(found["snips"], cautious(found))[1] if kind == "snips" else ""
    count = f"{found['effective_rows']:.0f}"
    return (*_percent(found[kind], found[f"{kind}_interval"]), wide, count)


def _bandit_verdict(found: dict[str, Any]) -> str:
    logged = found["runs"][0]["logged"]["interval"]
    values = [cautious(run["values"]["thompson"]) for run in found["runs"]]
    apart = [low > logged[1] or high < logged[0] for low, high in values]
    if any(apart):
        text = (
            f"{sum(apart)} of {len(apart)} seeds of the learned Thompson policy have an interval, "
            "by the rows in effect, apart from that of the logged one."
        )
    else:
        text = (
            "By the rows in effect, every interval of the learned Thompson policy overlaps that of "
            "the logged one: with so few clicks the difference is **inside the noise**, and "
            "nothing is said about which policy is better (paper: +0.06 % daily active users)."
        )
    return text + "\n"


def _how(plan: Plan, results: Sequence[Results]) -> str:
    runs = [r for found in results for records in found.runs.values() for r in records]
    minutes = sum(r.get("seconds", 0.0) for r in runs) / 60
    sizes = ", ".join(f"{k} {v}" for k, v in plan.to_dict().items())
    info = lirank_ext.build_info()
    text = f"""\
## How it was run

The model is `lirank_ext.models.LiRank`: the paper's Feed baseline, an MLP of four layers of 100
(with batch norm: a free choice) on numbers and embeddings with a tower per task; each row switches
on what it names. The AUC of the validation rows is looked at every half epoch and the best weights
are kept. The history is encoded with one head,
{plan.history_width} wide, without dropout (free choices, for speed). Tables that are not
compressed have sixteen buckets per id; "QR hashing, 5x" has a fifth as many rows as ids, over its
four tables. That leaves hundreds of rows here, and tens at 100x, where the paper's 1000x of
4 billion ids leaves millions. int8 and int4 are the tables of the ids row of the same seed.
Seconds are processor time on one thread, so that other work on the machine does not count; all
trainings took {minutes:.0f} minutes of it.

What was settled beforehand, in a few trials of one seed that looked at these test rows: learning
rates, epochs and batch norm (without it Adult's second task was better without ids than with them
after two epochs), and which numbers MovieLens rows have. **With past mean ratings as numbers too,
ids made a difference of 0.000 to 0.002 in AUC there, not of 0.05**: the means had told what the ids
tell. No row was tuned on its own.

Sizes: {sizes}. lirank_ext {info["version"]}.
"""
    return text
