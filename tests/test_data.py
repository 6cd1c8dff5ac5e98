"""Reading of MovieLens folders, CSV and Parquet files, and the messages about broken ones."""

from __future__ import annotations

import gzip

import numpy as np
import pytest
import torch

pa = pytest.importorskip("pyarrow")
pytest.importorskip("tqdm")
parquet = pytest.importorskip("pyarrow.parquet")

from lirank_ext import datasets  # noqa: E402
from lirank_ext.data.columns import ranges  # noqa: E402
from lirank_ext.data.errors import DataError  # noqa: E402
from lirank_ext.datasets.movielens import past  # noqa: E402

USERS = "1::F::1::10::48067\n2::M::56::16::70072-1234\n3::M::25::15::55117\n"
MOVIES = "10::Alien: The Cut (1979)::Action|Horror\n20::Café (1995)::Drama\n30::No year::Comedy\n"


@pytest.fixture(autouse=True)
def _no_variable(monkeypatch):
    monkeypatch.delenv("LIRANK_DATA", raising=False)


@pytest.fixture
def movielens(tmp_path):
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


def csv_text(rows: int = 200) -> list[str]:
    """A header and rows of a file with a text, a number, an id and a label column."""
    lines = ["colour,price,user_id,bought"]
    for i in range(rows):
        lines.append(f"{('red', 'green', '')[i % 3]},{i * 0.5},{i % 7},{i % 2}")
    return lines


@pytest.fixture
def table(tmp_path):
    def write(lines: list[str], name: str = "shop.csv"):
        path = tmp_path / name
        path.write_text("\n".join(lines) + "\n", encoding="utf-8")
        return path

    return write


def names(data, row: int) -> list[str]:
    """The text ids of a row."""
    return [data.vocabulary[i] for i in data.batch(torch.tensor([row])).ids]


# ---- rows and batches --------------------------------------------------------------------


def test_a_batch_holds_the_bags_of_its_rows(movielens):
    data = datasets.load(movielens)
    rows = torch.tensor([100, 3, 3, 57])
    batch = data.batch(rows)
    bags = len(data.features)
    ends = torch.cat([batch.offsets[1:], torch.tensor([len(batch.ids)])])
    assert len(batch.offsets) == len(rows) * bags
    for i, row in enumerate(rows.tolist()):
        for f in range(bags):
            got = batch.ids[batch.offsets[i * bags + f] : ends[i * bags + f]]
            first, last = data.starts[row * bags + f], data.starts[row * bags + f + 1]
            assert torch.equal(got, data.codes[first:last])
    assert torch.equal(batch.labels, data.labels[rows])
    assert torch.equal(batch.dense, data.dense[rows])


def test_an_empty_batch_has_no_bags(movielens):
    batch = datasets.load(movielens).batch(torch.empty(0, dtype=torch.int64))
    assert [len(part) for part in batch] == [0, 0, 0, 0]


def test_ranges_skip_what_is_empty():
    got = ranges(np.array([5, 9, 0]), np.array([2, 0, 3]))
    assert got.tolist() == [5, 6, 0, 1, 2]
    assert ranges(np.array([], int), np.array([], int)).tolist() == []


# ---- MovieLens ---------------------------------------------------------------------------


def test_movielens_is_split_by_time(movielens):
    data = datasets.load(movielens)
    lines = (movielens / "ratings.dat").read_text().splitlines()
    rated = sorted((line.split("::") for line in lines), key=lambda fields: int(fields[3]))
    assert [len(part) for part in (data.train, data.valid, data.test)] == [96, 12, 12]
    assert torch.equal(torch.cat([data.train, data.valid, data.test]), torch.arange(120))
    assert data.labels.tolist() == [float(int(stars) >= 4) for _, _, stars, _ in rated]
    for row, (user, movie, _, _) in enumerate(rated):
        assert names(data, row)[:2] == [f"user={user}", f"movie={movie}"]


def test_movielens_features_come_from_all_three_files(movielens):
    data = datasets.load(movielens)
    row = next(r for r in range(120) if names(data, r)[:2] == ["user=2", "movie=10"])
    known = [n for n in names(data, row) if not n.startswith("liked")]
    assert known == [
        *("user=2", "movie=10", "gender=M", "age=56", "occupation=16", "zip=700", "year=1979"),
        *("genre=Action", "genre=Horror"),
    ]
    other = next(r for r in range(120) if "movie=30" in names(data, r))
    assert "year=" in names(data, other)


