"""Where the time of ``train`` goes: ``python -m lirank_ext.benchmarks.training_speed``.

Processor time of one thread, so that busy neighbors matter little. The plain loop beside it has the
same blocks over ``nn.Embedding`` tables with dense Adam, on tensors that are made already: what
common training loops do once their data are in memory.
"""

from __future__ import annotations

import argparse
import itertools
import sys
import tempfile
import time
from collections import defaultdict
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from lirank_ext.data.loader import Position
from lirank_ext.data.packages import need
from lirank_ext.models.blocks import Interactions
from lirank_ext.training.defaults import for_files
from lirank_ext.training.optimizers import moving_in_backward
from lirank_ext.training.session import open_trainer
from lirank_ext.training.trainer import Trainer

IDS = 5000  # different ids of a column


class Clock:
    """Adds up processor time by stage."""

    def __init__(self) -> None:
        self.seconds: dict[str, float] = defaultdict(float)

    @contextmanager
    def time(self, stage: str) -> Iterator[None]:
        """Add the time of a block to a stage."""
        began = time.process_time()
        yield
        self.seconds[stage] += time.process_time() - began


def write(path: Path, rows: int, columns: int) -> None:
    """A file of skewed ids with a label, CSV or Parquet by its name."""
    rng, pa = np.random.default_rng(0), need("pyarrow")
    made = {f"c{i}": (rng.zipf(1.3, rows) % IDS) for i in range(columns)}
    table = pa.table({k: [f"v{x}" for x in v] for k, v in made.items()})
    table = table.append_column("label", [rng.integers(0, 2, rows)])
    if path.suffix == ".csv":
        need("pyarrow.csv").write_csv(table, path)
    else:
        need("pyarrow.parquet").write_table(table, path)


def stages(path: Path, steps: int) -> tuple[dict[str, float], int]:
    """Seconds of each stage over so many steps, and the rows of them."""
    given = {"training": {"prefetch": 0, "tune": "off", "valid": 0.0, "epochs": 100}}
    trainer = open_trainer(for_files([path], ["label"], given), [path])
    trainer.model.train()
    clock, rows = Clock(), 0
    with clock.time("read and hash"):
        for _ in trainer.train_loader._blocks(0):
            pass
    whole = trainer.train_loader.source.count()
    epochs = (trainer.train_loader.epoch(Position(epoch)) for epoch in itertools.count())
    batches = (batch for epoch in epochs for _, batch in epoch)
    with moving_in_backward(trainer.optimizers, trainer.model):
        for _ in range(steps):
            with clock.time("batches"):
                batch = next(batches)
            rows += len(batch)
            step(trainer, batch.features, batch.labels, clock)
    clock.seconds["read and hash"] *= rows / whole  # an epoch reads each row once
    return clock.seconds, rows


def step(trainer: Trainer, features: dict[str, Tensor], labels: Tensor, clock: Clock) -> None:
    """One step of the trainer, stage by stage."""
    model = trainer.model
    for optimizer in trainer.optimizers:
        optimizer.zero_grad()
    with clock.time("look-up"):
        model.bags(features)
    with clock.time("forward"):
        loss = F.binary_cross_entropy_with_logits(model(features), labels)
    with clock.time("backward"), torch.sparse.check_sparse_tensor_invariants(False):
        loss.backward()
    for name, optimizer in zip(("dense", "table"), trainer.optimizers, strict=True):
        with clock.time(f"{name} optimizer"):
            optimizer.step()


class Plain(nn.Module):
    """The same blocks over one plain table."""

    def __init__(self, columns: int, trainer: Trainer) -> None:
        super().__init__()
        config = trainer.config.model
        self.table = nn.Embedding(columns * IDS, config.embedding.dim)
        self.blocks = Interactions(columns * config.embedding.dim, config.cross, config.mlp)
        self.out = nn.Linear(self.blocks.out_dim, 1)

    def forward(self, ids: Tensor) -> Tensor:
        return self.out(self.blocks(self.table(ids).flatten(1)))


def plain(path: Path, columns: int, steps: int) -> tuple[float, int]:
    """Seconds and rows of the plain loop."""
    given = {"training": {"prefetch": 0, "tune": "off", "valid": 0.0}}
    trainer = open_trainer(for_files([path], ["label"], given), [path])
    model = Plain(columns, trainer).train()
    optimizer, size = torch.optim.Adam(model.parameters()), trainer.settings.batch_size
    ids = torch.randint(0, columns * IDS, (steps * size, columns))
    labels = torch.randint(0, 2, (steps * size, 1)).float()
    began = time.process_time()
    for one, two in zip(ids.split(size), labels.split(size), strict=True):
        optimizer.zero_grad()
        F.binary_cross_entropy_with_logits(model(one), two).backward()
        optimizer.step()
    return time.process_time() - began, len(ids)


def main(argv: list[str] | None = None, tell: Callable[[str], None] = print) -> int:
    """Print the table."""
    parser = argparse.ArgumentParser("lirank_ext.benchmarks.training_speed", description=__doc__)
    parser.add_argument("--rows", type=int, default=50_000, metavar="N", help="of a file")
    parser.add_argument("--steps", type=int, default=60, metavar="N", help="that are timed")
    parser.add_argument("--columns", type=int, nargs="+", default=[10, 40], metavar="N")
    args = parser.parse_args(argv)
    torch.set_num_threads(1)
    with tempfile.TemporaryDirectory() as folder:
        for columns in args.columns:
            for kind in ("csv", "parquet"):
                path = Path(folder) / f"{columns}.{kind}"
                write(path, args.rows, columns)
                seconds, rows = stages(path, args.steps)
                # The look-up is a part of the forward pass, timed once more by itself.
                total = sum(v for name, v in seconds.items() if name != "look-up")
                parts = ", ".join(f"{name} {v / rows * 1e6:.1f}" for name, v in seconds.items())
                tell(f"{columns} columns, {kind}: {rows / total:,.0f} rows/s; µs a row: {parts}")
            spent, rows = plain(path, columns, args.steps)
            tell(f"{columns} columns, plain loop: {rows / spent:,.0f} rows/s")
    return 0


if __name__ == "__main__":
    sys.exit(main())
