"""The commands ``train``, ``evaluate``, ``predict``, ``calibrate`` and ``ablate``."""

from __future__ import annotations

import argparse
import dataclasses
import json
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

from .._table import print_line, print_table
from ..data.errors import DataError, MissingPackage

NEEDED = ("pyarrow", "yaml", "safetensors", "tqdm", "sklearn")
Command = Callable[[argparse.Namespace], int]


def add_commands(subparsers: Any) -> None:
    """Add the commands to what ``argparse``'s ``add_subparsers`` gave."""
    _add_train(subparsers)
    _add_evaluate(subparsers)
    _add_predict(subparsers)
    _add_calibrate(subparsers)
    _add_ablate(subparsers)


def _add(subparsers: Any, name: str, run: Command, text: str) -> argparse.ArgumentParser:
    parser = subparsers.add_parser(name, help=text, description=text[0].upper() + text[1:] + ".")
    parser.set_defaults(run=lambda args: _refusing(name, run, args))
    return parser


def _refusing(name: str, run: Command, args: argparse.Namespace) -> int:
    """Run a command; what cannot be used is one sentence on stderr and exit code 2."""
    from ..data.packages import need
    from ..models import ConfigError
    from .trainer import Interrupted

    try:
        for package in NEEDED:
            need(package)
        return run(args)
    except (ConfigError, DataError, MissingPackage) as error:
        print(f"lirank-ext {name}: {error}", file=sys.stderr)
        return 2
    except Interrupted as stop:
        print(f"lirank-ext {name}: {stop}", file=sys.stderr)
        return 128 + stop.number


def _data_arguments(parser: argparse.ArgumentParser) -> None:
    add = parser.add_argument
    add("data", nargs="+", metavar="FILE", help="CSV (.gz too) or Parquet files")
    add(
        "--label",
        action="append",
        default=[],
        metavar="NAME[=VALUE]",
        help="label column, 0 or 1, or 1 for VALUE; several make several tasks",
    )
    add(
        "--valid",
        action="append",
        default=[],
        metavar="FILE",
        help="rows to validate on (default: a tenth of FILE, at random)",
    )
    add(
        "--long-dwell",
        action="append",
        default=[],
        metavar="COLUMN[:A,B]",
        help="a task: the time in COLUMN is above the 90th percentile of the rows' cluster, "
        "told by the columns A and B",
    )
    add("--config", metavar="FILE.yaml", help="model and training; see config.yaml in the output")
    add("--preset", choices=("feed", "jobs", "ads"), help="blocks of one of the paper's models")
    add(
        "--set",
        action="append",
        default=[],
        metavar="KEY=VALUE",
        help="one value of the configuration, as in --set model.cross.rank=16",
    )
    add("--categorical", metavar="A,B", default="", help="number columns to read as ids")
    add("--numeric", metavar="A,B", default="", help="columns to read as numbers alone")
    add("--ignore", metavar="A,B", default="", help="columns to leave out")
    add("--epochs", type=int, help="at most")
    add("--seed", type=int)
    add("--skip-bad-rows", action="store_true", help="count broken rows instead of stopping")
    _device_argument(parser)


def _device_argument(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--device", choices=("cpu", "cuda"), help="default: cuda where there is one"
    )


def _add_train(subparsers: Any) -> None:
    text = "train a ranker on CSV or Parquet files, larger than memory if need be"
    parser = _add(subparsers, "train", _train, text)
    _data_arguments(parser)
    add = parser.add_argument
    add("--output", metavar="DIR", default="lirank_model", help="default: lirank_model")
    add("--resume", action="store_true", help="go on from the checkpoint in DIR")
    add("--overwrite", action="store_true", help="replace what is in DIR")
    add(
        "--tune",
        choices=("auto", "on", "off"),
        help="try a short list of regularisations and keep the one that validates best "
        "(default auto: up to 200,000 rows)",
    )
    add("--from", dest="past", metavar="DIR", help="go on from the model in DIR, on newer files")
    add("--cold", metavar="DIR", help="with --from: the model of the cold start")
    add(
        "--forgetting",
        type=float,
        metavar="NUMBER",
        help="with --from: strength of the pull to the older weights (default 1)",
    )
    add(
        "--cold-weight",
        type=float,
        metavar="SHARE",
        help="with --from: share of the cold start in it, 0 to 1 (default 0)",
    )


