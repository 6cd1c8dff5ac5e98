"""A model that ``lirank-ext export`` wrote, served without Python by ``examples/serve_cpp``."""

from __future__ import annotations

import dataclasses
import json
import re
import shutil
import subprocess
import urllib.error
import urllib.request
from pathlib import Path

import pytest
import torch
from conftest import REPOSITORY, free_port, needs_library

for name in ("pyarrow", "yaml", "safetensors", "sklearn", "tqdm"):
    pytest.importorskip(name)

from serve_values import literals  # noqa: E402
from test_training import write_csv  # noqa: E402
from test_training_cli import SMALL, refused, run  # noqa: E402

import lirank_ext  # noqa: E402
from lirank_ext.data.errors import DataError  # noqa: E402
from lirank_ext.data.json_rows import RowReader, parse_rows  # noqa: E402
from lirank_ext.models import (  # noqa: E402
    Categorical,
    History,
    LiRankConfig,
    Schema,
    Task,
    TimePart,
)
from lirank_ext.models.schema import Scaling  # noqa: E402
from lirank_ext.training import export  # noqa: E402
from lirank_ext.training.serving import RowScorer  # noqa: E402

HEADERS = ("nlohmann/json.hpp", "httplib.h")
MISSING = [tool for tool in ("cmake", "g++") if shutil.which(tool) is None]
MISSING += [
    h
    for h in HEADERS
    if not any(Path(p, h).is_file() for p in ("/usr/include", "/usr/local/include"))
]

pytestmark = [
    needs_library,
    pytest.mark.skipif(bool(MISSING), reason=f"the C++ server needs {', '.join(MISSING)}"),
]


@pytest.fixture(scope="module")
def server(tmp_path_factory):
    """The built program."""
    folder = tmp_path_factory.mktemp("build")
    source = REPOSITORY / "examples" / "serve_cpp"
    options = [f"-DCMAKE_PREFIX_PATH={torch.utils.cmake_prefix_path}", "-DCMAKE_BUILD_TYPE=Release"]
    for command in (
        ["cmake", "-S", source, "-B", folder, *options],
        ["cmake", "--build", folder],
    ):
        done = subprocess.run(command, capture_output=True, text=True)
        assert done.returncode == 0, done.stdout + done.stderr
    assert "warning" not in done.stdout + done.stderr
    return folder / "serve"


def serve(server, folder, lines, *options):
    """The answers to some lines."""
    text = "".join(line + "\n" for line in lines)
    done = subprocess.run(
        [server, folder, *options], input=text.encode(), capture_output=True, timeout=120
    )
    assert done.returncode == 0, done.stderr.decode()
    return [json.loads(line) for line in done.stdout.decode().splitlines()]


# ---- values become the same ids -----------------------------------------------------------


def described(schema: Schema, folder) -> Path:
    """A folder with all that the conversion reads."""
    folder.mkdir(parents=True)
    shutil.copyfile(lirank_ext.library_path(), folder / export.LIBRARY)
    model = dataclasses.asdict(LiRankConfig(schema))
    (folder / export.CONFIGURATION).write_text(json.dumps({"model": model}))
    files = {p.name: {"bytes": p.stat().st_size} for p in folder.iterdir()}
    manifest = {"format": export.FORMAT, "files": files, "inputs": []}
    (folder / export.MANIFEST).write_text(json.dumps(manifest))
    return folder


def assert_same_features(got, wanted):
    assert set(got) == set(wanted)
    for name, value in wanted.items():
        assert got[name]["shape"] == list(value.shape), name
        values = [float("nan") if v is None else v for v in got[name]["values"]]
        made = torch.tensor(values, dtype=value.dtype).reshape(value.shape)
        # JSON has no infinity either; a model takes one for a missing number, as it does NaN.
        value = (
            value.masked_fill(value.isinf(), float("nan")) if made.is_floating_point() else value
        )
        assert torch.equal(made.nan_to_num(123.0), value.nan_to_num(123.0)), name


KINDS = ("text", "number", "boolean", "y-m-d", "d.m.y", "d/m/y", "m/d/y", "yyyymmdd", "s", "ms")


