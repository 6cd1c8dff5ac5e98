"""Rows in hand are read as the same rows of a CSV file are."""

from __future__ import annotations

import csv
import json
from decimal import Decimal

import numpy as np
import pytest
import torch

pytest.importorskip("pyarrow")
pytest.importorskip("safetensors")

from serve_values import TEXTS

from lirank_ext.data.broken import BadRows
from lirank_ext.data.columns import hash_ids
from lirank_ext.data.errors import DataError
from lirank_ext.data.example_rows import example_rows
from lirank_ext.data.features import Converter
from lirank_ext.data.json_rows import RowReader, parse_rows
from lirank_ext.data.source import Source
from lirank_ext.models import Categorical, History, LiRankConfig, Schema, TimePart

KINDS = ("text", "number", "boolean", "y-m-d", "s")


def features_of_file(path, schema):
    converter = Converter(schema, BadRows(), labels=False)
    (chunk,) = Source([path], converter.columns).chunks()
    return converter.batch(converter.rows(chunk)).features


def assert_equal(got, wanted):
    assert got.keys() == wanted.keys()
    for name, value in wanted.items():
        assert torch.equal(got[name].nan_to_num(1.5), value.nan_to_num(1.5)), name


def test_texts_have_the_features_of_a_csv_file(tmp_path):
    columns = [Categorical(kind, kind=kind) for kind in KINDS]
    columns.append(Categorical("several", separator="|"))
    schema = Schema(categorical=columns, history=[History("past", "number", separator="|")])
    texts = [t for t in TEXTS if "\0" not in t and "\r" not in t]
    names = [*(c.name for c in columns), "past"]
    path = tmp_path / "a.csv"
    with open(path, "w", newline="", encoding="utf-8") as file:
        writer = csv.writer(file, quoting=csv.QUOTE_ALL)
        writer.writerow(names)
        writer.writerows([text] * len(names) for text in texts)
    rows = [dict.fromkeys(names, text) for text in texts]
    wanted = features_of_file(path, schema)
    assert_equal(RowReader(schema).features(rows), wanted)
    assert_equal(RowReader(schema).features(parse_rows(json.dumps(rows))), wanted)


@pytest.mark.parametrize(
    ("value", "text"),
    [
        (7, "7"),
        (7.0, "7"),
        (-0.0, "0"),
        (1e20, "100000000000000000000"),
        (np.float32(0.1), "0.1"),
        (np.int64(-3), "-3"),
        (Decimal("1.50"), "1.5"),
        (True, "true"),
        (np.bool_(False), "false"),
        (None, ""),
        (float("nan"), ""),
        (" x ", "x"),
        ("7.0", "7.0"),
    ],
)
def test_values_of_python_have_one_text(value, text):
    got = RowReader(Schema(categorical=[Categorical("c")])).features([{"c": value}])
    assert got["ids/ids"].tolist() == hash_ids("c", [text]).tolist()


def test_digits_of_json_are_kept():
    reader = RowReader(Schema(categorical=[Categorical("c", kind="number")]))
    number = "12345678901234567890.12345678901234567890"
    got = reader.features(parse_rows(f'{{"c": {number}}}'))["ids/ids"].tolist()
    assert got == hash_ids("c", [number.rstrip("0")]).tolist()


def test_a_number_has_a_comma_where_its_column_has():
    schema = Schema(numeric=["x"], decimal_comma=["x"])
    got = RowReader(schema).features([{"x": 1.234}, {"x": "1.234"}, {"x": "1,5"}])
    assert got["numeric"].flatten().tolist() == pytest.approx([1.234, 1234, 1.5])


def test_rows_with_lists_and_rows_without_keep_their_order():
    schema = Schema(
        categorical=[Categorical("tags", separator="|"), Categorical("item")],
        history=[History("past", "item", "done")],
    )
    reader = RowReader(schema)
    rows = [
        {"tags": "a|b", "item": "i", "past": ["p", "q"], "done": ["x", "y"]},
        {"tags": ["a", "b"], "item": 7, "past": "p q", "done": "x y"},
        {"tags": None, "item": None, "past": None, "done": []},
        {"tags": ["c"], "item": ["i", "j"], "past": [], "done": None},
    ]
    together = reader.features(rows)
    ids = together["ids/ids"]
    bounds = [*together["offsets/ids"].tolist(), len(ids)]
    for i, row in enumerate(rows):
        alone = reader.features([row])
        assert torch.equal(alone["ids/ids"], ids[bounds[2 * i] : bounds[2 * i + 2]])
        length = int(together["history/past/lengths"][i])
        assert alone["history/past/lengths"].tolist() == [length]
        for key in ("items", "actions"):
            name = f"history/past/{key}"
            assert torch.equal(alone[name][0, :length], together[name][i, :length])
    assert together["offsets/ids"].tolist() == [0, 2, 3, 5, 6, 6, 7, 8]


@pytest.mark.parametrize(
    ("row", "words"),
    [
        ({"x": 1}, "row 1: column 'c' is not there"),
        ({"x": 1, "cc": 1}, r"'c' is not there \('cc' is\)"),
        ({"x": "one", "c": 1}, "row 1: column 'x' holds 'one', where a number"),
        ({"x": float("inf"), "c": 1}, "where a number was wanted"),
        ({"x": [1], "c": 1}, "column 'x' holds a list"),
        ({"x": 1, "c": [[1]]}, "column 'c' holds a list in a list"),
        ({"x": 1, "c": {}}, "column 'c' holds an object"),
        ({"x": 1, "c": object()}, "column 'c' holds object"),
        ({"x": 1, "c": "\ud800"}, "UTF-8"),
    ],
)
def test_what_does_not_fit_is_named(row, words):
    reader = RowReader(Schema(numeric=["x"], categorical=[Categorical("c")]))
    with pytest.raises(DataError, match=words):
        reader.features([row])


def test_no_row_is_refused():
    with pytest.raises(DataError, match="no rows"):
        RowReader(Schema(numeric=["x"])).features([])


@pytest.mark.parametrize("name", ["feed", "jobs", "ads", "times"])
def test_example_rows_can_be_read(name):
    times = Schema(
        numeric=["age"],
        categorical=[Categorical("hour"), Categorical("bin", edges=[1.0, 2.0]), Categorical("has")],
        times=[TimePart("age", "when", "age", "ms", 1e9), TimePart("hour", "day", "hour", "d.m.y")],
        indicators={"has": "price"},
    )
    schema = times if name == "times" else LiRankConfig.preset(name).schema
    rows = example_rows(schema, 7)
    assert rows == example_rows(schema, 7)
    assert any(value is None for row in rows for value in row.values())
    assert set(rows[0]) == set(RowReader(schema).columns)
    features = RowReader(schema).features(json.loads(json.dumps(rows)))
    assert len(features["numeric"]) == 7