def _add_evaluate(subparsers: Any) -> None:
    parser = _add(subparsers, "evaluate", _evaluate, "measure a trained model on labelled files")
    _model_arguments(parser)
    parser.add_argument("--json", metavar="FILE", help="also write the figures to FILE")


def _add_predict(subparsers: Any) -> None:
    parser = _add(subparsers, "predict", _predict, "write a model's probabilities as CSV")
    _model_arguments(parser)
    parser.add_argument("--output", metavar="FILE.csv", help="default: standard output")


def _add_calibrate(subparsers: Any) -> None:
    text = "fit a model's isotonic calibration to newer files, all else kept"
    parser = _add(subparsers, "calibrate", _calibrate, text)
    _model_arguments(parser)
    parser.add_argument("--output", metavar="DIR", help="default: the model's own folder")
    parser.add_argument(
        "--l2",
        type=float,
        default=10.0,
        help="pull of a bucket to the identity, in rows (default 10)",
    )


def _model_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("model", metavar="DIR", help="what train wrote")
    parser.add_argument("data", nargs="+", metavar="FILE", help="CSV or Parquet files")
    parser.add_argument(
        "--skip-bad-rows", action="store_true", help="count broken rows instead of stopping"
    )
    _device_argument(parser)


def _add_ablate(subparsers: Any) -> None:
    text = "train with one block switched off at a time and compare"
    parser = _add(subparsers, "ablate", _ablate, text)
    _data_arguments(parser)
    add = parser.add_argument
    add(
        "--switch",
        action="append",
        default=[],
        metavar="NAME",
        help="a block to switch off, or KEY=VALUE; default: cross, attention, mlp, gate, "
        "calibration",
    )
    add("--seeds", type=int, default=3, help="runs of each (default 3)")
    add(
        "--test",
        action="append",
        default=[],
        metavar="FILE",
        help="files to measure on (default: the rows to validate on)",
    )
    add("--output", metavar="FILE.json", help="keep the results; those in it are not run again")


def _device(args: argparse.Namespace) -> str:
    import torch

    if args.device == "cuda" and not torch.cuda.is_available():
        raise DataError("--device cuda: PyTorch sees no CUDA device here")
    return args.device or ("cuda" if torch.cuda.is_available() else "cpu")


def _names(text: str) -> list[str]:
    return [name for name in text.split(",") if name]


def _folder(name: str) -> Path:
    try:
        Path(name).mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise DataError(f"--output {name}: {error.strerror}") from error
    return Path(name)


def _given(args: argparse.Namespace) -> dict[str, Any]:
    """What ``--config`` holds."""
    from ..models import ConfigError
    from ..models._parse import read_yaml
    from .settings import Config

    given: dict[str, Any] = read_yaml(args.config) if args.config else {}
    if not isinstance(given, dict):
        raise ConfigError(f"{args.config}: wanted keys and values, got {given!r}")
    if given:
        Config.from_dict(given, args.config)  # its own mistakes, before the data are looked at
    return given


def _overrides(args: argparse.Namespace) -> dict[str, Any]:
    """Values that options give, by key."""
    from ..models import ConfigError
    from ..models._parse import override

    data: dict[str, Any] = {}
    for item in args.set:
        key, equals, value = item.partition("=")
        if not equals:
            raise ConfigError(f"--set {item}: wanted KEY=VALUE")
        override(data, key, value)
    training = {"epochs": args.epochs, "seed": args.seed}
    training.update({n: getattr(args, n, None) for n in ("tune", "forgetting", "cold_weight")})
    if args.skip_bad_rows:
        training["bad_rows"] = "skip"
    for name, value in training.items():
        if value is not None:
            data.setdefault("training", {})[name] = value
    return data


def _tasks(args: argparse.Namespace) -> list[Any]:
    """``--label`` and ``--long-dwell``."""
    from ..models import Dwell, Task

    tasks: list[Any] = list(args.label)
    for item in args.long_dwell:
        column, _, clusters = item.partition(":")
        name = "long_dwell" if len(args.long_dwell) == 1 else f"long_{column}"
        tasks.append(Task(name, column, dwell=Dwell(_names(clusters))))
    return tasks


