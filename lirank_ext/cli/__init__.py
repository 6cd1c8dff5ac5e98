"""The command line: ``lirank-ext``, the same as ``python -m lirank_ext``.

Each command is a module of this package with two functions: ``add_arguments`` adds its options to
a parser and ``run`` does it. A module is imported when its command is chosen, and imports what it
needs when it runs: ``--help`` answers at once, and ``info`` and ``verify`` need torch and numpy
only.
"""

from __future__ import annotations

import argparse
import errno
import importlib
import os
import sys
from collections.abc import Callable, Sequence
from typing import Protocol, cast

from .._startup import PROGRAM
from .._version import __version__
from ..errors import UserError

# The modules of this package, in the order of the overview, with their line there.
COMMANDS = {
    "info": "show versions and what was built",
    "verify": "compare every backend with the reference",
    "bench": "time every op beside its peers",
    "demo": "train, swap, quantize and compare on real data",
    "inspect": "show how every column of files would be read",
    "train": "train a ranker on CSV or Parquet files, larger than memory if need be",
    "evaluate": "measure a trained model on labeled files",
    "predict": "write a model's probabilities, one line for every input row",
    "calibrate": "fit a model's isotonic calibration to newer files, all else kept",
    "importance": "show what each column is worth to a trained model",
    "quantize": "write a model with int8 or int4 tables, for serving",
    "ablate": "train with one block switched off at a time and compare",
}

# What a shell reports for a process that the signals SIGINT and SIGPIPE ended.
INTERRUPTED, BROKEN_PIPE = 130, 141


class Command(Protocol):
    """What a command's module holds."""

    def add_arguments(self, parser: argparse.ArgumentParser) -> None:
        """Add its description and options."""
        ...

    def run(self, args: argparse.Namespace) -> int:
        """Do it and return the exit code.

        Raises:
            UserError: something that the user can change.
        """
        ...


def main(argv: Sequence[str] | None = None) -> int:
    """Run one command.

    Args:
        argv: the arguments without the program's name; those of the process if None.

    Returns:
        The exit code: 0, 1 where something was found wrong, 2 where the user has to change
        something, 130 after Ctrl-C, 141 where the reader of the output went away.
    """
    argv = sys.argv[1:] if argv is None else list(argv)
    chosen = next((a for a in argv if a in COMMANDS), None)
    name = f"{PROGRAM} {chosen}" if chosen else PROGRAM
    try:
        code, message = _outcome(lambda: _run(argv, chosen))
        if message:
            print(f"{name}: {message}", file=sys.stderr, flush=True)
        if sys.stdout is not None:
            sys.stdout.flush()
        return code
    except BrokenPipeError:
        _discard_output()
        return BROKEN_PIPE
    except OSError as error:
        if error.errno != errno.ENOSPC or error.filename is not None:
            raise
        _discard_output()
        print(f"{name}: cannot write the output: {error.strerror}", file=sys.stderr)
        return UserError.exit_code


def _run(argv: list[str], chosen: str | None) -> int:
    args = _parser(chosen).parse_args(argv)
    importlib.import_module("lirank_ext._api")  # every op is registered, whatever a command uses
    run: Callable[[argparse.Namespace], int] = args.run
    return run(args)


def _outcome(call: Callable[[], int]) -> tuple[int, str]:
    """The exit code of a command, and the one sentence for the user where it could not go on."""
    try:
        return call(), ""
    except SystemExit as done:  # argparse has printed why
        return done.code if isinstance(done.code, int) else UserError.exit_code, ""
    except UserError as error:
        return error.exit_code, str(error)
    except KeyboardInterrupt:
        return INTERRUPTED, "interrupted"
    except ModuleNotFoundError as error:
        if error.name is None:
            raise
        if error.name.startswith("lirank_ext"):
            from ..library.load import source_folder

            if not source_folder():
                raise
            return UserError.exit_code, source_folder()
        from ..library.packages import install_line

        line = install_line("demo", "bench")
        return UserError.exit_code, f"needs {error.name}, which is not installed: {line}"


def _parser(chosen: str | None) -> argparse.ArgumentParser:
    """The parser; only the chosen command is imported and gets its options."""
    parser = argparse.ArgumentParser(PROGRAM, description="PyTorch ops and models for LiRank.")
    parser.add_argument("--version", action="version", version=f"{PROGRAM} {__version__}")
    subparsers = parser.add_subparsers(metavar="command", required=True)
    for name, line in COMMANDS.items():
        sub = subparsers.add_parser(name, help=line, description=_sentence(line))
        if name == chosen:
            command = cast(Command, importlib.import_module(f"{__name__}.{name}"))
            sub.set_defaults(run=command.run)
            command.add_arguments(sub)
    return parser


def _sentence(line: str) -> str:
    return f"{line[0].upper()}{line[1:]}."


def _discard_output() -> None:
    """Let the interpreter flush its streams at exit without a further error."""
    nowhere = os.open(os.devnull, os.O_WRONLY)
    for stream in (sys.stdout, sys.stderr):
        try:
            if stream is not None:
                stream.flush()
        except OSError:
            os.dup2(nowhere, stream.fileno())
    os.close(nowhere)
