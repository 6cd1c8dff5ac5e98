"""Bits that do not depend on threads, on the instruction set, or on a flag.

Hashes, rows, codes and single look-ups are equal on every instruction set, and so are sums of float
tables, which are added in the order of the ids. Sums of quantized rows are equal on AVX2 and
AVX-512; plain C++ rounds a product before it is added, where the others fuse the two. Cross layers
and attention sum in the order of each set's registers, and differ by rounding.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
from functools import cache
from pathlib import Path

import pytest
import torch
from conftest import REPOSITORY, needs_library
from exact_results import arguments

import lirank_ext
from lirank_ext.library.op import implementations
from lirank_ext.verify import checked_ops
from lirank_ext.verify.compare import _bits, _outputs
from lirank_ext.verify.random_calls import GENERATORS

pytestmark = needs_library
SETS = ("plain", "avx2", "avx512")
EDGE = 64  # elements before and behind an input
OPS_DRAWN = [op for op in checked_ops() if op in GENERATORS]
# Equal everywhere, and on vectors alone.
EVERYWHERE = {
    "dequantize_rows",
    "hash_strings",
    "hashed_embedding_bag without weights",
    "isotonic_calibration",
    "murmur_hash",
    "pack_rows",
    "quantize_rows",
    "unpack_rows",
    "vocabulary_lookup",
}
ON_VECTORS = {
    "hashed_embedding_bag",
    "quantized_embedding_bag",
    "quantized_embedding_bags",
    "quantized_hashed_embedding_bag",
}


@cache
def digests(isa: str) -> dict:
    """Of every op on 1, 2 and 4 threads, by a process with that instruction set."""
    path = os.pathsep.join([str(REPOSITORY), *filter(None, [os.environ.get("PYTHONPATH")])])
    done = subprocess.run(
        [sys.executable, str(Path(__file__).with_name("exact_results.py")), "1", "2", "4"],
        env={**os.environ, "LIRANK_ISA": isa, "PYTHONPATH": path},
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr
    found = json.loads(done.stdout)
    if not found["cpu"].startswith(isa):
        assert isa != "plain", f"LIRANK_ISA=plain was not followed: {found['cpu']}"
        pytest.skip(f"the processor has no {isa}")
    return found["threads"]


@pytest.mark.parametrize("isa", SETS)
def test_any_number_of_threads_gives_the_same_bits(isa):
    one, two, four = digests(isa).values()
    assert one == two == four


@pytest.mark.parametrize("isa", SETS[1:])
def test_every_instruction_set_gives_the_same_bits(isa):
    plain, other = digests("plain")["1"], digests(isa)["1"]
    assert {op for op in plain if plain[op] == other[op]} >= EVERYWHERE


def test_bags_are_equal_on_avx2_and_avx512():
    one, two = digests("avx2")["1"], digests("avx512")["1"]
    assert {op for op in one if one[op] == two[op]} >= EVERYWHERE | ON_VECTORS


@pytest.mark.parametrize("bits", [8, 4])
@pytest.mark.parametrize("dim", [1, 16, 37, 130])
def test_a_single_look_up_is_the_dequantized_row(bits, dim):
    """And so the same everywhere, since dequantize_rows is."""
    rows = lirank_ext.quantize_rows(torch.randn(50, dim), bits)
    ids = torch.randint(0, 50, (40,))
    got = lirank_ext.quantized_embedding_bag(
        lirank_ext.pack_rows(*rows, bits), ids[:, None], None, dim, bits=bits
    )
    assert torch.equal(got, lirank_ext.dequantize_rows(*rows)[ids])


@pytest.fixture
def deterministic():
    torch.use_deterministic_algorithms(True)
    yield
    torch.use_deterministic_algorithms(False)


@pytest.mark.parametrize("op", OPS_DRAWN)
def test_deterministic_algorithms_are_the_usual_ones(op, deterministic):
    """With the flag PyTorch also fills new tensors; no op refuses, and no result changes."""
    for seed in range(6):
        args = arguments(op, seed)
        results = []
        for flag in (True, False):
            torch.use_deterministic_algorithms(flag)
            try:
                outputs = _outputs(implementations(op)["cpu"](*args))
            except (ValueError, TypeError, IndexError, RuntimeError) as error:
                results.append(str(error).splitlines()[0])
            else:
                results.append([bits.tolist() for bits in _bits(tuple(outputs))])
        assert results[0] == results[1], seed


@pytest.mark.parametrize("op", OPS_DRAWN)
def test_memory_around_inputs_is_neither_written_nor_read_into_results(op):
    """Inputs lie between canaries; NaN there would show in a result that read them."""

    def between(t, filler):
        if t.dim() == 0 or t.requires_grad:
            return t, None
        room = torch.empty(t.numel() + 2 * EDGE, dtype=t.dtype)
        room.view(torch.uint8).fill_(filler)
        inside = room[EDGE : EDGE + t.numel()].view(t.shape).copy_(t)
        return inside, room

    for seed in range(12):
        call = arguments(op, seed)
        results = []
        for filler in (0xFF, 0x55):  # NaN of every float, and -1; then large numbers
            made = [between(a, filler) if isinstance(a, torch.Tensor) else (a, None) for a in call]
            try:
                outputs = _outputs(implementations(op)["cpu"](*(a for a, _ in made)))
                results.append([bits.tolist() for bits in _bits(tuple(outputs))])
            except (ValueError, TypeError, IndexError, RuntimeError) as error:
                results.append(str(error).splitlines()[0])
            for room in (r for _, r in made if r is not None):
                beside = torch.cat([room[:EDGE], room[-EDGE:]])
                assert (beside.view(torch.uint8) == filler).all()
        assert results[0] == results[1], seed
