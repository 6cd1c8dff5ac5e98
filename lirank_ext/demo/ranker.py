"""The demo's model and how it is trained."""

from __future__ import annotations

import math

from ..conversion.swap import use_references
from ..models import MLP, Calibration, Cross, Embedding, Head, LiRank, LiRankConfig, Table
from ..training.calibrate import calibrate
from ..training.defaults import INIT_NORM, TABLE_START
from ..training.settings import Config, Settings
from ..training.trainer import Trainer
from .prepare import Prepared

NUM_REMAINDERS = 1000
BATCH_SIZE = 1024


def configuration(data: Prepared, dim: int = 64, rank: int = 32) -> LiRankConfig:
    """A residual cross net beside an MLP, calibrated.

    Args:
        data: gives the columns, and the number of distinct ids, which sizes the hashed table.
        dim: embedding width of an id.
        rank: of the cross layers.
    """
    # Two quotient tables with about a row per id, and two remainder tables of 1,000 rows.
    rows = max(NUM_REMAINDERS, data.ids)
    tables = {name: Table(rows * NUM_REMAINDERS, NUM_REMAINDERS) for name in data.schema.tables()}
    return LiRankConfig(
        data.schema,
        # Whole columns are dropped, so that none (the user above all, who is often new in the
        # rows to come) is relied on alone.
        embedding=Embedding(dim=dim, dropout=0.3, init_norm=INIT_NORM, tables=tables),
        cross=Cross(rank=rank),
        mlp=MLP(dims=[128, 64], gate=None, dropout=0.2),
        head=Head(tower_dims=[]),
        calibration=Calibration(lower=-8.0, upper=8.0),
    )


def train(config: LiRankConfig, data: Prepared, epochs: int, seed: int = 0) -> LiRank:
    """Train a model of plain PyTorch modules, then fit its calibration to the validation rows."""
    steps = math.ceil(len(data.train) / BATCH_SIZE)
    settings = Settings(
        batch_size=BATCH_SIZE,
        epochs=epochs,
        lr=2e-3,
        table_lr=0.3,
        table_start=TABLE_START,
        schedule="cosine",
        warmup=0.1,
        monitor="log_loss",
        evaluate_every=max(1, steps // 2),
        checkpoint_every=0,
        amp="off",
        tune="off",
        seed=seed,
    )
    loaders = (data.memory(data.train, BATCH_SIZE, seed), data.memory(data.valid))
    trainer = Trainer(Config(config, settings), *loaders, steps, bar=True)
    use_references(trainer.model)
    trainer.fit()
    # The rows to validate are later than the rows to train on, and a model's level drifts.
    calibrate(trainer.model, loaders[1], l2=20.0)
    return trainer.model.eval()
