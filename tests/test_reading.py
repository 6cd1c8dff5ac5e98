"""One id for one value, numbers as they are meant, and columns told apart, whatever the file."""

from __future__ import annotations

import datetime
import decimal
import functools

import numpy as np
import pytest

pa = pytest.importorskip("pyarrow")
parquet = pytest.importorskip("pyarrow.parquet")

from lirank_ext.data.broken import BadRows  # noqa: E402
from lirank_ext.data.columns import hash_ids  # noqa: E402
from lirank_ext.data.errors import DataError  # noqa: E402
from lirank_ext.data.features import Converter, Rows  # noqa: E402
from lirank_ext.data.infer import infer  # noqa: E402
from lirank_ext.data.reading import Reading  # noqa: E402
from lirank_ext.data.source import Source  # noqa: E402
from lirank_ext.models import Categorical, ConfigError, LiRankConfig, Schema  # noqa: E402

ROWS = 240
CLICK = [i * 7 % 5 % 2 for i in range(ROWS)]
SHOP = [f"s{i * 3 % 7}" for i in range(ROWS)]


def write_file(folder, name: str, delimiter: str = ",", **columns):
    """Write columns beside "shop" and "click" as a CSV or Parquet file."""
    data = {**columns, "shop": SHOP, "click": CLICK}
    path = folder / name
    if path.suffix == ".parquet":
        parquet.write_table(pa.table(data), path)
        return path
    rows = zip(*data.values(), strict=True)
    lines = [delimiter.join(data)]
    lines += [delimiter.join("" if v is None else str(v) for v in row) for row in rows]
    path.write_text("\n".join(lines) + "\n", encoding="utf-8")
    return path


@pytest.fixture
def write(tmp_path):
    return functools.partial(write_file, tmp_path)


def read(paths, schema: Schema, broken: BadRows | None = None) -> Rows:
    """All rows of files, read by a schema, without labels."""
    paths = paths if isinstance(paths, list) else [paths]
    converter = Converter(schema, broken or BadRows(), labels=False)
    chunks = Source(paths, converter.columns, names=schema.names).chunks()
    return Rows.concatenate([converter.rows(chunk) for chunk in chunks])


def ids(rows: Rows, column: str) -> list[int]:
    return rows.bags[f"ids/{column}"][0].tolist()


def found(path, **options):
    paths = path if isinstance(path, list) else [path]
    return infer(paths, ["click"], Reading(**options))


def role(path, column: str = "x", **options):
    return next(c for c in found(path, **options).columns if c.name == column)


def times(values) -> list:
    return [values[i % len(values)] for i in range(ROWS)]


# ---- one id for one value ------------------------------------------------------------------

DAYS = [datetime.date(2024, 1, 31), datetime.date(2023, 12, 1)]
SPELLINGS = {
    "truth": [
        ("csv", times(["True", "False"])),
        ("csv", times(["true", "FALSE"])),
        ("parquet", times([True, False])),
        ("csv", times([1, 0])),
        ("parquet", times([1.0, 0.0])),
        ("parquet", times(["TRUE", "false"])),
    ],
    "whole": [
        ("csv", times([7, 12, -3])),
        ("csv", times(["7.0", "12.0", "-3.0"])),
        ("parquet", times([7, 12, -3])),
        ("parquet", times([7.0, 12.0, -3.0])),
        ("parquet", times(["7", "12", "-3"])),
        ("parquet", times([decimal.Decimal("7.00"), decimal.Decimal("12"), decimal.Decimal(-3)])),
        ("csv", times(["+7", "1.2e1", "-3."])),
    ],
    "halves": [
        ("csv", times(["2.5", "3.0", "0.5"])),
        ("csv", times(["2.50", "3", ".5"])),
        ("parquet", times([2.5, 3.0, 0.5])),
        ("parquet", pa.array(times([2.5, 3.0, 0.5]), pa.float32())),
        ("parquet", times([decimal.Decimal("2.5"), decimal.Decimal(3), decimal.Decimal("0.5")])),
    ],
    "large": [
        ("csv", times([2**60 + 1, 2**60 + 2, 2**55 + 1])),
        ("parquet", times([2**60 + 1, 2**60 + 2, 2**55 + 1])),
        ("parquet", pa.array(times([2**60 + 1, 2**60 + 2, 2**55 + 1]), pa.uint64())),
        ("parquet", times([str(2**60 + 1), str(2**60 + 2), str(2**55 + 1)])),
    ],
    "dates": [
        ("csv", times(["2024-01-31", "2023-12-01"])),
        ("csv", times(["2024-01-31 00:00:00", "2023-12-01 00:00:00"])),
        ("csv", times(["2024-01-31T00:00:00Z", "2023-12-01T00:00:00.000Z"])),
        ("parquet", times(DAYS)),
        ("parquet", times([datetime.datetime(2024, 1, 31), datetime.datetime(2023, 12, 1)])),
        (
            "parquet",
            pa.array(times(DAYS)).cast("date64"),
        ),
    ],
    "text": [
        ("csv", times(["ab", "c d"])),
        ("parquet", times(["ab", "c d"])),
        ("parquet", pa.array(times(["ab", "c d"])).dictionary_encode()),
        ("parquet", pa.array(times([b"ab", b"c d"]), pa.binary())),
        ("parquet", pa.array(times(["ab ", " c d"]), pa.large_string())),
    ],
}


