"""A configuration for files: their columns, and blocks regularised for data of any size."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from ..data.broken import BadRows
from ..data.errors import DataError
from ..data.infer import Column, infer
from ..data.reading import Reading
from ..models import MLP, Cross, Embedding, Head, LiRankConfig, Task, with_schema
from .options import Options
from .settings import Config, Settings

# How ids learn: their embeddings start near zero and move with the number of their rows, so that
# an id seen once or never adds little noise. Chosen by validation rows of MovieLens-1M users, on
# which norm 1, rate 0.3 and accumulators from 0 were worse; one seed, by hand.
INIT_NORM, TABLE_LR, TABLE_START = 0.03, 0.1, 10.0

ADAGRAD = {
    "table_optimizer": "adagrad",
    "table_lr": TABLE_LR,
    "table_start": TABLE_START,
    "table_l2": 0.0,
}
# The rate of Adam, where that is asked for; it is also that of the dense weights.
ADAM_LR = 1e-3

# Rows of a batch for files of up to so many rows; few rows need small batches for enough steps.
# The differences to 256 and 1024 rows were within what one seed can tell.
BATCHES = {400_000: 512}
# How wide the MLP is at most, by the width of its input, and the width that it may always have: on
# two columns of ids (MovieLens-100K, split by time) layers of 400 units were worse than narrow ones
# on validation rows; one seed, by hand.
WIDTH, NARROWEST = 2.5, 64
# Decay of the average of the dense weights that is kept; better than none on validation rows of
# MovieLens-100K by a little; one seed, by hand.
EMA = 0.999
# Averaged weights go on gaining a little for long, which is not worth the epochs.
TOLERANCE = 1e-4


def blocks() -> LiRankConfig:
    """The model where no preset is named: low-rank cross layers beside an MLP with batch norm.

    Its MLP is narrowed for few columns by :func:`_narrowed`.

    Without the attention stack and the gates: with both, few rows of many ids are learned by heart
    (validation rows of ten made-up columns of ids; one seed, by hand).
    """
    return LiRankConfig(
        embedding=Embedding(dim=16),
        cross=Cross(attention=False, rank=64),
        mlp=MLP(dims=[400, 400], gate=None, batch_norm=True, dropout=0.2),
        head=Head(tower_dims=[]),
    )


def for_files(
    paths: Sequence[str | Path],
    labels: Sequence[str | Task] = (),
    given: dict[str, Any] | None = None,
    *,
    preset: str | None = None,
    reading: Reading | None = None,
    skip: bool = False,
    tell: Callable[[list[Column]], None] = lambda columns: None,
) -> Config:
    """A configuration for these files.

    Args:
        paths: CSV or Parquet files.
        labels: label columns; see :func:`infer`.
        given: values that hold whatever the defaults are. A schema in it is taken as it is;
            without one the columns are inferred.
        preset: blocks of one of the paper's models.
        reading: what the user says about the columns.
        skip: pass over broken rows.
        tell: called with how each column is read, where the columns are inferred.

    Raises:
        DataError: a file or column cannot be used.
        ConfigError: ``given`` does not fit.
    """
    given = given or {}
    adam = given.get("training", {}).get("table_optimizer") == "adam"
    rate = ADAM_LR if adam else TABLE_LR
    settings = Settings(table_lr=rate, table_start=TABLE_START, ema=EMA, tolerance=TOLERANCE)
    base = LiRankConfig.preset(preset) if preset else blocks()
    quiet = dataclasses.replace(base.embedding, init_norm=INIT_NORM)
    base = dataclasses.replace(base, embedding=quiet)
    if "schema" in given.get("model", {}):
        if labels or (reading and reading.given()):
            raise DataError(
                "the configuration names the columns in model.schema: leave out --label and the "
                "options about columns, or the schema"
            )
        schema = Config.from_dict(given).model.schema
        model = with_schema(base, schema)
    else:
        inferred = infer(paths, labels, reading, broken=BadRows(skip))
        tell(inferred.columns)
        model = with_schema(base, inferred.schema)
        embedding = dataclasses.replace(model.embedding, tables=inferred.tables)
        model = dataclasses.replace(model, embedding=embedding)
        model = model if preset else _narrowed(model)
        sizes = [size for rows, size in BATCHES.items() if inferred.rows <= rows]
        settings.batch_size = min(sizes, default=settings.batch_size)
    data = Config(model, settings).to_dict()
    merge(data, given)
    return Config.from_dict(data)


def _narrowed(model: LiRankConfig) -> LiRankConfig:
    """The model with an MLP at most :data:`WIDTH` times as wide as its input."""
    schema, dim = model.schema, model.embedding.dim
    width = len(schema.numeric) + dim * (len(schema.categorical) + len(schema.history))
    most = max(NARROWEST, round(WIDTH * width))
    dims = [min(out, most) for out in model.mlp.dims]
    return dataclasses.replace(model, mlp=dataclasses.replace(model.mlp, dims=dims))


def configuration(
    options: Options,
    given: dict[str, Any],
    tell: Callable[[list[Column]], None] = lambda columns: None,
) -> Config:
    """The configuration of a fresh training: defaults for the files, and what the user asks for.

    Args:
        options: files and columns.
        given: what ``options.given()`` returned.
        tell: called with how each column is read, where the columns are inferred.
    """
    return for_files(
        options.data,
        options.tasks(),
        given,
        preset=options.preset,
        reading=options.reading,
        tell=tell,
        skip=flat(given).get("training.bad_rows") == "skip",
    )


def merge(data: dict[str, Any], given: dict[str, Any]) -> None:
    """Put the values of ``given`` over those of ``data``, key by key."""
    for key, value in given.items():
        if isinstance(value, dict) and isinstance(data.get(key), dict) and key != "schema":
            merge(data[key], value)
        else:
            data[key] = value


def flat(data: dict[str, Any], where: str = "") -> dict[str, Any]:
    """The values of nested dicts by their keys ``a.b.c``."""
    values: dict[str, Any] = {}
    for name, value in data.items():
        key = f"{where}.{name}" if where else str(name)
        values |= flat(value, key) if isinstance(value, dict) else {key: value}
    return values