def test_the_history_is_the_last_ten_liked_before(movielens):
    data = datasets.load(movielens)
    liked = {user: [] for user in ("user=1", "user=2", "user=3")}
    for row in range(120):
        user, movie, *_ = got = names(data, row)
        assert [n for n in got if n.startswith("liked")] == liked[user][-10:]
        if data.labels[row] == 1:
            liked[user].append(movie.replace("movie", "liked"))
    assert max(map(len, liked.values())) > 10


def test_past_counts_neither_itself_nor_its_own_second():
    key = np.array([1, 2, 1, 1, 1, 2])
    time = np.array([5, 1, 3, 5, 9, 1])
    good = np.array([1.0, 1.0, 1.0, 0.0, 1.0, 0.0])
    count, likes = past(key, time, good)
    assert count.tolist() == [1, 0, 0, 1, 3, 0]
    assert likes.tolist() == [1, 0, 0, 1, 2, 0]


def test_no_feature_of_a_row_knows_its_label_or_a_later_one(movielens):
    """Turning over the labels of the last rows changes no feature of the rows before."""
    before = datasets.load(movielens)
    path = movielens / "ratings.dat"
    lines = []
    for line in path.read_text().splitlines():
        user, movie, stars, time = line.split("::")
        stars = 6 - int(stars) if int(time) >= 1109 else stars
        lines.append(f"{user}::{movie}::{stars}::{time}\n")
    path.write_text("".join(lines))
    after = datasets.load(movielens)
    rows = torch.arange(110)  # row 109 is the first that changed
    assert not torch.equal(before.labels, after.labels)
    for one, two in zip(before.batch(rows)[:3], after.batch(rows)[:3], strict=True):
        assert torch.equal(one, two)


def test_movielens_keeps_the_latest_rows_and_their_history(movielens):
    whole, late = datasets.load(movielens), datasets.load(movielens, rows=60)
    assert [len(part) for part in (late.train, late.valid, late.test)] == [48, 6, 6]
    assert late.test.tolist() == whole.test.tolist()[-6:]
    assert names(late, 119) == names(whole, 119)


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
def test_a_broken_movielens_line_is_named(movielens, file, line, text, said):
    path = movielens / file
    lines = path.read_text(encoding="latin-1").splitlines()
    lines[line - 1] = text
    path.write_text("\n".join(lines), encoding="latin-1")
    with pytest.raises(DataError) as caught:
        datasets.load(movielens)
    assert str(caught.value).startswith(f"{path}:{line}: ")
    assert said in str(caught.value)


@pytest.mark.parametrize("file", ["ratings.dat", "users.dat", "movies.dat"])
def test_an_empty_or_absent_movielens_file_is_named(movielens, file):
    (movielens / file).write_text("\n")
    with pytest.raises(DataError, match=rf"{file}: empty file"):
        datasets.load(movielens)
    (movielens / file).unlink()
    with pytest.raises(DataError, match=rf"no {file}"):
        datasets.load(movielens)


def test_movielens_of_one_class_is_refused(movielens):
    path = movielens / "ratings.dat"
    path.write_text("".join(f"1::10::5::{1000 + i}\n" for i in range(100)))
    with pytest.raises(DataError, match="100 of 100 rows have label 1"):
        datasets.load(movielens)


def test_the_real_movielens_files_load(shared_data):
    data = datasets.load(shared_data / "ml-1m", rows=1000)
    assert len(data.labels) == 487_650
    assert 0.5 < data.labels.mean() < 0.65
    assert torch.isfinite(data.dense).all()


# ---- CSV and Parquet ---------------------------------------------------------------------


def test_csv_columns_become_ids_and_dense_features(table):
    data = datasets.load(table(csv_text()), "bought")
    assert data.features == ("colour", "price", "user_id")
    assert names(data, 0) == ["colour=red", "price=bin 0", "user_id=0"]
    assert names(data, 2)[0] == "colour="
    assert data.dense.shape == (200, 1)
    train = data.dense[data.train]
    assert abs(train.mean()) < 1e-5 and abs(train.std(correction=0) - 1) < 1e-5
    parts = torch.cat([data.train, data.valid, data.test])
    assert torch.equal(parts.sort()[0], torch.arange(200))
    assert data.labels.tolist() == [i % 2 for i in range(200)]


def test_parquet_reads_the_same(table, tmp_path):
    lines = csv_text()
    columns = list(zip(*(line.split(",") for line in lines[1:]), strict=True))
    arrow = {
        "colour": [v or None for v in columns[0]],
        "price": np.array(columns[1], dtype=float),
        "user_id": np.array(columns[2], dtype=np.int32),
        "bought": [v == "1" for v in columns[3]],
    }
    parquet.write_table(pa.table(arrow), tmp_path / "shop.parquet")
    one = datasets.load(table(lines), "bought", seed=3)
    two = datasets.load(tmp_path / "shop.parquet", "bought", seed=3)
    assert one.vocabulary == two.vocabulary
    for name in ("codes", "starts", "dense", "labels", "train", "valid", "test"):
        assert torch.equal(getattr(one, name), getattr(two, name)), name


