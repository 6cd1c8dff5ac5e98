"""A training in words: the data, the model, and how it ended."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING

from .._table import plain_table
from ..data.infer import HEADINGS, cells
from ..models import LiRank, Schema

if TYPE_CHECKING:
    from ..data.infer import Column
    from .metrics import Figures
    from .session import Data
    from .settings import Config, Settings
    from .trainer import Trainer
    from .tuning import Trial

NAMED_AT_MOST = 8  # columns of a kind


def columns(read: Sequence[Column]) -> str:
    """How each column of the files is read, and why."""
    return plain_table("", HEADINGS, [cells(column) for column in read]).rstrip()


def data(opened: Data, config: Config) -> str:
    """Columns, labels and rows, a line for each kind."""
    lines = [_columns(config.model.schema)]
    rows = f"rows: {opened.rows:,}, about {opened.steps:,} steps an epoch"
    if opened.valid is None:
        rows += "; none to validate on"
    return "\n".join([*lines, rows])


def _columns(schema: Schema) -> str:
    kinds = {
        "numeric": schema.numeric,
        "ids": [c.name for c in schema.categorical],
        "histories": [h.name for h in schema.history],
        "labels": [t.name for t in schema.tasks],
    }
    return "\n".join(f"{kind}: {_listed(names)}" for kind, names in kinds.items() if names)


def _listed(names: Sequence[str]) -> str:
    shown = ", ".join(names[:NAMED_AT_MOST])
    more = len(names) - NAMED_AT_MOST
    return f"{len(names)} ({shown}{f' and {more} more' if more > 0 else ''})"


def model(trained: LiRank) -> str:
    """Table sizes and parameters."""
    lines = []
    for name, table in zip(trained.columns, trained.tables.values(), strict=True):
        heights = [p.shape[0] for p in table.parameters()]
        lines.append(f"table {name}: {' + '.join(f'{h:,}' for h in heights)} rows of {table.dim}")
    dense = sum(p.numel() for p in trained.dense_parameters())
    tables = sum(p.numel() for p in trained.table_parameters())
    return "\n".join([*lines, f"parameters: {dense:,} dense, {tables:,} in tables"])


def trials(tried: Sequence[Trial], settings: Settings) -> str:
    """How many settings are tried."""
    if settings.tune == "search":
        seconds = settings.tune_seconds
        until = f" or {seconds:,.0f} s" if seconds is not None else ""
        return f"tuning: a search over {settings.tune_trials} settings{until}"
    if len(tried) == 1:
        return "tuning: one setting, as the others are given"
    names = ", ".join(trial.name for trial in tried)
    return f"tuning: {len(tried)} regularizations ({names}); --tune off trains once"


def warnings(tasks: Mapping[str, Figures]) -> list[str]:
    """A sentence for every task that the model predicts worse than a constant would."""
    return [
        f"warning: the log-loss of '{name}' is {figures['log_loss']:.4f}, worse than "
        f"{figures['base_log_loss']:.4f} for one probability for every row: look at the columns, "
        "or train longer or with another lr"
        for name, figures in tasks.items()
        if (figures["log_loss"] or 0.0) > (figures["base_log_loss"] or 0.0)
    ]


def ending(trainer: Trainer) -> str:
    """Why a training ended, where its best weights are from, and how fast it was."""
    progress = trainer.progress
    text = f"training: {trainer.why_ended()}"
    if progress.best_step:
        text += f"; the weights kept are those after step {progress.best_step:,}"
    if not trainer.rows:
        return f"{text}; nothing was left to train"
    rate = trainer.rows / max(trainer.seconds, 1e-9)
    return f"{text}; {trainer.rows:,} rows in {trainer.seconds:,.1f} s, {rate:,.0f} rows a second"
