"""Reading of CSV and Parquet files: what columns become, and the messages about broken rows."""

from __future__ import annotations

import gzip

import numpy as np
import pytest

pa = pytest.importorskip("pyarrow")
parquet = pytest.importorskip("pyarrow.parquet")

from lirank_ext.data import ADULT  # noqa: E402
from lirank_ext.data.broken import BadRows  # noqa: E402
from lirank_ext.data.columns import hash_ids, ranges  # noqa: E402
from lirank_ext.data.errors import DataError, MissingPackage  # noqa: E402
from lirank_ext.data.features import Converter, Rows  # noqa: E402
from lirank_ext.data.infer import infer  # noqa: E402
from lirank_ext.data.reading import Reading  # noqa: E402
from lirank_ext.data.source import Source  # noqa: E402
from lirank_ext.models import Schema  # noqa: E402
from lirank_ext.training.defaults import for_files  # noqa: E402


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


def load(path, label: str | None = "bought", **options) -> tuple[Schema, Rows]:
    """The columns found in a file, and all its rows."""
    schema = infer([path], [label] if label else [], Reading(**options)).schema
    converter = Converter(schema, BadRows())
    chunks = Source([path], converter.columns).chunks()
    return schema, Rows.concatenate([converter.rows(chunk) for chunk in chunks])


def ids(rows: Rows, column: str) -> list[int]:
    """The id of every row."""
    values, lengths = rows.bags[f"ids/{column}"]
    assert (lengths == 1).all()
    return values.tolist()


def expected(column: str, values) -> list[int]:
    return hash_ids(column, values).tolist()


def test_ranges_skip_what_is_empty():
    got = ranges(np.array([5, 9, 0]), np.array([2, 0, 3]))
    assert got.tolist() == [5, 6, 0, 1, 2]
    assert ranges(np.array([], int), np.array([], int)).tolist() == []


def test_columns_become_ids_and_numbers(table):
    schema, rows = load(table(csv_text()))
    assert [c.name for c in schema.categorical] == ["colour", "price", "user_id"]
    assert schema.numeric == ["price"]
    colours = [("red", "green", "")[i % 3] for i in range(200)]
    assert ids(rows, "colour") == expected("colour", colours)
    assert ids(rows, "user_id") == expected("user_id", [i % 7 for i in range(200)])
    assert rows.numeric[:, 0].tolist() == [i * 0.5 for i in range(200)]
    assert rows.labels[:, 0].tolist() == [i % 2 for i in range(200)]


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
    schema, one = load(table(lines))
    same, two = load(tmp_path / "shop.parquet")
    assert schema == same
    for name in ("numeric", "labels", "numbers"):
        assert np.array_equal(getattr(one, name), getattr(two, name)), name
    for key, (values, lengths) in one.bags.items():
        assert np.array_equal(values, two.bags[key][0])
        assert np.array_equal(lengths, two.bags[key][1])


def test_missing_numbers_are_an_id_of_their_own(table):
    lines = csv_text()
    lines[5] = "red,,1,0"
    _, rows = load(table(lines))
    assert np.isnan(rows.numeric[4, 0])
    assert ids(rows, "price")[4] == expected("price", [""])[0]


def test_categorical_reads_numbers_as_ids(table):
    schema, rows = load(table(csv_text()), categorical=["price"])
    assert schema.numeric == []
    assert ids(rows, "price")[1] == expected("price", ["0.5"])[0]


def test_categorical_takes_a_column_of_mostly_numbers(table):
    lines = csv_text()
    lines[8] = "red,cheap,1,0"
    _, rows = load(table(lines), categorical=["price"])
    assert ids(rows, "price")[7] == expected("price", ["cheap"])[0]


def test_categories_of_a_parquet_file_are_ids(tmp_path):
    codes = pa.array([str(i % 5) for i in range(100)]).dictionary_encode()
    columns = {"code": codes, "bought": [i % 2 for i in range(100)]}
    parquet.write_table(pa.table(columns), tmp_path / "shop.parquet")
    schema, _ = load(tmp_path / "shop.parquet")
    assert [c.name for c in schema.categorical] == ["code"]
    assert schema.numeric == []


def test_a_label_value_can_be_named(table):
    schema, rows = load(table(csv_text()), "user_id=3")
    assert rows.labels[:, 0].tolist() == [float(i % 7 == 3) for i in range(200)]
    assert (schema.tasks[0].source, schema.tasks[0].positive) == ("user_id", "3")


