"""Tables on a terminal: through rich where it is installed, else aligned plain text."""

from __future__ import annotations

import importlib.util
import sys
from collections.abc import Sequence
from typing import TextIO

STYLES = {"good": "green", "bad": "bold red", "dim": "dim", "": ""}
# A pipe has no width: rows are not wrapped there.
PIPE_WIDTH = 250


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
    """The table as aligned text."""
    names = [c.lstrip(">") for c in columns]
    lines = [names, *rows]
    widths = [max(len(line[i]) for line in lines) for i in range(len(columns))]
    right = [c.startswith(">") for c in columns]

    def text(line: Sequence[str]) -> str:
        cells = zip(line, widths, right, strict=True)
        return "  ".join(c.rjust(w) if r else c.ljust(w) for c, w, r in cells).rstrip()

    rule = "  ".join("-" * w for w in widths)
    return "\n".join([*([title] if title else []), text(names), rule, *map(text, rows)]) + "\n"


def print_line(text: str, style: str = "", stream: TextIO | None = None) -> None:
    """Print one line, in color if the stream is a terminal that shows colors."""
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
