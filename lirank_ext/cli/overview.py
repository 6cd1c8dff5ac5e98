"""The commands: their lines, groups and examples, and the text of ``lirank-ext --help``."""

from __future__ import annotations

from typing import NamedTuple

from .._startup import PROGRAM

EXIT_CODES = """\
exit codes:
  0    all went well
  1    something was found wrong, by verify or bench
  2    there is something for you to change; one sentence on stderr says what
  130  stopped by Ctrl-C
  141  the reader of the output went away
"""


class Entry(NamedTuple):
    """A command: its line in the overview, its group there, and one call of it."""

    line: str
    group: str
    example: str


LOOK, TRAIN, USE, PACKAGE = (
    "look at your data",
    "train",
    "use a trained model",
    "check and measure the package",
)

# The modules of this package, in the order of the overview.
COMMANDS = {
    "inspect": Entry("show how every column of files would be read", LOOK, "data.csv"),
    "train": Entry(
        "train a ranker on CSV or Parquet files of any size", TRAIN, "data.csv --label click"
    ),
    "ablate": Entry(
        "train with one block switched off at a time and compare",
        TRAIN,
        "data.csv --label click --seeds 3",
    ),
    "evaluate": Entry("measure a model on labeled files", USE, "lirank_model new.csv"),
    "report": Entry(
        "write pictures of a model on labeled files, as one HTML file",
        USE,
        "lirank_model new.csv --output report.html",
    ),
    "predict": Entry(
        "write a model's probabilities, a line for every input row",
        USE,
        "lirank_model new.csv --output scores.csv",
    ),
    "calibrate": Entry("fit a model's calibration to newer files", USE, "lirank_model new.csv"),
    "importance": Entry(
        "show what each column is worth to a model", USE, "lirank_model new.csv --repeats 5"
    ),
    "quantize": Entry(
        "write a model with int8 or int4 tables, for serving", USE, "lirank_model --bits 8"
    ),
    "export": Entry(
        "write a model as a folder that serves without Python", USE, "lirank_model --output served"
    ),
    "info": Entry("show versions and what was built", PACKAGE, ""),
    "verify": Entry("compare every backend with the reference", PACKAGE, "--device cpu"),
    "bench": Entry("time every op beside its peers", PACKAGE, "--quick --peers"),
    "demo": Entry("train, swap, quantize and compare on real data", PACKAGE, "--quick"),
}


def example(name: str) -> str:
    """A call of a command, as it is typed."""
    return f"{PROGRAM} {name} {COMMANDS[name].example}".rstrip()


def overview() -> str:
    """The groups of commands with an example each, and the exit codes."""
    width = max(map(len, COMMANDS)) + 2
    lines: list[str] = []
    for group in dict.fromkeys(entry.group for entry in COMMANDS.values()):
        lines.append(f"{group}:")
        for name, entry in COMMANDS.items():
            if entry.group == group:
                lines += [f"  {name:{width}}{entry.line}", f"  {'':{width}}$ {example(name)}"]
        lines.append("")
    return "\n".join(lines) + "\n" + EXIT_CODES