def test_the_seed_draws_the_split(table):
    path = table(csv_text())
    one, same, other = (datasets.load(path, "bought", seed=s) for s in (1, 1, 2))
    assert torch.equal(one.test, same.test)
    assert not torch.equal(one.test, other.test)


def test_rows_limit_what_is_used(table):
    data = datasets.load(table(csv_text()), "bought", rows=100)
    assert len(data.train) + len(data.valid) + len(data.test) == 100


def test_a_time_column_orders_the_split(table):
    lines = csv_text()
    lines = [lines[0] + ",day", *(f"{line},{-i}" for i, line in enumerate(lines[1:]))]
    data = datasets.load(table(lines), "bought", time="day")
    assert sorted(data.test.tolist()) == list(range(20))
    assert "day" not in data.features


def test_a_time_column_may_hold_dates(table):
    lines = csv_text(28)
    days = [f"2024-02-{28 - i:02} 10:00" for i in range(28)]
    lines = [lines[0] + ",day", *(f"{a},{b}" for a, b in zip(lines[1:], days, strict=True))]
    data = datasets.load(table(lines), "bought", time="day")
    assert sorted(data.test.tolist()) == [0, 1, 2]


@pytest.mark.parametrize(
    ("time", "said"),
    [("", ":6: the time 'day' is missing"), ("noon", ":6: column 'day' holds 'noon'")],
)
def test_a_broken_time_is_named(table, time, said):
    lines = [line + (f",{i}" if i else ",day") for i, line in enumerate(csv_text())]
    lines[5] = lines[5].rpartition(",")[0] + "," + time
    with pytest.raises(DataError, match=said):
        datasets.load(table(lines), "bought", time="day")


def test_missing_numbers_are_an_id_of_their_own(table):
    lines = csv_text()
    lines[5] = "red,,1,0"
    data = datasets.load(table(lines), "bought")
    assert names(data, 4)[1] == "price="
    assert data.dense[4] == 0


def test_categorical_reads_numbers_as_ids(table):
    data = datasets.load(table(csv_text()), "bought", categorical=["price"])
    assert "price=0.5" in names(data, 1)
    assert data.dense.shape == (200, 0)


def test_categorical_takes_a_column_of_mostly_numbers(table):
    lines = csv_text()
    lines[8] = "red,cheap,1,0"
    data = datasets.load(table(lines), "bought", categorical=["price"])
    assert "price=cheap" in names(data, 7)


def test_a_label_value_can_be_named(table):
    data = datasets.load(table(csv_text()), "colour=green")
    assert data.labels.tolist() == [float(i % 3 == 1) for i in range(200)]
    assert data.task == "colour = green"


def test_other_delimiters_quotes_marks_and_compression(tmp_path):
    lines = [line.replace(",", ";") for line in csv_text()]
    lines[3] = '"a ""red""; one\nin two lines";1;1;0'
    text = "\ufeff" + "\r\n".join(lines) + "\r\n\r\n"
    path = tmp_path / "shop.csv.gz"
    path.write_bytes(gzip.compress(text.encode()))
    data = datasets.load(path, "bought")
    assert names(data, 2)[0] == 'colour=a "red"; one\nin two lines'
    assert len(data.labels) == 200


def test_lines_are_counted_over_quoted_and_blank_ones(table):
    lines = csv_text()
    lines[3] = '"red\ngreen",1,1,0'
    lines[5] += "\n\n"
    lines[50] = "red,cheap,1,0"  # its number: one line more for the quotes, two blank ones
    path = table(lines)
    with pytest.raises(DataError) as caught:
        datasets.load(path, "bought")
    assert str(caught.value).startswith(f"{path}:54: column 'price' holds 'cheap'")
    assert path.read_text().splitlines()[53] == "red,cheap,1,0"


