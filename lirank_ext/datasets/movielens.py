"""MovieLens-1M as GroupLens ships it: ratings.dat, users.dat and movies.dat.

The task is whether a rating is 4 or more. Counts, rates and the history of a row are made of
ratings with an earlier time stamp alone, as they would stand when the row is served.
"""

from __future__ import annotations

import array
import re
from collections.abc import Iterator
from pathlib import Path
from typing import TypeAlias

import numpy as np
from numpy.typing import NDArray

from ..data.columns import ranges
from ..data.errors import DataError
from .dataset import Builder, Dataset, check_parts, ordered_parts, progress

Ints: TypeAlias = NDArray[np.int64]
Floats: TypeAlias = NDArray[np.float64]
Rows: TypeAlias = dict[int, tuple]
HISTORY = 10  # liked films that a row remembers
LIKED = 4  # stars
PRIOR = 5  # ratings that a rate starts with, all of the average


def load_movielens(folder: str | Path, *, rows: int | None = None) -> Dataset:
    """Load a MovieLens-1M folder.

    Args:
        folder: holds ratings.dat, users.dat and movies.dat.
        rows: keep the latest so many ratings; features still know of all before them.
    """
    folder = Path(folder)
    users, movies = _read_users(folder / "users.dat"), _read_movies(folder / "movies.dat")
    user, movie, stars, time = _read_ratings(folder / "ratings.dat", users, movies)
    order = np.argsort(time, kind="stable")  # ratings.dat is sorted by user, not by time
    user, movie, stars, time = user[order], movie[order], stars[order], time[order]
    labels = (stars >= LIKED).astype(np.float64)
    parts = ordered_parts(np.arange(len(labels))[-rows if rows else 0 :])
    check_parts(folder / "ratings.dat", labels, parts)
    builder = Builder(len(labels))
    _add_descriptions(builder, user, movie, users, movies)
    _add_history(builder, user, movie, time, labels, movies)
    _add_counts(builder, user, movie, time, stars, movies, parts[0])
    return builder.build("MovieLens", f"rating >= {LIKED}", labels, parts)


def _add_descriptions(builder: Builder, user: Ints, movie: Ints, users: Rows, movies: Rows) -> None:
    """What users.dat and movies.dat say: one id each, and the genres of a film as a bag."""
    builder.add_ids("user", user, list(users))
    builder.add_ids("movie", movie, list(movies))
    for place, name in enumerate(("gender", "age", "occupation", "zip")):
        values, codes = np.unique([row[place] for row in users.values()], return_inverse=True)
        builder.add_ids(name, codes[user], list(values))
    values, codes = np.unique([year for year, _ in movies.values()], return_inverse=True)
    builder.add_ids("year", codes[movie], list(values))
    names, genres, first, count = _genres(movies)
    places = builder.add_names("genre", names)[genres]
    builder.add_bag("genre", places[ranges(first[movie], count[movie])], count[movie])


def _genres(movies: Rows) -> tuple[list[str], Ints, Ints, Ints]:
    """Genre names, the genres of all films in a row, where each film's start, how many it has."""
    names = sorted({genre for _, genres in movies.values() for genre in genres})
    number = {name: i for i, name in enumerate(names)}
    count = np.array([len(genres) for _, genres in movies.values()])
    flat = np.array([number[genre] for _, genres in movies.values() for genre in genres])
    return names, flat, count.cumsum() - count, count


def _add_history(
    builder: Builder, user: Ints, movie: Ints, time: Ints, labels: Floats, movies: Rows
) -> None:
    """The films that this user liked last, as a bag."""
    liked = np.flatnonzero(labels)
    liked = liked[np.argsort(user[liked], kind="stable")]
    first = np.searchsorted(user[liked], user)
    before = past(user, time, labels)[1].astype(np.int64)
    count = np.minimum(before, HISTORY)
    shown = liked[ranges(first + before - count, count)]
    builder.add_bag("liked", builder.add_names("liked", list(movies))[movie[shown]], count)


def _add_counts(
    builder: Builder, user: Ints, movie: Ints, time: Ints, stars: Floats, movies: Rows, train: Ints
) -> None:
    """How many ratings the user and the film have, how good, and how the user finds the genres."""
    average, liked = stars[train].mean(), (stars >= LIKED).astype(np.float64)
    means = []
    for key in (user, movie):
        count, total = past(key, time, stars)
        means.append((total + PRIOR * average) / (count + PRIOR))
        likes = past(key, time, liked)[1]
        rate = (likes + PRIOR * liked[train].mean()) / (count + PRIOR)
        for values in (np.log1p(count), means[-1], rate):
            builder.add_dense(values, train)
    names, genres, first, genre_count = _genres(movies)
    row = np.repeat(np.arange(len(user)), genre_count[movie])
    pair = user[row] * len(names) + genres[ranges(first[movie], genre_count[movie])]
    for values in (stars, liked):
        count, total = past(pair, time[row], values[row])
        prior = means[0][row] if values is stars else liked[train].mean()
        rate = (total + PRIOR * prior) / (count + PRIOR)
        summed = np.bincount(row, rate, minlength=len(user))
        builder.add_dense(summed / genre_count[movie], train)


