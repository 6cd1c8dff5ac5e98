"""One ``train``: what is to be done is decided once, and then done."""

from __future__ import annotations

import json
import reprlib
from collections.abc import Callable
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, Literal

from ..data.broken import BadRows
from ..data.errors import DataError
from ..data.infer import Column
from . import check, incremental, summary, tuning
from .checkpoint import save_text
from .defaults import ADAGRAD, configuration, flat, merge
from .incremental import PreviousRun, load_previous, require_same_model
from .options import Options
from .processes import ONE, Processes
from .search import Search
from .session import Data, open_data, save_model, trainer_on
from .settings import RESUMABLE, Config
from .trainer import CHECKPOINT, Trainer
from .tuning import Trial, Tuner

CONFIG = "config.yaml"
REPORT = "report.json"
COLUMNS = "columns.json"  # how each column of the files is read
RECORD = "options.json"  # what the run was asked for, for --resume to compare with

Tell = Callable[[str], None]


@dataclass
class Result:
    """What came of a run.

    Attributes:
        trainer: with the best weights.
        trials, chosen: where settings were tried.
        broken: rows that could not be read.
        report: what ``report.json`` holds.
    """

    trainer: Trainer
    broken: BadRows
    report: dict[str, Any]
    trials: list[Trial] = field(default_factory=list)
    chosen: Trial | None = None


