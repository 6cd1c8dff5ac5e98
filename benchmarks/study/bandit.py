"""The Open Bandit logs: the value of a Thompson policy, from what other policies logged."""

from __future__ import annotations

from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch

from lirank_ext.data.errors import DataError
from lirank_ext.data.features import Rows
from lirank_ext.data.packages import need
from lirank_ext.models import (
    MLP,
    Calibration,
    Categorical,
    Cross,
    Embedding,
    Head,
    LiRank,
    LiRankConfig,
    Schema,
    Table,
    Task,
)
from lirank_ext.nn import NeuralLinear
from lirank_ext.training.settings import Config, Settings
from lirank_ext.training.trainer import Trainer

from .data import batches, hashes
from .plan import Plan

USER = tuple(f"user_feature_{i}" for i in range(4))
ITEM = tuple(f"item_feature_{i}" for i in (1, 2, 3))
CHUNK = 256  # impressions whose scores of all items under all draws are held at a time


@dataclass
class Logs:
    """Impressions in order of time, with what describes their user and the items.

    Attributes:
        item, click, propensity: (n,).
        frame: the user's columns and the position.
        items: the columns of every item.
    """

    item: np.ndarray
    click: np.ndarray
    propensity: np.ndarray
    frame: Any
    items: Any

    def __len__(self) -> int:
        return len(self.item)


def read(folder: Path, policy: str, rows: int | None = None) -> Logs:
    """``<folder>/<policy>/all``: all.csv and item_context.csv.

    Raises:
        DataError: a file is missing.
    """
    pandas, folder = need("pandas"), folder / policy / "all"
    for name in ("all.csv", "item_context.csv"):
        if not (folder / name).is_file():
            raise DataError(f"{folder}: no {name}")
    wanted = ["timestamp", "item_id", "position", "click", "propensity_score", *USER]
    frame = pandas.read_csv(folder / "all.csv", usecols=wanted)
    frame = frame.sort_values("timestamp", kind="stable").reset_index(drop=True).iloc[:rows]
    items = pandas.read_csv(folder / "item_context.csv").sort_values("item_id")
    if items["item_id"].tolist() != list(range(len(items))):
        raise DataError(f"{folder / 'item_context.csv'}: the items are not numbered from 0 on")
    columns = (frame[c].to_numpy(np.float64) for c in ("click", "propensity_score"))
    return Logs(frame["item_id"].to_numpy(), *columns, frame[[*USER, "position"]], items)


def schema() -> Schema:
    """A row: the impression's user and position, and an item."""
    names = [*USER, "position", "item_id", *ITEM]
    return Schema(
        numeric=["item_feature_0"],
        categorical=[Categorical(name) for name in names],
        tasks=[Task("click")],
    )


def rows_of(logs: Logs, impressions: np.ndarray, items: np.ndarray) -> Rows:
    """Impressions paired with items: two arrays of the same length."""
    bags, ones = {}, np.ones(len(impressions), np.int64)
    for name in (*USER, "position"):
        values, codes = np.unique(logs.frame[name].astype(str), return_inverse=True)
        bags[f"ids/{name}"] = (hashes(name, values)[codes[impressions]], ones)
    for name in ("item_id", *ITEM):
        values, codes = np.unique(logs.items[name].astype(str), return_inverse=True)
        bags[f"ids/{name}"] = (hashes(name, values)[codes[items]], ones)
    numeric = logs.items[["item_feature_0"]].to_numpy(np.float32)[items]
    click = logs.click[impressions].astype(np.float32)[:, None]
    return Rows(numeric, bags, click, np.arange(len(impressions)))


