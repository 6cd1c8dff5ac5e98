"""Options that several commands have, and the checks of their values."""

from __future__ import annotations

import argparse
import os
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from .._monitors import MONITORS
from ..errors import UserError

if TYPE_CHECKING:
    from ..training.options import Options
    from ..training.processes import Processes

FILES = "CSV (packed or not) or Parquet files, or folders of them"
# Packages of the extra "train", which every command on models needs.
PACKAGES = ("pyarrow", "yaml", "safetensors", "tqdm", "sklearn")


def add_json(parser: argparse.ArgumentParser) -> None:
    """Add ``--json``."""
    parser.add_argument("--json", metavar="FILE", help="also write the figures to FILE")


def add_device(parser: argparse.ArgumentParser) -> None:
    """Add where a model computes: ``--device`` and ``--threads``."""
    add = parser.add_argument
    add("--device", choices=("cpu", "cuda"), help="default: cuda where there is one")
    add("--threads", type=int, metavar="N", help="CPU threads (default: PyTorch's)")


def add_model(parser: argparse.ArgumentParser) -> None:
    """Add a trained model and the files to use it on."""
    add = parser.add_argument
    add("model", metavar="DIR", help="what train wrote")
    add("data", nargs="+", metavar="FILE", help=FILES)
    add(
        "--skip-bad-rows",
        action="store_true",
        help="name broken rows at the end instead of stopping at the first",
    )
    add_device(parser)


def add_data(parser: argparse.ArgumentParser) -> None:
    """Add the files to train on, their columns, and the settings of a training.

    An option whose ``dest`` is a key of the configuration sets that key; it needs no other code.
    """
    add = parser.add_argument
    add("data", nargs="+", metavar="FILE", help=FILES)
    add(
        "--label",
        action="append",
        default=[],
        metavar="LABEL",
        help="column of 0 and 1, or 'NAME=VALUE' for 1 where it holds VALUE, or 'NAME>=NUMBER'; "
        "repeat it for several tasks",
    )
    add(
        "--valid",
        action="append",
        default=[],
        metavar="FILE",
        help="rows to validate on (default: a tenth of the rows, at random)",
    )
    add(
        "--long-dwell",
        action="append",
        default=[],
        metavar="COLUMN[:A,B]",
        help="a task: the time in COLUMN is above the 90th percentile of the row's cluster; "
        "clusters are defined by columns A and B",
    )
    add("--config", metavar="FILE.yaml", help="model and training; see config.yaml in the output")
    add("--preset", choices=("feed", "jobs", "ads"), help="blocks of one of the paper's models")
    add(
        "--set",
        action="append",
        default=[],
        metavar="KEY=VALUE",
        help="one value of the configuration, as in --set model.cross.rank=16",
    )
    add_reading(parser)
    add_rows(parser)
    add(
        "--monitor",
        dest="training.monitor",
        choices=tuple(MONITORS),
        help="what should get better on the rows to validate on (default auc); gauc and ndcg "
        "need --group",
    )
    add(
        "--label-smoothing",
        dest="training.label_smoothing",
        type=float,
        metavar="SHARE",
        help="train towards SHARE / 2 and 1 - SHARE / 2 in place of 0 and 1 (default 0)",
    )
    add(
        "--ema",
        dest="training.ema",
        type=float,
        metavar="DECAY",
        help="keep the moving average of the dense weights, such as 0.999 (default 0: the last)",
    )
    add(
        "--negatives",
        dest="training.negatives",
        type=float,
        metavar="SHARE",
        help="train on this share of the rows with label 0, where they are many; probabilities "
        "stay those of all rows (default 1)",
    )
    add("--epochs", dest="training.epochs", type=int, metavar="N", help="maximum number of epochs")
    add("--batch-size", dest="training.batch_size", type=int, metavar="N", help="rows of a batch")
    add(
        "--lr",
        dest="training.lr",
        type=float,
        metavar="RATE",
        help="learning rate of the dense weights",
    )
    add("--seed", dest="training.seed", type=int, metavar="N", help="random seed (default 0)")
    add(
        "--skip-bad-rows",
        dest="training.bad_rows",
        action="store_const",
        const="skip",
        help="name broken rows at the end instead of stopping at the first",
    )
    add_device(parser)


