"""Tables on a terminal: through rich where it is installed, else aligned plain text."""

from __future__ import annotations

import importlib.util
import shutil
import sys
import textwrap
from collections.abc import Sequence
from itertools import chain, zip_longest
from typing import TextIO

from . import _startup

STYLES = {"good": "green", "bad": "bold red", "dim": "dim", "": ""}
# A pipe has no width: rows are not wrapped there.
PIPE_WIDTH = 250
NARROWEST = 8  # a column of text


def print_table(
    title: str,
    columns: Sequence[str],
    rows: Sequence[Sequence[str]],
    styles: Sequence[str] = (),
    stream: TextIO | None = None,
) -> None:
    """Print rows of text under columns; a column whose name starts with ``>`` is right-aligned.

    Args:
        title: a line above the table; may be empty.
        columns: their names.
        rows: one text for each column.
        styles: for each row ``"good"``, ``"bad"``, ``"dim"`` or ``""``; colors where the
            stream is a terminal.
        stream: standard output if None.
    """
    _startup.shows()
    stream = sys.stdout if stream is None else stream
    styles = list(styles) or [""] * len(rows)
    if importlib.util.find_spec("rich") is None:
        stream.write(plain_table(title, columns, rows))
        return
    from rich.box import SIMPLE_HEAD
    from rich.console import Console
    from rich.table import Table
    from rich.text import Text

    table = Table(title=title or None, title_justify="left", box=SIMPLE_HEAD, pad_edge=False)
    for column in columns:
        right = column.startswith(">")
        table.add_column(Text(column.lstrip(">")), justify="right" if right else "left")
    for row, style in zip(rows, styles, strict=True):
        table.add_row(*map(Text, row), style=STYLES[style])
    console = Console(file=stream)
    if not console.is_terminal:
        console = Console(file=stream, width=PIPE_WIDTH)
    # Written here: where the reader went away, rich would end the process in its own way.
    with console.capture() as capture:
        console.print(table)
    stream.write(capture.get())


def plain_table(title: str, columns: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """The table as aligned text, within the width of the terminal if it is shown on one."""
    names = [c.lstrip(">") for c in columns]
    right = [c.startswith(">") for c in columns]
    widths = [max(len(line[i]) for line in (names, *rows)) for i in range(len(columns))]
    if sys.stdout is not None and sys.stdout.isatty():
        widths = _narrowed(widths, right, shutil.get_terminal_size().columns)

    def text(line: Sequence[str]) -> list[str]:
        parts = [textwrap.wrap(c, w) or [""] for c, w in zip(line, widths, strict=True)]
        return [
            "  ".join(
                cell.rjust(w) if r else cell.ljust(w)
                for cell, w, r in zip(cells, widths, right, strict=True)
            ).rstrip()
            for cells in zip_longest(*parts, fillvalue="")
        ]

    rule = "  ".join("-" * w for w in widths)
    body = chain.from_iterable(map(text, rows))
    return "\n".join([*([title] if title else []), *text(names), rule, *body]) + "\n"


def _narrowed(widths: list[int], right: list[bool], width: int) -> list[int]:
    """The widths of columns that fit; those of text give way, the widest first."""
    widths = list(widths)
    while sum(widths) + 2 * (len(widths) - 1) > width:
        texts = [i for i, is_number in enumerate(right) if not is_number]
        widest = max(texts, key=lambda i: widths[i], default=None)
        if widest is None or widths[widest] <= NARROWEST:
            break
        widths[widest] -= 1
    return widths


def print_line(text: str, style: str = "", stream: TextIO | None = None) -> None:
    """Print one line, in color if the stream is a terminal that shows colors."""
    _startup.shows()
    stream = sys.stdout if stream is None else stream
    if style and stream.isatty() and importlib.util.find_spec("rich") is not None:
        from rich.console import Console
        from rich.text import Text

        console = Console(file=stream)
        with console.capture() as capture:
            console.print(Text(text, style=STYLES[style]), soft_wrap=True)
        stream.write(capture.get())
    else:
        stream.write(text + "\n")
