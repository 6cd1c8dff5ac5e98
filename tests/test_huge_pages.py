"""Huge pages are requested where they pay off, and nothing else changes."""

from __future__ import annotations

import copy
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from torch._subclasses import FakeTensorMode

import lirank_ext
from lirank_ext.library import load

HUGE = 2 << 20
SETTING = Path("/sys/kernel/mm/transparent_hugepage/enabled")
needs_pages = pytest.mark.skipif(
    load.extension is None or not SETTING.exists(),
    reason="needs the compiled library and a Linux with transparent huge pages",
)


def asked_for(t: torch.Tensor) -> bool:
    """Whether the kernel's record of the tensor's middle says that huge pages are wanted."""
    middle, inside = t.data_ptr() + t.nbytes // 2, False
    for line in Path("/proc/self/smaps").read_text().splitlines():
        first = line.split(maxsplit=1)[0]
        if "-" in first and not first.endswith(":"):
            start, end = (int(part, 16) for part in first.split("-"))
            inside = start <= middle < end
        elif inside and first == "VmFlags:":
            return "hg" in line.split()
    raise AssertionError("no mapping holds the tensor")


@needs_pages
def test_a_large_tensor_keeps_its_values_and_place():
    t = torch.arange(4 << 20, dtype=torch.int32)
    before, place = t.clone(), t.data_ptr()
    asked = lirank_ext.use_huge_pages(t)
    assert t.nbytes - 2 * HUGE <= asked <= t.nbytes and asked % HUGE == 0
    assert asked_for(t)
    assert t.data_ptr() == place and torch.equal(t, before)


@needs_pages
def test_a_module_counts_parameters_and_buffers():
    module = torch.nn.Module()
    module.weight = torch.nn.Parameter(torch.zeros(3 << 20))
    module.register_buffer("table", torch.zeros(8 << 20, dtype=torch.uint8))
    module.register_buffer("small", torch.zeros(10))
    parts = [lirank_ext.use_huge_pages(t) for t in (module.weight, module.table)]
    assert all(parts) and lirank_ext.use_huge_pages(module) == sum(parts)


@pytest.mark.parametrize("make", [
    lambda: torch.zeros(1000),
    lambda: torch.zeros(4 << 20, 2)[:, 0],
    lambda: torch.zeros(8 << 20, device="meta"),
    lambda: torch.zeros(0),
    lambda: torch.nn.Linear(2, 2),
], ids=["small", "strided", "meta", "empty", "small module"])  # fmt: skip
def test_what_is_left_alone(make):
    assert lirank_ext.use_huge_pages(make()) == 0


def test_a_fake_tensor_has_no_memory_to_move():
    with FakeTensorMode():
        assert lirank_ext.use_huge_pages(torch.zeros(8 << 20)) == 0


@needs_pages
def test_hashed_tables_are_made_on_them():
    module = lirank_ext.nn.HashedEmbeddingBag(64, num_buckets=200_000_000)
    assert asked_for(module.quotient_b) and asked_for(module.quotient_c)
    copied = copy.deepcopy(module)
    assert asked_for(copied.quotient_b)
    assert torch.equal(copied.quotient_b, module.quotient_b)


@needs_pages
def test_packed_tables_are_made_on_them():
    rows = torch.randn(80_000, 64)
    packed = lirank_ext.pack_rows(*lirank_ext.quantize_rows(rows))
    assert asked_for(packed)
    bags = {name: torch.nn.EmbeddingBag(50_000, 64, mode="sum") for name in "ab"}
    tables = lirank_ext.nn.QuantizedEmbeddingBagCollection.from_float(bags)
    assert asked_for(tables.packed)
    # Above 32 MB malloc maps memory anew: a smaller copy may lie where pages were asked for before.
    single = lirank_ext.nn.QuantizedEmbeddingBag.from_float(torch.nn.EmbeddingBag(600_000, 64))
    again = copy.deepcopy(single)
    assert asked_for(again.packed)
    assert torch.equal(again.packed, single.packed)


def test_a_table_of_many_pages_reads_the_same():
    rows = torch.randn(80_000, 64)
    codes = lirank_ext.quantize_rows(rows)
    packed, ids = lirank_ext.pack_rows(*codes), torch.randint(0, 80_000, (500,))
    lirank_ext.use_huge_pages(packed)
    found = lirank_ext.quantized_embedding_bag(packed, ids, None, 64)
    torch.testing.assert_close(found, lirank_ext.dequantize_rows(*codes)[ids])


ALLOCATED = """
import sys, torch, lirank_ext, test_huge_pages
packed = lirank_ext.pack_rows(*lirank_ext.quantize_rows(torch.randn(100, 64)))
ids = torch.randint(0, 100, ((int(sys.argv[1]) << 20) // 256,))
got = lirank_ext.quantized_embedding_bag(packed, ids, None, 64)
rows = lirank_ext.dequantize_rows(*lirank_ext.unpack_rows(packed, 64))
assert torch.equal(got, rows[ids])
print(test_huge_pages.asked_for(got))
"""


@needs_pages
@pytest.mark.parametrize("megabytes", [31, 33])
def test_a_result_that_the_allocator_maps_anew_lies_on_them(megabytes):
    """In a process of its own: malloc may give a small result memory that had them before."""
    paths = [str(Path(__file__).parent), *filter(None, sys.path)]
    done = subprocess.run(
        [sys.executable, "-c", ALLOCATED, str(megabytes)],
        env={**os.environ, "PYTHONPATH": os.pathsep.join(paths)},
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr
    assert done.stdout.strip() == str(megabytes > 32)
