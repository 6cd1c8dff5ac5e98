"""The training loop: it can be killed between any two steps and goes on as if it had not been."""

from __future__ import annotations

import contextlib
import math
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

from .._monitors import MONITORS
from .._progress import Progress as ProgressBar
from ..data.errors import DataError
from ..data.features import Batch
from ..data.loader import Loader, Position
from ..models import ConfigError, LiRank
from ..nn.incremental import IncrementalPenalty
from . import checkpoint
from .average import WeightAverage
from .checkpoint import CheckpointError, Progress
from .events import Events
from .metrics import check_usable, evaluate, mean
from .optimizers import learning_rate, moving_in_backward, table_optimizer
from .processes import ONE, Processes
from .settings import Config
from .signals import Interrupted, StopSignals

CHECKPOINT = "checkpoint.safetensors"
SYNC_EVERY = 20  # steps between readings of the loss: on a GPU each one waits for the device


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
        bar: show progress on stderr, under this name where it is text.
        processes: that train together; this one alone by default.
        after_step: called with the trainer after every step.

    Attributes:
        model: the :class:`lirank_ext.models.LiRank`.
        progress: where the training stands.
        average: of the dense weights, where the settings want one.
        penalty: keeps the weights near those of older data; None for none.
        signals: a signal that came ends the training at the next step.
        rows, seconds: trained on by this process, and how long it took without evaluations.
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
        processes: Processes = ONE,
        after_step: Callable[[Trainer], None] | None = None,
    ) -> None:
        self.config, self.settings = config, config.training
        self.train_loader, self.valid_loader = train, valid
        self.steps = max(1, steps_per_epoch * self.settings.epochs)
        self.steps = min(self.steps, self.settings.max_steps or self.steps)
        self.output, self.device = output, torch.device(device)
        self.processes, self.bar = processes, bar if processes.first else False
        self.fingerprint, self.after_step = fingerprint, after_step
        torch.manual_seed(self.settings.seed)
        self.model = _build(config, self.device)
        processes.prepare(self.model)
        options = self.settings
        dense, tables = self.model.dense_parameters(), self.model.table_parameters()
        self.dense, self.parameters = dense, [*dense, *tables]
        self.optimizers: list[torch.optim.Optimizer] = [
            torch.optim.AdamW(dense, options.lr, weight_decay=options.weight_decay)
        ]
        if tables:
            self.optimizers.append(table_optimizer(tables, options))
        self.rates = [options.lr, options.table_lr]
        on = options.amp == "on" or (options.amp == "auto" and self.device.type == "cuda")
        self.amp = on
        weights = [t.weight for t in config.model.schema.tasks]
        self.task_weights = torch.tensor(weights, device=self.device)
        self.progress = Progress()
        self.best: dict[str, Tensor] = {}
        named = {id(p): name for name, p in self.model.named_parameters()}
        self.average = WeightAverage({named[id(p)]: p for p in dense}, options.ema)
        self.penalty: IncrementalPenalty | None = None
        self.rows, self.seconds = 0, 0.0
        self.signals = StopSignals()
        self._unread_loss: Tensor | None = None
        self.events: Events | None = None
        self.events_folder: Path | None = None  # "events" in the output, where none is named

    def fit(self) -> Progress:
        """Train to the end; afterwards the model has its best weights.

        Raises:
            DataError: the data cannot be used, or the loss is no longer finite.
            Interrupted: a signal came; a checkpoint was written first.
        """
        if self.settings.tensorboard and self.output is not None and self.processes.first:
            folder = self.events_folder or self.output / "events"
            self.events = Events.open(folder, self.progress.step)
        # Of several processes, each has to see the gradients of all before it moves a row.
        alone = self.optimizers if self.processes.size == 1 else ()
        moving = moving_in_backward(alone, self.model)
        with self.signals, self._bar() as bar, moving:
            while not self.progress.done:
                self._epoch(bar)
        if self.best:
            self.model.load_state_dict(self.best)
        else:
            self.average.keep()
        self._finish()
        return self.progress

    def why_ended(self) -> str:
        """Why the training is over, in words; empty where it is not."""
        progress, settings = self.progress, self.settings
        if settings.max_steps is not None and progress.step >= self.steps:
            return f"{progress.step:,} steps are done"
        if settings.patience and progress.worse >= settings.patience:
            times = "evaluation" if progress.worse == 1 else "evaluations"
            return (
                f"stopped early in epoch {self.epoch} of {settings.epochs}: {progress.worse} "
                f"{times} without a better {settings.monitor} (training.patience)"
            )
        if progress.position.epoch >= settings.epochs:
            epochs = "epoch is" if settings.epochs == 1 else "epochs are"
            return f"{settings.epochs} {epochs} done"
        return ""

    @property
    def epoch(self) -> int:
        """The epoch under way, or the last one that was finished; the first is 1."""
        position = self.progress.position
        return max(1, position.epoch + bool(position.batch))

    def _epoch(self, bar: ProgressBar) -> None:
        progress, settings = self.progress, self.settings
        self.model.train()
        share = (self.processes.rank, self.processes.size)
        batches = self.train_loader.epoch(progress.position, share)
        with contextlib.closing(batches):
            start = time.monotonic()
            for position, batch in batches:
                self._step(batch)
                progress.step += 1
                progress.position = position
                self.rows += batch.all_rows
                self.seconds += time.monotonic() - start
                bar.update()
                last = progress.step >= self.steps and settings.max_steps is not None
                every = settings.evaluate_every
                if last or (every and progress.step % every == 0):
                    self._evaluate(bar)
                progress.done = bool(self.why_ended())
                self._after_step(progress.done)
                if progress.done:
                    return
                start = time.monotonic()
        if not progress.step:
            raise DataError("no row to train on")
        if not settings.evaluate_every:
            self._evaluate(bar)
        self.processes.check_equal(self.model, self.signals.received)
        progress.position = Position(progress.position.epoch + 1)
        progress.done = bool(self.why_ended())
        self.checkpoint()
        self._stop_if_asked()

    def _after_step(self, done: bool) -> None:
        """What follows a step: the caller's own function, a checkpoint, the end."""
        every = self.settings.checkpoint_every
        if self.after_step is not None:
            self.after_step(self)
        self._stop_if_asked()
        if done or (every and self.progress.step % every == 0):
            self.checkpoint()

    def _stop_if_asked(self) -> None:
        """End the training after a checkpoint, where a signal came."""
        received = self.processes.agreed(self.signals.received)
        if received:
            self.checkpoint()
            self.processes.wait()  # a launcher would stop the process that writes it
            step, folder = self.progress.step, self.output
            kept = f"; --resume goes on from {folder}" if folder else ""
            raise Interrupted(f"stopped after step {step}{kept}", received)

    def _step(self, batch: Batch) -> None:
        settings, step = self.settings, self.progress.step
        schedule = "constant" if settings.schedule == "plateau" else settings.schedule
        factor = settings.lr_scale * learning_rate(step, self.steps, settings.warmup, schedule)
        factor *= 0.1**self.progress.drops
        for optimizer, rate in zip(self.optimizers, self.rates, strict=False):
            optimizer.param_groups[0]["lr"] = rate * factor
            optimizer.zero_grad()
        batch = batch.to(self.device)
        self.processes.seed(settings.seed, step)
        with torch.autocast(self.device.type, torch.bfloat16, enabled=self.amp):
            logits = self.model(batch.features)
        loss = self._loss(logits.float(), batch)
        # Every process has all weights, and their penalty counts once.
        total = loss + self._penalty() if self.processes.first else loss
        # Set explicitly: PyTorch warns about sparse gradients otherwise.
        with torch.sparse.check_sparse_tensor_invariants(False):
            total.backward()
            loss = self.processes.sum_gradients(self.parameters, loss, self.signals.received)
            norm = self._clip()
            if self.events is not None:
                self.events.gradient_norm = norm
            for optimizer in self.optimizers:
                optimizer.step()
        self.average.update(step)
        self._record_loss(loss.detach())

    def _clip(self) -> Tensor | None:
        """Clip the dense gradients and return their norm, where either is wanted."""
        if self.settings.clip:
            return torch.nn.utils.clip_grad_norm_(self.dense, self.settings.clip)
        if self.events is None:
            return None
        gradients = [p.grad for p in self.dense if p.grad is not None]
        return torch.nn.utils.get_total_norm(gradients)

    def _loss(self, logits: Tensor, batch: Batch) -> Tensor:
        smoothing = self.settings.label_smoothing
        labels = batch.labels * (1 - smoothing) + smoothing / 2 if smoothing else batch.labels
        if self.settings.negatives < 1:
            # Among the rows left, the odds are 1 / negatives times those of all rows
            # (Practical Lessons from Predicting Clicks on Ads at Facebook, He et al. 2014).
            logits = logits - math.log(self.settings.negatives)
        losses = F.binary_cross_entropy_with_logits(logits, labels, reduction="none")
        if batch.whole is not None:
            if batch.weights is not None:
                losses = losses * batch.weights[:, None]
            losses = losses.sum(0) / max(batch.whole.weight, torch.finfo(torch.float32).tiny)
        elif batch.weights is None:
            losses = losses.mean(0)
        else:
            # A batch whose weights are all 0 has no loss.
            total = batch.weights.sum().clamp(min=torch.finfo(torch.float32).tiny)
            losses = (losses * batch.weights[:, None]).sum(0) / total
        return (losses * self.task_weights).sum() / self.task_weights.sum()

    def _penalty(self) -> Tensor | float:
        strength, layers = self.settings.calibration_l2, self.model.calibration
        total: Tensor | float = 0.0
        if strength and layers is not None:
            total = strength / 2 * sum((layer.weight - 1).square().sum() for layer in layers)
        if self.penalty is not None and self.penalty.forgetting:
            total = total + self.penalty(self.model)
        return total

    def _record_loss(self, loss: Tensor) -> None:
        """Add up the loss; read from a GPU now and then, and before anything is kept."""
        if self.device.type == "cpu":
            self.progress.loss_sum += loss.item()
            self._check_loss()
        else:
            unread = self._unread_loss
            self._unread_loss = loss.double() if unread is None else unread + loss
            if self.progress.step % SYNC_EVERY == 0:
                self._sync_loss()
        self.progress.loss_steps += 1

    def _sync_loss(self) -> None:
        """Read the loss that is still on a GPU."""
        if self._unread_loss is not None:
            self.progress.loss_sum += self._unread_loss.item()
            self._unread_loss = None
            self._check_loss()

    def _check_loss(self) -> None:
        if not math.isfinite(self.progress.loss_sum):
            raise DataError(
                f"the loss is not finite at step {self.progress.step + 1}: lower lr, or raise "
                "warmup (the paper's cross nets needed 0.5)"
            )

    def _evaluate(self, bar: ProgressBar) -> None:
        """Evaluate, keep the best weights, and count the evaluations without a better one."""
        self._sync_loss()
        progress = self.progress
        loss = progress.loss_sum / max(1, progress.loss_steps)
        progress.loss_sum, progress.loss_steps = 0.0, 0
        record: dict[str, Any] = {"step": progress.step, "training_loss": loss}
        progress.evaluations.append(record)
        if self.valid_loader is None:
            return
        with self.average.applied():
            self._measure(record, bar)
        if progress.worse and self.settings.schedule == "plateau":
            # On from the best weights: those that fit the training rows too well stay behind.
            progress.drops += 1
            self.model.load_state_dict(self.best)
            self.average.restart()

    def _measure(self, record: dict[str, Any], bar: ProgressBar) -> None:
        """Measure the model, and keep its weights where they are the best so far."""
        progress, settings, loss = self.progress, self.settings, record["training_loss"]
        metrics = evaluate(self.model, self.valid_loader, self.device, self.processes)
        check_usable(metrics, settings.monitor)
        record["tasks"] = {name: m.as_json() for name, m in metrics.items()}
        if self.events is not None:
            self.events.write(record, self.model)
        value = mean(metrics, settings.monitor)
        bar.show({"loss": f"{loss:.4f}", f"valid {settings.monitor}": f"{value:.4f}"})
        bar.show({"rows/s": f"{self.rows / max(self.seconds, 1e-9):,.0f}"})
        gain = (value - progress.best) * (1 if MONITORS[settings.monitor] else -1)
        first = math.isnan(progress.best)
        if gain > 0 or first:
            progress.best, progress.best_step = value, progress.step
            state = self.model.state_dict()
            self.best = {k: v.detach().clone() for k, v in state.items()}
        progress.worse = 0 if gain > settings.tolerance or first else progress.worse + 1

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

    def checkpoint(self) -> None:
        """Write the checkpoint, where there is a folder for it."""
        if self.output is None or not self.processes.first:
            return
        self._sync_loss()
        checkpoint.save_training(self, self.output / CHECKPOINT)

    def resume(self) -> None:
        """Go on from the checkpoint in the output folder, further than before if the settings say.

        Raises:
            CheckpointError: there is none, it is damaged, or it is of another configuration or
                other data.
        """
        if self.output is None:
            raise CheckpointError("resume: this trainer has no folder for checkpoints")
        checkpoint.load_training(self, self.output / CHECKPOINT)
        self.progress.done = bool(self.why_ended())

    # What surrounds the loop

    def _bar(self) -> ProgressBar:
        name = self.bar if isinstance(self.bar, str) else "training"
        return ProgressBar(name, self.steps, done=self.progress.step, shown=bool(self.bar))


def _build(config: Config, device: torch.device) -> LiRank:
    try:
        return LiRank(config.model).to(device)
    except (RuntimeError, MemoryError) as error:  # sizes that no memory holds
        reason = (str(error) or "out of memory").splitlines()[0]
        raise ConfigError(f"the model cannot be built on {device}: {reason}") from error
