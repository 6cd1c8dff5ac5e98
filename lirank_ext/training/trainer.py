"""The training loop: it can be killed between any two steps and goes on as if it had not been."""

from __future__ import annotations

import contextlib
import dataclasses
import math
import signal
import threading
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

from ..data.errors import DataError
from ..data.features import Batch
from ..data.loader import Loader, Position
from ..data.packages import need
from ..models import LiRank
from ..nn.incremental import IncrementalPenalty
from . import checkpoint
from .checkpoint import CheckpointError
from .metrics import Metrics, evaluate, mean
from .optimizers import RowwiseAdagrad, learning_rate
from .settings import Config

CHECKPOINT = "checkpoint.safetensors"
LOOK_EVERY = 20  # steps between looks at the loss: on a GPU each one waits for it


class Interrupted(Exception):
    """A signal ended the training after a checkpoint; ``number`` is the signal's."""

    def __init__(self, message: str, number: int) -> None:
        super().__init__(message)
        self.number = number


@dataclass
class Progress:
    """Where a training stands, but for its tensors.

    Attributes:
        step: steps done.
        position: the next batch.
        best, best_step: of the monitored metric; NaN before the first evaluation.
        worse: evaluations since then.
        drops: how often the plateau schedule divided the learning rate.
        done: the run has ended.
        evaluations: all of them: step, loss of the training since the last, metrics.
    """

    step: int = 0
    position: Position = field(default_factory=Position)
    best: float = math.nan
    best_step: int = 0
    worse: int = 0
    drops: int = 0
    done: bool = False
    loss_sum: float = 0.0
    loss_steps: int = 0
    evaluations: list[dict[str, Any]] = field(default_factory=list)


