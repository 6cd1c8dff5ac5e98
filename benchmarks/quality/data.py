"""Public data cut into rows to train on, to validate on and to test on."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from lirank_ext.data import ADULT
from lirank_ext.data.packages import need
from lirank_ext.errors import UserError

if TYPE_CHECKING:
    import pandas as pd

LABEL = "label"
SHARES = (0.8, 0.1)  # of the rows, to train and to validate on; the rest is tested on
PARTS = ("train", "valid", "test")


@dataclass
class Sources:
    """Where the data lie that do not ship with the package.

    Attributes:
        ml_1m: GroupLens's folder of MovieLens-1M.
        ml_100k: the file ``ml-100k.inter`` of RecBole's package.
        obd: the folder ``bts/all`` or ``random/all`` of the Open Bandit Dataset.
    """

    ml_1m: str | None = None
    ml_100k: str | None = None
    obd: str | None = None


@dataclass
class Set:
    """A data set.

    Attributes:
        name: of the set.
        parts: Parquet files of ``train``, ``valid`` and ``test``.
    """

    name: str
    parts: dict[str, Path]

    def frame(self, part: str) -> tuple[pd.DataFrame, np.ndarray]:
        """Columns and labels of a part."""
        frame = need("pandas").read_parquet(self.parts[part])
        return frame.drop(columns=LABEL), frame[LABEL].to_numpy()


def prepare(name: str, sources: Sources, folder: Path) -> Set:
    """Cut a data set into files.

    Args:
        name: one of :data:`SETS`.
        sources: where the data lie.
        folder: for the files.

    Raises:
        UserError: the data are not there.
    """
    frame, time = SETS[name](sources)
    order = np.random.default_rng(0).permutation(len(frame))
    if time is not None:
        order = np.argsort(time, kind="stable")
    cuts = np.cumsum(np.multiply(SHARES, len(frame))).astype(int)
    folder.mkdir(parents=True, exist_ok=True)
    parts = {}
    for part, rows in zip(PARTS, np.split(order, cuts), strict=True):
        parts[part] = folder / f"{name}.{part}.parquet"
        frame.iloc[np.sort(rows)].to_parquet(parts[part], index=False)
    return Set(name, parts)


Loaded = tuple["pd.DataFrame", "np.ndarray | None"]  # rows, and the times to split by


def _adult(sources: Sources) -> Loaded:
    frame = need("pandas").read_parquet(ADULT)
    frame[LABEL] = frame.pop("income").astype(str).str.contains(">50").astype(int)
    return frame, None


def _ratings(path: str | None, option: str) -> pd.DataFrame:
    if path is None or not Path(path).exists():
        raise UserError(f"{option}: name the data: no such file or folder: {path}")
    pandas = need("pandas")
    if Path(path).is_dir():
        names = ["user", "item", "rating", "time"]
        return pandas.read_csv(Path(path) / "ratings.dat", sep="::", engine="python", names=names)
    frame = pandas.read_csv(path, sep="\t")
    frame.columns = ["user", "item", "rating", "time"]
    return frame


def _named(frame: pd.DataFrame, columns: tuple[str, ...]) -> pd.DataFrame:
    """The columns as text, so that nobody takes a number of an item for a number."""
    made = {name: name[0] + frame[name].astype(str) for name in columns}
    return need("pandas").DataFrame({**made, LABEL: (frame["rating"] >= 4).astype(int)})


def _ml_100k(sources: Sources) -> Loaded:
    return _named(_ratings(sources.ml_100k, "--ml-100k"), ("user", "item")), None


def _ml_100k_time(sources: Sources) -> Loaded:
    frame = _ratings(sources.ml_100k, "--ml-100k")
    return _named(frame, ("user", "item")), frame["time"].to_numpy()


def _ml_1m(sources: Sources) -> Loaded:
    ratings, pandas = _ratings(sources.ml_1m, "--ml-1m"), need("pandas")
    folder, options = Path(sources.ml_1m), {"sep": "::", "engine": "python", "encoding": "latin1"}
    people = ["user", "gender", "age", "occupation", "zip"]
    users = pandas.read_csv(folder / "users.dat", names=people, **options)
    movies = pandas.read_csv(folder / "movies.dat", names=["item", "title", "genres"], **options)
    joined = ratings.merge(users, on="user").merge(movies, on="item")
    joined["year"] = joined["title"].str.extract(r"\((\d{4})\)$")[0]
    made = _named(joined, ("user", "item", "age", "occupation", "year"))
    made.insert(0, "gender", joined["gender"])
    made.insert(0, "genres", joined["genres"])
    return made, joined["time"].to_numpy()


def _obd(sources: Sources) -> Loaded:
    if sources.obd is None or not (Path(sources.obd) / "all.csv").exists():
        raise UserError(f"--obd: no file all.csv in {sources.obd}")
    frame = need("pandas").read_csv(Path(sources.obd) / "all.csv", index_col=0)
    kept = [c for c in frame if c not in ("click", "timestamp", "propensity_score")]
    time = need("pandas").to_datetime(frame["timestamp"], format="ISO8601").astype("int64")
    return frame[kept].assign(**{LABEL: frame["click"]}), time.to_numpy()


def _usage(sources: Sources) -> Loaded:
    return usage(), None


def _little_usage(sources: Sources) -> Loaded:
    return usage(users=320, items=1500, events=28_000, seed=1), None


def usage(users: int = 950, items: int = 4000, events: int = 67_000, seed: int = 0) -> pd.DataFrame:
    """Made-up use of apps: ten columns of ids, a third of the rows were uses.

    Each user returns to a small repertoire of items, by the time of day and the day of the week,
    and drew it by taste and popularity. Every use comes with two rows of random items in the same
    context, as in the benchmarks that sample negatives.

    Args:
        users, items, events: how many.
        seed: of the draw.
    """
    r, pandas = np.random.default_rng(seed), need("pandas")
    taste, kind = r.normal(size=(users, 6)), r.normal(size=(items, 6))
    popularity = r.permutation(1 / np.arange(1, items + 1) ** 0.9)
    activity = np.minimum(r.zipf(1.6, users), 200).astype(float)
    city = r.integers(0, 200, users)
    paid = r.random(items) < 0.2
    by_time, by_day = 1.2 * r.normal(size=(items, 7)), 0.8 * r.normal(size=(items, 2))
    repertoires = []
    for u in range(users):
        liking = np.log(popularity) + 0.9 * (kind @ taste[u]) + r.gumbel(size=items)
        count = r.integers(8, 60)
        repertoires.append(np.argpartition(-liking, count)[:count])
    weights = [np.exp(1.3 * r.normal(size=len(own))) for own in repertoires]
    user = r.choice(users, events, p=0.5 * activity / activity.sum() + 0.5 / users)
    time, day = r.integers(0, 7, events), r.integers(0, 7, events)
    weekend = (day > 4).astype(int)
    used = np.empty(events, int)
    for i, u in enumerate(user):
        own = repertoires[u]
        odds = weights[u] * np.exp(by_time[own, time[i]] + by_day[own, weekend[i]])
        used[i] = r.choice(own, p=odds / odds.sum()) if r.random() > 0.03 else r.integers(items)
    item = np.concatenate([used, *r.integers(0, items, (2, events))])
    context = {"user": user, "daytime": time, "weekday": day, "weekend": weekend}
    context |= {"weather": r.integers(0, 9, events), "place": r.integers(0, 3, events)}
    context |= {"city": city[user], "country": city[user] // 4}
    columns = {name: np.tile(values, 3) for name, values in context.items()}
    columns |= {"item": item, "paid": paid[item].astype(int)}
    named = {name: name + pandas.Series(v).astype(str) for name, v in columns.items()}
    return pandas.DataFrame({**named, LABEL: np.repeat([1, 0], [events, 2 * events])})


SETS: dict[str, Callable[[Sources], Loaded]] = {
    "adult": _adult,
    "ml-100k": _ml_100k,
    "ml-100k by time": _ml_100k_time,
    "ml-1m by time": _ml_1m,
    "open bandit by time": _obd,
    "usage": _usage,
    "little usage": _little_usage,
}
