"""Regularization chosen on the rows to validate on: a short list of settings, each trained once."""

from __future__ import annotations

import dataclasses
import json
import math
import shutil
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from .._monitors import MONITORS
from ..data.loader import Memory
from ..models import ConfigError, LiRank
from ..models._parse import override
from . import checkpoint
from .checkpoint import CheckpointError
from .defaults import ADAM_LR, blocks
from .metrics import Scored, difference_error, score
from .processes import ONE, Processes
from .session import Data, trainer_on
from .settings import Config
from .signals import Interrupted
from .trainer import CHECKPOINT, Trainer

FOLDER = "trials"
STATE = "trials/trials.json"
# Trials see no more rows than these; of more rows, a sample, so that their time is bounded.
MAX_ROWS, MAX_VALID = 200_000, 50_000

# How strongly ids and dense layers are held; the first is what the configuration says. Two of them
# drop whole columns, which helps where there are two and costs where there are ten. Tried and left
# out: ids that start at norm 1 and learn at rate 0.3 without a head start.
RIDGE: dict[str, Any] = {
    "training.table_optimizer": "adam",
    "training.table_lr": ADAM_LR,
    "training.table_l2": 0.05,
}
TRIALS: dict[str, dict[str, Any]] = {
    "middle": {},
    "light": {"model.mlp.dropout": 0.0},
    "columns": {"model.embedding.dropout": 0.2},
    "strong": {
        "model.embedding.dropout": 0.2,
        "model.mlp.dropout": 0.5,
        "training.table_start": 100.0,
    },
    "ridge": RIDGE,
    "linear ridge": {**RIDGE, "training.schedule": "linear"},
}
# Rows of all tables up to which Adam is tried, as it moves each of them at every step. What it
# brings: benchmarks/results/quality. Penalties from 0.01 to 0.1 were within what one seed can tell.
ADAM_TRIAL_ROWS = 200_000
# Under that penalty wide embeddings are better (16, 32 and 64 on validation rows of MovieLens-100K;
# one seed, by hand). This is the width of the columns together, which keeps the time of a step in
# bounds, and the width of one at most.
RIDGE_WIDTH, RIDGE_DIM = 320, 64
# Epochs over which the rates of "linear ridge" fall. The plateau divides them at a dip of the first
# evaluations, which suits one kind of data and not the other (benchmarks/results/quality).
RIDGE_EPOCHS = 12


@dataclass
class Trial:
    """One setting and what came of it.

    Attributes:
        name: of the setting.
        changes: its values, by key.
        config: the whole configuration.
        best: the monitored metric at the best evaluation; None before it is trained.
        noise: standard error of its difference to the first trial's.
        best_step, steps: of the training.
        tasks: the metrics there, by task.
        seconds: how long it took.
    """

    name: str
    changes: dict[str, Any]
    config: Config
    best: float | None = None
    noise: float = 0.0
    best_step: int = 0
    steps: int = 0
    tasks: dict[str, Any] | None = None
    seconds: float = 0.0

    def as_json(self) -> dict[str, Any]:
        """What ``report.json`` says of it."""
        names = ("name", "changes", "best", "noise", "best_step", "steps", "tasks")
        names += ("seconds",)
        return {n: getattr(self, n) for n in names}


def wanted(config: Config, validates: bool) -> bool:
    """Whether ``train`` tries settings."""
    settings = config.training
    if settings.tune == "auto":
        return validates and settings.max_steps is None
    if settings.tune in ("on", "search") and not validates:
        raise ConfigError("training.tune: there are no rows to validate on: raise valid")
    return settings.tune in ("on", "search")


def trials(config: Config, fixed: set[str]) -> list[Trial]:
    """The settings to try, each once.

    Args:
        config: what they change.
        fixed: keys that the user gave, which no trial changes.
    """
    different: list[Trial] = []
    for name, changes in TRIALS.items():
        if changes.get("training.table_optimizer") == "adam":
            # Its values go together: all of them are tried or none.
            if fixed & set(changes) or not 0 < table_rows(config) <= ADAM_TRIAL_ROWS:
                continue
            changes = {**changes, "model.embedding.dim": _ridge_dim(config)}
            if "training.schedule" in changes:
                changes["training.epochs"] = min(RIDGE_EPOCHS, config.training.epochs)
        kept = {key: value for key, value in changes.items() if key not in fixed}
        trial = trial_of(config, name, kept)
        if all(trial.config != other.config for other in different):
            different.append(trial)
    return different


