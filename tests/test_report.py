"""``lirank-ext report``: its figures, and one HTML file that needs no other."""

from __future__ import annotations

import csv
import json
import random
import re
import shutil
import subprocess
from html.parser import HTMLParser

import numpy as np
import pytest
import torch

for name in ("pyarrow", "yaml", "safetensors", "sklearn", "tqdm", "matplotlib"):
    pytest.importorskip(name)

from test_training_cli import SMALL, refused, run  # noqa: E402

from lirank_ext.nn.cross import LowRankCross  # noqa: E402
from lirank_ext.report import layers  # noqa: E402
from lirank_ext.report.measure import Task  # noqa: E402
from lirank_ext.report.segments import Groups, segments  # noqa: E402
from lirank_ext.training.session import load_model  # noqa: E402

CHROMIUM = shutil.which("chromium") or shutil.which("google-chrome")


def write(path, rows=600):
    """Clicks that depend on the item and the device, with a missing device now and then."""
    draw = random.Random(0)
    with open(path, "w", newline="") as file:
        lines = csv.writer(file)
        lines.writerow(["item", "device", "tags", "price", "click"])
        for _ in range(rows):
            item, price = draw.randrange(30), round(draw.uniform(1, 100), 2)
            device = draw.choice(["phone", "desktop", "<tv>", ""])
            click = int(draw.random() < 0.1 + 0.5 * (item % 3 == 0) + 0.2 * (device == "phone"))
            lines.writerow([f"i{item}", device, draw.choice(["a|b", "c"]), price, click])
    return path


@pytest.fixture(scope="module")
def reported(tmp_path_factory):
    """A page and its figures, of a model with both kinds of cross layers."""
    torch.set_num_threads(1)
    folder = tmp_path_factory.mktemp("reported")
    data = write(folder / "clicks.csv")
    options = [*SMALL, "--preset", "feed", "--output", folder / "model"]
    assert run("train", data, "--label", "click", *options) == 0
    page, figures = folder / "report.html", folder / "figures.json"
    assert run("report", folder / "model", data, "--output", page, "--json", figures) == 0
    return folder, page.read_text(encoding="utf-8"), json.loads(figures.read_text())


class Reader(HTMLParser):
    """Collects what a test asks of a page."""

    def __init__(self, page: str) -> None:
        super().__init__()
        self.tags: list[tuple[str, dict[str, str | None]]] = []
        self.text = ""
        self.feed(page)

    def handle_starttag(self, tag, attrs):
        self.tags.append((tag, dict(attrs)))

    def handle_startendtag(self, tag, attrs):
        self.tags.append((tag, dict(attrs)))

    def handle_data(self, data):
        self.text += data


def test_the_page_needs_nothing_else(reported):
    _, page, _ = reported
    assert "http" not in page and "@import" not in page
    tags = Reader(page).tags
    assert not {"script", "link", "iframe", "img"} & {tag for tag, _ in tags}
    for _, attributes in tags:
        for name in ("src", "href", "xlink:href"):
            value = attributes.get(name)
            assert value is None or value.startswith(("#", "data:image/png;base64,"))
    assert all(part.startswith("#") for part in re.findall(r"url\(([^)]*)\)", page))
    assert len(page) < 1_000_000


def test_every_reference_of_a_picture_is_its_own(reported):
    _, page, _ = reported
    ids = [a["id"] for _, a in Reader(page).tags if "id" in a]
    assert len(set(ids)) == len(ids)
    used = set(re.findall(r'href="#([^"]+)"', page)) | set(re.findall(r"url\(#([^)]+)\)", page))
    assert used and used <= set(ids)


def test_every_picture_is_there_and_says_what_it_shows(reported):
    _, page, _ = reported
    reader = Reader(page)
    pictures = [a for tag, a in reader.tags if tag == "svg"]
    assert all(a["role"] == "img" and len(a["aria-label"].split()) > 5 for a in pictures)
    spoken = " ".join(a["aria-label"] for a in pictures)
    for what in ("Reliability diagram of click", "Gain and lift of click", "AUC by device",
                 "relative error of", "low-rank cross layer", "Attention map",
                 "latency on this machine"):  # fmt: skip
        assert what in spoken
    assert "A measurement on this machine" in reader.text
    # What a file holds is text, never markup.
    assert "<tv>" in reader.text and "<tv>" not in page


def test_the_figures_are_those_of_the_files(reported, tmp_path):
    folder, _, figures = reported
    data = folder / "clicks.csv"
    assert run("evaluate", folder / "model", data, "--json", tmp_path / "e.json") == 0
    assert figures["metrics"] == json.loads((tmp_path / "e.json").read_text())
    rows = list(csv.DictReader(data.read_text().splitlines()))
    assert figures["rows"] == len(rows)
    device = {s["value"]: s for s in figures["segments"]["click"]["device"]}
    assert set(device) == {"phone", "desktop", "<tv>", "(missing)"}
    for value, segment in device.items():
        mine = [r for r in rows if r["device"] == value.replace("(missing)", "")]
        assert segment["rows"] == len(mine)
        assert segment["observed"] == pytest.approx(np.mean([int(r["click"]) for r in mine]))
        assert 0 < segment["error"] < 0.2 and 0.3 < segment["auc"] <= 1
    assert sum(d["rows"] for d in figures["deciles"]["click"]) == len(rows)
    eight, four = figures["quantized"]["effects"]
    assert 0 < eight["median"] < four["median"] and eight["score_change"] < four["score_change"]