@pytest.mark.parametrize("kind", SPELLINGS)
def test_one_value_has_one_id(write, kind):
    """Whichever spelling a model was trained on, it knows the others."""
    paths = [write(f"{i}.{suffix}", x=values) for i, (suffix, values) in enumerate(SPELLINGS[kind])]
    for trained_on in paths if kind != "truth" else paths[:3]:
        schema = found(trained_on, categorical=["x"]).schema
        first, *others = (ids(read(path, schema), "x") for path in paths)
        assert len(set(first)) > 1
        for path, other in zip(paths[1:], others, strict=True):
            assert other == first, (trained_on, path)


def test_numbers_know_truth_values(write):
    schema = found(write("a.csv", x=times([1, 0, 0])), categorical=["x"]).schema
    ones = ids(read(write("b.csv", x=times([1, 0, 0])), schema), "x")
    assert ids(read(write("b.parquet", x=times([True, False, False])), schema), "x") == ones


def test_ids_with_zeros_in_front_stay_apart(write):
    schema = found(write("a.csv", x=times(["01060", "1060", "1060.0"]))).schema
    assert len(set(ids(read(write("b.csv", x=times(["01060", "1060", "0"])), schema), "x"))) == 3


def test_columns_never_share_an_id():
    pairs = [("a", "b=c"), ("a=b", "c"), ("a", "=b=c"), ("a=", "b=c"), ("1:a", "b"), ("1", "a=b")]
    made = [hash_ids(column, [value])[0] for column, value in pairs]
    assert len(set(made)) == len(pairs)
    assert hash_ids("a", [""])[0] not in made


def test_equal_cells_of_two_columns_are_two_ids(tmp_path):
    path = tmp_path / "a.csv"
    rows = [f"{'b=c' if i % 2 else 'x'},{'c' if i % 3 else 'y'},{i % 2}" for i in range(120)]
    path.write_text("\n".join(["a,a=b,click", *rows]) + "\n")
    rows = read(path, found(path).schema)
    assert not set(ids(rows, "a")) & set(ids(rows, "a=b"))


# ---- what is missing -----------------------------------------------------------------------


def test_text_of_a_typed_file_is_text(write):
    words = ["NA", "None", "null", "nan", "?", None, "DE"]
    path = write("a.parquet", x=times(words))
    schema = found(path).schema
    made = ids(read(path, schema), "x")[: len(words)]
    assert len(set(made)) == len(words)
    assert made[5] == hash_ids("x", [""])[0]
    assert role(path).missing == times(words).count(None)


def test_csv_has_words_for_missing_and_they_are_an_option(write):
    words = ["NA", "null", "", "DE", "--"]
    path = write("a.csv", x=times(words))
    made = ids(read(path, found(path).schema), "x")[:5]
    assert made[0] == made[1] == made[2] == hash_ids("x", [""])[0]
    made = ids(read(path, found(path, missing=["--"]).schema), "x")[:5]
    assert made[2] == made[4] == hash_ids("x", [""])[0]
    assert len(set(made)) == 4


def test_missing_is_told_from_zero(write):
    """Also where a column is read only as a number."""
    path = write("a.csv", x=times([0, "", 5, 1.5]))
    for options in ({}, {"numeric": ["x"]}):
        schema = found(path, **options).schema
        rows = read(path, schema)
        assert np.isnan(rows.numeric[1, 0]) and rows.numeric[0, 0] == 0
        column = next(c.name for c in schema.categorical if c.name.startswith("x"))
        made = ids(rows, column)
        assert made[0] != made[1]
    assert [*schema.indicators.values()] == ["x"]


def test_na_in_numbers_is_missing_in_any_file(write):
    for name in ("a.csv", "a.parquet"):
        path = write(name, x=[str(i / 3) if i % 9 else "NA" for i in range(ROWS)])
        schema = found(path).schema
        assert schema.numeric == ["x"]
        assert np.isnan(read(path, schema).numeric[0, 0])