@pytest.mark.parametrize(
    ("line", "text", "said"),
    [
        (9, "red,1,1", "3 fields, where the header has 4"),
        (9, "red,1,1,0,7", "5 fields, where the header has 4"),
        (9, "red,1,1,2", "the label 'bought' is '2', where 0 or 1 was wanted"),
        (9, "red,1,1,", "the label 'bought' is missing"),
        (9, "red,cheap,1,0", "column 'price' holds 'cheap'"),
        (9, "red,inf,1,0", "column 'price' holds 'inf'"),
        (9, "red,1e999,1,0", "column 'price' holds '1e999'"),
        (9, '"red,1,1,0', "broken row"),
    ],
)
def test_a_broken_csv_row_is_named(table, line, text, said):
    lines = csv_text()
    lines[line - 1] = text
    path = table(lines)
    with pytest.raises(DataError) as caught:
        datasets.load(path, "bought")
    assert str(caught.value).startswith(f"{path}:{line}: ")
    assert said in str(caught.value)
    assert "\n" not in str(caught.value)


def test_a_line_that_is_no_text_is_named(table):
    path = table(csv_text())
    lines = path.read_bytes().split(b"\n")
    lines[8] = b"caf\xe9,1,1,0"
    path.write_bytes(b"\n".join(lines))
    with pytest.raises(DataError, match=r"shop\.csv:9: not UTF-8"):
        datasets.load(path, "bought")


@pytest.mark.parametrize(
    ("label", "said"),
    [
        ("bougth", "no column 'bougth'; did you mean 'bought'?"),
        ("nothing_near", "it has colour, price, user_id, bought"),
        (None, "name the label column with --label (one of colour, price, user_id, bought)"),
        ("colour=blue", "no label 'colour' is 'blue' (it holds"),
    ],
)
def test_a_missing_label_is_explained(table, label, said):
    with pytest.raises(DataError) as caught:
        datasets.load(table(csv_text()), label)
    assert said in str(caught.value)


def test_text_labels_are_explained(table):
    lines = [line.replace(",1", ",yes") if i else line for i, line in enumerate(csv_text())]
    with pytest.raises(DataError, match="give --label 'bought=VALUE'"):
        datasets.load(
            table([lines[0], *(f"red,1,1,{'yes' if i % 2 else 'no'}" for i in range(99))]), "bought"
        )


@pytest.mark.parametrize(
    ("lines", "said"),
    [
        ([], "empty file"),
        (["colour,bought"], "no rows"),
        (["colour,colour,bought", "1,2,1"], "column 'colour' is there more than once"),
        (["bought", "1", "0"], "no column to learn the label"),
        (["colour,bought", *["red,1"] * 50, *["red,0"] * 5], "50 of 55 rows have label 1"),
    ],
)
def test_a_file_that_cannot_be_learned_from_is_refused(tmp_path, lines, said):
    path = tmp_path / "shop.csv"
    path.write_text("".join(line + "\n" for line in lines))
    with pytest.raises(DataError, match=said):
        datasets.load(path, "bought")


def test_a_broken_parquet_file_is_refused(tmp_path):
    path = tmp_path / "shop.parquet"
    path.write_bytes(b"PAR1 nothing")
    with pytest.raises(DataError, match=r"shop\.parquet: cannot be read as Parquet"):
        datasets.load(path, "bought")


def test_a_parquet_row_is_named(tmp_path):
    labels = [i % 2 for i in range(100)]
    labels[41] = 3
    parquet.write_table(pa.table({"x": range(100), "y": labels}), tmp_path / "x.parquet")
    with pytest.raises(DataError, match=r"x\.parquet, row 42: the label 'y' is '3'"):
        datasets.load(tmp_path / "x.parquet", "y")


# ---- where data come from ----------------------------------------------------------------


def test_with_nothing_given_adult_is_read():
    data = datasets.load()
    assert (data.name, len(data.labels), int(data.labels.sum())) == ("UCI Adult", 48_842, 11_687)
    assert len(data.features) == 14 and data.dense.shape == (48_842, 6)


def test_the_variable_points_to_movielens(movielens, monkeypatch):
    monkeypatch.setenv("LIRANK_DATA", str(movielens))
    assert datasets.load().name == "MovieLens"
    monkeypatch.setenv("LIRANK_DATA", str(movielens / "absent"))
    with pytest.raises(DataError, match=r"LIRANK_DATA: .*absent: no such file or folder"):
        datasets.load()


def test_a_label_for_movielens_is_refused(movielens):
    with pytest.raises(DataError, match="not for MovieLens"):
        datasets.load(movielens, "bought")


def test_a_missing_package_says_how_to_get_it(monkeypatch):
    monkeypatch.setitem(__import__("sys").modules, "pyarrow", None)
    with pytest.raises(datasets.MissingPackage, match=r"pip install 'lirank_ext\[demo\]'"):
        datasets.load()


def test_adult_ships_with_its_attribution():
    text = (datasets.ADULT.parent / "ATTRIBUTION.md").read_text()
    assert "Becker" in text and "Kohavi" in text and "CC BY 4.0" in text