def _config(args: argparse.Namespace) -> Any:
    """The configuration: defaults for files, then the preset or the YAML, then the options."""
    from .defaults import for_files, merge
    from .settings import Config

    data = for_files(
        args.data,
        _tasks(args),
        _given(args),
        preset=args.preset,
        numeric=_names(args.numeric),
        categorical=_names(args.categorical),
        ignore=_names(args.ignore),
        skip=args.skip_bad_rows,
    ).to_dict()
    merge(data, _overrides(args))
    return Config.from_dict(data)


def _increment_config(args: argparse.Namespace, past: Any) -> Any:
    """The configuration of the model gone on from, with the training that the options give."""
    from .defaults import merge
    from .incremental import same_model
    from .settings import Config

    columns = ("preset", "numeric", "categorical", "ignore", "long_dwell")
    for name in columns:
        if getattr(args, name):
            option = name.replace("_", "-")
            raise DataError(f"--{option}: the model of --from names its columns and blocks itself")
    known = past.config.model.schema.tasks
    if args.label and sorted(args.label) != sorted(t.name for t in known):
        names = ", ".join(t.name for t in known)
        raise DataError(f"--label: the model of --from predicts {names}: leave the option out")
    data = past.config.to_dict()
    data["training"]["cold"] = None  # that of the last run
    merge(data, _given(args))
    merge(data, _overrides(args))
    data["training"].update(tune="off", start_from=str(past.folder))
    if args.cold:
        data["training"]["cold"] = args.cold
    config = Config.from_dict(data)
    same_model(past, config, "--from")
    return config


def _train(args: argparse.Namespace) -> int:
    from ..data.broken import Broken
    from . import incremental, tuning
    from .session import MODEL, save_model
    from .settings import Config
    from .trainer import CHECKPOINT

    output, device = _folder(args.output), _device(args)
    own, kept = output / "config.yaml", output / CHECKPOINT
    found = kept if kept.exists() else output / tuning.STATE
    if found.exists() and not (args.resume or args.overwrite):
        raise DataError(f"{found} is there: give --resume to go on, or --overwrite to start again")
    if args.resume and not found.exists():
        raise DataError(f"--resume: {kept}: no such file")
    state = tuning.read_state(output) if args.resume else None
    past = None
    if state is not None:
        config = Config.from_dict(state["config"])
    elif args.resume and own.exists():
        config = Config.load(own)
        past = _past(config.training.start_from, output)
    else:
        past = _past(args.past or _given(args).get("training", {}).get("start_from"), output)
        config = _increment_config(args, past) if past else _config(args)
    _check_increment(args, past)
    if args.overwrite:  # a killed run must not go on from an older one's
        tuning.remove(output)
        for old in (kept, output / incremental.FILE):
            old.unlink(missing_ok=True)
    fixed = set(state["fixed"]) if state else tuning.given_keys(_fixed(args))
    broken = Broken(config.training.bad_rows == "skip")
    run = _Run(args, config, output, device, broken, past)
    trainer, report = run.tune(fixed) if run.tunes(state) else run.once()
    config = trainer.config
    if config.training.fisher_rows:
        incremental.keep(trainer, output)
    save_model(output, trainer.model, config)
    _write_yaml(own, config)
    tuning.remove(output)
    progress = trainer.progress
    report = {"best_step": progress.best_step, "steps": progress.step, **report}
    report["broken_rows"], report["evaluations"] = broken.count, progress.evaluations
    (output / "report.json").write_text(json.dumps(report, indent=1) + "\n", encoding="utf-8")
    best = next((e for e in progress.evaluations if e["step"] == progress.best_step), None)
    if best is not None and "tasks" in best:
        _show(f"Validation, after step {progress.best_step} of {progress.step}", best["tasks"])
    _say_broken(broken)
    print_line(f"model: {output / MODEL}; configuration: {own}")
    return 0


def _fixed(args: argparse.Namespace) -> dict[str, Any]:
    """What the user asked for, which no trial changes."""
    from .defaults import merge

    data = _given(args)
    merge(data, _overrides(args))
    return data


def _past(folder: str | None, output: Path) -> Any:
    """The training that ``--from`` goes on from; None where there is none."""
    from .incremental import load_past

    if folder is None:
        return None
    if Path(folder).resolve() == output.resolve():
        raise DataError(f"--from {folder}: --output must be another folder")
    return load_past(folder)


