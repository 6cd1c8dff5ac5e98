"""Settings searched by Optuna for as long as the user gives it."""

from __future__ import annotations

from typing import Any

from ..data.packages import need
from ..models import ConfigError
from .checkpoint import CheckpointError
from .settings import Config
from .tuning import STATE, Trial, Tuner, read_state, trial_of

# What is searched: the lowest and the highest value, and whether its logarithm is what counts; or
# a list to choose from.
SPACE: dict[str, tuple[float, float, bool] | list[int]] = {
    "model.embedding.dropout": (0.0, 0.4, False),
    "model.mlp.dropout": (0.0, 0.6, False),
    "model.embedding.init_norm": (1e-3, 1.0, True),
    "model.embedding.dim": [8, 16, 32],
    "model.cross.num_layers": [1, 2, 3, 4],
    "training.lr": (2e-4, 5e-3, True),
    "training.table_lr": (0.02, 1.0, True),
    "training.table_start": (0.1, 1000.0, True),
    "training.table_l2": (1e-8, 1e-4, True),
    "training.weight_decay": (1e-4, 1.0, True),
    "training.label_smoothing": (0.0, 0.1, False),
}
# What is searched otherwise where Adam trains the tables.
ADAM_SPACE: dict[str, tuple[float, float, bool] | list[int]] = {
    "model.embedding.dim": [16, 32, 64],
    "training.table_lr": (2e-4, 5e-3, True),
    "training.table_l2": (1e-4, 0.2, True),
}


class Search(Tuner):
    """Trains settings that Optuna proposes until the time is up; can be killed and goes on.

    The first trial is the configuration itself, and it is kept unless another is better by more
    than its noise; see :class:`Tuner`. A trial that the end of the time falls into is finished.
    What Optuna proposes depends on the seed and on the trials before, so that a search that was
    killed and resumed goes the same way.

    Args:
        config: what the trials change; its ``tune_seconds`` and ``tune_trials`` say how long.
        fixed: keys that no trial changes.
        data, output, device, bar, processes: as in :class:`Tuner`.

    Raises:
        MissingPackage: Optuna is not installed.
        ConfigError: the user gave every setting that could be searched.
    """

    def first_trials(self, config: Config, fixed: set[str]) -> list[Trial]:
        """The configuration itself."""
        self.optuna = need("optuna", "tune")
        self.optuna.logging.set_verbosity(self.optuna.logging.WARNING)
        space = dict(SPACE)
        if config.training.table_optimizer == "adam":
            space.pop("training.table_start", None)
            space |= ADAM_SPACE
        self.space = {key: values for key, values in space.items() if key not in fixed}
        if not self.space:
            raise ConfigError("--tune search: every setting that it could search is given")
        return [trial_of(config, "given", {})]

    def train_all(self) -> None:
        """Propose and train trials until the time is up."""
        while True:
            self._do(len(self.trials) - 1, self.trials[-1])
            if self.processes.from_first(self._enough):
                break
            changes = self.processes.from_first(self._propose)
            self.trials.append(trial_of(self.config, f"search {len(self.trials)}", changes))
            self._write()
        self._write()

    def expected(self) -> int:
        return 1 + self.config.training.tune_trials

    def _enough(self) -> bool:
        settings = self.config.training
        spent = sum(trial.seconds for trial in self.trials)
        if settings.tune_seconds is not None and spent >= settings.tune_seconds:
            return True
        return len(self.trials) > settings.tune_trials

    def _propose(self) -> dict[str, Any]:
        """The next setting, given the results of all that were trained."""
        seed = self.config.training.seed + len(self.trials)
        sampler = self.optuna.samplers.TPESampler(seed=seed % 2**32)
        direction = "maximize" if self.larger else "minimize"
        study = self.optuna.create_study(sampler=sampler, direction=direction)
        kinds = {key: self._distribution(values) for key, values in self.space.items()}
        for trial in self.trials[1:]:
            done = self.optuna.trial.create_trial(
                params=trial.changes, distributions=kinds, value=trial.best
            )
            study.add_trial(done)
        return dict(study.ask(kinds).params)

    def _distribution(self, values: tuple[float, float, bool] | list[int]) -> Any:
        kinds = self.optuna.distributions
        if isinstance(values, list):
            return kinds.CategoricalDistribution(values)
        low, high, log = values
        return kinds.FloatDistribution(low, high, log=log)

    def _read(self) -> None:
        state = self.processes.from_first(lambda: read_state(self.output))
        if state is None:
            return
        for i, kept in enumerate(state["trials"]):
            trial = trial_of(self.config, kept["name"], kept["changes"])
            if (kept["name"] == "given") != (i == 0) or not set(kept["changes"]) <= set(self.space):
                where = self.output / STATE
                raise CheckpointError(f"{where}: trials of another list: give --overwrite")
            for name, value in kept.items():
                setattr(trial, name, value)
            self.trials[i:] = [trial]
