"""``quantize``: a trained model with int8 or int4 tables, for serving."""

from __future__ import annotations

import argparse
from pathlib import Path

from .._table import print_line
from ..errors import UserError
from . import options, results


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the options."""
    add = parser.add_argument
    add("model", metavar="DIR", help="what train wrote")
    add("--bits", type=int, choices=(8, 4), default=8, help="of a value (default 8)")
    add("--output", metavar="DIR", help="folder of the new model (default: DIR-int8)")
    options.add_json(parser)


def run(args: argparse.Namespace) -> int:
    """Quantize the tables, print what became of each, and save the new model."""
    options.check_packages()
    from ..conversion.quantize import quantize
    from ..training.session import load_model, save_model

    options.check_writable(args.json)
    source = Path(args.model)
    name = args.output
    if name is None:
        name = str(source.with_name(f"{source.absolute().name}-int{args.bits}"))
    if Path(name).resolve() == source.resolve():
        raise UserError(f"--output {name}: the float model is there: name another folder")
    model, config = load_model(source)
    report = quantize(model, args.bits)
    if not report.replaced:
        why = report.left[0].reason if report.left else "it has none, or they are quantized already"
        raise UserError(f"{args.model}: no table to quantize: {why}")
    output = options.make_folder(name)
    print_line(str(report))
    print_line(f"model: {save_model(output, model, config)}")
    rows = [
        {"table": r.path, "bytes_before": r.bytes_before, "bytes_after": r.bytes_after,
         "max_error": r.max_error, "reason": r.reason}
        for r in report.rows
    ]  # fmt: skip
    results.write_json(args.json, {"bits": args.bits, "tables": rows})
    return 0