@dataclass
class Plan:
    """What a ``train`` is going to do.

    Attributes:
        options: what the user asks for.
        given: the values of the configuration in it.
        start: "fresh", "increment" (of an older model), "checkpoint" (gone on with) or "trials"
            (a list of settings under way, gone on with).
        config: model and training.
        fixed: keys of the configuration that the user gave, which no trial changes.
        previous: the model that an increment starts from.
        device: of the model.
        columns: how each column of the files is read, where that was looked up.
        processes: that train together.
    """

    options: Options
    given: dict[str, Any]
    start: Literal["fresh", "increment", "checkpoint", "trials"]
    config: Config
    fixed: set[str]
    previous: PreviousRun | None
    device: str = "cpu"
    columns: list[Column] = field(default_factory=list)
    processes: Processes = ONE

    @property
    def output(self) -> Path:
        """The folder of the run."""
        return Path(self.options.output)

    @classmethod
    def from_options(
        cls, options: Options, device: str = "cpu", processes: Processes = ONE
    ) -> Plan:
        """Decide what is to be done; nothing is written.

        Where a launcher starts its processes again because one was lost, the training goes on from
        its last checkpoint.

        Raises:
            DataError: an option does not fit the files, the folder or another option.
            ConfigError: a value of the configuration does not fit.
        """
        output, given = Path(options.output), options.given()
        files = (output / CHECKPOINT, output / tuning.STATE)
        there = next((file for file in files if file.exists()), None)
        if options.resume and there is None:
            raise DataError(f"--resume: {files[0]}: no such file")
        if options.resume or (there is not None and processes.has_started(output)):
            return _going_on(options, given, device, processes)
        if there is not None and not options.overwrite:
            raise DataError(
                f"{there} is there: give --resume to go on, or --overwrite to start again"
            )
        previous = _previous(flat(given).get("training.start_from"), output)
        if previous is None:
            _refuse_increment_options(options)
            columns: list[Column] = []
            config = configuration(options, given, columns.extend)
            last = (set(flat(given)), None, device, columns, processes)
            return cls(options, given, "fresh", config, *last)
        config = _increment(options, given, previous)
        last = (set(flat(given)), previous, device, [], processes)
        return cls(options, given, "increment", config, *last)

    def run(self, tell: Tell = lambda text: None) -> Result:
        """Do it.

        Args:
            tell: called with a line now and then: what was found, how the training ended.

        Raises:
            UserError: the data cannot be used, the loss is no longer finite, or a signal came.
        """
        try:
            self.output.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise DataError(f"--output {self.output}: {error.strerror}") from error
        if self.columns:
            tell(summary.columns(self.columns))
        broken = BadRows(self.config.training.bad_rows == "skip")
        before = self.previous.model if self.previous else None
        data = open_data(self.config, self.options.data, self.options.valid, broken, before)
        if self.options.check and data.valid is None:
            raise DataError("--check: there are no rows to validate on: raise training.valid")
        self.processes.require_same("settings", self.config.to_dict())
        self.processes.require_same("data", data.files)
        if self.processes.first:
            self._prepare_folder()
        self.processes.wait()
        result = (self._tune if self._tunes(data) else self._train)(data, broken, tell)
        self.processes.leave()
        if not self.processes.first:
            return result
        tell(summary.ending(result.trainer))
        self._save(result)
        if self.options.check:  # a rival that fails costs no training
            tell("check: training a logistic regression and boosted trees on a sample")
            result.report["check"] = check.compare(result.trainer)
            self._report(result)
        return result

    def _prepare_folder(self) -> None:
        if self.start in ("checkpoint", "trials"):
            return
        # A killed run must not go on from an older one's files.
        tuning.remove(self.output)
        for old in (CHECKPOINT, incremental.FILE):
            (self.output / old).unlink(missing_ok=True)
        record = {"columns": self.options.columns(), "given": self.given}
        save_text(self.output / RECORD, json.dumps(record, indent=1) + "\n")
        (self.output / COLUMNS).unlink(missing_ok=True)
        if self.columns:
            read = [asdict(column) for column in self.columns]
            save_text(self.output / COLUMNS, json.dumps(read, indent=1) + "\n")
        self.processes.note_started(self.output)

    def _tunes(self, data: Data) -> bool:
        """Whether there are settings to try, or to go on with."""
        if self.start == "fresh":
            return tuning.wanted(self.config, data.valid is not None)
        return self.start == "trials"

    def _tune(self, data: Data, broken: BadRows, tell: Tell) -> Result:
        """Every trial once, and the best one's trainer."""
        tell(summary.data(data, self.config))
        sample = tuning.sampled(data)
        used = sample or data
        kind = Search if self.config.training.tune == "search" else Tuner
        common = (self.output, self.device, True, self.processes)
        tuner = kind(self.config, self.fixed, used, *common)
        tell(summary.trials(tuner.trials, self.config.training))
        if sample is not None:
            tell(f"the trials see a sample of {sample.rows:,} rows; the best one then sees all")
        trainer, best = tuner.run()
        if sample is not None:
            trainer = trainer_on(data, best.config, *common)
            if self.processes.from_first((self.output / CHECKPOINT).exists):
                trainer.resume()
            trainer.fit()
        trainer.output = self.output
        trainer.checkpoint()
        report = {"chosen": best.name, "trials": [t.as_json() for t in tuner.trials]}
        return Result(trainer, broken, report, tuner.trials, best)

    def _train(self, data: Data, broken: BadRows, tell: Tell) -> Result:
        """One training, from the start or from a checkpoint."""
        trainer = trainer_on(data, self.config, self.output, self.device, True, self.processes)
        if self.previous is not None:
            cold = self.config.training.cold
            incremental.start_increment(
                trainer, self.previous, load_previous(cold) if cold else None
            )
        if self.start == "checkpoint":
            trainer.resume()
        if self.processes.first:
            self.config.save(self.output / CONFIG)
        tell(summary.data(data, self.config))
        tell(summary.model(trainer.model))
        trainer.fit()
        return Result(trainer, broken, {})

    def _save(self, result: Result) -> None:
        trainer = result.trainer
        progress = trainer.progress
        save_model(self.output, trainer.model, trainer.config)
        trainer.config.save(self.output / CONFIG)
        result.report = {
            "best_step": progress.best_step,
            "steps": progress.step,
            "ended": trainer.why_ended(),
            **result.report,
            "broken_rows": result.broken.count,
            "evaluations": progress.evaluations,
        }
        self._report(result)
        tuning.remove(self.output)
        if trainer.config.training.fisher_rows:
            incremental.save_increment(trainer, self.output)

    def _report(self, result: Result) -> None:
        save_text(self.output / REPORT, json.dumps(result.report, indent=1) + "\n")


def _previous(folder: str | None, output: Path) -> PreviousRun | None:
    """The training that ``--from`` names; None where it names none."""
    if folder is None:
        return None
    if Path(folder).resolve() == output.resolve():
        raise DataError(f"--from {folder}: --output must be another folder")
    return load_previous(folder)


