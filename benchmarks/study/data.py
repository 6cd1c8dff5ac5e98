"""MovieLens-1M and UCI Adult as tensors in memory, made once for all variants."""

from __future__ import annotations

import zlib
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np

from lirank_ext.data import ADULT
from lirank_ext.data.broken import BadRows
from lirank_ext.data.columns import hash_ids, ranges
from lirank_ext.data.features import Bag, Converter, Rows
from lirank_ext.data.loader import Memory
from lirank_ext.data.movielens import past, read_movies, read_ratings, read_users
from lirank_ext.data.packages import need
from lirank_ext.models import Categorical, History, Schema, Task

from .plan import Plan


@dataclass
class Prepared:
    """A data set ready to train on.

    Attributes:
        name, title: for files and for people.
        about: sentences for the report.
        schema: all columns; variants leave some out.
        ids: the columns that the row without ids does not have.
        rows: columns of all rows of the three parts.
        train, valid, test: numbers of rows; where time is known, ``train`` is in its order.
        clusters: (len(test),) test rows of one number are one draw.
        distinct: number of ids of every table.
        epochs: of a training.
    """

    name: str
    title: str
    about: list[str]
    schema: Schema
    ids: tuple[str, ...]
    rows: Rows
    train: np.ndarray
    valid: np.ndarray
    test: np.ndarray
    clusters: np.ndarray
    distinct: dict[str, int]
    epochs: int

    @property
    def labels(self) -> np.ndarray:
        """(len(test), tasks)."""
        return self.rows.labels[self.test]

    def fingerprint(self) -> list[int]:
        """Tells these rows from others."""
        parts = [self.train, self.valid, self.test, self.rows.labels, self.rows.numeric]
        parts += [values for values, _ in self.rows.bags.values()]
        return [
            len(self.train),
            len(self.test),
            *(zlib.crc32(np.ascontiguousarray(p)) for p in parts),
        ]


def batches(
    rows: Rows,
    schema: Schema,
    numbers: np.ndarray,
    batch_size: int,
    seed: int | None = None,
    history: int | None = None,
) -> Memory:
    """Batches of some of the rows, with the columns of a schema.

    Args:
        rows: all rows.
        schema: the columns to hand on.
        numbers: the rows to take.
        batch_size: rows of a batch, on average.
        seed: of the order; None keeps it.
        history: longest history.
    """
    taken = _pruned(rows, schema, history).take(numbers)
    return Memory(taken, Converter(schema, BadRows()), batch_size, seed)


def _pruned(rows: Rows, schema: Schema, history: int | None) -> Rows:
    """The columns of a schema alone: batches copy whatever is there."""
    wanted = [f"ids/{c.name}" for c in schema.categorical]
    bags = {key: rows.bags[key] for key in wanted}
    for column in schema.history:
        for kind in ("items", "actions"):
            key = f"history/{column.name}/{kind}"
            bags[key] = _first(rows.bags[key], history)
    return replace(rows, bags=bags)


def _first(bag: Bag, most: int | None) -> Bag:
    if most is None:
        return bag
    values, lengths = bag
    kept = np.minimum(lengths, most)
    return values[ranges(lengths.cumsum() - lengths, kept)], kept


def _one(prefix: str, names: Sequence[object], codes: np.ndarray) -> Bag:
    """One id a row: ``codes`` are places in ``names``."""
    return hashes(prefix, names)[codes], np.ones(len(codes), np.int64)


def hashes(prefix: str, names: Sequence[object]) -> np.ndarray:
    """The ids of the names in a column, as the package reads it from a file."""
    return hash_ids(prefix, names)


def _draw(rows: np.ndarray, most: int, seed: int) -> np.ndarray:
    """At most so many of the rows, in their order."""
    if len(rows) <= most:
        return rows
    return np.sort(np.random.default_rng(seed).choice(rows, most, replace=False))


# ---- MovieLens ------------------------------------------------------------------------------


