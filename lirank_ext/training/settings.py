"""How a model is trained: every number a field with its default."""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

from .._monitors import Monitor
from ..models import ConfigError, LiRankConfig
from ..models._parse import parse, read_yaml

# What may change while a training is under way: how far it goes and what it writes, and not what
# it has computed so far.
RESUMABLE = (
    "epochs",
    "max_steps",
    "patience",
    "evaluate_every",
    "checkpoint_every",
    "prefetch",
    "bad_rows",
    "tensorboard",
    "fisher_rows",
)


@dataclass
class Settings:
    """Options of a training run. The paper gives the methods; the numbers here are free choices
    unless it is said otherwise.

    Attributes:
        batch_size, epochs: of the run; ``max_steps`` ends it earlier.
        lr: of AdamW, which trains the dense parameters; ``table_lr`` of the row-wise AdaGrad of
            the tables (AdaGrad for sparse features is the paper's). Much lower rates leave pairs
            of ids unlearned.
        table_optimizer: "adagrad", or "adam" for tables of at most a million rows in all: it moves
            every row at each step, and ``table_l2`` then holds every row. Its ``table_lr`` should
            be about ``lr``. For few rows with ids alone.
        table_start: AdaGrad's accumulators start at ``table_start / batch_size^2``. Until a row
            has gathered as much, it moves in proportion to its gradients, so that an id seen once
            or twice stays near its start; at 0 its first step is a whole ``table_lr``.
        lr_scale: factor on both. The paper went to 3 once the warm-up was long.
        warmup: share of all steps. The paper's cross nets diverged at 0.05 and not at 0.5.
        schedule: of the learning rate after the warm-up; "plateau" divides it by ten, and goes on
            from the best weights, whenever an evaluation is no better.
        negatives: share of the rows with label 0 to train on, for data where they are many. The
            logits are corrected in training for those left out, so that the model's
            probabilities are those of all rows. Needs a single task.
        weight_decay: of AdamW. ``table_l2``: penalty of the table rows that a batch touches, or of
            all with Adam.
        calibration_l2: pull of the calibration's weights to 1, the identity.
        clip: largest norm of the dense gradients (AdaGrad scales the tables' itself); 0: none.
        amp: bfloat16 autocast: "auto" where there is a GPU, "on", "off".
        valid: share of the rows to validate on, drawn at random; 0 needs a file of its own.
        split: "random", or "last" for the last rows of the files.
        monitor: what should get better, the mean over the tasks: "auc", "log_loss", "pr_auc", or
            within the groups of the schema "gauc" or "ndcg".
        label_smoothing: share by which the labels that are trained towards are drawn to 1/2.
        ema: decay of the moving average of the dense weights that is evaluated and kept; 0 keeps
            the weights themselves.
        patience: evaluations without a better result before the run stops; 0 never stops.
        tolerance: gain up to which a result is no better. The weights are kept all the same.
        evaluate_every: steps between evaluations; 0 evaluates at the end of each epoch.
        checkpoint_every: steps between checkpoints; 0 writes one at the end of each epoch.
        shuffle_rows: rows shuffled together: the memory of the loader.
        prefetch: batches made ahead by a thread; 0 makes them in the training's own.
        bad_rows: "raise" at a broken row or "skip" and count it.
        tensorboard: write events beside the model.
        seed: of weights, dropout, split and order.
        tune: try the short list of regularizations in ``training.tuning`` and keep the one that
            validates best: "on", "off", or "auto", which is "on" where there are rows to validate
            on and no ``max_steps``. Of many rows the trials see a sample. "search" has Optuna
            propose settings, ``tune_trials`` of them, or fewer where ``tune_seconds`` are over.
        start_from: folder of a trained model to go on from; ``cold`` that of the cold start.
        forgetting, cold_weight: of :class:`lirank_ext.nn.IncrementalPenalty`, which holds the
            dense weights where older data put them; both matter only with ``start_from``.
        fisher_rows: rows whose Fisher information is kept for a later increment; 0 keeps none. It
            is taken from rows as the training draws them, each with weight 1.
    """

    batch_size: int = 1024
    epochs: int = 20
    max_steps: int | None = None
    lr: float = 1e-3
    table_lr: float = 0.3
    table_optimizer: Literal["adagrad", "adam"] = "adagrad"
    table_start: float = 0.0
    lr_scale: float = 1.0
    warmup: float = 0.05
    schedule: Literal["constant", "linear", "cosine", "plateau"] = "plateau"
    negatives: float = 1.0
    weight_decay: float = 1e-2
    table_l2: float = 0.0
    calibration_l2: float = 1e-3
    clip: float = 1.0
    amp: Literal["auto", "on", "off"] = "auto"
    valid: float = 0.1
    split: Literal["random", "last"] = "random"
    monitor: Monitor = "auc"
    label_smoothing: float = 0.0
    ema: float = 0.0
    patience: int = 3
    tolerance: float = 0.0
    evaluate_every: int = 0
    checkpoint_every: int = 500
    shuffle_rows: int = 262_144
    prefetch: int = 4
    bad_rows: Literal["raise", "skip"] = "raise"
    tensorboard: bool = False
    seed: int = 0
    tune: Literal["auto", "on", "off", "search"] = "auto"
    tune_seconds: float | None = None
    tune_trials: int = 50
    start_from: str | None = None
    cold: str | None = None
    forgetting: float = 1.0
    cold_weight: float = 0.0
    fisher_rows: int = 500

    def __post_init__(self) -> None:
        if self.seed >= 2**63:
            raise ConfigError(f"seed: wanted a number below 2**63, got {self.seed}")
        _check(self, 2, "batch_size")
        _check(self, 1, "epochs", "shuffle_rows")
        _check(self, 0, "lr", "table_lr", "lr_scale", "weight_decay", "table_l2", "clip", "seed")
        _check(self, 0, "calibration_l2", "patience", "evaluate_every", "checkpoint_every")
        _check(self, 0, "tolerance", "prefetch", "forgetting", "fisher_rows", "table_start")
        _check(self, 1, "tune_trials")
        if self.tune_seconds is not None:
            _check(self, 0, "tune_seconds")
            if self.tune != "search":
                raise ConfigError(f"tune_seconds: goes with tune search, and tune is {self.tune}")
        if self.max_steps is not None:
            _check(self, 1, "max_steps")
        if not 0 <= self.cold_weight <= 1:
            raise ConfigError(f"cold_weight: wanted a share from 0 to 1, got {self.cold_weight}")
        if not 0 <= self.warmup <= 1:
            raise ConfigError(f"warmup: wanted a share from 0 to 1, got {self.warmup}")
        if not 0 < self.negatives <= 1:
            raise ConfigError(f"negatives: wanted a share in (0, 1], got {self.negatives}")
        for name in ("label_smoothing", "ema"):
            if not 0 <= getattr(self, name) < 1:
                raise ConfigError(f"{name}: wanted a share in [0, 1), got {getattr(self, name)}")
        if not 0 <= self.valid < 1:
            raise ConfigError(f"valid: wanted a share in [0, 1), got {self.valid}")


