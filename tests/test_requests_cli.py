"""``predict --group-by``: the same probabilities as row by row."""

from __future__ import annotations

import csv

import pytest

for name in ("pyarrow", "yaml", "safetensors", "sklearn", "tqdm"):
    pytest.importorskip(name)

from test_training_cli import SMALL, refused, run  # noqa: E402

import lirank_ext.models.lirank  # noqa: E402


@pytest.fixture(autouse=True)
def _one_thread(threads):
    threads(1)


HEADER = ["user", "age", "country", "item", "price", "seen", "click"]


def grouped_rows(requests: int = 40) -> list[list[str]]:
    """Requests with 1 to 9 rows; users, ages, countries and seen items are the same in each."""
    rows = []
    for request in range(requests):
        age = "" if request % 7 == 3 else str(20 + request % 50)
        seen = " ".join(f"i{(request * k) % 11}" for k in range(1, 1 + request % 4))
        same = [f"u{request}", age, ("de", "fr", "us")[request % 3]]
        for item in range(1 + request % 9):
            price = f"{(request * 7 + item * 13) % 100 / 10}"
            label = str(int((request + item) % 3 == 0))
            rows.append([*same, f"i{(request + item) % 11}", price, seen, label])
    return rows


def write(path, rows):
    with open(path, "w", newline="") as file:
        csv.writer(file).writerows([HEADER, *rows])
    return path


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    folder = tmp_path_factory.mktemp("grouped")
    data = write(folder / "rows.csv", grouped_rows())
    train = ("train", data, "--label", "click", "--output", folder / "m", *SMALL)
    assert run(*train, "--epochs", "1", "--list", "seen= ") == 0
    return folder / "m", data


REQUEST = [o for c in ("age", "country", "seen", "user") for o in ("--request", c)]


def predicted(text):
    return [[float(p), key] for p, key in list(csv.reader(text.splitlines()))[1:]]


def test_predict_by_requests_gives_the_same(trained, capsys, monkeypatch):
    model, data = trained
    capsys.readouterr()
    assert run("predict", model, data, "--key", "item") == 0
    plain = predicted(capsys.readouterr().out)
    sizes = []
    score = lirank_ext.models.lirank.LiRank.score

    def counted(self, request, items, counts):
        sizes.extend(counts.tolist())
        return score(self, request, items, counts)

    monkeypatch.setattr(lirank_ext.models.lirank.LiRank, "score", counted)
    assert run("predict", model, data, "--key", "item", "--group-by", "user", *REQUEST) == 0
    by_request = predicted(capsys.readouterr().out)
    assert [key for _, key in by_request] == [key for _, key in plain]
    assert [p for p, _ in by_request] == pytest.approx([p for p, _ in plain], abs=1e-5)
    # A batch ends after 64 rows, in the middle of a request.
    assert sum(sizes) == len(plain) and 40 <= len(sizes) <= 45


def test_what_predict_by_requests_refuses(trained, tmp_path, capsys):
    model, data = trained
    assert "name them with --request" in refused(
        capsys, "predict", model, data, "--group-by", "user"
    )
    assert "no column 'usr'; did you mean 'user'?" in refused(
        capsys, "predict", model, data, "--group-by", "usr", *REQUEST
    )
    assert "--request color: the model reads no such column" in refused(
        capsys, "predict", model, data, "--group-by", "user", "--request", "color"
    )
    assert "only --group-by makes use of it" in refused(capsys, "predict", model, data, *REQUEST)
    rows = grouped_rows()
    for column, value in ((1, "99"), (2, "xx"), (5, "i1 i2 i3")):
        changed = [list(row) for row in rows]
        changed[5][column] = value
        path = write(tmp_path / "changed.csv", changed)
        text = refused(capsys, "predict", model, path, "--group-by", "user", *REQUEST)
        assert f"column '{HEADER[column]}' belongs to the request, but differs between rows" in text
