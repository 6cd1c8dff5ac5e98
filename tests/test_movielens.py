"""A MovieLens folder written as one table: what a row knows, and messages about broken lines."""

from __future__ import annotations

import numpy as np
import pytest

pa = pytest.importorskip("pyarrow")
pytest.importorskip("tqdm")
parquet = pytest.importorskip("pyarrow.parquet")

from lirank_ext.data.errors import DataError  # noqa: E402
from lirank_ext.data.movielens import movielens_table, past, write_movielens  # noqa: E402

USERS = "1::F::1::10::48067\n2::M::56::16::70072-1234\n3::M::25::15::55117\n"
MOVIES = "10::Alien: The Cut (1979)::Action|Horror\n20::Café (1995)::Drama\n30::No year::Comedy\n"


@pytest.fixture
def folder(tmp_path):
    """A MovieLens-1M folder with 120 ratings, written user by user and not by time."""
    generator = np.random.default_rng(0)
    seconds = 1000 + generator.permutation(120)
    lines = []
    for i in range(120):
        user, movie = i // 40 + 1, (10, 20, 30)[i % 3]
        lines.append(f"{user}::{movie}::{generator.integers(1, 6)}::{seconds[i]}\n")
    (tmp_path / "ratings.dat").write_text("".join(lines), encoding="latin-1")
    (tmp_path / "users.dat").write_text(USERS, encoding="latin-1")
    (tmp_path / "movies.dat").write_text(MOVIES, encoding="latin-1")
    return tmp_path


def rows(folder, **options) -> list[dict]:
    return movielens_table(folder, **options).to_pylist()


def test_ratings_are_in_order_of_time(folder):
    lines = (folder / "ratings.dat").read_text().splitlines()
    rated = sorted((line.split("::") for line in lines), key=lambda fields: int(fields[3]))
    found = rows(folder)
    assert [(r["user"], r["movie"]) for r in found] == [(user, movie) for user, movie, *_ in rated]
    assert [r["label"] for r in found] == [int(int(stars) >= 4) for _, _, stars, _ in rated]


def test_features_come_from_all_three_files(folder):
    found = rows(folder)
    row = next(r for r in found if (r["user"], r["movie"]) == ("2", "10"))
    names = ("gender", "age", "occupation", "zip", "year", "genre")
    assert [row[name] for name in names] == ["M", "56", "16", "700", "1979", ["Action", "Horror"]]
    assert next(r for r in found if r["movie"] == "30")["year"] == ""


def test_the_history_is_the_last_ten_liked_before(folder):
    liked: dict[str, list[str]] = {user: [] for user in "123"}
    for row in rows(folder):
        assert row["liked"] == liked[row["user"]][-10:]
        if row["label"] == 1:
            liked[row["user"]].append(row["movie"])
    assert max(map(len, liked.values())) > 10


def test_past_counts_neither_itself_nor_its_own_second():
    key = np.array([1, 2, 1, 1, 1, 2])
    time = np.array([5, 1, 3, 5, 9, 1])
    good = np.array([1.0, 1.0, 1.0, 0.0, 1.0, 0.0])
    count, likes = past(key, time, good)
    assert count.tolist() == [1, 0, 0, 1, 3, 0]
    assert likes.tolist() == [1, 0, 0, 1, 2, 0]


def test_no_feature_of_a_row_knows_its_label_or_a_later_one(folder):
    """Turning over the labels of the last rows changes no feature of the rows before."""
    before = movielens_table(folder)
    path = folder / "ratings.dat"
    lines = []
    for line in path.read_text().splitlines():
        user, movie, stars, time = line.split("::")
        stars = 6 - int(stars) if int(time) >= 1109 else stars
        lines.append(f"{user}::{movie}::{stars}::{time}\n")
    path.write_text("".join(lines))
    after = movielens_table(folder)
    assert before["label"] != after["label"]
    # Row 109 is the first that changed.
    features = [name for name in before.column_names if name != "label"]
    assert before.select(features).slice(0, 110) == after.select(features).slice(0, 110)


def test_the_latest_rows_keep_their_history(folder):
    whole, late = rows(folder), rows(folder, rows=60)
    # The average that rates start with is that of the rows to train on, which are others.
    names = ("user", "movie", "genre", "liked", "user ratings", "label")
    assert [[r[n] for n in names] for r in late] == [[r[n] for n in names] for r in whole[-60:]]


def test_names_are_written_as_categories(folder, tmp_path):
    write_movielens(folder, tmp_path / "m.parquet")
    schema = parquet.read_schema(tmp_path / "m.parquet")
    for name in ("user", "movie", "age", "occupation", "zip", "year"):
        assert pa.types.is_dictionary(schema.field(name).type), name


@pytest.mark.parametrize(
    ("file", "line", "text", "said"),
    [
        ("ratings.dat", 7, "1::10::5", "3 fields separated by '::', where 4 were wanted"),
        ("ratings.dat", 7, "1::10::five::1000", "the rating is 'five'"),
        ("ratings.dat", 7, "1::10::nan::1000", "the rating is 'nan'"),
        ("ratings.dat", 7, "1::10::9::1000", "the rating is '9'"),
        ("ratings.dat", 7, "1::10::5::noon", "the time stamp 'noon'"),
        ("ratings.dat", 7, "99::10::5::1000", "user id 99 is not in users.dat"),
        ("ratings.dat", 7, "1::99::5::1000", "movie id 99 is not in movies.dat"),
        ("ratings.dat", 7, "x::10::5::1000", "user id 'x' is not a whole number"),
        ("users.dat", 2, "2::M::56", "3 fields separated by '::', where 5 were wanted"),
        ("movies.dat", 3, "x::Title (1990)::Drama", "movie id 'x' is not a whole number"),
    ],
)
def test_a_broken_line_is_named(folder, file, line, text, said):
    path = folder / file
    lines = path.read_text(encoding="latin-1").splitlines()
    lines[line - 1] = text
    path.write_text("\n".join(lines), encoding="latin-1")
    with pytest.raises(DataError) as caught:
        movielens_table(folder)
    assert str(caught.value).startswith(f"{path}:{line}: ")
    assert said in str(caught.value)


@pytest.mark.parametrize("file", ["ratings.dat", "users.dat", "movies.dat"])
def test_an_empty_or_absent_file_is_named(folder, file):
    (folder / file).write_text("\n")
    with pytest.raises(DataError, match=rf"{file}: empty file"):
        movielens_table(folder)
    (folder / file).unlink()
    with pytest.raises(DataError, match=rf"no {file}"):
        movielens_table(folder)


def test_the_real_files_are_read(shared_data):
    table = movielens_table(shared_data / "ml-1m")
    assert table.num_rows == 487_650
    assert 0.5 < np.mean(table["label"].to_numpy()) < 0.65
    for name in table.column_names:
        assert table[name].null_count == 0
        if pa.types.is_floating(table[name].type):
            assert np.isfinite(table[name].to_numpy()).all(), name