def learn(logs: Logs, plan: Plan, seed: int) -> tuple[LiRank, NeuralLinear]:
    """A ranker on logged clicks, and the posterior of its last layer."""
    config = LiRankConfig(
        schema(),
        Embedding(dim=4, dropout=0.1, tables={"ids": Table(4096, 1)}),
        cross=Cross(low_rank=False, attention=False),
        mlp=MLP(dims=[16], gate=None),
        head=Head(tower_dims=[]),
        calibration=Calibration(enabled=False),
    )
    every = np.arange(len(logs))
    rows, size = rows_of(logs, every, logs.item), 256
    settings = Settings(
        batch_size=size, epochs=3, lr=plan.dense_lr, table_lr=0.03, checkpoint_every=0, seed=seed
    )
    train = batches(rows, config.schema, every, size, seed)
    trainer = Trainer(Config(config, replace(settings, amp="off")), train, None, len(logs) // size)
    trainer.fit()
    model = trainer.model.eval()
    # Clicks are rare: their noise is learned, as one of variance 1 would drown every mean.
    posterior = NeuralLinear(_width(model), 1, noise_variance=None)
    for batch in batches(rows, config.schema, every, 4096):
        posterior.update(model.representations(batch.features)[0], batch.labels)
    return model, posterior


def _width(model: LiRank) -> int:
    return model.head.towers[0].layers[-1].in_features + 1


def policies(
    model: LiRank, posterior: NeuralLinear, logs: Logs, draws: int, seed: int
) -> dict[str, np.ndarray]:
    """Probability that a policy shows the logged item, (n,) each.

    Thompson: the share of the draws under which the item scores best; greedy: the mean alone.
    """
    generator = torch.Generator().manual_seed(seed)
    weights = posterior.sample(draws, generator)[:, 0].float()
    items = len(logs.items)
    thompson, greedy = np.zeros(len(logs)), np.zeros(len(logs))
    for at in range(0, len(logs), CHUNK):
        part = np.arange(at, min(at + CHUNK, len(logs)))
        pairs = (np.repeat(part, items), np.tile(np.arange(items), len(part)))
        memory = batches(rows_of(logs, *pairs), schema(), np.arange(len(pairs[0])), 4096)
        z = torch.cat([model.representations(b.features)[0] for b in memory])
        logged = torch.from_numpy(logs.item[part])
        best = (z @ weights.T).view(len(part), items, draws).argmax(1)
        thompson[part] = (best == logged[:, None]).double().mean(1).numpy()
        mean = posterior(z)[:, 0].view(len(part), items).argmax(1)
        greedy[part] = (mean == logged).double().numpy()
    return {"thompson": thompson, "greedy": greedy}


def off_policy(
    probability: np.ndarray, logs: Logs, resamples: int, seed: int = 0
) -> dict[str, float | list[float] | None]:
    """Inverse-propensity value of a policy, plain and self-normalized, with 95 % intervals.

    A policy under which no logged click was possible has no interval: every resample gives 0.
    """
    weight = probability / logs.propensity
    gain = weight * logs.click
    n, generator = len(gain), np.random.default_rng(seed)
    counts = generator.multinomial(n, np.full(n, 1 / n), size=resamples)
    plain, scale = counts @ gain / n, counts @ weight / n
    normalized = np.divide(plain, scale, out=np.zeros_like(plain), where=scale > 0)
    total = weight.sum()
    return {
        "ips": float(gain.mean()),
        "ips_interval": _interval(plain) if gain.any() else None,
        "snips": float(gain.sum() / total) if total else 0.0,
        "snips_interval": _interval(normalized) if gain.any() else None,
        "effective_rows": float(total**2 / (weight**2).sum()) if total else 0.0,
        "clicks_seen": float(((weight > 0) & (logs.click > 0)).sum()),
    }


def _interval(values: np.ndarray) -> list[float]:
    return [float(v) for v in np.quantile(values, [0.025, 0.975])]


def cautious(found: dict[str, Any]) -> list[float]:
    """Clopper and Pearson's 95 % interval, as if the effective rows had been counted.

    The bootstrap cannot draw a click that was not logged: where a policy's items have hardly any,
    its interval is far too narrow.
    """
    beta = need("scipy.stats").beta
    n = found["effective_rows"]
    clicks = found["snips"] * n
    low = float(beta.ppf(0.025, clicks, n - clicks + 1)) if clicks > 0 else 0.0
    return [low, float(beta.ppf(0.975, clicks + 1, max(n - clicks, 1e-9)))]


def on_policy(logs: Logs) -> dict[str, Any]:
    """Click rate of the policy that wrote the log, with Wilson's 95 % interval."""
    stats = need("scipy.stats")
    clicks, n = int(logs.click.sum()), len(logs)
    found = stats.binomtest(clicks, n).proportion_ci(method="wilson")
    return {"rate": clicks / n, "interval": [float(found.low), float(found.high)], "clicks": clicks}


def half(logs: Logs, second: bool) -> Logs:
    """The earlier or the later half."""
    middle = len(logs) // 2
    part = slice(middle, None) if second else slice(None, middle)
    frame = logs.frame.iloc[part]
    return Logs(logs.item[part], logs.click[part], logs.propensity[part], frame, logs.items)


def evaluate(folder: Path, plan: Plan, seed: int) -> dict[str, Any]:
    """Learn on the earlier half of the uniform log, judge on the later one.

    Also what checks the estimator: the uniform policy's value from the Thompson log, whose true
    value the uniform log shows.
    """
    rows = 2 * plan.train_rows
    uniform, logged = read(folder, "random", rows), read(folder, "bts", rows)
    train, test = half(uniform, False), half(uniform, True)
    model, posterior = learn(train, plan, seed)
    chosen = policies(model, posterior, test, plan.draws, seed)
    items = len(uniform.items)
    even = np.full(len(logged), 1 / items)
    return {
        "values": {k: off_policy(p, test, plan.resamples) for k, p in chosen.items()},
        "uniform_from_logged": off_policy(even, logged, plan.resamples),
        "uniform_test": on_policy(test),
        "uniform": on_policy(uniform),
        "logged": on_policy(logged),
        "rows": [len(train), len(test), len(logged)],
        "train_clicks": int(train.click.sum()),
    }