def test_hundreds_of_values_have_the_ids_of_training(server, tmp_path):
    columns = [Categorical(f"of {kind}", table=kind, kind=kind) for kind in KINDS]
    columns += [
        Categorical("comma", kind="number"),
        Categorical("split", separator="|", prefix="é:"),
        Categorical("numbers", separator="|", kind="number"),
        Categorical("split by two", separator="||"),
        Categorical("popular", kind="number"),
    ]
    schema = Schema(
        categorical=columns,
        history=[
            History("past", "numbers", "done", separator="|", newest_first=False),
            History("seen", "split", separator=" "),
        ],
        popularity="popular",
        decimal_comma=["comma"],
        tasks=[Task("y")],
    )
    found = literals()
    assert len(set(found)) > 400
    names = [c.name for c in columns] + ["seen"]
    rows = []
    for value in found:
        cells = {json.dumps(name): value for name in names}
        for name in ("past", "done"):
            cells[json.dumps(name)] = value
        rows.append("{" + ",".join(f"{k}:{v}" for k, v in cells.items()) + "}")
    # Lists, with a missing value and one of each kind in them, in columns that take them.
    listed = {n: "[" + ",".join([*found[:40], "null", "true", "7.0"]) + "]" for n in names}
    listed |= {"past": "[1,2,3]", "done": '["a",null,"b"]', "popular": "7.0"}
    rows.append("{" + ",".join(f"{json.dumps(k)}:{v}" for k, v in listed.items()) + "}")
    request = "[" + ",".join(rows) + "]"
    wanted = RowReader(schema).features(parse_rows(request))
    (got,) = serve(server, described(schema, tmp_path / "m"), [request], "--features")
    assert_same_features(got, wanted)


NUMERIC = {
    "plain": Schema(numeric=["x"]),
    "scaled": Schema(numeric=["x"], scaling={"x": Scaling(40.25, 3.7)}),
    "comma": Schema(numeric=["x"], decimal_comma=["x"]),
    "bins": Schema(categorical=[Categorical("x", edges=[-1.0, 0.0, 0.1, 7.0, 1e9])]),
    "there": Schema(categorical=[Categorical("has x")], indicators={"has x": "x"}),
    "missing": Schema(numeric=["x"], missing=["-7", "a"]),
    **{
        form: Schema(
            numeric=["age"],
            categorical=[Categorical("hour"), Categorical("weekday")],
            times=[TimePart(p, "x", p, form, 1e9) for p in ("age", "hour", "weekday")],
        )
        for form in ("y-m-d", "m/d/y", "s", "ms")
    },
}


@pytest.mark.parametrize("name", NUMERIC)
def test_numbers_and_times_are_read_or_refused_alike(server, tmp_path, name):
    schema = NUMERIC[name]
    reader, folder = RowReader(schema), described(schema, tmp_path / "m")
    lines = [f'{{"x":{value}}}' for value in literals() if value != '"\\n"']
    answers = serve(server, folder, lines, "--features")
    read = 0
    for line, got in zip(lines, answers, strict=True):
        try:
            wanted = reader.features(parse_rows(line))
        except DataError as error:
            assert got.get("error") == str(error).replace("the request: ", ""), line
            continue
        read += 1
        assert "error" not in got, (line, got)
        assert_same_features(got, wanted)
    assert 10 < read < len(lines)


@pytest.mark.parametrize(
    ("request_", "words"),
    [
        ("[", "no JSON"),
        ("[]", "no rows"),
        ("7", "row 1: wanted an object"),
        ('[{"x":1},7]', "row 2: wanted an object"),
        ('{"y":1}', "column 'x' is not there"),
        ('{"x":{}}', "column 'x' holds an object"),
        ('{"x":[1]}', "column 'x' holds a list"),
        ('{"x":1e400}', "beyond float64"),
        ('{"x":NaN}', "no JSON"),
        ('{"x":"\\ud800"}', "UTF-8|no JSON"),
    ],
)
def test_requests_that_fit_neither(server, tmp_path, request_, words):
    schema = Schema(numeric=["x"])
    with pytest.raises(DataError, match=words):
        RowReader(schema).features(parse_rows(request_))
    (got,) = serve(server, described(schema, tmp_path / "m"), [request_], "--features")
    assert re.search(words, got["error"])


# ---- a whole model ------------------------------------------------------------------------


@pytest.fixture(scope="module")
def exported(tmp_path_factory):
    """A trained model, what ``export`` wrote of it, and the data."""
    folder = tmp_path_factory.mktemp("exported")
    data = write_csv(folder / "clicks.csv", 300)
    torch.set_num_threads(1)
    wide = [*SMALL, "--set", "model.embedding.dim=24", "--epochs", "1"]
    assert run("train", data, "--label", "click", "--output", folder / "model", *wide) == 0
    json_file = folder / "e.json"
    assert run("export", folder / "model", "--output", folder / "out", "--json", json_file) == 0
    return folder / "model", folder / "out", data, json.loads(json_file.read_text())