def _check_increment(args: argparse.Namespace, past: Any) -> None:
    for name in ("cold", "forgetting", "cold_weight"):
        if getattr(args, name) is not None and past is None:
            raise DataError(f"--{name.replace('_', '-')}: goes with --from DIR")
    if past is not None and args.tune == "on":
        raise DataError("--tune on: an increment keeps the settings of the model it goes on from")


class _Run:
    """One ``train``: files opened, then one training or several."""

    def __init__(
        self,
        args: argparse.Namespace,
        config: Any,
        output: Path,
        device: str,
        broken: Any,
        past: Any,
    ) -> None:
        from .session import open_data

        self.args, self.config, self.output, self.device = args, config, output, device
        self.past = past
        before = past.model if past else None
        self.data = open_data(config, args.data, args.valid, broken, before)

    def tunes(self, state: dict[str, Any] | None) -> bool:
        """Whether there are trials to train, or to go on with."""
        from . import tuning

        if state is not None:
            return True
        going_on = self.args.resume or self.past is not None
        validates = self.data.valid is not None
        return not going_on and tuning.wanted(self.config, self.data.rows, validates)

    def tune(self, fixed: set[str]) -> tuple[Any, dict[str, Any]]:
        """The best trial's trainer, and what the report says of the trials."""
        from .tuning import Tuner

        tuner = Tuner(self.config, fixed, self.data, self.output, self.device, bar=True)
        trainer, best = tuner.run()
        trainer.output = self.output
        trainer.checkpoint()
        _show_trials(tuner.trials, best)
        trials = [t.as_json() for t in tuner.trials]
        return trainer, {"chosen": best.name, "trials": trials}

    def once(self) -> tuple[Any, dict[str, Any]]:
        """The trainer after one training."""
        from .incremental import begin, load_past
        from .session import trainer_on

        trainer = trainer_on(self.data, self.config, self.output, self.device, bar=True)
        if self.past is not None:
            cold = self.config.training.cold
            begin(trainer, self.past, load_past(cold) if cold else None)
        if self.args.resume:
            trainer.resume()
        _write_yaml(self.output / "config.yaml", self.config)
        trainer.fit()
        return trainer, {}


def _show_trials(trials: list[Any], best: Any) -> None:
    def cells(trial: Any) -> list[str]:
        tasks = list(trial.tasks.values())
        means = [sum(t[n] for t in tasks) / len(tasks) for n in ("auc", "log_loss")]
        mark = " (kept)" if trial is best else ""
        return [trial.name + mark, *(f"{m:.4f}" for m in means), str(trial.best_step)]

    if len(trials) > 1:
        columns = ("regularisation", ">AUC", ">log-loss", ">best step")
        print_table("Trials, on the rows to validate on", columns, [cells(t) for t in trials])


def _write_yaml(path: Path, config: Any) -> None:
    import yaml

    text = yaml.safe_dump(dataclasses.asdict(config), sort_keys=False, allow_unicode=True)
    path.write_text(text, encoding="utf-8")


def _show(title: str, tasks: dict[str, dict[str, Any]]) -> None:
    def cell(value: float | None) -> str:
        return "-" if value is None else f"{value:.4f}"

    names = ("auc", "log_loss", "observed_to_expected")
    rows = [[t, *(cell(v[n]) for n in names), f"{v['rows']:,}"] for t, v in tasks.items()]
    columns = ("task", ">AUC", ">log-loss", ">observed / expected", ">rows")
    print_table(title, columns, rows)


def _say_broken(broken: Any) -> None:
    if broken.count:
        print(broken.summary(), file=sys.stderr)


def _open(args: argparse.Namespace, labels: bool) -> tuple[Any, Any, Any, Any, str]:
    """Model, configuration, loader, broken rows and device of a command on a trained model."""
    from ..data.broken import Broken
    from .session import dwell_of, load_model, open_loader

    device = _device(args)
    model, config = load_model(args.model, device)
    broken = Broken(args.skip_bad_rows)
    loader = open_loader(config, args.data, broken, labels=labels, dwell=dwell_of(model))
    return model, config, loader, broken, device


