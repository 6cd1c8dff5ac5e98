"""The documentation: every Python block runs, every command and every linked file exists."""

from __future__ import annotations

import csv
import json
import os
import random
import re
import subprocess
import sys
from urllib.parse import urlsplit

import pytest
import torch
from conftest import REPOSITORY
from documents import blocks, commands, missing_links, unknown_options

import lirank_ext

DOCS = REPOSITORY / "docs"
PAGES = sorted(DOCS.rglob("*.md"))
README = REPOSITORY / "README.md"
EXAMPLES = sorted((REPOSITORY / "examples").glob("*.py"))
NOTEBOOKS = sorted((REPOSITORY / "examples").glob("*.ipynb"))
# Small tensors gain nothing from threads, which wait for one another where cores are shared.
ONE_THREAD = {**os.environ, "OMP_NUM_THREADS": "1"}
COLUMNS = ("user", "item", "topics", "price", "device", "seconds", "click")


def name_of(page) -> str:
    return page.relative_to(DOCS).as_posix()


def write_log(path, rows: int, seed: int) -> None:
    """A log of impressions: what is clicked depends on the item, its price and the device."""
    draw = random.Random(seed)
    with open(path, "w", newline="") as file:
        writer = csv.writer(file)
        writer.writerow(COLUMNS)
        for _ in range(rows):
            item, price = draw.randrange(40), round(draw.uniform(1, 100), 2)
            device = draw.choice(["phone", "desktop"])
            liked = item % 4 == 0, price < 40, device == "phone"
            click = int(draw.random() < 0.1 + 0.25 * sum(liked))
            topics = "|".join(draw.sample(["news", "jobs", "art", "code"], draw.randint(1, 3)))
            seconds = round(draw.expovariate(1 / (20 + 40 * click)), 1)
            row = (f"u{draw.randrange(200)}", f"i{item}", topics, price, device, seconds, click)
            writer.writerow(row)


@pytest.fixture
def folder(tmp_path, monkeypatch):
    """The current folder of a page: with the log of three days, as its text says."""
    for seed, name in enumerate(("data.csv", "day2.csv", "new.csv")):
        write_log(tmp_path / name, 2000, seed)
    monkeypatch.chdir(tmp_path)
    return tmp_path


@pytest.mark.parametrize("page", [p for p in PAGES if blocks(p.read_text(), "python")], ids=name_of)
def test_the_python_blocks_run(page, folder, threads, capsys):
    namespace = {"__name__": "page"}
    random.seed(0)
    torch.manual_seed(0)
    for number, block in enumerate(blocks(page.read_text(encoding="utf-8"), "python"), 1):
        exec(compile(block, f"{name_of(page)}, block {number}", "exec"), namespace)


@pytest.mark.parametrize("page", PAGES, ids=name_of)
def test_every_command_and_option_exists(page):
    for words in commands(page.read_text(encoding="utf-8")):
        assert not unknown_options(words), words


@pytest.mark.parametrize("page", PAGES, ids=name_of)
def test_every_linked_page_is_there(page):
    assert not missing_links(page)


@pytest.mark.parametrize("page", [*PAGES, README], ids=lambda p: p.stem)
def test_links_to_other_sites_are_well_formed(page):
    """They are not followed: a test needs no network."""
    text = page.read_text(encoding="utf-8")
    for link in re.findall(r"\]\((http[^)]*)\)|<(http[^>]*)>", text):
        address = urlsplit("".join(link))
        assert address.scheme == "https" and "." in address.netloc, link
        assert not re.search(r"[\s\"']", "".join(link)), link


def test_the_menu_names_every_page_once():
    menu = (REPOSITORY / "mkdocs.yml").read_text().split("\nnav:\n")[1]
    named = re.findall(r"^\s*- (\S+\.md)$", menu, flags=re.MULTILINE)
    assert sorted(named) == [name_of(page) for page in PAGES]


def test_every_public_name_has_a_place_in_the_reference():
    from lirank_ext import models, nn

    text = "\n".join(page.read_text(encoding="utf-8") for page in (DOCS / "reference").glob("*.md"))
    whole = [models.config.__name__, models.schema.__name__]  # pages of a whole file
    for name in (*lirank_ext.__all__, *nn.__all__, *models.__all__):
        thing = getattr(lirank_ext, name, None) or getattr(nn, name, None) or getattr(models, name)
        if name in ("__version__", "nn", "ops") or getattr(thing, "__module__", "") in whole:
            continue
        assert re.search(rf"(::: [\w.]+\.|`){name}\b", text), name


def test_the_reference_names_nothing_twice():
    text = "\n".join(page.read_text(encoding="utf-8") for page in (DOCS / "reference").glob("*.md"))
    named = re.findall(r"^::: (\S+)$", text, flags=re.MULTILINE)
    assert len(named) > 50 and len(set(named)) == len(named)


@pytest.mark.parametrize("path", EXAMPLES, ids=lambda p: p.stem)
def test_the_example_runs(path, tmp_path):
    done = subprocess.run(
        [sys.executable, path], cwd=tmp_path, capture_output=True, text=True, env=ONE_THREAD
    )
    assert done.returncode == 0, done.stderr
    assert done.stdout


@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda p: p.stem)
def test_the_notebook_runs(path, tmp_path):
    client, nbformat = pytest.importorskip("nbclient"), pytest.importorskip("nbformat")
    pytest.importorskip("ipykernel")
    pytest.importorskip("matplotlib")
    notebook = nbformat.read(path, as_version=4)
    nbformat.validate(notebook)
    assert not any(cell.get("outputs") for cell in notebook.cells)  # kept without outputs
    resources = {"metadata": {"path": tmp_path}}
    client.NotebookClient(notebook, timeout=300, resources=resources).execute(env=ONE_THREAD)
    shown = [out for cell in notebook.cells for out in cell.get("outputs", [])]
    pictures = [out for out in shown if {"text/html", "image/png"} & set(out.get("data", {}))]
    assert pictures and not any(out.output_type == "error" for out in shown)


@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda p: p.stem)
def test_the_links_of_a_notebook_are_there(path, tmp_path):
    cells = json.loads(path.read_text(encoding="utf-8"))["cells"]
    text = "\n".join("".join(cell["source"]) for cell in cells if cell["cell_type"] == "markdown")
    page = tmp_path / "page.md"
    page.write_text(text.replace("](..", f"]({REPOSITORY}"), encoding="utf-8")
    assert not missing_links(page)


def test_the_version_is_the_same_everywhere():
    version = re.escape(lirank_ext.__version__)
    citation = (REPOSITORY / "CITATION.cff").read_text(encoding="utf-8")
    changes = (REPOSITORY / "CHANGELOG.md").read_text(encoding="utf-8")
    (date,) = re.findall(rf"^## {version} - (\d{{4}}-\d\d-\d\d)$", changes, flags=re.MULTILINE)
    assert f"version: {lirank_ext.__version__}\ndate-released: {date}\n" in citation