def test_export_writes_a_whole_folder(exported, capsys):
    model, out, _, figures = exported
    manifest = json.loads((out / "manifest.json").read_text())
    assert manifest == figures["manifest"]
    names = {p.name for p in out.iterdir()}
    assert names == {"manifest.json", *manifest["files"]}
    assert names >= {"model.pt2", "liblirank.so", "configuration.json", "example.json"}
    for name, file in manifest["files"].items():
        assert export._file(out / name) == file
    assert [o["columns"] for o in manifest["outputs"]] == [["click"]]
    assert len(figures["difference"]) >= 4 and max(figures["difference"].values()) < 1e-5
    assert not list(out.parent.glob("*.new"))
    assert "is there already" in refused(capsys, "export", model, "--output", out)
    no_export = refused(capsys, "export", model, "--output", model, "--overwrite")
    assert "is no exported model" in no_export
    both = refused(
        capsys, "export", model, "--output", out.parent / "x", "--bits", 4, "--no-quantize"
    )
    assert "exclude each other" in both


def test_a_package_that_differs_is_not_written(exported, tmp_path, capsys, monkeypatch):
    model, _, _, _ = exported
    load = export.load_package
    monkeypatch.setattr(export, "compile_package", lambda m, f, path: path.touch())

    def other(path, names):
        return lambda features: torch.full((len(features["numeric"]), 1), 0.5)

    monkeypatch.setattr(export, "load_package", other)
    assert "differ by" in refused(capsys, "export", model, "--output", tmp_path / "x")
    assert not list(tmp_path.iterdir())
    assert load is not other


def rows_of(data):
    header, *lines = data.read_text().splitlines()
    names = header.split(",")
    return [dict(zip(names, line.split(","), strict=True)) for line in lines]


def test_the_server_gives_the_scores_of_predict(exported, server, tmp_path, capsys):
    model, out, data, _ = exported
    small = tmp_path / "int8"
    assert run("quantize", model, "--output", small) == 0
    assert run("predict", small, data, "--output", tmp_path / "p.csv") == 0
    wanted = [float(v.split(",")[0]) for v in (tmp_path / "p.csv").read_text().splitlines()[1:]]
    rows = rows_of(data)
    one, several, none = rows[0], rows[1:], {"user": None, "item": "", "age": None, "past": []}
    lines = [json.dumps(one), json.dumps(several), json.dumps(none), '{"user":1}']
    first, rest, empty, bad = serve(server, out, lines)
    got = torch.tensor([p for (p,) in first["probabilities"] + rest["probabilities"]])
    torch.testing.assert_close(got, torch.tensor(wanted), rtol=1e-5, atol=1e-5)
    scorer = RowScorer(small)
    assert empty["probabilities"][0] == pytest.approx(scorer.score([none])[0].tolist(), abs=1e-5)
    assert "'item' is not there" in bad["error"] or "'age' is not there" in bad["error"]
    torch.testing.assert_close(
        scorer.score(rows).squeeze(1), torch.tensor(wanted), rtol=1e-5, atol=1e-5
    )


def test_the_server_answers_http(exported, server):
    _, out, data, _ = exported
    port = free_port()
    command = [server, out, "--port", str(port)]
    with subprocess.Popen(command, stderr=subprocess.PIPE, text=True) as process:
        try:
            assert any("listening" in line for line in iter(process.stderr.readline, ""))
            where = f"http://127.0.0.1:{port}"
            assert json.load(urllib.request.urlopen(f"{where}/health")) == {"status": "ok"}
            rows = rows_of(data)[:3]
            answer = json.load(urllib.request.urlopen(f"{where}/score", json.dumps(rows).encode()))
            (lines,) = serve(server, out, [json.dumps(rows)])
            assert answer == lines
            with pytest.raises(urllib.error.HTTPError, match="422"):
                urllib.request.urlopen(f"{where}/score", b"{}")
        finally:
            process.terminate()


def test_folders_that_cannot_be_served(exported, server, tmp_path):
    _, out, _, _ = exported

    def sentence(**change):
        folder = tmp_path / "changed"
        shutil.rmtree(folder, ignore_errors=True)
        shutil.copytree(out, folder)
        path = folder / "manifest.json"
        path.write_text(json.dumps({**json.loads(path.read_text()), **change}))
        done = subprocess.run([server, folder], input="", capture_output=True, text=True)
        assert done.returncode == 2
        return done.stderr

    assert "wanted a folder of format" in sentence(format="another")
    assert "not the size" in sentence(files={"model.pt2": {"bytes": 1}})
    wrong = json.loads((out / "example.json").read_text())
    folder = tmp_path / "scores"
    shutil.copytree(out, folder)
    wrong["probabilities"][0][0] += 0.1
    (folder / "example.json").write_text(json.dumps(wrong))
    manifest = json.loads((folder / "manifest.json").read_text())
    manifest["files"].pop("example.json")
    (folder / "manifest.json").write_text(json.dumps(manifest))
    done = subprocess.run([server, folder], input="", capture_output=True, text=True)
    assert done.returncode == 2 and "other scores than in Python" in done.stderr
