"""The command line: ``python -m lirank_ext``, also installed as ``lirank-ext``.

A command imports what it needs when it is chosen, so that ``info`` and ``verify`` need torch
and numpy alone.
"""

from __future__ import annotations

import argparse
import importlib
import importlib.util
import json
import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

from ._table import print_line, print_table

PROGRAM = "lirank-ext"
TRAINING = "lirank_ext.training.cli"  # adds train, evaluate, predict, ...


class Refused(Exception):
    """Bad usage; the message is one sentence for the user."""


@dataclass(frozen=True)
class Command:
    """One subcommand: its line in the overview, its options, and what it does."""

    help: str
    add_arguments: Callable[[argparse.ArgumentParser], None]
    run: Callable[[argparse.Namespace], int]


def _json_file(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--json", metavar="FILE", help="also write the figures to FILE")


def _write_json(path: str, content: object) -> None:
    try:
        Path(path).write_text(json.dumps(content, indent=1) + "\n", encoding="utf-8")
    except OSError as error:
        raise Refused(f"cannot write {path}: {error.strerror}") from error


def _writable(*paths: str | None) -> None:
    """Minutes of work should not end in a folder that is not there."""
    for path in paths:
        if path and not Path(path).absolute().parent.is_dir():
            raise Refused(f"cannot write {path}: there is no folder {Path(path).parent}")


def _check_device(device: str) -> None:
    import torch

    if device == "cuda" and not torch.cuda.is_available():
        raise Refused("--device cuda: PyTorch sees no CUDA device here")


def _info_arguments(parser: argparse.ArgumentParser) -> None:
    parser.description = "Versions, what was built, what is in use, and what serves GPU tensors."
    _json_file(parser)


def _info(args: argparse.Namespace) -> int:
    from .library.build_info import build_info, gpu_ops

    info, ops = build_info(), gpu_ops()
    print_table("", ("lirank_ext", ""), list(info.items()))
    print_line("")
    print_table("", ("op", "on a GPU"), list(ops.items()))
    if args.json:
        _write_json(args.json, info | {"gpu_ops": ops})
    return 0


def _verify_arguments(parser: argparse.ArgumentParser) -> None:
    parser.description = (
        "Compare every op on every backend usable here with its float64 reference, forward and "
        "backward, on random and adversarial inputs. Exit code 1 on any failure."
    )
    parser.add_argument("--op", metavar="NAME", help="one op; without it: all")
    parser.add_argument("--device", choices=("cpu", "cuda"), help="one device; without it: all")
    parser.add_argument("--seed", type=int, default=0, help="of the random inputs (default 0)")
    _json_file(parser)


def _verify(args: argparse.Namespace) -> int:
    from . import verify

    _check_device(args.device)
    _check_name(args.op, verify.public_ops())
    _writable(args.json)
    rows = verify.verify(args.op, args.device, args.seed)
    columns = ("op", "backend", ">cases", ">worst error", ">allowed", "verdict")
    styles = ["dim" if r.absent else "good" if r.passed else "bad" for r in rows]
    print_table("", columns, [r.cells() for r in rows], styles)
    print_line(verify.summary(rows), "good" if verify.passed(rows) else "bad")
    if args.json:
        _write_json(args.json, verify.as_json(rows, args.seed))
    return 0 if verify.passed(rows) else 1


def _check_name(name: str | None, known: Sequence[str]) -> None:
    if name is not None and name not in known:
        raise Refused(f"--op: nothing is called '{name}'; there are: {', '.join(known)}")


def _bench_arguments(parser: argparse.ArgumentParser) -> None:
    parser.description = (
        "Time every op beside its reference, eager PyTorch, torch.compile and peers. What "
        "disagrees with the reference is not timed and makes the exit code 1."
    )
    add = parser.add_argument
    add("--op", metavar="NAME", help="one op, or a family such as 'cross'; without it: all")
    add("--device", choices=("cpu", "cuda"), default="cpu")
    add("--peers", action="store_true", help="also time the other libraries installed")
    add("--quick", action="store_true", help="fewer shapes and repeats")
    add("--threads", type=int, metavar="N", help="CPU threads (default: PyTorch's)")
    add("--seconds", type=float, metavar="S", help="for the repeats of one shape (default: 2)")
    add("--plot", metavar="FILE.png", help="also draw the speed-ups")
    _json_file(parser)


def _bench(args: argparse.Namespace) -> int:
    from .benchmarks import harness

    _check_device(args.device)
    _check_name(args.op, harness.names())
    _writable(args.json, args.plot)
    if args.threads is not None and args.threads < 1:
        raise Refused(f"--threads: wanted a positive number, got {args.threads}")
    if args.seconds is not None and not 0 < args.seconds < 3600:
        raise Refused(f"--seconds: wanted a number above 0 and below 3600, got {args.seconds}")
    if args.plot and importlib.util.find_spec("matplotlib") is None:
        raise Refused("--plot needs matplotlib: pip install 'lirank_ext[bench]'")
    report = harness.run(
        args.op,
        args.device,
        peers=args.peers,
        quick=args.quick,
        threads=args.threads,
        seconds=args.seconds,
    )
    report.show()
    if args.json:
        _write_json(args.json, report.as_json())
    if args.plot:
        report.plot(args.plot)
    return 1 if report.failed else 0


def _demo_arguments(parser: argparse.ArgumentParser) -> None:
    from . import demo

    demo.add_arguments(parser)


def _demo(args: argparse.Namespace) -> int:
    from . import demo

    return demo.run(args)


COMMANDS = {
    "info": Command("versions and what was built", _info_arguments, _info),
    "verify": Command("compare every backend with the reference", _verify_arguments, _verify),
    "bench": Command("time every op beside its peers", _bench_arguments, _bench),
    "demo": Command("train, swap, quantize and compare on real data", _demo_arguments, _demo),
}


def _parser(chosen: str | None) -> argparse.ArgumentParser:
    """The parser; only the chosen command gets its options, for these may cost imports."""
    parser = argparse.ArgumentParser(PROGRAM, description="PyTorch ops for LiRank.")
    subparsers = parser.add_subparsers(metavar="command", required=True)
    for name, command in COMMANDS.items():
        sub = subparsers.add_parser(name, help=command.help)
        sub.set_defaults(run=command.run)
        if name == chosen:
            command.add_arguments(sub)
    if chosen not in COMMANDS and importlib.util.find_spec(TRAINING) is not None:
        importlib.import_module(TRAINING).add_commands(subparsers)
    return parser


def main(argv: Sequence[str] | None = None) -> int:
    """Run one command.

    Args:
        argv: the arguments without the program's name; those of the process if None.

    Returns:
        The exit code: 0, 1 where something was found wrong, 2 on bad usage.
    """
    argv = sys.argv[1:] if argv is None else list(argv)
    chosen = next((a for a in argv if not a.startswith("-")), None)
    try:
        args = _parser(chosen).parse_args(argv)
        return args.run(args)
    except SystemExit as done:  # argparse has printed why
        return done.code if isinstance(done.code, int) else 2
    except Refused as error:
        print(f"{PROGRAM} {chosen}: {error}", file=sys.stderr)
    except ModuleNotFoundError as error:
        if error.name is None or error.name.startswith("lirank_ext"):
            raise
        hint = "pip install 'lirank_ext[demo,bench]'"
        print(f"{PROGRAM} {chosen}: needs {error.name}, not installed: {hint}", file=sys.stderr)
    return 2


if __name__ == "__main__":
    sys.exit(main())
