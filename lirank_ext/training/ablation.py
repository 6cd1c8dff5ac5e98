"""Ablations: the same training with one block switched at a time."""

from __future__ import annotations

import copy
import json
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from ..data.errors import DataError
from ..models._parse import override
from ..nn._common import did_you_mean
from .metrics import Metrics, mean
from .settings import Config

SWITCHES = {
    "ids": "model.embedding.enabled=false",
    "numeric": "model.numeric.enabled=false",
    "numeric-batch-norm": "model.numeric.batch_norm=false",
    "history": "model.history.enabled=false",
    "low-rank": "model.cross.low_rank=false",
    "attention": "model.cross.attention=false",
    "cross": "model.cross.low_rank=false,model.cross.attention=false",
    "mlp": "model.mlp.enabled=false",
    "gate": "model.mlp.gate=null",
    "dropout": "model.embedding.dropout=0,model.mlp.dropout=0,model.head.dropout=0",
    "batch-norm": "model.mlp.batch_norm=false,model.head.batch_norm=false",
    "calibration": "model.calibration.enabled=false",
    "popularity": "model.popularity.enabled=false",
    "table-l2": "training.table_l2=0",
}


def check_switches(switches: Sequence[str]) -> None:
    """Refuse a name that is no block.

    Raises:
        DataError: one is not, with the nearest one.
    """
    for name in switches:
        if "=" not in name and name not in SWITCHES:
            hint = did_you_mean(name, SWITCHES)
            known = ", ".join(SWITCHES)
            raise DataError(f"--switch: nothing is called '{name}'{hint}; there are: {known}")


def changed(config: Config, switch: str) -> Config:
    """The configuration without a named block, or with ``key=value,key=value``.

    Raises:
        ConfigError: a key or a value does not fit.
    """
    data = copy.deepcopy(config.to_dict())
    for item in SWITCHES.get(switch, switch).split(","):
        key, _, value = item.partition("=")
        override(data, key, value)
    return Config.from_dict(data, switch)


def run(
    config: Config,
    switches: Sequence[str],
    seeds: int,
    train: Callable[[Config], dict[str, Metrics]],
    path: Path | None = None,
    files: Sequence[str] = (),
) -> dict[str, list[dict[str, float]]]:
    """Train the whole model and each change of it, once per seed.

    Args:
        config: the whole model.
        switches: names of :data:`SWITCHES`, or changes ``key=value``.
        seeds: runs of each, with the seeds 0, 1, ...
        train: trains a configuration and measures it.
        path: JSON file that keeps every result; those in it are not trained again.
        files: what it is trained and measured on, kept beside the results.

    Returns:
        auc and log_loss of every run, by switch; the whole model is "whole".

    Raises:
        DataError: a change leaves the model as it is, or the file holds results of another
            configuration or of other data, or none.
    """
    for switch in switches:
        if changed(config, switch) == config:
            raise DataError(f"--switch {switch}: changes nothing: the model has it so already")
    variants = {"whole": config, **{s: changed(config, s) for s in switches}}
    known = _known(path, config, files)
    for seed in range(seeds):
        for name, variant in variants.items():
            key = f"{name}/{seed}"
            if key in known:
                continue
            data = variant.to_dict()
            data["training"]["seed"] = seed
            metrics = train(Config.from_dict(data))
            known[key] = {m: mean(metrics, m) for m in ("auc", "log_loss")}
            _keep(path, config, files, known)
    return {name: [known[f"{name}/{seed}"] for seed in range(seeds)] for name in variants}


def _known(path: Path | None, config: Config, files: Sequence[str]) -> dict[str, Any]:
    """Results kept in the file; never dropped for those of another configuration or other data."""
    if path is None or not path.is_file():
        return {}
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
        kept, on, results = content["config"], content["files"], content["results"]
    except (ValueError, KeyError, TypeError) as error:
        raise DataError(f"{path}: no results of an ablation: give another --output") from error
    if kept != config.to_dict():
        raise DataError(f"{path}: results of another configuration: give another --output")
    if on != list(files):
        raise DataError(f"{path}: results on other data: give another --output")
    return results


def _keep(path: Path | None, config: Config, files: Sequence[str], results: dict[str, Any]) -> None:
    if path is None:
        return
    new = path.with_suffix(".new")
    text = json.dumps(
        {"config": config.to_dict(), "files": list(files), "results": results}, indent=1
    )
    new.write_text(text + "\n", encoding="utf-8")
    new.replace(path)


def rows(results: dict[str, list[dict[str, float]]]) -> list[list[str]]:
    """Cells of a table: mean and spread of AUC and log-loss, and what the change cost.

    The difference is taken seed by seed; its sign stands where it is the same for every seed.
    """
    table, whole = [], results["whole"]
    for name, runs in results.items():
        cells = [name if name == "whole" or "=" in name else f"without {name}"]
        for metric in ("auc", "log_loss"):
            values = np.array([r[metric] for r in runs])
            gaps = values - np.array([r[metric] for r in whole])
            cells.append(f"{values.mean():.4f} ± {values.std():.4f}")
            same = (gaps > 0).all() or (gaps < 0).all()
            mark = "" if same or name == "whole" else " ?"
            cells.append("" if name == "whole" else f"{gaps.mean():+.4f}{mark}")
        table.append(cells)
    return table
