"""``train``: a ranker from files."""

from __future__ import annotations

import argparse
import sys
from typing import TYPE_CHECKING

from .._table import print_line, print_table
from . import options, results

if TYPE_CHECKING:
    from ..training.processes import Processes
    from ..training.tuning import Trial


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the options; see :func:`options.add_data` for those with a dot in their ``dest``."""
    options.add_data(parser)
    add = parser.add_argument
    add("--output", metavar="DIR", default="lirank_model", help="default: lirank_model")
    add(
        "--resume",
        action="store_true",
        help="go on with the run in DIR; its settings stay, but for how long it trains",
    )
    add("--overwrite", action="store_true", help="replace what is in DIR")
    add(
        "--tune",
        dest="training.tune",
        choices=("auto", "on", "off", "search"),
        help="try a short list of regularizations and keep the one that validates best "
        "(default auto: on where there are rows to validate on; of many rows, by a sample); "
        "search: have Optuna propose settings",
    )
    add(
        "--tune-seconds",
        dest="training.tune_seconds",
        type=float,
        metavar="S",
        help="with --tune search: start no further trial after S seconds (default: 50 trials)",
    )
    add(
        "--from",
        dest="training.start_from",
        metavar="DIR",
        help="go on from the model in DIR, on newer files",
    )
    add(
        "--cold",
        dest="training.cold",
        metavar="DIR",
        help="with --from: the model of the cold start",
    )
    add(
        "--forgetting",
        dest="training.forgetting",
        type=float,
        metavar="NUMBER",
        help="with --from: strength of the pull to the older weights (default 1)",
    )
    add(
        "--cold-weight",
        dest="training.cold_weight",
        type=float,
        metavar="SHARE",
        help="with --from: share of the cold start in the older weights, 0 to 1 (default 0)",
    )
    add(
        "--check",
        action="store_true",
        help="also train a logistic regression on one-hot columns and gradient-boosted trees on a "
        "sample, and say where the ranker is behind them on the rows to validate on",
    )
    options.add_json(parser)


def run(args: argparse.Namespace) -> int:
    """Train and print the metrics on the rows to validate on."""
    options.check_packages()
    with options.join_processes(args) as processes:
        options.check_writable(args.json)
        options.check_folder(args.output)
        return _run(args, processes)


def _run(args: argparse.Namespace, processes: Processes) -> int:
    from ..training import summary
    from ..training.run import CONFIG, Plan
    from ..training.session import MODEL

    device = options.use_device(args, processes.size > 1)
    plan = Plan.from_options(options.training_options(args), device, processes)
    result = plan.run(print_line if processes.first else lambda text: None)
    if not processes.first:
        return 0
    if result.chosen is not None:
        _print_trials(result.trials, result.chosen)
    progress = result.trainer.progress
    best = next((e for e in progress.evaluations if e["step"] == progress.best_step), {})
    if "tasks" in best:
        title = f"Validation, after step {progress.best_step} of {progress.step}"
        results.print_metrics(title, best["tasks"])
        for sentence in summary.warnings(best["tasks"]):
            print(sentence, file=sys.stderr)
    if "check" in result.report:
        results.print_check(result.report["check"])
    results.report_broken(result.broken)
    print_line(f"model: {plan.output / MODEL}; configuration: {plan.output / CONFIG}")
    results.write_json(args.json, result.report)
    return 0


def _print_trials(trials: list[Trial], best: Trial) -> None:
    def cells(trial: Trial) -> list[str]:
        tasks = list((trial.tasks or {}).values())
        means = [sum(t[n] for t in tasks) / len(tasks) for n in ("auc", "log_loss")]
        mark = " (kept)" if trial is best else ""
        return [trial.name + mark, *(f"{m:.4f}" for m in means), str(trial.best_step)]

    if len(trials) > 1:
        columns = ("regularization", ">AUC", ">log-loss", ">best step")
        print_table("Trials, on the rows to validate on", columns, [cells(t) for t in trials])