def _refuse_increment_options(options: Options) -> None:
    for name in ("cold", "forgetting", "cold_weight"):
        if f"training.{name}" in options.settings:
            raise DataError(f"--{name.replace('_', '-')}: goes with --from DIR")


def _increment(options: Options, given: dict[str, Any], previous: PreviousRun) -> Config:
    """The configuration of the older model, trained as the user asks."""
    for name in options.columns():
        if name != "label":
            option = name.replace("_", "-")
            raise DataError(f"--{option}: the model of --from names its columns and blocks itself")
    tasks = [t.name for t in previous.config.model.schema.tasks]
    if options.label and sorted(options.label) != sorted(tasks):
        names = ", ".join(tasks)
        raise DataError(f"--label: the model of --from predicts {names}: leave the option out")
    if flat(given).get("training.tune") in ("on", "search"):
        raise DataError("--tune: an increment keeps the settings of the model it goes on from")
    data = previous.config.to_dict()
    data["training"]["cold"] = None  # that of the last run
    if data["training"]["table_optimizer"] == "adam":
        # It would move the rows of ids that are not in the new rows.
        data["training"].update(ADAGRAD)
    merge(data, given)
    data["training"].update(tune="off", start_from=str(previous.folder))
    config = Config.from_dict(data)
    require_same_model(previous, config, "--from")
    return config


# Going on with a run


def _going_on(options: Options, given: dict[str, Any], device: str, processes: Processes) -> Plan:
    """The plan of ``--resume``: that of the run in the folder, longer where the options say so."""
    output = Path(options.output)
    record = _record(output)
    _refuse_other_columns(options, record.get("columns", {}))
    state = tuning.read_state(output)
    if state is None:
        saved = Config.load(output / CONFIG)
        config = _changed(saved, given, record, output, [f"training.{n}" for n in RESUMABLE])
        previous = _previous(config.training.start_from, output)
        last = (set(), previous, device, [], processes)
        return Plan(options, given, "checkpoint", config, *last)
    saved = Config.from_dict(state["config"])
    config = _changed(saved, given, record, output, [])
    return Plan(options, given, "trials", config, set(state["fixed"]), None, device, [], processes)


def _record(output: Path) -> dict[str, Any]:
    """What the run in a folder was asked for; empty where it was not written by ``train``."""
    path = output / RECORD
    if not path.is_file():
        return {}
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except ValueError as error:
        raise DataError(f"{path}: damaged ({error})") from error


def _refuse_other_columns(options: Options, recorded: dict[str, Any]) -> None:
    for name, value in options.columns().items():
        if value != recorded.get(name):
            was = f"{recorded[name]!r}" if name in recorded else "not given"
            raise DataError(
                f"--resume keeps the columns and blocks of the run in {options.output}: "
                f"--{name.replace('_', '-')} was {was} there and is {value!r} here"
            )


def _changed(
    saved: Config, given: dict[str, Any], record: dict[str, Any], output: Path, may: list[str]
) -> Config:
    """The configuration of a run with what the user gives now.

    Args:
        saved: of the run.
        given: what the user gives beside ``--resume``.
        record: what the run was asked for: a value that stood there is no change, even where the
            trials then chose another.
        output: folder of the run.
        may: keys that may change.

    Raises:
        DataError: another key changes.
    """
    before, asked = flat(saved.to_dict()), flat(record.get("given", {}))
    data = saved.to_dict()
    merge(data, given)
    after = flat(Config.from_dict(data).to_dict())
    changes = {}
    for key in [*before, *(k for k in after if k not in before)]:
        if before.get(key) == after.get(key) or asked.get(key, before.get(key)) == after.get(key):
            continue
        if key not in may:
            was, now = (reprlib.repr(values.get(key)) for values in (before, after))
            names = ", ".join(k.removeprefix("training.") for k in may)
            hint = f"; {names} can change" if may else " until all of its trials are done"
            raise DataError(
                f"--resume keeps the settings of the run in {output}: {key} is {was} there and "
                f"{now} here{hint}"
            )
        changes[key.removeprefix("training.")] = after[key]
    data = saved.to_dict()
    data["training"].update(changes)
    return Config.from_dict(data)
