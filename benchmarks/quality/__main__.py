"""``python -m lirank_ext.benchmarks.quality``: the table of AUC and log-loss."""

from __future__ import annotations

import argparse
import json
import sys
import time
from pathlib import Path
from typing import Any

import numpy as np
import torch

from lirank_ext.data.broken import BadRows
from lirank_ext.errors import UserError
from lirank_ext.training.metrics import measure, score
from lirank_ext.training.options import Options
from lirank_ext.training.run import Plan
from lirank_ext.training.session import open_loader

from . import classic, neural
from .data import LABEL, SETS, Set, Sources, prepare

OURS = "lirank-ext train"
RIVALS = ("logistic regression", "LightGBM", "DCN-V2", "FinalMLP")


def ours(data: Set, seed: int, folder: Path) -> dict[str, np.ndarray]:
    """What ``train FILE --valid FILE --label label`` gives, without any other option."""
    files = {part: str(path) for part, path in data.parts.items()}
    output = folder / f"{data.name} {seed}"
    asked = Options(
        [files["train"]],
        [files["valid"]],
        [LABEL],
        settings={"training.seed": seed},
        output=str(output),
        overwrite=True,
    )
    model = Plan.from_options(asked).run().trainer.model
    config = Plan.from_options(asked).config
    loaders = {p: open_loader(config, [files[p]], BadRows(False)) for p in ("valid", "test")}
    return {part: score(model, loader).logits[:, 0] for part, loader in loaders.items()}


class Bench:
    """Trains every model on a data set and keeps the figures.

    Each rival draws its settings at random and keeps the one whose AUC on the rows to validate on
    is best. The rows to test on are looked at once, by the kept setting with every seed.

    Args:
        data: the set.
        settings, seeds: how many.
        folder: for the models.
    """

    def __init__(self, data: Set, settings: int, seeds: int, folder: Path) -> None:
        self.data, self.settings, self.seeds, self.folder = data, settings, seeds, folder
        self.labels = {part: data.frame(part)[1] for part in ("valid", "test")}

    def run(self, model: str) -> dict[str, Any]:
        """Figures of one model."""
        began = time.process_time()
        chosen = {} if model == OURS else self._tuned(model)
        runs = []
        for seed in range(1 if model == "logistic regression" else self.seeds):
            logits = self._fit(model, chosen, seed)
            test = measure(logits["test"], self.labels["test"])
            runs.append({"auc": test.auc, "log_loss": test.log_loss})
        seconds = time.process_time() - began
        return {"setting": chosen, "runs": runs, "cpu_seconds": round(seconds)}

    def _tuned(self, model: str) -> dict[str, Any]:
        rng, best, chosen = np.random.default_rng(0), -np.inf, {}
        for _ in range(self.settings):
            setting = self._draw(model, rng)
            logits = self._fit(model, setting, 0)
            area = measure(logits["valid"], self.labels["valid"]).auc
            if area > best:
                best, chosen = area, setting
        return chosen

    def _draw(self, model: str, rng: np.random.Generator) -> dict[str, Any]:
        if model == "logistic regression":
            return classic.draw_regression(rng)
        return classic.draw_trees(rng) if model == "LightGBM" else neural.draw(rng)

    def _fit(self, model: str, setting: dict[str, Any], seed: int) -> dict[str, np.ndarray]:
        if model == OURS:
            return ours(self.data, seed, self.folder)
        if model == "LightGBM":
            return classic.fit_trees(self.data, setting, seed)
        encoded = neural.encode(self.data)
        if model == "logistic regression":
            return classic.fit_regression(encoded, setting, seed)
        return neural.fit(model, encoded, setting, seed)


def table(figures: dict[str, dict[str, Any]]) -> str:
    """A Markdown table of the test rows: mean and spread over the seeds."""
    lines = [
        "| data | model | AUC | log-loss | settings tried | seeds |",
        "|---|---|---|---|---|---|",
    ]
    for name, models in figures.items():
        for model, found in models.items():
            cells = []
            for metric in ("auc", "log_loss"):
                values = [run[metric] for run in found["runs"]]
                spread = f" ± {np.std(values):.4f}" if len(values) > 1 else ""
                cells.append(f"{np.mean(values):.4f}{spread}")
            tried = "defaults" if model == OURS else str(found["settings"])
            row = [name, model, *cells, tried, str(len(found["runs"]))]
            lines.append(f"| {' | '.join(row)} |")
    return "\n".join(lines) + "\n"


def main(argv: list[str] | None = None) -> int:
    """Run what is missing in the output and write the table."""
    parser = argparse.ArgumentParser("lirank_ext.benchmarks.quality", description=__doc__)
    add = parser.add_argument
    add("--output", required=True, metavar="DIR", help="results.json, results.md and the models")
    add("--sets", nargs="+", choices=SETS, default=["adult", "usage"], metavar="NAME")
    add("--models", nargs="+", choices=(OURS, *RIVALS), default=[OURS, *RIVALS], metavar="NAME")
    add("--ml-1m", metavar="DIR", help="GroupLens's folder of MovieLens-1M")
    add("--ml-100k", metavar="FILE", help="ml-100k.inter of RecBole's package")
    add("--obd", metavar="DIR", help="bts/all or random/all of the Open Bandit Dataset")
    add("--settings", type=int, default=20, metavar="N", help="that a rival tries (default 20)")
    add("--seeds", type=int, default=3, metavar="N", help="default 3")
    add("--threads", type=int, default=1, metavar="N", help="default 1")
    args = parser.parse_args(argv)
    torch.set_num_threads(args.threads)
    output = Path(args.output)
    output.mkdir(parents=True, exist_ok=True)
    path = output / "results.json"
    figures = json.loads(path.read_text()) if path.exists() else {}
    try:
        for name in args.sets:
            data = prepare(name, Sources(args.ml_1m, args.ml_100k, args.obd), output / "data")
            bench = Bench(data, args.settings, args.seeds, output / "models")
            for model in args.models:
                if model in figures.setdefault(name, {}):
                    continue
                print(f"{name}: {model}", file=sys.stderr, flush=True)
                figures[name][model] = {**bench.run(model), "settings": args.settings}
                path.write_text(json.dumps(figures, indent=1) + "\n")
                (output / "results.md").write_text(table(figures))
    except UserError as error:
        print(f"{parser.prog}: {error}", file=sys.stderr)
        return error.exit_code
    print(table(figures))
    return 0


if __name__ == "__main__":
    sys.exit(main())
