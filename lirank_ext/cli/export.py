"""``export``: a trained model as a folder that serves without Python."""

from __future__ import annotations

import argparse
from pathlib import Path

from .._table import print_line
from ..errors import UserError
from . import options, results


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the options."""
    parser.description = (
        "Write a model as a folder that serves without Python: an AOTInductor package, the library "
        "of the ops, the columns, example rows with their scores, and a manifest. The package is "
        "loaded and compared with the model before the folder appears."
    )
    add = parser.add_argument
    add("model", metavar="DIR", help="what train or quantize wrote")
    add("--output", metavar="DIR", help="folder to write (default: DIR-export)")
    add("--bits", type=int, choices=(8, 4), help="of a value in the tables (default 8)")
    add("--no-quantize", action="store_true", help="keep float tables")
    add("--overwrite", action="store_true", help="replace an exported folder")
    options.add_json(parser)


def run(args: argparse.Namespace) -> int:
    """Quantize where wanted, export, and say how the package compares with the model."""
    options.check_packages()
    from ..conversion.quantize import quantize
    from ..nn._tagged import tags_in
    from ..training.export import check_target, export_model
    from ..training.session import load_model

    if args.no_quantize and args.bits is not None:
        raise UserError("--bits and --no-quantize exclude each other: leave one out")
    options.check_writable(args.json)
    source = Path(args.model)
    name = args.output
    if name is None:
        name = str(source.with_name(f"{source.absolute().name}-export"))
    options.check_folder(name)
    check_target(Path(name), args.overwrite)
    model, config = load_model(source)
    if any("bits" in tag for tag in tags_in(model.state_dict()).values()):
        if args.no_quantize or args.bits is not None:
            option = "--no-quantize" if args.no_quantize else "--bits"
            raise UserError(f"{option}: the tables of {source} are quantized already: leave it out")
    elif not args.no_quantize:
        print_line(str(quantize(model, args.bits or 8)))
    written = export_model(model, config, name, overwrite=args.overwrite)
    for one in written.comparisons:
        print_line(f"package and model on {one.batch}: largest difference {one.difference:.1e}")
    print_line(f"exported: {written.folder}")
    compared = {one.batch: one.difference for one in written.comparisons}
    figures = {"folder": str(written.folder), "manifest": written.manifest, "difference": compared}
    results.write_json(args.json, figures)
    return 0
