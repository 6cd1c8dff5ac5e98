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
import textwrap
from collections.abc import Callable, Sequence
from typing import Protocol, cast

from .._startup import PROGRAM
from .._version import __version__
from ..errors import UserError
from .cores import share
from .overview import COMMANDS, EXIT_CODES, example, overview
from .waiting import Waiting

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
    if "_ARGCOMPLETE" in os.environ:  # a shell asks what may follow
        return _complete()
    argv = sys.argv[1:] if argv is None else list(argv)
    chosen = next((a for a in argv if a in COMMANDS), None)
    name = f"{PROGRAM} {chosen}" if chosen else PROGRAM
    if chosen != "bench":  # it measures what a program of one's own finds
        share()
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
    args = _parser([chosen] if chosen else []).parse_args(argv)
    with Waiting(f"{PROGRAM} {chosen}: loading PyTorch") as waiting:
        importlib.import_module("lirank_ext._api")  # all ops are there, whatever a command uses
        waiting.now(f"{PROGRAM} {chosen}: at work")
        run: Callable[[argparse.Namespace], int] = args.run
        return run(args)


def _complete() -> int:
    """Print the words that may follow, for the shell; needs argcomplete."""
    try:
        import argcomplete
    except ModuleNotFoundError:
        return UserError.exit_code
    argcomplete.autocomplete(_parser(list(COMMANDS)))  # ends the process
    return 0


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


def _parser(wanted: Sequence[str]) -> argparse.ArgumentParser:
    """The parser; only the wanted commands are imported and get their options."""
    parser = argparse.ArgumentParser(
        PROGRAM,
        usage=f"{PROGRAM} [-h] [--version] command ...",
        description="Train, measure and serve rankers, and check the ops of LiRank.",
        epilog=overview(),
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument(
        "--version",
        action="version",
        version=f"{PROGRAM} {__version__}",
        help="print the version and end",
    )
    subparsers = parser.add_subparsers(
        prog=PROGRAM,
        metavar="command",
        required=True,
        help=f"one of those below; {PROGRAM} COMMAND --help: more",
    )
    for name, entry in COMMANDS.items():
        sub = subparsers.add_parser(
            name,
            description=_sentence(entry.line),
            epilog=f"example:\n  {example(name)}\n\n{EXIT_CODES}",
            formatter_class=Help,
        )
        if name in wanted:
            command = cast(Command, importlib.import_module(f"{__name__}.{name}"))
            sub.set_defaults(run=command.run)
            command.add_arguments(sub)
    return parser


class Help(argparse.RawDescriptionHelpFormatter):
    """Keeps the lines of the epilog, and fills those of the description."""

    def add_text(self, text: str | None) -> None:
        """Add a text, filled unless it has lines of its own."""
        if text and "\n" not in text:
            text = textwrap.fill(text, self._width)
        super().add_text(text)


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
