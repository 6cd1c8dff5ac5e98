"""Training and scoring of one variant with one seed."""

from __future__ import annotations

import copy
import time
from collections.abc import Callable
from typing import Any

import numpy as np

import lirank_ext
from lirank_ext.data.loader import Memory
from lirank_ext.models import LiRank, LiRankConfig
from lirank_ext.nn import IncrementalPenalty
from lirank_ext.training.metrics import measure, score
from lirank_ext.training.settings import Config, Settings
from lirank_ext.training.trainer import Trainer

from .data import Prepared, batches
from .plan import Plan
from .variants import REFERENCE, configuration, history_length

Finished = Callable[..., None]  # name, scores (iterations, n, tasks), **what else is recorded
EVALUATION_ROWS = 4096
ITERATIVE = ("incremental", "unpenalised", "retrained", "stale")


class Bench:
    """Trains on a prepared data set.

    Args:
        data: rows.
        plan: sizes.
        seed: of weights, dropout and order.
    """

    def __init__(self, data: Prepared, plan: Plan, seed: int) -> None:
        self.data, self.plan, self.seed = data, plan, seed

    def trainer(
        self,
        config: LiRankConfig,
        rows: np.ndarray,
        history: int | None = None,
        epochs: int | None = None,
    ) -> Trainer:
        """A trainer on these rows of the data."""
        plan = self.plan
        epochs = epochs or self.data.epochs
        size = min(plan.batch_size, max(2, len(rows) // 4))
        steps = max(1, round(len(rows) / size))
        settings = Settings(
            batch_size=size,
            epochs=epochs,
            lr=plan.dense_lr,
            table_lr=plan.table_lr,
            evaluate_every=max(1, steps // 2),
            checkpoint_every=0,
            schedule="linear",
            warmup=0.1,
            monitor="auc",
            patience=0,
            tune="off",
            amp="off",
            seed=self.seed,
        )
        train = batches(self.data.rows, config.schema, rows, size, self.seed, history)
        valid = list(self.batches(config, self.data.valid, history))
        return Trainer(Config(config, settings), train, valid, steps)

    def batches(self, config: LiRankConfig, rows: np.ndarray, history: int | None = None) -> Memory:
        """These rows in their order."""
        return batches(self.data.rows, config.schema, rows, EVALUATION_ROWS, None, history)

    def scores(self, model: LiRank, history: int | None = None) -> np.ndarray:
        """(1, test rows, tasks) logits."""
        return score(model, self.batches(model.config, self.data.test, history)).logits[None]

    def record(self, scores: np.ndarray) -> dict[str, Any]:
        """Metrics of every task, the mean over the iterations."""
        labels, found = self.data.labels, {}
        for t, task in enumerate(self.data.schema.tasks):
            metrics = [measure(s[:, t], labels[:, t]).as_json() for s in scores]
            keys = ("auc", "log_loss", "observed_to_expected")
            found[task.name] = {k: float(np.mean([m[k] for m in metrics])) for k in keys}
        each = [self._mean_auc(s) for s in scores] if len(scores) > 1 else None
        return {"tasks": found, **({"auc_of_iteration": each} if each else {})}

    def _mean_auc(self, scores: np.ndarray) -> float:
        labels = self.data.labels
        return float(np.mean([measure(s, y).auc for s, y in zip(scores.T, labels.T, strict=True)]))


def produces(name: str) -> tuple[str, ...]:
    """The records that a run writes: the quantized tables are those of the reference."""
    if name == REFERENCE:
        return (REFERENCE, "int8", "int4")
    return ITERATIVE if name == "incremental" else (name,)


def run(name: str, data: Prepared, plan: Plan, seed: int, finished: Finished) -> None:
    """Train a variant and hand on its records."""
    bench = Bench(data, plan, seed)
    if name == "incremental":
        _increments(bench, finished)
        return
    config, history = configuration(name, data, plan), history_length(name, plan)
    trainer = bench.trainer(config, data.train, history)
    seconds = _timed(trainer.fit)
    model = trainer.model
    more = {"seconds": seconds, "steps": trainer.progress.step, **_sizes(model)}
    more["best_step"] = trainer.progress.best_step
    if name == REFERENCE:
        for bits in (8, 4):
            _quantized(bench, model, bits, finished)
    finished(name, bench.scores(model, history), **more)


def _timed(call: Callable[[], Any]) -> float:
    """Processor seconds: the same on a machine that others use too, at one thread."""
    start = time.process_time()
    call()
    return time.process_time() - start


def _sizes(model: LiRank) -> dict[str, int]:
    tables, dense = model.table_parameters(), model.dense_parameters()
    return {
        "dense_parameters": sum(p.numel() for p in dense),
        "table_parameters": sum(p.numel() for p in tables),
    }


def _quantized(bench: Bench, model: LiRank, bits: int, finished: Finished) -> None:
    small = copy.deepcopy(model)
    report = lirank_ext.quantize(small, bits)
    scores = bench.scores(small)
    sizes = {"table_bytes_before": report.bytes_before, "table_bytes": report.bytes_after}
    finished(f"int{bits}", scores, **sizes, **_sizes(model), max_error=report.max_error)


# ---- incremental against full retraining --------------------------------------------------------


def _increments(bench: Bench, finished: Finished) -> None:
    """A cold start on the oldest rows, then rounds on newer ones; one test set for all rounds."""
    plan, train = bench.plan, bench.data.train
    cold = round(len(train) * plan.cold_share)
    rounds = np.array_split(train[cold:], plan.increments)
    config = configuration(REFERENCE, bench.data, plan)
    start = bench.trainer(config, train[:cold])
    cold_seconds = _timed(start.fit)
    stale = bench.scores(start.model)
    more = {"cold_seconds": cold_seconds, "rounds": [len(r) for r in rounds]}
    finished("stale", np.repeat(stale, len(rounds), 0), seconds=0.0, **more)
    for name, forgetting in (("incremental", cold / len(rounds[0])), ("unpenalised", 0.0)):
        scores, seconds = _updated(bench, start, train[:cold], rounds, forgetting)
        finished(name, scores, seconds=seconds, forgetting=forgetting, **more)
    scores, seconds = [], 0.0
    for i in range(len(rounds)):
        whole = bench.trainer(config, np.concatenate([train[:cold], *rounds[: i + 1]]))
        seconds += _timed(whole.fit)
        scores.append(bench.scores(whole.model))
    finished("retrained", np.concatenate(scores), seconds=seconds, **more)


def _updated(
    bench: Bench, start: Trainer, cold: np.ndarray, rounds: list[np.ndarray], forgetting: float
) -> tuple[np.ndarray, float]:
    """Scores after every round, and the processor seconds of all rounds."""
    before, scores, seconds = start, [], 0.0
    tables = [name for name, _ in start.model.named_children() if name == "tables"]
    penalty = IncrementalPenalty(start.model, forgetting, skip=tables)
    seen = cold
    for rows in rounds:
        trainer = bench.trainer(start.config.model, rows, epochs=1)
        trainer.penalty = penalty if forgetting else None

        def update(before=before, trainer=trainer, seen=seen) -> None:
            if forgetting:
                penalty.record(before.model, _samples(bench, trainer, seen), method="batch")
            _continue(before, trainer)
            trainer.fit()

        seconds += _timed(update)
        scores.append(bench.scores(trainer.model))
        before, seen = trainer, rows
    return np.concatenate(scores), seconds


def _continue(before: Trainer, after: Trainer) -> None:
    """The weights and AdaGrad's sums of an earlier round; AdamW starts anew."""
    after.model.load_state_dict(before.model.state_dict())
    old, new = before.optimizers[1].state, after.optimizers[1].state
    tables = (before.model.table_parameters(), after.model.table_parameters())
    for old_table, new_table in zip(*tables, strict=True):
        new[new_table]["sum"].copy_(old[old_table]["sum"])


def _samples(bench: Bench, trainer: Trainer, rows: np.ndarray):
    """Single rows, for exact gradients of each: the latest are what the model just learnt."""
    some = np.random.default_rng(bench.seed).permutation(rows)[: bench.plan.fisher_rows]
    schema = trainer.config.model.schema
    for batch in batches(bench.data.rows, schema, some, 1):
        yield (batch.features,), batch.labels
