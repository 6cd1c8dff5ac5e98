"""An extension of griffe: makes the package's docstrings Markdown before they are rendered.

The docstrings are written to be read in an editor: roles such as :class:`X`, formulas behind a
double colon, and arguments of one description on one line.
"""

from __future__ import annotations

import re
from typing import Any

import griffe

ROLE = re.compile(r":(?:class|func|meth|mod|data|attr):`~?\.?([^`]+)`")
SECTION = re.compile(r"^(Args|Attributes):$")
TABLE = re.compile(r"^=+ +=+\n(.*?)^=+ +=+$", re.DOTALL | re.MULTILINE)
WRAPS = re.compile(r"functools\.wraps\((\w+)\)")
NAMES = re.compile(r"^    (\w+(?:, \w+)+): (.*)$")


def to_markdown(text: str) -> str:
    """The docstring in Markdown, with a line for every argument."""
    text = ROLE.sub(r"`\1`", text)
    text = re.sub(r"^::\n", "\n", text, flags=re.MULTILINE)
    text = re.sub(r"::\n", ":\n", text)
    text = TABLE.sub(lambda table: "```text\n" + table[1].replace("``", "  ") + "```", text)
    return "\n".join(_one_name_each(text.split("\n")))


def _one_name_each(lines: list[str]) -> list[str]:
    """The lines with ``a, b: text`` in a section of arguments written as two arguments."""
    done: list[str] = []
    names: list[str] = []
    described: list[str] = []
    inside = False

    def flush() -> None:
        for name in names:
            done.append(f"    {name}: {described[0]}")
            done.extend(described[1:])
        names.clear()
        described.clear()

    for line in lines:
        shared = NAMES.match(line) if inside else None
        if names and line.startswith("     "):
            described.append(line)
            continue
        flush()
        if shared:
            names.extend(shared[1].split(", "))
            described.append(shared[2])
            continue
        if line and not line.startswith(" "):
            inside = bool(SECTION.match(line))
        done.append(line)
    flush()
    return done


class Markdown(griffe.Extension):
    """Rewrites every docstring that is loaded."""

    def on_object(self, *, obj: griffe.Object, **_: Any) -> None:
        """Rewrite the docstring of an object, if it has one."""
        if isinstance(obj, griffe.Function) and obj.docstring is None:
            self._take_over(obj)
            return
        if obj.docstring is not None:
            obj.docstring.value = to_markdown(obj.docstring.value)

    def _take_over(self, function: griffe.Function) -> None:
        """Give a function what it wraps by ``functools.wraps``: parameters and docstring."""
        for decorator in function.decorators:
            wrapped = WRAPS.fullmatch(str(decorator.value))
            if wrapped and function.parent is not None:
                original = function.parent.members[wrapped[1]]
                function.parameters = original.parameters
                function.docstring = original.docstring
