"""``ablate``: what each block of a model is worth."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import TYPE_CHECKING

from .._table import print_table
from ..errors import UserError
from . import options, results

if TYPE_CHECKING:
    from ..training.metrics import Metrics
    from ..training.settings import Config

SWITCHES = ["cross", "attention", "mlp", "gate", "calibration"]


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the options."""
    options.add_data(parser)
    add = parser.add_argument
    add(
        "--switch",
        action="append",
        default=[],
        metavar="NAME",
        help=f"a block to switch off, or KEY=VALUE (default: {', '.join(SWITCHES)}, where they "
        "are on)",
    )
    add("--seeds", type=int, default=3, metavar="N", help="runs of each (default 3)")
    add(
        "--test",
        action="append",
        default=[],
        metavar="FILE",
        help="files to measure on (default: the rows to validate on)",
    )
    add("--output", metavar="FILE.json", help="keep the results; those in it are not run again")
    options.add_json(parser)


def run(args: argparse.Namespace) -> int:
    """Train every variant with every seed and print the differences."""
    options.check_packages()
    options.check_one_process()
    from ..data.broken import BadRows
    from ..training import ablation
    from ..training.defaults import configuration
    from ..training.metrics import evaluate
    from ..training.session import dwell_of, open_loader, open_trainer

    ablation.check_switches(args.switch)
    options.check_positive("--seeds", args.seeds)
    options.check_writable(args.output, args.json)
    device = options.use_device(args)
    asked = options.training_options(args)
    config = configuration(asked, asked.given())
    there = [name for name in SWITCHES if ablation.changed(config, name) != config]
    switches = args.switch or there

    def train(variant: Config) -> dict[str, Metrics]:
        trainer = open_trainer(variant, args.data, args.valid, device=device, bar=True)
        trainer.fit()
        if not args.test and trainer.valid_loader is None:
            raise UserError("there are no rows to measure on: give --test FILE or --valid FILE")
        broken = BadRows(variant.training.bad_rows == "skip")
        dwell = dwell_of(trainer.model)
        tests = open_loader(variant, args.test, broken, dwell=dwell) if args.test else None
        rows = trainer.valid_loader if tests is None else tests
        assert rows is not None
        return evaluate(trainer.model, rows, device)

    path = Path(args.output) if args.output else None
    data = [str(p) for p in (*args.data, *args.valid, *args.test)]
    figures = ablation.run(config, switches, args.seeds, train, path, data)
    columns = ("model", ">AUC", ">change", ">log-loss", ">change")
    print_table(f"{args.seeds} seeds; ? where their signs differ", columns, ablation.rows(figures))
    results.write_json(args.json, {"seeds": args.seeds, "runs": figures})
    return 0