# ---- numbers -------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("spell", "delimiter"),
    [
        (lambda v: f"{v:.2f}".replace(".", ","), ";"),
        (lambda v: f"{v:,.2f}".translate(str.maketrans(",.", ".,")), ";"),
        (lambda v: f"{v:,.2f}", ";"),
        (lambda v: f'"{v:,.2f}"', ","),
        (lambda v: f"{v:,.2f}".replace(",", "'"), ","),
        (lambda v: f"{v:,.2f}".replace(",", "\u00a0").replace(".", ","), "\t"),
        (lambda v: f"{v:.2e}", ","),
    ],
)
def test_numbers_in_other_spellings(write, spell, delimiter):
    values = [float(f"{i * 37.25 + 0.5:.2e}") for i in range(ROWS)]
    path = write("a.csv", delimiter, x=[spell(v) for v in values])
    schema = found(path).schema
    assert schema.numeric == ["x"]
    assert np.array_equal(read(path, schema).numeric[:, 0], np.float32(values))


def test_whole_thousands_are_told_by_the_other_columns(write):
    """1.234 is a number of its own, or a thousand and some, as the file writes its others."""
    whole = [f"{i % 9 + 1}.{i * 7 % 1000:03}" for i in range(ROWS)]
    german = write("a.csv", ";", x=whole, y=[f"{i},5" for i in range(ROWS)], z=times([1, 3]))
    schema = found(german).schema
    assert sorted(schema.decimal_comma) == ["x", "y"]
    assert read(german, schema).numeric[1, schema.numeric.index("x")] == 2007
    english = write("b.csv", ";", x=whole, y=[f"{i}.5" for i in range(ROWS)])
    schema = found(english).schema
    assert schema.decimal_comma == []
    assert read(english, schema).numeric[1, schema.numeric.index("x")] == np.float32(2.007)


@pytest.mark.parametrize(
    ("center", "spread"),
    [
        (1.7e9, 1e5),
        (1e12, 10.0),
        (0.0, 1e-7),
        (0.0, 1e20),
        (-5e8, 1.0),
        (3e-9, 1e-12),
        (1e300, 1e298),
    ],
)
def test_any_offset_and_scale_reaches_the_model(write, center, spread):
    values = center + np.random.default_rng(0).normal(size=ROWS) * spread
    path = write("a.parquet", x=values)
    schema = found(path, numeric=["x"]).schema
    got = read(path, schema).numeric[:, 0].astype(np.float64)
    assert np.isfinite(got).all()
    assert 1e-3 < got.std() < 1e6
    assert np.corrcoef(got, (values - center) / spread)[0, 1] > 0.9999


@pytest.mark.parametrize("text", ["inf", "1e400", "-Infinity", "1e39"])
def test_what_is_no_float32_is_named(write, text):
    path = write("a.csv", x=[text if i == 3 else i / 7 for i in range(ROWS)])
    schema = found(path, numeric=["x"]).schema
    schema.scaling.clear()
    with pytest.raises(DataError, match=r"a\.csv:5: column 'x' holds"):
        read(path, schema)


def test_infinity_in_parquet_is_named(write):
    values = [float(i) / 7 for i in range(ROWS)]
    values[3] = float("inf")
    path = write("a.parquet", x=values)
    with pytest.raises(DataError, match=r"a\.parquet, row 4: column 'x' holds 'inf'"):
        read(path, found(path).schema)
    broken = BadRows(skip=True)
    assert len(read(path, found(path).schema, broken)) == ROWS - 1
    assert broken.count == 1


# ---- what whole numbers are ----------------------------------------------------------------


def whole_numbers(kind: str, rows: int = 3000) -> np.ndarray:
    draw = np.random.default_rng(0)
    if kind == "60 bits":
        return draw.choice(draw.integers(2**40, 2**60, 600), rows)
    if kind == "ten digits, again and again":
        return draw.choice(draw.integers(10**9, 10**10, 900), rows)
    if kind == "codes in a row":
        return draw.integers(0, 700, rows)
    if kind == "cents":
        return (draw.gamma(2, 50, rows) * 100).astype(int)
    if kind == "round sums":
        return draw.integers(1, 2000, rows) * 500
    return draw.lognormal(12, 1, rows).astype(int)