class Trainer:
    """Trains a model on a loader's batches.

    Args:
        config: model and training.
        train: batches to learn from.
        valid: rows to evaluate on; None evaluates nothing and keeps the last weights.
        steps_per_epoch: about; the warm-up and the schedule are shares of all steps.
        output: folder for checkpoints; None writes none.
        device: "cpu", "cuda"...
        fingerprint: what tells these data from others, kept in checkpoints.
        bar: show a progress bar on stderr, under this name where it is text.
        after_step: called with the trainer after every step.

    Attributes:
        model: the :class:`lirank_ext.models.LiRank`.
        progress: where the training stands.
        penalty: keeps the weights near those of older data; None for none.
    """

    def __init__(
        self,
        config: Config,
        train: Loader,
        valid: Loader | None,
        steps_per_epoch: int,
        output: Path | None = None,
        device: torch.device | str = "cpu",
        fingerprint: Any = None,
        bar: bool | str = False,
        after_step: Callable[[Trainer], None] | None = None,
    ) -> None:
        self.config, self.settings = config, config.training
        self.train_loader, self.valid_loader = train, valid
        self.steps = max(1, steps_per_epoch * self.settings.epochs)
        self.steps = min(self.steps, self.settings.max_steps or self.steps)
        self.output, self.device = output, torch.device(device)
        self.fingerprint, self.bar, self.after_step = fingerprint, bar, after_step
        torch.manual_seed(self.settings.seed)
        self.model = LiRank(config.model).to(self.device)
        options = self.settings
        dense, tables = self.model.dense_parameters(), self.model.table_parameters()
        self.dense = dense
        self.optimizers: list[torch.optim.Optimizer] = [
            torch.optim.AdamW(dense, options.lr, weight_decay=options.weight_decay)
        ]
        if tables:
            start = options.table_start / options.batch_size**2
            self.optimizers.append(
                RowwiseAdagrad(tables, options.table_lr, options.table_l2, initial=start)
            )
        self.rates = [options.lr, options.table_lr]
        on = options.amp == "on" or (options.amp == "auto" and self.device.type == "cuda")
        self.amp = on
        weights = [t.weight for t in config.model.schema.tasks]
        self.task_weights = torch.tensor(weights, device=self.device)
        self.progress = Progress()
        self.best: dict[str, Tensor] = {}
        self.penalty: IncrementalPenalty | None = None
        self.stop_signal = 0
        self.writer: Any = None

    def fit(self) -> Progress:
        """Train to the end; afterwards the model has its best weights.

        Raises:
            DataError: the data cannot be used, or the loss is no longer finite.
            Interrupted: a signal came; a checkpoint was written first.
        """
        self._open_writer()
        with self._signals(), self._progress_bar() as bar:
            while not self.progress.done:
                self._epoch(bar)
        if self.best:
            self.model.load_state_dict(self.best)
        self._finish()
        return self.progress

    def _epoch(self, bar: Any) -> None:
        progress, settings = self.progress, self.settings
        self.model.train()
        batches = self.train_loader.epoch(progress.position)
        with contextlib.closing(batches):
            for position, batch in batches:
                self._step(batch)
                progress.step += 1
                progress.position = position
                bar.update()
                last = progress.step >= self.steps and settings.max_steps is not None
                if last or (
                    settings.evaluate_every and progress.step % settings.evaluate_every == 0
                ):
                    self._evaluate(bar)
                progress.done |= last
                self._after(progress.done)
                if progress.done:
                    return
        if not progress.step:
            raise DataError("no row to train on")
        if not settings.evaluate_every:
            self._evaluate(bar)
        progress.position = Position(progress.position.epoch + 1)
        progress.done |= progress.position.epoch >= settings.epochs
        self.checkpoint()

    def _after(self, done: bool) -> None:
        """What follows a step: a look at the loss, a checkpoint, the end."""
        every = self.settings.checkpoint_every
        if self.after_step is not None:
            self.after_step(self)
        if self.stop_signal:
            self.checkpoint()
            step, folder = self.progress.step, self.output
            kept = f"; --resume goes on from {folder}" if folder else ""
            raise Interrupted(f"stopped after step {step}{kept}", self.stop_signal)
        if done or (every and self.progress.step % every == 0):
            self.checkpoint()

    def _step(self, batch: Batch) -> None:
        settings, step = self.settings, self.progress.step
        schedule = "constant" if settings.schedule == "plateau" else settings.schedule
        factor = settings.lr_scale * learning_rate(step, self.steps, settings.warmup, schedule)
        factor *= 0.1**self.progress.drops
        for optimizer, rate in zip(self.optimizers, self.rates, strict=False):
            optimizer.param_groups[0]["lr"] = rate * factor
            optimizer.zero_grad()
        batch = batch.to(self.device)
        with torch.autocast(self.device.type, torch.bfloat16, enabled=self.amp):
            logits = self.model(batch.features)
        loss = self._loss(logits.float(), batch.labels)
        total = loss + self._penalty()
        # Said outright, as sparse gradients make PyTorch warn otherwise.
        with torch.sparse.check_sparse_tensor_invariants(False):
            total.backward()
            if settings.clip:
                torch.nn.utils.clip_grad_norm_(self.dense, settings.clip)
            for optimizer in self.optimizers:
                optimizer.step()
        self._note(loss.detach())

    def _loss(self, logits: Tensor, labels: Tensor) -> Tensor:
        losses = F.binary_cross_entropy_with_logits(logits, labels, reduction="none").mean(0)
        return (losses * self.task_weights).sum() / self.task_weights.sum()

    def _penalty(self) -> Tensor | float:
        strength, layers = self.settings.calibration_l2, self.model.calibration
        total: Tensor | float = 0.0
        if strength and layers is not None:
            total = strength / 2 * sum((layer.weight - 1).square().sum() for layer in layers)
        if self.penalty is not None and self.penalty.forgetting:
            total = total + self.penalty(self.model)
        return total

    def _note(self, loss: Tensor) -> None:
        """Add up the loss; looked at now and then, and before anything is kept."""
        if self.device.type == "cpu":
            self.progress.loss_sum += loss.item()
            self._check_loss()
        else:
            held = getattr(self, "_held", None)
            self._held = loss.double() if held is None else held + loss
            if self.progress.step % LOOK_EVERY == 0:
                self._look()
        self.progress.loss_steps += 1

    def _look(self) -> None:
        if getattr(self, "_held", None) is not None:
            self.progress.loss_sum += self._held.item()
            self._held = None
            self._check_loss()

    def _check_loss(self) -> None:
        if not math.isfinite(self.progress.loss_sum):
            raise DataError(
                f"the loss is not finite at step {self.progress.step + 1}: lower lr, or raise "
                "warmup (the paper's cross nets needed 0.5)"
            )

    def _evaluate(self, bar: Any) -> None:
        """Evaluate, keep the best weights, and say whether to go on."""
        self._look()
        progress, settings = self.progress, self.settings
        loss = progress.loss_sum / max(1, progress.loss_steps)
        progress.loss_sum, progress.loss_steps = 0.0, 0
        record: dict[str, Any] = {"step": progress.step, "training_loss": loss}
        progress.evaluations.append(record)
        if self.valid_loader is None:
            return
        metrics = evaluate(self.model, self.valid_loader, self.device)
        self._check_valid(metrics)
        record["tasks"] = {name: m.as_json() for name, m in metrics.items()}
        self._write(record)
        value = mean(metrics, settings.monitor)
        bar.set_postfix({"loss": f"{loss:.4f}", f"valid {settings.monitor}": f"{value:.4f}"})
        better = value > progress.best if settings.monitor == "auc" else value < progress.best
        if better or math.isnan(progress.best):
            progress.best, progress.best_step, progress.worse = value, progress.step, 0
            state = self.model.state_dict()
            self.best = {k: v.detach().clone() for k, v in state.items()}
            return
        progress.worse += 1
        progress.drops += settings.schedule == "plateau"
        progress.done |= bool(settings.patience) and progress.worse >= settings.patience

    def _check_valid(self, metrics: dict[str, Metrics]) -> None:
        for name, m in metrics.items():
            if not m.rows:
                raise DataError("no row to validate on: raise valid, or give a file of its own")
            if self.settings.monitor == "auc" and math.isnan(m.auc):
                raise DataError(
                    f"the {m.rows} rows to validate on all have the same label '{name}': raise "
                    "valid, or set monitor to log_loss"
                )

    @torch.no_grad()
    def _finish(self) -> None:
        """Random effects and posteriors, which are fitted to the finished model."""
        effects, posteriors = self.model.effects, self.model.posteriors
        if effects is None and posteriors is None:
            return
        self.model.eval()
        logits, ids, labels = [], [], []
        for batch in self.train_loader:
            batch = batch.to(self.device)
            if posteriors is not None:
                self.model.update_posteriors(batch.features, batch.labels)
            if effects is not None:
                logits.append(self.model.logits(batch.features).cpu())
                ids.append(batch.features["popularity"].cpu())
                labels.append(batch.labels.cpu())
        if effects is not None:
            parts = [torch.cat(p).to(self.device) for p in (logits, ids, labels)]
            self.model.fit_popularity(*parts)

    # Checkpoints

    def checkpoint(self) -> None:
        """Write the checkpoint, where there is a folder for it."""
        if self.output is None:
            return
        self._look()
        tensors = checkpoint.prefixed("model", self.model.state_dict())
        tensors.update(checkpoint.prefixed("best", self.best))
        for i, optimizer in enumerate(self.optimizers):
            state = checkpoint.optimizer_tensors(optimizer)
            tensors.update(checkpoint.prefixed(f"optimizer/{i}", state))
        if self.penalty is not None:
            tensors.update(checkpoint.prefixed("penalty", self.penalty.state_dict()))
        tensors["rng/cpu"] = torch.get_rng_state()
        if self.device.type == "cuda":
            tensors["rng/cuda"] = torch.cuda.get_rng_state(self.device)
        content = {"config": dataclasses.asdict(self.config), "data": self.fingerprint}
        content["progress"] = dataclasses.asdict(self.progress)
        checkpoint.save(self.output / CHECKPOINT, tensors, content)

    def resume(self) -> None:
        """Go on from the checkpoint in the output folder.

        Raises:
            CheckpointError: there is none, it is damaged, or it is of another configuration or
                other data.
        """
        path = self.output / CHECKPOINT
        tensors, content = checkpoint.load(path)
        if "progress" not in content:
            raise CheckpointError(f"{path}: a model, not a checkpoint of a training")
        _same(path, "configuration", content["config"], dataclasses.asdict(self.config))
        _same(path, "data", {"data": content["data"]}, {"data": _plain(self.fingerprint)})
        progress = content["progress"]
        progress["position"] = Position(*progress["position"])
        self.progress = Progress(**progress)
        self.model.load_state_dict(checkpoint.under("model", tensors))
        best = checkpoint.under("best", tensors)
        self.best = {k: v.to(self.device) for k, v in best.items()}
        for i, optimizer in enumerate(self.optimizers):
            state = checkpoint.under(f"optimizer/{i}", tensors)
            checkpoint.restore_optimizer(optimizer, state)
        if self.penalty is not None:
            self.penalty.load_state_dict(checkpoint.under("penalty", tensors))
        torch.set_rng_state(tensors["rng/cpu"])
        if self.device.type == "cuda" and "rng/cuda" in tensors:
            torch.cuda.set_rng_state(tensors["rng/cuda"], self.device)

    # What surrounds the loop

    @contextlib.contextmanager
    def _signals(self) -> Iterator[None]:
        """A first Ctrl-C or SIGTERM ends the run after a checkpoint; a second one at once."""
        if threading.current_thread() is not threading.main_thread():
            yield
            return
        numbers = (signal.SIGINT, signal.SIGTERM)
        before = {n: signal.getsignal(n) for n in numbers}

        def note(number: int, frame: Any) -> None:
            self.stop_signal = number
            signal.signal(number, before[number])

        for number in numbers:
            signal.signal(number, note)
        try:
            yield
        finally:
            for number, handler in before.items():
                signal.signal(number, handler)

    def _progress_bar(self) -> Any:
        options = {"total": self.steps, "initial": self.progress.step, "unit": " steps"}
        name = self.bar if isinstance(self.bar, str) else "training"
        options.update(desc=name, mininterval=0.3, disable=not self.bar)
        return need("tqdm").tqdm(**options)

    def _open_writer(self) -> None:
        if self.settings.tensorboard and self.output is not None:
            need("tensorboard", "tensorboard")
            writer = need("torch.utils.tensorboard").SummaryWriter
            self.writer = writer(self.output / "events", purge_step=self.progress.step)

    def _write(self, record: dict[str, Any]) -> None:
        if self.writer is None:
            return
        self.writer.add_scalar("training/loss", record["training_loss"], record["step"])
        for task, values in record["tasks"].items():
            for name, value in values.items():
                if value is not None:
                    self.writer.add_scalar(f"{task}/{name}", value, record["step"])
        self.writer.flush()


def _plain(value: Any) -> Any:
    """As JSON gives it back: tuples are lists."""
    return [_plain(v) for v in value] if isinstance(value, (list, tuple)) else value


def _same(path: Path, what: str, saved: Any, now: Any, key: str = "") -> None:
    """Refuse a checkpoint that differs, naming the first key that does."""
    if isinstance(saved, dict) and isinstance(now, dict):
        for name in [*now, *(k for k in saved if k not in now)]:
            inner = f"{key}.{name}" if key else name
            _same(path, what, saved.get(name), now.get(name), inner)
    elif saved != now:
        raise CheckpointError(
            f"{path}: a checkpoint of another {what}: {key} was {saved!r}, now it is {now!r}"
        )
