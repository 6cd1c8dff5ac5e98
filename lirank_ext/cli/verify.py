"""``verify``: every backend against the reference."""

from __future__ import annotations

import argparse
import sys

from .._progress import Progress
from .._table import print_line, print_table
from ..errors import UserError
from . import options, results

DURATION = "ten seconds"  # of a comparison of everything on a CPU


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the options."""
    parser.description = (
        "Compare every op on every backend usable here with its float64 reference, forward and "
        "backward, on random and adversarial inputs. Exit code 1 on any failure."
    )
    parser.add_argument("--op", metavar="NAME", help="one op (default: all)")
    parser.add_argument("--device", choices=("cpu", "cuda"), help="one device (default: all)")
    parser.add_argument(
        "--seed", type=int, default=0, metavar="N", help="random seed of the inputs (default 0)"
    )
    parser.add_argument(
        "--fuzz",
        type=float,
        metavar="SECONDS",
        help="judge random calls on the CPU for so long, from --seed on; a finding names its call",
    )
    parser.add_argument(
        "--fuzz-call", metavar="OP:SEED", help="judge one call that --fuzz named, and show it"
    )
    options.add_json(parser)


def run(args: argparse.Namespace) -> int:
    """Compare, print a row for every op and backend; 1 where one failed."""
    from .. import verify

    options.check_device(args.device)
    options.check_name(args.op, verify.checked_ops())
    options.check_writable(args.json)
    if args.fuzz_call is not None:
        return _fuzz_call(args.fuzz_call)
    if args.fuzz is not None:
        return _fuzz(args)
    ops = verify.checked_ops() if args.op is None else [args.op]
    several = args.op is None
    if several:
        print(f"comparing {len(ops)} ops: about {DURATION} on two idle cores", file=sys.stderr)
    with Progress("comparing", len(ops), unit="ops", shown=several) as progress:
        rows = verify.verify(args.op, args.device, args.seed, progress.update)
    columns = ("op", "backend", ">cases", ">error of allowed", "in", "verdict")
    styles = ["dim" if r.absent else "good" if r.passed else "bad" for r in rows]
    print_table("", columns, [r.cells() for r in rows], styles)
    print_line(verify.summary(rows), "good" if verify.passed(rows) else "bad")
    results.write_json(args.json, verify.as_json(rows, args.seed))
    return 0 if verify.passed(rows) else 1


def _fuzz(args: argparse.Namespace) -> int:
    """Judge random calls, a line for every process; 1 where something was found."""
    from collections import Counter

    from ..verify import fuzz
    from ..verify.random_calls import GENERATORS

    options.check_positive("--fuzz", args.fuzz)
    if args.op is not None:
        options.check_name(args.op, sorted(GENERATORS))
    judged: Counter[str] = Counter()
    found: list[fuzz.Finding] = []
    with Progress("judging random calls", unit="processes") as progress:
        for op, calls, findings in progress.over(fuzz.fuzz(args.op, args.fuzz, args.seed)):
            judged[op] += calls
            found += findings
    rows = [[op, str(n), str(sum(f.op == op for f in found))] for op, n in sorted(judged.items())]
    print_table("", ("op", ">calls", ">findings"), rows)
    for finding in found:
        print_line(f"{finding}", "bad")
    text = f"{judged.total()} random calls in {args.fuzz:g} s from seed {args.seed}: "
    print_line(text + f"{len(found) or 'no'} findings.", "bad" if found else "good")
    figures = {"seconds": args.fuzz, "seed": args.seed, "calls": dict(judged)}
    results.write_json(args.json, figures | {"findings": [str(f) for f in found]})
    return 1 if found else 0


def _fuzz_call(text: str) -> int:
    """Judge one call and show its arguments."""
    from ..verify import fuzz
    from ..verify.random_calls import GENERATORS, random_call

    op, _, seed = text.partition(":")
    options.check_name(op, sorted(GENERATORS))
    if not seed.isdigit():
        raise UserError(f"--fuzz-call: wanted OP:SEED, as in murmur_hash:12, got {text!r}")
    for name, value in random_call(op, int(seed)).items():
        tensor = hasattr(value, "shape")
        shown = f"{value.dtype} {tuple(value.shape)} strides {value.stride()}" if tensor else value
        print_line(f"{name}: {shown}")
    problem = fuzz.judge(op, int(seed))
    print_line(problem or "no finding", "bad" if problem else "good")
    return 1 if problem else 0