def past(key: Ints, time: Ints, values: Floats) -> tuple[Ints, Floats]:
    """For each row, how many earlier rows have its key, and the sum of their values.

    Rows of the same key and the same second (films rated on one page) do not see each other.
    """
    order = np.lexsort((time, key))
    key, time = key[order], time[order]
    total = np.concatenate([[0], np.cumsum(values[order])])
    new_key = np.concatenate([[True], key[1:] != key[:-1]])
    new_time = new_key | np.concatenate([[True], time[1:] != time[:-1]])
    position = np.arange(len(key))
    first_of_key = np.maximum.accumulate(np.where(new_key, position, 0))
    first_of_time = np.maximum.accumulate(np.where(new_time, position, 0))
    count, sums = np.empty_like(order), np.empty(len(order))
    count[order] = first_of_time - first_of_key
    sums[order] = total[first_of_time] - total[first_of_key]
    return count, sums


# ---- reading -----------------------------------------------------------------------------


def _lines(path: Path, wanted: int) -> Iterator[tuple[int, list[str]]]:
    """Line number and fields of every line that is not blank."""
    if not path.is_file():
        raise DataError(
            f"{path.parent}: no {path.name} (a MovieLens-1M folder holds ratings.dat, users.dat "
            "and movies.dat; a CSV or Parquet file is given by its own path)"
        )
    empty = True
    with open(path, encoding="latin-1") as file:
        for number, line in enumerate(file, 1):
            fields = line.strip().split("::")
            if fields == [""]:
                continue
            if len(fields) != wanted:
                what = f"{len(fields)} fields separated by '::', where {wanted} were wanted"
                raise DataError(f"{path}:{number}: {what}")
            empty = False
            yield number, fields
    if empty:
        raise DataError(f"{path}: empty file")


def _read_users(path: Path) -> Rows:
    """User id to (gender, age, occupation, first three characters of the zip code)."""
    rows = {}
    for line, (user, gender, age, occupation, code) in _lines(path, 5):
        rows[_whole(path, line, "user id", user)] = (gender, age, occupation, code[:3])
    return rows


def _read_movies(path: Path) -> Rows:
    """Film id to (year, genres)."""
    rows = {}
    for line, (movie, title, genres) in _lines(path, 3):
        year = re.search(r"\((\d{4})\)$", title)
        known = (year[1] if year else "", tuple(genres.split("|")))
        rows[_whole(path, line, "movie id", movie)] = known
    return rows


def _read_ratings(path: Path, users: Rows, movies: Rows) -> tuple[Ints, Ints, Floats, Ints]:
    """Places of user and film in their tables, stars and time of every rating."""
    places = [{name: i for i, name in enumerate(table)} for table in (users, movies)]
    columns = array.array("q"), array.array("q"), array.array("d"), array.array("q")
    rows = progress(_lines(path, 4), "reading ratings.dat", unit=" rows", unit_scale=True)
    for line, (user, movie, stars, time) in rows:
        try:
            row = places[0][int(user)], places[1][int(movie)], float(stars), int(time)
            if not 0 < row[2] <= 5:
                raise ValueError
        except (ValueError, KeyError):
            raise _bad_rating(path, line, (user, movie, stars, time), places) from None
        for column, value in zip(columns, row, strict=True):
            column.append(value)
    return tuple(np.asarray(column) for column in columns)


def _bad_rating(
    path: Path, line: int, fields: tuple[str, ...], places: list[dict[int, int]]
) -> DataError:
    """Which field of a rating is wrong: only asked once a line has failed."""
    user, movie, stars, time = fields
    for what, text, known, file in (
        ("user id", user, places[0], "users.dat"),
        ("movie id", movie, places[1], "movies.dat"),
    ):
        if _whole(path, line, what, text) not in known:
            return DataError(f"{path}:{line}: {what} {text} is not in {file}")
    try:
        good = 0 < float(stars) <= 5
    except ValueError:
        good = False
    if not good:
        return DataError(f"{path}:{line}: the rating is '{stars}', where 1 to 5 was wanted")
    return DataError(f"{path}:{line}: the time stamp '{time}' is not a whole number")


def _whole(path: Path, line: int, what: str, text: str) -> int:
    try:
        return int(text)
    except ValueError:
        raise DataError(f"{path}:{line}: {what} '{text}' is not a whole number") from None