def test_segments_of_any_column_are_asked_for(reported, tmp_path, capsys):
    folder, _, _ = reported
    figures, page = tmp_path / "f.json", tmp_path / "r.html"
    options = ["--output", page, "--json", figures, "--segment", "price", "--segment", "item"]
    assert run("report", folder / "model", folder / "clicks.csv", *options) == 0
    found = json.loads(figures.read_text())["segments"]["click"]
    assert list(found) == ["price", "item"]
    assert len(found["price"]) == 5 and all(" to " in s["value"] for s in found["price"])
    assert sum(s["rows"] for s in found["price"]) == 600
    assert found["item"][-1]["value"] == "(others)" and len(found["item"]) == 13
    arguments = ("report", folder / "model", folder / "clicks.csv", "--output", page)
    assert "no column 'size'" in refused(capsys, *arguments, "--segment", "size")
    assert "--rows" in refused(capsys, *arguments, "--rows", "0")
    assert "a folder" in refused(capsys, *arguments[:3], "--output", tmp_path)


def test_a_quantized_model_is_reported_too(reported, tmp_path):
    folder, _, _ = reported
    assert run("quantize", folder / "model", "--output", tmp_path / "small") == 0
    page, figures = tmp_path / "r.html", tmp_path / "f.json"
    options = ["--output", page, "--json", figures, "--rows", "200"]
    assert run("report", tmp_path / "small", folder / "clicks.csv", *options) == 0
    assert "quantized already" in page.read_text()
    assert 100 < json.loads(figures.read_text())["rows"] < 300


def test_the_products_are_those_of_the_layer(reported):
    folder, _, _ = reported
    model, _ = load_model(folder / "model")
    parts = layers.slots(model)
    assert sum(width for _, width in parts) == model.input_dim
    torch.manual_seed(0)
    layer, x = LowRankCross(5, 2), torch.randn(40, 5)
    names, sizes = layers._products(layer, x, [("a", 1), ("b", 3), ("c", 1)])
    whole = layer.u @ layer.v
    b_by_c = x[:, 1:4] * (x[:, 4:] @ whole[1:4, 4:].T)
    assert names == ["a", "b", "c"]
    assert sizes[1, 2] == pytest.approx(float(b_by_c.norm(dim=1).mean().detach()), rel=1e-5)


def test_rows_count_by_their_weights():
    labels = np.array([1.0, 1, 0, 0, 1, 0])
    probabilities = np.array([0.9, 0.8, 0.7, 0.4, 0.3, 0.2])
    weights = np.array([1.0, 2, 1, 1, 2, 1])
    repeated = np.repeat(np.arange(6), weights.astype(int))
    one = Task("t", probabilities, labels, weights, {}).parts(1)[0]
    ones = np.ones(len(repeated))
    other = Task("t", probabilities[repeated], labels[repeated], ones, {}).parts(1)[0]
    for key in ("predicted", "observed", "lift"):
        assert one[key] == pytest.approx(other[key])
    shares, found = Task("t", probabilities, labels, weights, {}).gain(9)
    assert found[0] == 0 and found[-1] == 1
    assert np.interp(3 / 8, shares, found) == pytest.approx(3 / 5)


def test_the_error_of_an_auc_is_that_of_repeated_draws():
    rng = np.random.default_rng(0)
    aucs, errors = [], []
    for _ in range(200):
        labels = (rng.random(300) < 0.3).astype(np.float32)
        logits = (rng.normal(size=300) + labels).astype(np.float32)
        (found,) = segments(Groups(["all"], np.zeros(300, int)), logits, labels)
        aucs.append(found.auc)
        errors.append(found.error)
    assert np.mean(errors) == pytest.approx(np.std(aucs), rel=0.15)


@pytest.mark.skipif(CHROMIUM is None, reason="there is no Chromium to open the page in")
def test_a_browser_shows_the_page(reported, tmp_path):
    folder, _, _ = reported
    options = ["--headless", "--no-sandbox", "--disable-gpu", "--disable-background-networking"]
    options += [f"--user-data-dir={tmp_path / 'profile'}", "--window-size=1100,6000"]
    options += [f"--screenshot={tmp_path / 'page.png'}", (folder / "report.html").as_uri()]
    subprocess.run([CHROMIUM, *options], check=True, capture_output=True, timeout=120)
    image = pytest.importorskip("PIL.Image").open(tmp_path / "page.png").convert("L")
    pixels = np.asarray(image)
    ink = (pixels < 200).mean(1) > 0.001  # rows of the page with something on them
    # From the heading down to the last picture, with all seven parts in between.
    assert ink[:200].any() and np.flatnonzero(ink)[-1] > 2500