def movielens(folder: Path, plan: Plan) -> Prepared:
    """The MovieLens-1M folder: is a rating 4 or more, is it 5; oldest rows train, newest test.

    What a row knows (counts, means, history) comes from ratings with an earlier time stamp.

    Raises:
        DataError: a file is missing or broken.
    """
    users, movies = read_users(folder / "users.dat"), read_movies(folder / "movies.dat")
    user, movie, stars, time = read_ratings(folder / "ratings.dat", users, movies)
    order = np.argsort(time, kind="stable")
    user, movie, stars, time = (column[order] for column in (user, movie, stars, time))
    n = len(order)
    parts = np.split(np.arange(n), [n * 8 // 10, n * 9 // 10])
    sizes = (plan.train_rows, plan.valid_rows, plan.test_rows)
    kept = [_draw(part, size, 1) for part, size in zip(parts, sizes, strict=True)]
    chosen = np.concatenate(kept)
    schema = _movielens_schema()
    numeric = _past_counts(user, movie, stars, time)[chosen]
    bags = _descriptions(users, movies, user[chosen], movie[chosen])
    bags.update(_past_items(chosen, user, movie, stars, time, movies, max(plan.lengths)))
    labels = np.stack([stars >= 4, stars >= 5], 1).astype(np.float32)[chosen]
    ends = np.cumsum([len(k) for k in kept])
    train, valid, test = np.split(np.arange(len(chosen)), ends[:-1])
    new = ~np.isin(user[kept[2]], user[parts[0]])
    about = [
        f"{n:,} ratings of {len(np.unique(user)):,} users in order of time: the first 80 % train, "
        f"the next 10 % validate, the last 10 % test; of these {len(train):,}, {len(valid):,} and "
        f"{len(test):,} rows are drawn at random. Counts and histories know all earlier "
        "ratings (by strictly earlier time stamps), drawn or not. Past mean ratings of users and "
        "films are no features: they are an id's effect under another name.",
        f"{new.mean():.0%} of the test rows are of users without a row in the training period.",
    ]
    distinct = {"user": len(np.unique(user)), "movie": len(movies)}
    context = [c for c in schema.categorical if c.table == "context"]
    distinct["context"] = len(
        np.unique(np.concatenate([bags[f"ids/{c.name}"][0] for c in context]))
    )
    return Prepared(
        "ml-1m",
        "MovieLens-1M",
        about,
        schema,
        ("user", "movie"),
        Rows(numeric.astype(np.float32), bags, labels, np.arange(len(chosen))),
        train,
        valid,
        test,
        user[kept[2]],
        distinct,
        plan.epochs,
    )


def _movielens_schema() -> Schema:
    context = ("gender", "age", "occupation", "zip", "year", "genre")
    return Schema(
        numeric=["user count", "movie count"],
        categorical=[
            Categorical("user", "user"),
            Categorical("movie", "movie"),
            *(Categorical(name, "context") for name in context),
        ],
        history=[History("rated", "movie", actions="stars")],
        tasks=[Task("rating >= 4"), Task("rating >= 5")],
    )


def _past_counts(user, movie, stars, time) -> np.ndarray:
    """No past means: the mean rating of a film is an id's effect under another name."""
    return np.stack([np.log1p(past(key, time, stars)[0]) for key in (user, movie)], 1)


def _descriptions(users, movies, user, movie) -> dict[str, Bag]:
    bags = {"ids/user": _one("user", list(users), user)}
    bags["ids/movie"] = _one("movie", list(movies), movie)
    for place, name in enumerate(("gender", "age", "occupation", "zip")):
        values, codes = np.unique([row[place] for row in users.values()], return_inverse=True)
        bags[f"ids/{name}"] = _one(name, values, codes[user])
    values, codes = np.unique([year for year, _ in movies.values()], return_inverse=True)
    bags["ids/year"] = _one("year", values, codes[movie])
    count = np.array([len(genres) for _, genres in movies.values()])
    flat = hashes("genre", [genre for _, genres in movies.values() for genre in genres])
    first = count.cumsum() - count
    bags["ids/genre"] = (flat[ranges(first[movie], count[movie])], count[movie])
    return bags


def _past_items(chosen, user, movie, stars, time, movies, most: int) -> dict[str, Bag]:
    """The latest ratings of the row's user, newest first, none of the row's own time stamp."""
    by_user = np.argsort(user, kind="stable")  # and by time within a user
    first = np.searchsorted(user[by_user], user[chosen])
    before = past(user, time, stars)[0][chosen].astype(np.int64)
    length = np.minimum(before, most)
    back = np.repeat(first + before - 1, length) - ranges(np.zeros_like(length), length)
    shown = by_user[back]
    values, codes = np.unique(stars, return_inverse=True)
    items = hashes("movie", list(movies))[movie[shown]]
    actions = hashes("stars", [f"{v:g}" for v in values])[codes[shown]]
    return {"history/rated/items": (items, length), "history/rated/actions": (actions, length)}


# ---- Adult ----------------------------------------------------------------------------------


def adult(path: Path | None, plan: Plan) -> Prepared:
    """UCI Adult: income above 50K, and never married; parts drawn at random.

    Args:
        path: the Parquet file; None takes the one that ships with the package.
        plan: sizes.
    """
    frame = need("pandas").read_parquet(path or ADULT)
    labels = np.stack(
        [frame["income"] == ">50K", frame["marital-status"] == "Never-married"], 1
    ).astype(np.float32)
    numeric = ["age", "educational-num", "capital-gain", "capital-loss", "hours-per-week"]
    names = ["workclass", "education", "occupation", "race", "gender", "native-country"]
    bags, count = {}, 0
    for name in names:
        values, codes = np.unique(frame[name].astype(str), return_inverse=True)
        bags[f"ids/{name}"] = _one(name, values, codes)
        count += len(values)
    order = np.random.default_rng(0).permutation(len(frame))
    train, valid, test = np.split(order, [len(order) * 7 // 10, len(order) * 8 // 10])
    schema = Schema(
        numeric=numeric,
        log=["capital-gain", "capital-loss"],
        categorical=[Categorical(name) for name in names],
        tasks=[Task("income"), Task("never married")],
    )
    train, valid, test = train[: plan.train_rows], valid[: plan.valid_rows], test[: plan.test_rows]
    about = [
        f"{len(frame):,} rows, drawn at random: {len(train):,} train, {len(valid):,} validate, "
        f"{len(test):,} test. The second label is made of marital-status, which is therefore no "
        "feature, nor is relationship (husband, wife, own child), which nearly gives it away. "
        "Adult has neither ids of a size to compress nor time: its 'ids' are the six categorical "
        "columns, and it has no history, no compression and no increments.",
    ]
    numbers = frame[numeric].to_numpy(np.float32)
    return Prepared(
        "adult",
        "UCI Adult",
        about,
        schema,
        tuple(names),
        Rows(numbers, bags, labels, np.arange(len(frame))),
        train,
        valid,
        test,
        np.arange(len(test)),
        {"ids": count},
        plan.adult_epochs,
    )