@pytest.mark.parametrize(
    ("kind", "is_id"),
    [
        ("60 bits", True),
        ("ten digits, again and again", True),
        ("codes in a row", True),
        ("cents", False),
        ("round sums", False),
        ("incomes", False),
    ],
)
def test_whole_numbers_are_ids_or_amounts(tmp_path, kind, is_id):
    values = whole_numbers(kind)
    path = tmp_path / "a.parquet"
    columns = {"x": values, "click": [i * 7 % 5 % 2 for i in range(len(values))]}
    parquet.write_table(pa.table(columns), path)
    inferred = infer([path], ["click"])
    assert (inferred.schema.numeric == []) == is_id
    assert (role(path).role == "id") == is_id


def test_text_that_may_be_meant_as_numbers_says_so(write):
    path = write("a.csv", x=["--" if i % 5 == 0 else i / 7 for i in range(ROWS)])
    assert role(path).why == "text, though 80% are numbers (--missing, --numeric)"
    assert role(path, missing=["--"]).role == "number"


def test_columns_that_say_nothing_are_left_out_and_named(write):
    columns = {
        "": range(ROWS),
        "Unnamed: 0": [i * 37 % ROWS for i in range(ROWS)],
        "row": range(10, 10 + ROWS),
        "same": ["x"] * ROWS,
        "zero": [0] * ROWS,
        "empty": [None] * ROWS,
        "hour": [i % 24 for i in range(ROWS)],
    }
    inferred = found(write("a.csv", **columns))
    why = {c.name: c.why for c in inferred.columns if c.role == "left out"}
    assert why == {
        "": "row labels of a data frame",
        "Unnamed: 0": "row labels of a data frame",
        "row": "counts the rows",
        "same": "the same value in every row",
        "zero": "the same value in every row",
        "empty": "every value is missing",
    }
    assert inferred.schema.columns == ["hour", "shop"]
    forced = found(write("a.csv", **columns), numeric=["row"], categorical=["same"])
    assert forced.schema.columns == ["row", "hour", "same", "shop"]


def test_row_labels_of_a_parquet_file_are_left_out(write):
    path = write("a.parquet", __index_level_0__=[i * 37 % ROWS for i in range(ROWS)])
    assert found(path).schema.columns == ["shop"]


def test_a_column_that_is_missing_here_and_there_is_kept(write):
    path = write("a.csv", x=times(["yes", None]))
    assert "x" in found(path).schema.columns


def test_nothing_left_to_learn_from_says_why(tmp_path):
    path = tmp_path / "a.csv"
    path.write_text("\n".join(["x,click", *(f"1,{i % 2}" for i in range(50))]))
    with pytest.raises(DataError, match="no column is left to learn from: 'x' the same value"):
        found(path)


# ---- times ---------------------------------------------------------------------------------

MOMENTS = [datetime.datetime(2024, 3, 1) + datetime.timedelta(hours=7 * i) for i in range(ROWS)]
EPOCH = datetime.datetime(1970, 1, 1)
SECONDS = [int((m - EPOCH).total_seconds()) for m in MOMENTS]


@pytest.mark.parametrize(
    ("suffix", "values", "form"),
    [
        ("csv", [m.isoformat() for m in MOMENTS], "y-m-d"),
        ("csv", [m.strftime("%Y/%m/%d %H:%M") for m in MOMENTS], "y-m-d"),
        ("csv", [m.strftime("%d.%m.%Y %H:%M:%S") for m in MOMENTS], "d.m.y"),
        ("csv", [m.strftime("%m/%d/%Y %I:%M %p") for m in MOMENTS], "m/d/y"),
        ("csv", [m.strftime("%d/%m/%Y %H:%M") for m in MOMENTS], "d/m/y"),
        ("csv", SECONDS, "s"),
        ("csv", [f"{s}.0" for s in SECONDS], "s"),
        ("parquet", [s * 1000 for s in SECONDS], "ms"),
        ("parquet", [s * 10**6 for s in SECONDS], "us"),
        ("parquet", MOMENTS, "y-m-d"),
        ("parquet", pa.array(MOMENTS, pa.timestamp("ns")), "y-m-d"),
        ("parquet", pa.array(MOMENTS, pa.timestamp("s", "Asia/Tokyo")), "y-m-d"),
    ],
)
def test_times_give_hour_weekday_and_age(write, suffix, values, form):
    path = write(f"a.{suffix}", at=values)
    inferred = found(path)
    schema = inferred.schema
    assert role(path, "at").role == "time"
    assert schema.numeric == ["at age"]
    assert {c.name for c in schema.categorical} == {"at hour", "at weekday", "shop"}
    assert {part.form for part in schema.times} == {form}
    rows = read(path, schema)
    assert ids(rows, "at hour") == hash_ids("at hour", [m.hour for m in MOMENTS]).tolist()
    days = [m.weekday() for m in MOMENTS]
    assert ids(rows, "at weekday") == hash_ids("at weekday", days).tolist()
    age = [(SECONDS[-1] - s) / 86_400 for s in SECONDS]
    assert rows.numeric[:, 0].tolist() == pytest.approx(age, abs=1e-4)


