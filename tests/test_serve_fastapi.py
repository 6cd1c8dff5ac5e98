"""``examples/serve_fastapi``: a server of scores with shared weights, exchanged while it serves."""

from __future__ import annotations

import asyncio
import json
import os
import signal
import subprocess
import sys
import threading
import time

import pytest
import torch
from conftest import REPOSITORY, free_port

for name in ("pyarrow", "safetensors", "fastapi", "uvicorn", "httpx", "prometheus_client"):
    pytest.importorskip(name)

import httpx  # noqa: E402
from fastapi.testclient import TestClient  # noqa: E402
from test_training import make_config, write_csv  # noqa: E402

import lirank_ext  # noqa: E402
from lirank_ext.models import LiRank  # noqa: E402
from lirank_ext.training.predict import Predictor  # noqa: E402
from lirank_ext.training.serving import RowScorer  # noqa: E402
from lirank_ext.training.session import load_model, open_model, save_model  # noqa: E402

EXAMPLE = REPOSITORY / "examples" / "serve_fastapi"
ROW = {"user": "u1", "item": "i2", "age": 40.5, "past": ["i1", "i2"]}


@pytest.fixture(autouse=True)
def _as_the_example_runs(monkeypatch, threads):
    threads(1)
    monkeypatch.syspath_prepend(str(EXAMPLE))


def save(folder, seed, bits=8):
    """A model of its own in a folder."""
    config = make_config()
    config.model.embedding.dim = 24  # narrower rows are no smaller in 8 bits
    torch.manual_seed(seed)
    model = LiRank(config.model).eval()
    if bits:
        assert lirank_ext.quantize(model, bits).replaced
    folder.mkdir()
    save_model(folder, model, config)
    return folder


@pytest.fixture
def root(tmp_path):
    """Two models, the first of which is served."""
    save(tmp_path / "one", 1)
    save(tmp_path / "two", 2)
    (tmp_path / "current").symlink_to("one")
    return tmp_path


def point(root, name):
    """Let the link point to another model, at once."""
    (root / "next").symlink_to(name)
    os.replace(root / "next", root / "current")


@pytest.fixture
def client(root, monkeypatch):
    monkeypatch.setenv("LIRANK_MODELS", str(root))
    monkeypatch.delenv("PROMETHEUS_MULTIPROC_DIR", raising=False)
    from app import app

    with TestClient(app) as client:
        yield client


def probabilities(client, rows=ROW):
    answer = client.post("/score", json=rows)
    assert answer.status_code == 200, answer.text
    return answer.json()["probabilities"]


def until(condition, patience=30.0):
    end = time.monotonic() + patience
    while not condition():
        assert time.monotonic() < end, "it never came true"
        time.sleep(0.05)


def test_scores_are_those_of_predict(client, root):
    data = write_csv(root / "a.csv", 40)
    header, *lines = data.read_text().splitlines()
    rows = [dict(zip(header.split(","), line.split(","), strict=True)) for line in lines]
    used = open_model(root / "one", [data], labels=False)
    (scores,) = Predictor(used)
    wanted = torch.from_numpy(scores.probabilities)
    torch.testing.assert_close(torch.tensor(probabilities(client, rows)), wanted)
    torch.testing.assert_close(torch.tensor(probabilities(client, rows[0])), wanted[:1])


def test_requests_that_cannot_be_read(client):
    for body, words in (("[", "no JSON"), ('{"user": 1}', "is not there"), ("[]", "no rows")):
        answer = client.post("/score", content=body)
        assert answer.status_code == 422
        assert words in answer.json()["error"]
    metrics = client.get("/metrics").text
    assert 'lirank_requests_total{status="422"}' in metrics


def test_health_columns_and_metrics(client):
    assert client.get("/health").json() == {"status": "ok", "model": "one", "worker": os.getpid()}
    described = client.get("/columns").json()
    assert set(described["columns"]) == set(ROW) and described["tasks"] == ["click"]
    before = client.get("/metrics").text
    probabilities(client, described["rows"])
    after = client.get("/metrics").text

    def rows(text):
        return float(next(w.split()[1] for w in text.splitlines() if w.startswith("lirank_rows_t")))

    assert rows(after) == rows(before) + 2
    assert "lirank_request_seconds_bucket" in after