def _check(settings: Settings, least: float, *names: str) -> None:
    for name in names:
        value = getattr(settings, name)
        if not value >= least:
            raise ConfigError(f"{name}: wanted {least} or more, got {value}")


@dataclass
class Config:
    """A whole run: the model and its training, one YAML file."""

    model: LiRankConfig = field(default_factory=LiRankConfig)
    training: Settings = field(default_factory=Settings)

    def __post_init__(self) -> None:
        monitor = self.training.monitor
        if monitor in ("gauc", "ndcg") and self.model.schema.group is None:
            raise ConfigError(
                f"training.monitor: {monitor} compares rows within groups: name their column with "
                "--group (model.schema.group)"
            )
        self._check_effects()
        tasks = len(self.model.schema.tasks)
        if self.training.negatives < 1 and tasks > 1:
            raise ConfigError(
                f"training.negatives: rows may be left out for one task only, and there are {tasks}"
            )

    def _check_effects(self) -> None:
        """Refuse what is fitted to the rows of the training as if each were there once."""
        asked = {"model.schema.weight": self.model.schema.weight is not None}
        asked["training.negatives"] = self.training.negatives < 1
        effects = self.model.popularity.enabled and self.model.schema.popularity
        block = "popularity" if effects else "explore" if self.model.explore.enabled else None
        for key, given in asked.items():
            if given and block is not None:
                raise ConfigError(
                    f"{key}: model.{block} is fitted to all rows alike: switch one of them off"
                )

    @classmethod
    def from_dict(cls, data: dict[str, Any], where: str = "") -> Config:
        """From nested dicts.

        Raises:
            ConfigError: a key is unknown or a value does not fit; ``where`` stands before it.
        """
        try:
            return parse(cls, data)
        except ConfigError as error:
            raise ConfigError(f"{where}: {error}" if where else str(error)) from None

    def to_dict(self) -> dict[str, Any]:
        """Nested dicts that :meth:`from_dict` takes back."""
        return dataclasses.asdict(self)

    @classmethod
    def load(cls, path: str | Path) -> Config:
        """From a YAML file."""
        return cls.from_dict(read_yaml(path), str(path))

    def save(self, path: Path) -> None:
        """Write a YAML file that :meth:`load` reads."""
        import yaml

        from .checkpoint import save_text

        save_text(path, yaml.safe_dump(self.to_dict(), sort_keys=False, allow_unicode=True))
