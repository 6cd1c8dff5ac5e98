"""Everything that reads bytes, on damaged forms of good ones (``make fuzz-bytes`` searches on)."""

from __future__ import annotations

import random
import sys
from pathlib import Path

import pytest

for name in ("pyarrow", "yaml", "safetensors"):
    pytest.importorskip(name)
sys.path.insert(0, str(Path(__file__).parent / "reliability"))

import targets  # noqa: E402

DAMAGED = 60


@pytest.mark.parametrize("name", targets.TARGETS)
def test_damaged_bytes_are_refused_or_read_as_the_reference_reads_them(name, threads):
    threads(1)
    draw, seeds = random.Random(name), targets.SEEDS[name]()
    for seed in seeds:
        targets.TARGETS[name](seed)
    for _ in range(DAMAGED if name != "table_file" else DAMAGED // 4):
        data = targets.damaged(draw.choice(seeds), draw)
        try:
            targets.TARGETS[name](data)
        except Exception as error:
            raise AssertionError(f"{name}: {data!r}") from error


def test_a_target_notices_what_it_is_for(monkeypatch):
    """A look-up that leaves its table, and a loader that takes everything."""
    monkeypatch.setattr(targets, "vocabulary_rows", lambda vocabulary, keys: keys + 10**6)
    with pytest.raises(targets.Finding, match="rows outside"):
        targets.vocabulary_file(targets.SEEDS["vocabulary_file"]()[1])
    from lirank_ext.training import checkpoint

    def fails(path):
        raise checkpoint.CheckpointError("damaged")

    monkeypatch.setattr(checkpoint, "load", fails)
    with pytest.raises(targets.Finding, match="without the file's name"):
        targets.checkpoint_file(b"")


@pytest.mark.parametrize(
    ("tag", "said"), [(b"5", "names no format"), (b"[]", "names no format"), (b"{", "no JSON")]
)
def test_a_tag_that_is_no_object_is_refused(tag, said):
    from lirank_ext import nn

    table = nn.QuantizedEmbeddingBag.empty(5, 8, 4)
    state = table.state_dict() | {"_extra_state": targets.tensor(tag)}
    with pytest.raises(ValueError, match=f"tag of a table is damaged: it .*{said}"):
        table.load_state_dict(state)


def test_a_broken_row_that_is_no_utf8_leaves_no_traceback(tmp_path, capfd):
    from lirank_ext.data.broken import BadRows
    from lirank_ext.data.errors import DataError
    from lirank_ext.data.source import Source

    path = tmp_path / "a.csv"
    path.write_bytes(b"user,click\n" + b"a,1\n" * 200 + b"\xff,1,2\n" + b"a,0\n" * 9)
    with pytest.raises(DataError, match=r"a\.csv:202: not UTF-8 text"):
        list(Source([path], ["user", "click"], BadRows(skip=True)).chunks())
    assert "Traceback" not in capfd.readouterr().err
