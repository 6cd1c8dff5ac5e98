"""MovieLens-1M as GroupLens ships it (ratings.dat, users.dat, movies.dat), written as one table.

The label is whether a rating is 4 or more. Counts, rates and the history of a row are made of
ratings with an earlier time stamp alone, as they would stand when the row is served.
"""

from __future__ import annotations

import array
import re
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, TypeAlias

import numpy as np
from numpy.typing import NDArray

from .._progress import Progress
from .columns import ranges
from .errors import DataError
from .packages import need

Ints: TypeAlias = NDArray[np.int64]
Floats: TypeAlias = NDArray[np.float64]
Rows: TypeAlias = dict[int, tuple]
LABEL = "label"
HISTORY = 10  # liked films that a row remembers
LIKED = 4  # stars
PRIOR = 5  # ratings that a rate starts with, all of the average


def write_movielens(folder: str | Path, path: str | Path, *, rows: int | None = None) -> None:
    """Write the ratings of a MovieLens-1M folder as a Parquet file, in order of time.

    Args:
        folder: holds ratings.dat, users.dat and movies.dat.
        path: of the file: a row for each rating with what is known of it, and its label.
        rows: keep the latest so many ratings; features still know of all before them.

    Raises:
        DataError: a file is missing or broken.
    """
    need("pyarrow.parquet").write_table(movielens_table(folder, rows=rows), path)


def movielens_table(folder: str | Path, *, rows: int | None = None) -> Any:
    """What :func:`write_movielens` writes, as an Arrow table."""
    pa, folder = need("pyarrow"), Path(folder)
    users, movies = read_users(folder / "users.dat"), read_movies(folder / "movies.dat")
    user, movie, stars, time = read_ratings(folder / "ratings.dat", users, movies)
    order = np.argsort(time, kind="stable")  # ratings.dat is sorted by user, not by time
    user, movie, stars, time = user[order], movie[order], stars[order], time[order]
    kept = np.arange(len(user))[-rows if rows else 0 :]
    train = kept[: len(kept) * 8 // 10]
    columns = _descriptions(user[kept], movie[kept], users, movies)
    columns["liked"] = _history(user, movie, time, stars, movies, kept)
    for name, values in _rates(user, movie, time, stars, movies, train).items():
        columns[name] = pa.array(values[kept])
    columns[LABEL] = pa.array((stars[kept] >= LIKED).astype(np.int8))
    return pa.table(columns)


def _descriptions(user: Ints, movie: Ints, users: Rows, movies: Rows) -> dict[str, Any]:
    """What users.dat and movies.dat say: one name each, and the genres of a film as a list."""
    columns = {"user": _names(list(users), user), "movie": _names(list(movies), movie)}
    for place, name in enumerate(("gender", "age", "occupation", "zip")):
        columns[name] = _names([row[place] for row in users.values()], user)
    columns["year"] = _names([year for year, _ in movies.values()], movie)
    names, genres, first, count = _genres(movies)
    places = ranges(first[movie], count[movie])
    columns["genre"] = _lists(_names(names, genres[places]), count[movie])
    return columns


def _names(values: Sequence[Any], places: Ints) -> Any:
    """The values at these places as text of few distinct values, which is read as ids."""
    pa = need("pyarrow")
    distinct, codes = np.unique([str(v) for v in values], return_inverse=True)
    return pa.DictionaryArray.from_arrays(pa.array(codes[places]), pa.array(distinct.tolist()))


def _lists(values: Any, lengths: Ints) -> Any:
    """Consecutive values as one list a row."""
    pa = need("pyarrow")
    ends = np.concatenate([[0], lengths.cumsum()])
    return pa.ListArray.from_arrays(pa.array(ends, pa.int32()), values.cast(pa.string()))


def _genres(movies: Rows) -> tuple[list[str], Ints, Ints, Ints]:
    """Genre names, the genres of all films in a row, where each film's start, how many it has."""
    names = sorted({genre for _, genres in movies.values() for genre in genres})
    number = {name: i for i, name in enumerate(names)}
    count = np.array([len(genres) for _, genres in movies.values()])
    flat = np.array([number[genre] for _, genres in movies.values() for genre in genres])
    return names, flat, count.cumsum() - count, count


def _history(user: Ints, movie: Ints, time: Ints, stars: Floats, movies: Rows, kept: Ints) -> Any:
    """The films that the row's user liked last, oldest first."""
    good = stars >= LIKED
    liked = np.flatnonzero(good)
    liked = liked[np.argsort(user[liked], kind="stable")]
    first = np.searchsorted(user[liked], user[kept])
    before = past(user, time, good.astype(np.float64))[1].astype(np.int64)[kept]
    count = np.minimum(before, HISTORY)
    shown = liked[ranges(first + before - count, count)]
    return _lists(_names(list(movies), movie[shown]), count)


def _rates(
    user: Ints, movie: Ints, time: Ints, stars: Floats, movies: Rows, train: Ints
) -> dict[str, Floats]:
    """How many ratings the user and the film have, how good, and how the user finds the genres."""
    average, liked = stars[train].mean(), (stars >= LIKED).astype(np.float64)
    columns, means = {}, []
    for name, key in (("user", user), ("movie", movie)):
        count, total = past(key, time, stars)
        means.append((total + PRIOR * average) / (count + PRIOR))
        likes = past(key, time, liked)[1]
        columns[f"{name} ratings"] = np.log1p(count)
        columns[f"{name} mean"] = means[-1]
        columns[f"{name} likes"] = (likes + PRIOR * liked[train].mean()) / (count + PRIOR)
    names, genres, first, genre_count = _genres(movies)
    row = np.repeat(np.arange(len(user)), genre_count[movie])
    pair = user[row] * len(names) + genres[ranges(first[movie], genre_count[movie])]
    for name, values in (("genre mean", stars), ("genre likes", liked)):
        count, total = past(pair, time[row], values[row])
        prior = means[0][row] if values is stars else liked[train].mean()
        rate = (total + PRIOR * prior) / (count + PRIOR)
        summed = np.bincount(row, rate, minlength=len(user))
        columns[name] = summed / genre_count[movie]
    return columns


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


def read_users(path: Path) -> Rows:
    """User id to (gender, age, occupation, first three characters of the zip code)."""
    rows = {}
    for line, (user, gender, age, occupation, code) in _lines(path, 5):
        rows[_whole(path, line, "user id", user)] = (gender, age, occupation, code[:3])
    return rows


def read_movies(path: Path) -> Rows:
    """Film id to (year, genres)."""
    rows = {}
    for line, (movie, title, genres) in _lines(path, 3):
        year = re.search(r"\((\d{4})\)$", title)
        known = (year[1] if year else "", tuple(genres.split("|")))
        rows[_whole(path, line, "movie id", movie)] = known
    return rows


def read_ratings(path: Path, users: Rows, movies: Rows) -> tuple[Ints, Ints, Floats, Ints]:
    """Places of user and film in their tables, stars and time of every rating."""
    places = [{name: i for i, name in enumerate(table)} for table in (users, movies)]
    columns = array.array("q"), array.array("q"), array.array("d"), array.array("q")
    rows = Progress("reading ratings.dat", unit="rows").over(_lines(path, 4))
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
