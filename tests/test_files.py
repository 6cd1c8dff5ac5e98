"""Files as people have them: compressed, in folders, of differing types, without a header line."""

from __future__ import annotations

import bz2
import functools
import gzip
import lzma

import numpy as np
import pytest

pa = pytest.importorskip("pyarrow")

from test_reading import ROWS, found, ids, read, times, write_file  # noqa: E402

from lirank_ext.data.broken import BadRows  # noqa: E402
from lirank_ext.data.columns import hash_ids  # noqa: E402
from lirank_ext.data.errors import DataError  # noqa: E402
from lirank_ext.data.infer import infer  # noqa: E402
from lirank_ext.data.reading import Reading  # noqa: E402
from lirank_ext.data.source import Source  # noqa: E402


@pytest.fixture
def write(tmp_path):
    return functools.partial(write_file, tmp_path)


def test_packed_files_are_known_by_their_first_bytes(write, tmp_path):
    plain = write("a.csv", x=times(["a", "b", "c"]))
    schema, text = found(plain).schema, plain.read_bytes()
    wanted = ids(read(plain, schema), "x")
    packed = {"gz": gzip.compress, "bz2": bz2.compress, "xz": lzma.compress}
    packed["zst"] = lambda data: pa.compress(data, "zstd", asbytes=True)
    for name, pack in packed.items():
        for suffix in (name, "dat"):
            path = tmp_path / f"b.csv.{suffix}"
            path.write_bytes(pack(text))
            assert ids(read(path, schema), "x") == wanted, path
    renamed = tmp_path / "table"
    renamed.write_bytes(write("c.parquet", x=times(["a", "b", "c"])).read_bytes())
    assert ids(read(renamed, schema), "x") == wanted


@pytest.mark.parametrize(
    ("start", "said"),
    [
        (b"PK\x03\x04", "a spreadsheet or a zip archive"),
        (b'{"user": 1}\n', "JSON"),
        ("a,b\n1,2\n".encode("utf-16"), "UTF-16"),
        (b"a,b\r1,2\r", "carriage return alone"),
        ("naïve,b\n1,2\n".encode("latin-1"), "not UTF-8 text"),
    ],
)
def test_other_files_are_named_for_what_they_are(tmp_path, start, said):
    path = tmp_path / "a.csv"
    path.write_bytes(start)
    with pytest.raises(DataError, match=said):
        Source([path], [])


def test_a_folder_of_part_files(write, tmp_path):
    for i, day in enumerate(("2024-03-01", "__HIVE_DEFAULT_PARTITION__", "2024-03-03")):
        folder = tmp_path / "log" / f"day={day}"
        folder.mkdir(parents=True)
        write("part.parquet", x=times(["a", "b", str(i)])).rename(
            folder / f"part-{i}.snappy.parquet"
        )
        (folder / f".part-{i}.crc").write_bytes(b"crc")
    (tmp_path / "log" / "_SUCCESS").touch()
    inferred = found([tmp_path / "log"])
    assert {"day", "x", "shop"} == {*inferred.schema.columns}
    rows = read([tmp_path / "log"], inferred.schema)
    assert len(rows) == 3 * ROWS
    parts = {name: ids(rows, name) for name in ("x", "shop")}
    assert set(parts["x"]) == set(hash_ids("x", ["a", "b", 0, 1, 2]).tolist())
    column = next(k for k in rows.bags if k.startswith("ids/day"))
    assert set(ids(rows, column[4:])[2 * ROWS :]) == {hash_ids(column[4:], [""])[0]}
    (tmp_path / "empty").mkdir()
    with pytest.raises(DataError, match="empty: a folder without files"):
        Source([tmp_path / "empty"], [])
    (tmp_path / "log" / "_delta_log").mkdir()
    with pytest.raises(DataError, match="a Delta table"):
        Source([tmp_path / "log"], [])


def test_files_of_other_types_are_read_together(write):
    paths = [
        write("a.csv", x=times([1, 2, 3]), y=times([1.5, 2])),
        write("b.parquet", x=times([1, 2, None]), y=times([1, 2])),
        write("c.parquet", x=times([1.0, 2.0, 3.0]), y=times(["1.5", "2"])),
        write("d.parquet", x=times(["1", "2", "3"]), y=pa.array(times([None, None]), pa.null())),
    ]
    schema = found(paths, categorical=["x"]).schema
    rows = read(paths, schema)
    assert set(ids(rows, "x")) == set(hash_ids("x", ["1", "2", "3", ""]).tolist())
    assert np.isnan(rows.numeric[-ROWS:]).all()


def test_a_file_without_a_header_is_told_and_read_by_names(tmp_path):
    draw = np.random.default_rng(0)
    lines = ["\t".join([str(i % 2), str(i % 50), "", f"h{draw.integers(99)}"]) for i in range(ROWS)]
    path = tmp_path / "train.txt"
    path.write_text("\n".join(lines) + "\n")
    with pytest.raises(DataError, match=r"train\.txt:1: no header line.*--names"):
        infer([path], None)
    names = ["click", "count", "other", "shop"]
    schema = infer([path], ["click"], Reading(names=names)).schema
    assert schema.names == names
    rows = read(path, schema)
    assert len(rows) == ROWS
    assert ids(rows, "count") == hash_ids("count", [i % 50 for i in range(ROWS)]).tolist()
    # The same with a header, and with the mark that some programs write first.
    headed = tmp_path / "headed.txt"
    headed.write_text("\ufeff" + "\n".join(["\t".join(names), *lines]) + "\n", encoding="utf-8")
    marked = tmp_path / "marked.txt"
    marked.write_text("\ufeff" + "\n".join(lines) + "\n", encoding="utf-8")
    for other in (headed, marked):
        assert ids(read(other, schema), "count") == ids(rows, "count")
    broken = tmp_path / "broken.txt"
    broken.write_text("\n".join([*lines[:5], "1\t2", *lines[5:]]) + "\n")
    with pytest.raises(DataError, match=r"broken\.txt:6: 2 fields, where there are names for 4"):
        read(broken, schema)
    skipping = BadRows(skip=True)
    source = Source([broken], ["click"], skipping, names)
    assert source.count() == ROWS
    with pytest.raises(DataError, match="4 fields, where there are 3 names"):
        infer([path], ["click"], Reading(names=names[:3]))


def test_years_as_names_are_a_header(tmp_path):
    path = tmp_path / "a.csv"
    path.write_text(
        "\n".join(["2019,2020,click", *(f"{i % 9},{i % 7},{i % 2}" for i in range(50))])
    )
    assert found(path).schema.numeric == ["2019", "2020"]