def trial_of(config: Config, name: str, changes: dict[str, Any]) -> Trial:
    """The trial that changes these values of a configuration."""
    data = config.to_dict()
    for key, value in changes.items():
        override(data, key, json.dumps(value))
    data["training"].update(tune="off", tune_seconds=None)
    return Trial(name, changes, Config.from_dict(data))


def _ridge_dim(config: Config) -> int:
    """The width of the embeddings of the trial of Adam."""
    schema, dim = config.model.schema, config.model.embedding.dim
    if dim != blocks().embedding.dim:
        return dim  # of a preset or of the user
    columns = len(schema.categorical) + len(schema.history)
    return max(dim, min(RIDGE_DIM, RIDGE_WIDTH // columns // 16 * 16))


def table_rows(config: Config) -> int:
    """Rows of all embedding tables of a model, which is built without memory for them."""
    with torch.device("meta"):
        return sum(len(p) for p in LiRank(config.model).table_parameters())


def sampled(data: Data) -> Data | None:
    """About :data:`MAX_ROWS` rows to try settings on, in memory; None where there are no more."""
    if data.rows <= MAX_ROWS or data.valid is None:
        return None
    loader = data.train
    rows, valid = loader.sample(MAX_ROWS), data.valid.sample(MAX_VALID)
    train = Memory(rows, loader.converter, loader.batch_size, loader.seed)
    steps = math.ceil(len(rows) / loader.batch_size)
    held = Memory(valid, data.valid.converter, loader.batch_size)
    return dataclasses.replace(data, train=train, valid=held, rows=len(rows), steps=steps)


class Tuner:
    """Trains every trial and keeps the best; can be killed at any moment and goes on.

    The first trial, which is the configuration itself, is kept unless another is better by more
    than the standard error of their difference on the rows to validate on: to follow the noise
    would cost more than it brings.

    Under ``output/trials`` stand the configuration, the results, and a checkpoint of the trial
    under way and of the best so far.

    Args:
        config: what the trials change.
        fixed: keys that no trial changes.
        data: opened files, or a sample of them.
        output: folder of the run.
        device: of the models.
        bar: show progress bars.
        processes: that train together.
    """

    def __init__(
        self,
        config: Config,
        fixed: set[str],
        data: Data,
        output: Path,
        device: str | torch.device = "cpu",
        bar: bool = False,
        processes: Processes = ONE,
    ) -> None:
        self.data, self.output, self.device, self.bar = data, output, device, bar
        self.processes = processes
        self.folder = output / FOLDER
        self.trials = self.first_trials(config, fixed)
        self.config, self.fixed = config, fixed
        self.larger = MONITORS[config.training.monitor]

    def first_trials(self, config: Config, fixed: set[str]) -> list[Trial]:
        """What is known to be tried before any result is."""
        return trials(config, fixed)

    def run(self) -> tuple[Trainer, Trial]:
        """The trainer of the best trial, with its best weights, and the trial.

        Raises:
            DataError: the data cannot be used, or what stands in the folder is of another run.
            Interrupted: a signal came; a checkpoint was written first.
        """
        self.folder.mkdir(parents=True, exist_ok=True)
        self._read()
        self._write()
        self.train_all()
        return self.kept()

    def train_all(self) -> None:
        """Train the trials one after the other."""
        for i, trial in enumerate(self.trials):
            self._do(i, trial)

    def _do(self, number: int, trial: Trial) -> None:
        """Train a trial that is not yet; what an interrupted process spent on it counts too."""
        if trial.best is None:
            began = time.monotonic()
            try:
                self._train(number, trial)
            finally:
                trial.seconds += time.monotonic() - began
                self._write()
        self._tidy()

    def kept(self) -> tuple[Trainer, Trial]:
        """The trainer of the best trial and the trial, once all are trained."""
        best = self.best()
        trainer = self._open(self.trials.index(best), best)
        trainer.resume()
        trainer.fit()
        return trainer, best

    def best(self) -> Trial:
        """The best of the trained trials by more than its noise, or else the first."""
        first = self.trials[0]
        sign = 1 if self.larger else -1
        done = [t for t in self.trials[1:] if t.best is not None]
        better = [t for t in done if sign * (t.best - first.best) > t.noise]
        return max(better, key=lambda t: sign * t.best, default=first)

    def _train(self, number: int, trial: Trial) -> None:
        trainer = self._open(number, trial)
        if self.processes.from_first((trainer.output / CHECKPOINT).exists):
            trainer.resume()
        try:
            progress = trainer.fit()
        except Interrupted as stop:
            text = f"stopped in trial '{trial.name}'; --resume goes on from {self.output}"
            raise Interrupted(text, stop.number) from None
        trial.best, trial.best_step, trial.steps = progress.best, progress.best_step, progress.step
        trial.tasks = next(
            e["tasks"] for e in progress.evaluations if e["step"] == progress.best_step
        )
        trial.noise = self._noise(number, trainer)

    def _noise(self, number: int, trainer: Trainer) -> float:
        """The standard error against the first trial, whose scores are kept for it."""
        scored = score(trainer.model, self.data.valid, trainer.device, self.processes)
        return self.processes.from_first(lambda: self._error(number, scored))

    def _error(self, number: int, scored: Scored) -> float:
        logits, labels = scored.logits, scored.labels
        path = self.folder / "first.safetensors"
        if number == 0:
            checkpoint.save(path, {"logits": torch.from_numpy(logits)}, {})
            return 0.0
        first = checkpoint.load(path)[0]["logits"].numpy()
        name = self.config.training.monitor
        errors = [
            difference_error(logits[:, t], first[:, t], labels[:, t], name)
            for t in range(labels.shape[1])
        ]
        # Of the mean over the tasks, at most: as if their errors were one.
        total = sum(errors) / len(errors)
        # One row of a class tells nothing: no difference then counts.
        return total if math.isfinite(total) else 1.0

    def _open(self, number: int, trial: Trial) -> Trainer:
        folder = self.folder / str(number)
        if self.processes.first:
            folder.mkdir(exist_ok=True)
        bar = f"{trial.name} ({number + 1} of {self.expected()})" if self.bar else False
        trainer = trainer_on(self.data, trial.config, folder, self.device, bar, self.processes)
        trainer.events_folder = self.output / "events" / trial.name  # the trials' own are deleted
        return trainer

    def expected(self) -> int:
        """How many trials there will be, at most."""
        return len(self.trials)

    def _tidy(self) -> None:
        """Drop the checkpoints of trials that lost."""
        best = self.best()
        for i, trial in enumerate(self.trials):
            if trial.best is not None and trial is not best and self.processes.first:
                shutil.rmtree(self.folder / str(i), ignore_errors=True)

    def _write(self) -> None:
        if not self.processes.first:
            return
        content = {
            "config": self.config.to_dict(),
            "fixed": sorted(self.fixed),
            "trials": [t.as_json() for t in self.trials],
        }
        checkpoint.save_text(self.output / STATE, json.dumps(content, indent=1) + "\n")

    def _read(self) -> None:
        state = self.processes.from_first(lambda: read_state(self.output))
        if state is None:
            return
        for trial, kept in zip(self.trials, state["trials"], strict=False):
            if kept["name"] != trial.name or kept["changes"] != trial.changes:
                where = self.output / STATE
                raise CheckpointError(f"{where}: trials of another list: give --overwrite")
            for name, value in kept.items():
                setattr(trial, name, value)


def read_state(output: Path) -> dict[str, Any] | None:
    """What an unfinished run wrote under its folder; None where there is none.

    Raises:
        CheckpointError: it is damaged.
    """
    path = output / STATE
    if not path.is_file():
        return None
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except ValueError as error:
        raise CheckpointError(f"{path}: damaged ({error})") from error


def remove(output: Path) -> None:
    """Remove what only the trials needed."""
    # First what says that there are trials: killed in between, nobody goes on with half of them.
    (output / STATE).unlink(missing_ok=True)
    if (output / FOLDER).exists():
        shutil.rmtree(output / FOLDER)