def test_another_model_takes_over_whole(client, root):
    expected = {n: RowScorer(root / n).score([ROW])[0].tolist() for n in ("one", "two")}
    assert expected["one"] != expected["two"]
    answers, stop = [], threading.Event()

    def ask():
        while not stop.is_set():
            answers.append(client.post("/score", json=ROW).json())

    thread = threading.Thread(target=ask)
    thread.start()
    try:
        point(root, "two")
        until(lambda: client.get("/health").json()["model"] == "two")
    finally:
        stop.set()
        thread.join()
    # Every answer is one model's in full, and names it.
    for answer in answers:
        assert answer["probabilities"][0] == pytest.approx(expected[answer["model"]], abs=1e-6)
    assert answers and probabilities(client)[0] == pytest.approx(expected["two"], abs=1e-6)


def test_a_damaged_model_does_not_take_over(client, root):
    wanted = probabilities(client)
    (root / "bad").mkdir()
    data = (root / "two" / "model.safetensors").read_bytes()
    (root / "bad" / "model.safetensors").write_bytes(data[:-100])
    point(root, "bad")
    until(lambda: 'event="failed swap"' in client.get("/metrics").text)
    assert client.get("/health").json()["model"] == "one"
    assert probabilities(client) == wanted


@pytest.mark.parametrize("bits", [8, 4, None])
def test_rows_change_while_serving(tmp_path, monkeypatch, bits):
    save(tmp_path / "one", 1, bits)
    (tmp_path / "current").symlink_to("one")
    file = tmp_path / "one" / "model.safetensors"
    before = file.read_bytes()
    monkeypatch.setenv("LIRANK_MODELS", str(tmp_path))
    from app import app

    with TestClient(app) as client:
        tables = client.get("/tables").json()
        name = next(n for n in tables if n.endswith("quotient_b"))
        assert tables[name]["dim"] == 24 and tables[name]["bits"] == bits
        old = probabilities(client)
        rows = list(range(tables[name]["rows"]))
        values = torch.linspace(-3, 3, 24).repeat(len(rows), 1)
        change = {"table": name, "rows": rows, "values": values.tolist()}
        assert client.post("/rows", json=change).status_code == 200
        new = probabilities(client)
        assert new != old
        for wrong, words in (
            ({**change, "table": "x"}, "there is no table"),
            ({**change, "rows": [10**6], "values": values[:1].tolist()}, "has the rows 0 to"),
            ({**change, "values": [[1.0]]}, "wanted one list of 24 values"),
            ({**change, "rows": [0], "values": [[1e39] * 24]}, "not finite"),
            ({**change, "rows": [0], "values": [["x"] * 24]}, "wanted numbers"),
        ):
            answer = client.post("/rows", json=wrong)
            assert answer.status_code == 422 and words in answer.json()["error"], wrong
        assert probabilities(client) == new
    # The file is as it was, and the changed rows come with the model when it is loaded again.
    assert file.read_bytes() == before
    model, _ = load_model(tmp_path / "one")
    with TestClient(app) as client:
        assert probabilities(client) == new
    import updates

    updates.put(model, name, torch.tensor(rows), values)
    scorer = RowScorer(tmp_path / "one")
    scorer.model = model
    assert scorer.score([ROW])[0].tolist() == pytest.approx(new[0], abs=1e-6)


