"""The table of what works with what: that the committed page is what is found here."""

from __future__ import annotations

import pytest
import torch
from conftest import REPOSITORY

from lirank_ext.library.load import extension
from lirank_ext.library.op import OPS
from lirank_ext.verify import matrix, matrix_page
from lirank_ext.verify.samples import samples

PAGE = REPOSITORY / "docs/reference/support.md"
READINGS = REPOSITORY / "benchmarks/results"


@pytest.fixture(scope="module")
def committed():
    return matrix_page.read(PAGE.read_text(encoding="utf-8"))


@pytest.fixture(autouse=True)
def _one_thread(threads):
    threads(1)


def test_every_op_has_a_row_and_no_cell_is_missing(committed):
    public = {name for name, op in OPS.items() if not op.internal}
    assert set(committed) == set(samples()) == public | {"residual_cross_net"}
    columns = [column for table in matrix_page.TABLES.values() for column in table]
    assert all(list(found) == columns for found in committed.values())


def test_nothing_fails(committed):
    cells = [cell for found in committed.values() for cell in found.values()]
    assert not [cell for cell in cells if cell.startswith("fails")]
    assert cells.count("yes") > len(cells) / 3


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("name", samples())
def test_the_cells_of_one_process_are_what_is_found_here(name, committed):
    for column, attempt in matrix.CHEAP.items():
        torch.manual_seed(0)
        found = matrix.outcome(attempt, samples()[name]).partition(": ")[0]
        if column in ("CPU", "dtypes") and extension is None:
            # References take float64 beyond what kernels do, so that verify can compare in it.
            assert column == "dtypes" or found == "reference"
        else:
            assert found == committed[name][column], column


def test_the_cells_of_gpus_are_those_of_the_readings(committed):
    found = matrix.on_gpu(READINGS)
    for name, cells in committed.items():
        for column in ("CUDA", "Triton"):
            wanted = found.get(name, {}).get(column, matrix.NOTHING)
            assert cells[column] == wanted, name
    assert found["murmur_hash"]["CUDA"].startswith("H100, 2026-")


def test_what_differs_fails_and_what_is_refused_says_so():
    sample = samples()["low_rank_cross"]

    def differs(sample):
        matrix.equal([torch.ones(3)], [torch.ones(3) + 0.01])

    def refused(sample):
        sample(torch.ones(2, 3), torch.ones(2, 3))

    assert matrix.outcome(differs, sample).startswith("fails: Differs: ")
    assert matrix.outcome(refused, sample).startswith("refused: argument '")
    assert matrix.outcome(lambda s: 1 / 0, sample).startswith("fails: ZeroDivisionError")


def test_a_page_reads_as_it_was_written():
    cells = {
        "a": {"backward": "yes", "DDP": "–"},
        "b": {"backward": "refused: no <why>", "DDP": "yes"},
    }
    text = matrix_page.page(cells)
    assert "refused (1)" in text and "1. no \\<why\\>." in text
    cells["b"]["backward"] = "refused"
    assert matrix_page.read(text) == cells


def test_the_command_writes_the_page(tmp_path, monkeypatch):
    monkeypatch.setattr(matrix, "cheap", lambda: {"a": {"backward": "yes"}})
    path = tmp_path / "page.md"
    assert matrix.main(["--cheap", "--write", str(path)]) == 0
    assert matrix_page.read(path.read_text(encoding="utf-8")) == {"a": {"backward": "yes"}}
    with pytest.raises(SystemExit):
        matrix.main(["--readings", str(tmp_path / "nowhere")])