def test_dates_without_a_clock_have_no_hour(write):
    for values in ([m.date() for m in MOMENTS], [m.strftime("%Y%m%d") for m in MOMENTS]):
        schema = found(write("a.csv", day=values)).schema
        assert [part.part for part in schema.times] == ["weekday", "age"]


def test_a_missing_time_has_ids_of_its_own(write):
    path = write("a.csv", at=[None if i % 9 == 0 else m for i, m in enumerate(MOMENTS)])
    rows = read(path, found(path).schema)
    assert ids(rows, "at hour")[0] == hash_ids("at hour", [""])[0]
    assert np.isnan(rows.numeric[0, 0])


def test_a_broken_time_is_named(write):
    path = write("a.csv", at=["noon" if i == 3 else m for i, m in enumerate(MOMENTS)])
    with pytest.raises(DataError, match=r"a\.csv:5: column 'at' holds 'noon', where a time"):
        read(path, found(path).schema)


def test_dates_that_may_be_either_are_refused_with_a_way(write):
    path = write("a.csv", at=[f"{i % 12 + 1:02}/{i % 7 + 1:02}/2024" for i in range(ROWS)])
    with pytest.raises(DataError, match=r"column 'at': .* day or with the month first.*--ignore"):
        found(path)
    assert found(path, categorical=["at"]).schema.columns == ["at", "shop"]


def test_numbers_in_the_range_of_times_need_not_be_times(write):
    draw = np.random.default_rng(0)
    path = write("a.csv", account=draw.choice(draw.integers(10**9, 2 * 10**9, 40), ROWS).tolist())
    assert role(path, "account").role != "time"
    path = write("a.csv", user_id=[10**9 + i * 777_777 for i in range(ROWS)])
    assert role(path, "user_id").role == "id"


# ---- several values in a cell --------------------------------------------------------------


def test_text_with_bars_is_several_ids(write):
    cells = ["a|b", "b|c|a", "c", "", "a|c", "b | c"]
    path = write("a.csv", x=times(cells))
    schema = found(path).schema
    assert role(path).role == "ids"
    values, lengths = read(path, schema).bags["ids/x"]
    assert lengths[:6].tolist() == [2, 3, 1, 0, 2, 2]
    assert values[:10].tolist() == hash_ids("x", "abbcacacbc").tolist()
    once = write("b.csv", x=[f"{i}|{i + 1000}" for i in range(ROWS)])  # no value meets another
    assert role(once).role == "id"


def test_a_separator_can_be_given(write):
    path = write("a.csv", x=times(["a;b", "b;c;a", "c"]))
    assert role(path).role == "id"
    schema = found(path, lists={"x": ";"}).schema
    assert read(path, schema).bags["ids/x"][1][:3].tolist() == [2, 3, 1]


def test_lists_of_fractions_are_refused_with_a_way(write):
    path = write("a.parquet", x=times([[0.5, 1.25], [0.75]]))
    with pytest.raises(DataError, match=r"column 'x' holds lists of fractions.*--ignore 'x'"):
        found(path)
    assert found(path, ignore=["x"]).schema.columns == ["shop"]


@pytest.mark.parametrize("values", [[[["a"]]], [{"a": 1}], [b"\xff\xfe"]])
def test_what_is_no_value_is_refused_with_a_way(write, values):
    path = write("a.parquet", x=times(values))
    with pytest.raises(DataError, match=r"a\.parquet: column 'x' holds .*--ignore 'x'"):
        found(path)


# ---- the configuration ---------------------------------------------------------------------


def test_the_reading_is_kept_in_the_configuration(write):
    path = write("a.csv", ";", x=[f"{i},5" for i in range(ROWS)], at=MOMENTS)
    schema = found(path, missing=["--"]).schema
    config = LiRankConfig(schema)
    assert LiRankConfig.from_dict(config.to_dict()).schema == schema
    assert config.to_dict()["schema"]["version"] == 2


def test_ids_of_another_rule_are_refused():
    with pytest.raises(ConfigError, match="version: wanted 2, got 1: values became ids by another"):
        Schema(version=1)


def test_a_kind_is_checked():
    data = {"schema": {"categorical": [{"name": "x", "kind": "nummber"}]}}
    with pytest.raises(ConfigError, match="did you mean 'number'"):
        LiRankConfig.from_dict(data)
    assert Categorical("x", kind="number").kind == "number"