def test_updates_that_come_late_end_alike(root):
    import updates

    name, rows = "tables.t_ids.quotient_b", torch.tensor([3])
    first, second = (torch.full((1, 24), v) for v in (1.0, 2.0))
    early = updates.write(root / "one", name, rows, first)
    late = updates.write(root / "one", name, rows, second)
    assert early.name < late.name
    models = []
    for hidden in (None, early):
        model = load_model(root / "one", mmap=True)[0]
        applied = updates.Applied()
        if hidden is not None:
            hidden.rename(root / "hidden")
            assert applied.take(model, root / "one") == 1
            (root / "hidden").rename(hidden)
        applied.take(model, root / "one")
        assert applied.take(model, root / "one") == 0 and not applied.failed
        models.append(model)
    one, other = (m.get_submodule("tables.t_ids").quotient_b for m in models)
    assert torch.equal(one, other)
    wanted = lirank_ext.pack_rows(*lirank_ext.quantize_rows(second, 8), 8)
    assert torch.equal(one[3], wanted[0])
    (root / "one" / "updates" / "z.safetensors").write_bytes(b"no file")
    assert applied.take(model, root / "one") == 0 and "z.safetensors" in applied.failed[0]


def test_too_many_waiting_requests_are_refused(root):
    from served import Busy, Served

    served = Served(root, most=2)
    body = json.dumps(ROW).encode()

    async def flood():
        jobs = (served.score(body) for _ in range(5))
        return await asyncio.gather(*jobs, return_exceptions=True)

    answers = asyncio.run(flood())
    served.close()
    assert [isinstance(a, Busy) for a in answers] == [False, False, True, True, True]


def test_two_workers_serve_under_load(root):
    port = free_port()
    url = f"http://127.0.0.1:{port}"
    command = [sys.executable, EXAMPLE / "serve.py", root, "--workers", "2", "--port", str(port)]
    environment = {**os.environ, "PYTHONPATH": str(REPOSITORY)}
    process = subprocess.Popen(command, env=environment, stderr=subprocess.DEVNULL)
    try:

        def worker():
            try:
                return httpx.get(f"{url}/health", timeout=5).json()["worker"]
            except httpx.TransportError:
                return None

        seen = set()
        until(lambda: seen.add(worker()) or len(seen - {None}) == 2, 120)
        test = [sys.executable, EXAMPLE / "load_test.py", "--url", url, "--json"]
        options = ["--qps", "20", "--seconds", "2", "--rows", "3"]
        done = subprocess.run([*test, *options], capture_output=True, text=True, env=environment)
        assert done.returncode == 0, done.stderr + done.stdout
        figures = json.loads(done.stdout)
        assert figures["errors"] == 0 and figures["requests"] == 40
        assert 0 < figures["p50_ms"] <= figures["p99_ms"]
        # A change that one worker takes reaches the other one.
        tables = httpx.get(f"{url}/tables").json()
        name = next(iter(tables))
        rows = list(range(tables[name]["rows"]))
        change = {
            "table": name,
            "rows": rows,
            "values": [[float(i) for i in range(24)]] * len(rows),
        }
        assert httpx.post(f"{url}/rows", json=change, timeout=30).status_code == 200

        def events():
            return 'lirank_events_total{event="update"} 2.0' in httpx.get(f"{url}/metrics").text

        until(events)
        scores = {str(httpx.post(f"{url}/score", json=ROW).json()) for _ in range(20)}
        assert len(scores) == 1
    finally:
        process.send_signal(signal.SIGTERM)
        process.wait(60)


def mapped_files():
    """Names of the files that lie in this process's memory."""
    with open("/proc/self/maps") as file:
        return {line.split()[-1] for line in file if "/" in line}


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="reads /proc")
@pytest.mark.parametrize("bits", [8, None])
def test_mapped_weights_stay_in_the_file_and_others_do_not(tmp_path, bits):
    path = str(save(tmp_path / "one", 1, bits) / "model.safetensors")
    copied = RowScorer(tmp_path / "one")
    assert path not in mapped_files()
    mapped = RowScorer(tmp_path / "one", mmap=True)
    assert path in mapped_files()
    # PyTorch's own products may round otherwise where the file puts a weight off a vector's bounds.
    torch.testing.assert_close(copied.score([ROW]), mapped.score([ROW]), rtol=1e-6, atol=1e-6)