def add_reading(parser: argparse.ArgumentParser) -> None:
    """Add how the columns of files are read."""
    add = parser.add_argument
    add("--categorical", type=names, metavar="A,B", help="columns to read as ids")
    add("--numeric", type=names, metavar="A,B", help="columns to read only as numbers")
    add("--ignore", type=names, metavar="A,B", help="columns to leave out")
    add(
        "--list",
        dest="lists",
        type=_separated,
        action="append",
        metavar="COLUMN=SEPARATOR",
        help="a column of text whose cells hold several ids, as in --list tags=;",
    )
    add(
        "--names",
        type=names,
        metavar="A,B",
        help="names of the columns, for CSV files without a header line",
    )
    add(
        "--missing",
        type=names,
        metavar="A,B",
        help="texts that stand for a missing value in CSV, besides an empty cell "
        "(default: ?,NA,N/A,NaN,nan,NULL,null,None,\\N)",
    )


def add_rows(parser: argparse.ArgumentParser) -> None:
    """Add the columns that say how rows count and are compared."""
    add = parser.add_argument
    add(
        "--weight",
        metavar="COLUMN",
        help="column of numbers by which rows count in the loss and in the metrics",
    )
    add_group(parser)


def add_group(parser: argparse.ArgumentParser) -> None:
    """Add ``--group``."""
    parser.add_argument(
        "--group",
        metavar="COLUMN",
        help="column, such as the user, within which GAUC and NDCG compare the rows",
    )


def _separated(text: str) -> tuple[str, str]:
    """A column and what separates the values of its cells."""
    column, _, separator = text.rpartition("=")
    if not column or not separator:
        raise argparse.ArgumentTypeError(f"wanted COLUMN=SEPARATOR, got '{text}'")
    return column, separator


def names(text: str) -> list[str]:
    """The names in a list with commas."""
    return [name for name in text.split(",") if name]


def training_options(args: argparse.Namespace) -> Options:
    """What a parser with :func:`add_data` read, as a training takes it."""
    from ..training.options import Options

    return Options.from_values(vars(args))


def check_packages() -> None:
    """Refuse where a package that every command on models needs is missing.

    Raises:
        MissingPackage: one is.
    """
    from ..data.packages import need

    for package in PACKAGES:
        need(package)


def check_one_process() -> None:
    """Refuse to run in one of several processes, each of which would do and write the same."""
    processes = os.environ.get("WORLD_SIZE", "1")
    if processes not in ("", "1"):
        raise UserError(
            f"runs in one process, and torchrun started {processes} (WORLD_SIZE): start it "
            "without torchrun, which is for train alone"
        )


def join_processes(args: argparse.Namespace) -> Processes:
    """The processes that ``torchrun`` started, with this one's share of the CPU."""
    import torch

    from ..training.processes import from_environment, threads_of_each

    check_device(args.device)
    processes = from_environment(args.device)
    if processes.size > 1:
        torch.set_num_threads(threads_of_each())
    return processes


def check_device(device: str | None) -> None:
    """Refuse ``--device cuda`` where PyTorch has no such device."""
    import torch

    if device == "cuda" and not torch.cuda.is_available():
        raise UserError("--device cuda: PyTorch sees no CUDA device here")


def use_threads(threads: int | None) -> None:
    """Set the number of CPU threads where ``--threads`` gives one."""
    import torch

    check_positive("--threads", threads)
    if threads is not None:
        torch.set_num_threads(threads)


def use_device(args: argparse.Namespace, several: bool = False) -> str:
    """Set the number of threads; the device that ``--device`` names, or else the best one.

    With ``several`` processes, a GPU is named by its number.
    """
    import torch

    check_device(args.device)
    use_threads(args.threads)
    device = args.device or ("cuda" if torch.cuda.is_available() else "cpu")
    return f"cuda:{torch.cuda.current_device()}" if several and device == "cuda" else device


def check_positive(option: str, value: int | None) -> None:
    """Refuse a count below 1."""
    if value is not None and value < 1:
        raise UserError(f"{option}: wanted a positive number, got {value}")


def check_name(name: str | None, known: Sequence[str]) -> None:
    """Refuse an unknown value of ``--op``."""
    if name is not None and name not in known:
        raise UserError(f"--op: nothing is called '{name}'; there are: {', '.join(known)}")


def check_writable(*paths: str | None) -> None:
    """Refuse files whose folder is missing, so that minutes of work do not end there."""
    for path in paths:
        if path is not None and not Path(path).absolute().parent.is_dir():
            raise UserError(f"cannot write {path}: there is no folder {Path(path).parent}")


def check_folder(name: str) -> None:
    """Refuse what cannot be the folder of ``--output``."""
    if not name:
        raise UserError("--output: wanted the name of a folder, got ''")
    if Path(name).exists() and not Path(name).is_dir():
        raise UserError(f"--output {name}: this is a file, where a folder was wanted")


def make_folder(name: str) -> Path:
    """The folder of ``--output``, made where it is missing."""
    check_folder(name)
    try:
        Path(name).mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise UserError(f"--output {name}: {error.strerror}") from error
    return Path(name)