def test_other_delimiters_quotes_marks_and_compression(tmp_path):
    lines = [line.replace(",", ";") for line in csv_text()]
    lines[3] = '"a ""red""; one\nin two lines";1;1;0'
    text = "\ufeff" + "\r\n".join(lines) + "\r\n\r\n"
    path = tmp_path / "shop.csv.gz"
    path.write_bytes(gzip.compress(text.encode()))
    _, rows = load(path)
    assert ids(rows, "colour")[2] == expected("colour", ['a "red"; one\nin two lines'])[0]
    assert len(rows) == 200


def test_lines_are_counted_over_quoted_and_blank_ones(table):
    lines = csv_text()
    lines[3] = '"red\ngreen",1,1,0'
    lines[5] += "\n\n"
    lines[50] = "red,cheap,1,0"  # its number: one line more for the quotes, two blank ones
    path = table(lines)
    with pytest.raises(DataError) as caught:
        load(path)
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
        (9, '"red,1,1,0', "broken row"),
    ],
)
def test_a_broken_csv_row_is_named(table, line, text, said):
    lines = csv_text()
    lines[line - 1] = text
    path = table(lines)
    with pytest.raises(DataError) as caught:
        load(path)
    assert str(caught.value).startswith(f"{path}:{line}: ")
    assert said in str(caught.value)
    assert "\n" not in str(caught.value)


def test_a_line_that_is_no_text_is_named(table):
    path = table(csv_text())
    lines = path.read_bytes().split(b"\n")
    lines[8] = b"caf\xe9,1,1,0"
    path.write_bytes(b"\n".join(lines))
    with pytest.raises(DataError, match=r"shop\.csv:9: not UTF-8"):
        load(path)


@pytest.mark.parametrize(
    ("label", "said"),
    [
        ("bougth", "no column 'bougth'; did you mean 'bought'?"),
        ("nothing_near", "it has colour, price, user_id, bought"),
        (None, "name the label column with --label (one of colour, price, user_id, bought)"),
    ],
)
def test_a_missing_label_is_explained(table, label, said):
    with pytest.raises(DataError) as caught:
        load(table(csv_text()), label)
    assert said in str(caught.value)


@pytest.mark.parametrize(
    ("lines", "said"),
    [
        ([], "empty file"),
        (["colour,bought"], "no rows"),
        (["colour,colour,bought", "1,2,1"], "column 'colour' is there more than once"),
        (["bought", "1", "0"], "no column to learn from, only labels"),
    ],
)
def test_a_file_that_cannot_be_learned_from_is_refused(tmp_path, lines, said):
    path = tmp_path / "shop.csv"
    path.write_text("".join(line + "\n" for line in lines))
    with pytest.raises(DataError, match=said):
        load(path)


def test_a_broken_parquet_file_is_refused(tmp_path):
    path = tmp_path / "shop.parquet"
    path.write_bytes(b"PAR1 nothing")
    with pytest.raises(DataError, match=r"shop\.parquet: cannot be read as Parquet"):
        load(path)


def test_a_parquet_row_is_named(tmp_path):
    labels = [i % 2 for i in range(100)]
    labels[41] = 3
    parquet.write_table(
        pa.table({"x": [i % 9 for i in range(100)], "y": labels}), tmp_path / "x.parquet"
    )
    with pytest.raises(DataError, match=r"x\.parquet, row 42: the label 'y' is '3'"):
        load(tmp_path / "x.parquet", "y")


def test_a_missing_package_says_how_to_get_it(monkeypatch):
    monkeypatch.setitem(__import__("sys").modules, "pyarrow", None)
    with pytest.raises(MissingPackage, match=r"needs pyarrow, .* pip install "):
        load(ADULT, "income=>50K")


def test_adult_ships_with_its_attribution():
    text = (ADULT.parent / "ATTRIBUTION.md").read_text()
    assert "Becker" in text and "Kohavi" in text and "CC BY 4.0" in text


def test_the_mlp_is_narrow_for_few_columns(tmp_path):
    few, many = tmp_path / "few.csv", tmp_path / "many.csv"
    names = [f"c{i}" for i in range(20)]
    few.write_text("user,item,label\n" + "".join(f"u{i},i{i % 7},{i % 2}\n" for i in range(50)))
    rows = [",".join([f"v{i % (j + 2)}" for j in range(20)] + [str(i % 2)]) for i in range(50)]
    many.write_text("\n".join([",".join([*names, "label"]), *rows]) + "\n")
    dims = [for_files([file], ["label"]).model.mlp.dims for file in (few, many)]
    assert dims == [[80, 80], [400, 400]]
    given = {"model": {"mlp": {"dims": [300]}}}
    assert for_files([few], ["label"], given).model.mlp.dims == [300]