def _evaluate(args: argparse.Namespace) -> int:
    from .metrics import evaluate

    model, _, loader, broken, device = _open(args, labels=True)
    metrics = {name: m.as_json() for name, m in evaluate(model, _bar(loader), device).items()}
    if not all(m["rows"] for m in metrics.values()):
        raise DataError(f"{args.data[0]}: no rows")
    _show("", metrics)
    _say_broken(broken)
    if args.json:
        try:
            Path(args.json).write_text(json.dumps(metrics, indent=1) + "\n", encoding="utf-8")
        except OSError as error:
            raise DataError(f"--json {args.json}: {error.strerror}") from error
    return 0


def _bar(batches: Any) -> Any:
    from ..data.packages import need

    return need("tqdm").tqdm(batches, unit=" batches", leave=False, mininterval=0.3)


def _predict(args: argparse.Namespace) -> int:
    import csv

    import torch

    model, _, loader, broken, device = _open(args, labels=False)
    try:
        # Closed below; standard output is not ours to close.
        file = open(args.output, "w", newline="") if args.output else sys.stdout  # noqa: SIM115
    except OSError as error:
        raise DataError(f"--output {args.output}: {error.strerror}") from error
    try:
        writer = csv.writer(file, lineterminator="\n")
        writer.writerow(model.task_names)
        with torch.inference_mode():
            for batch in _bar(loader) if args.output else loader:
                moved = batch.to(torch.device(device))
                rows = model.predict(moved.features).float().cpu().tolist()
                writer.writerows([f"{p:.7g}" for p in row] for row in rows)
    finally:
        if args.output:
            file.close()
    _say_broken(broken)
    return 0


def _calibrate(args: argparse.Namespace) -> int:
    from .calibrate import calibrate
    from .metrics import evaluate
    from .session import save_model

    if not args.l2 >= 0:
        raise DataError(f"--l2: wanted 0 or more, got {args.l2}")
    model, config, loader, broken, device = _open(args, labels=True)
    if model.calibration is None:
        raise DataError(f"{args.model}: the model has no calibration (calibration.enabled = false)")
    output = _folder(args.output or args.model)
    before = evaluate(model, loader, device)
    calibrate(model, loader, device, args.l2)
    after = evaluate(model, loader, device)
    both = {f"{t}, before": before[t].as_json() for t in before}
    both.update({f"{t}, after": after[t].as_json() for t in after})
    _show("On the rows fitted to", both)
    _say_broken(broken)
    print_line(f"model: {save_model(output, model, config)}")
    return 0


def _ablate(args: argparse.Namespace) -> int:
    from ..data.broken import Broken
    from ..nn._common import did_you_mean
    from . import ablation
    from .metrics import evaluate
    from .session import dwell_of, open_loader, open_trainer

    switches = args.switch or ["cross", "attention", "mlp", "gate", "calibration"]
    for name in switches:
        if "=" not in name and name not in ablation.SWITCHES:
            known = ", ".join(ablation.SWITCHES)
            hint = did_you_mean(name, ablation.SWITCHES)
            raise DataError(f"--switch: nothing is called '{name}'{hint}; there are: {known}")
    if args.seeds < 1:
        raise DataError(f"--seeds: wanted 1 or more, got {args.seeds}")
    config, device = _config(args), _device(args)

    def train(variant: Any) -> Any:
        trainer = open_trainer(variant, args.data, args.valid, device=device, bar=True)
        trainer.fit()
        broken = Broken(variant.training.bad_rows == "skip")
        dwell = dwell_of(trainer.model)
        tests = open_loader(variant, args.test, broken, dwell=dwell) if args.test else None
        rows = tests or trainer.valid_loader
        return evaluate(trainer.model, rows, device)

    path = Path(args.output) if args.output else None
    if path is not None and not path.absolute().parent.is_dir():
        raise DataError(f"--output {path}: there is no folder {path.parent}")
    data = [str(p) for p in (*args.data, *(args.valid or ()), *(args.test or ()))]
    results = ablation.run(config, switches, args.seeds, train, path, data)
    columns = ("model", ">AUC", ">change", ">log-loss", ">change")
    print_table(f"{args.seeds} seeds; ? where their signs differ", columns, ablation.rows(results))
    return 0
