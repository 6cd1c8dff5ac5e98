"""Triton kernels of tables and hashes: beyond the cases, interpreted; and how they are launched."""

from __future__ import annotations

import json
import os
import subprocess
import sys

import pytest
import torch
from conftest import REPOSITORY

from lirank_ext.kernels import errors
from lirank_ext.library import device_errors, gpu
from lirank_ext.library.op import OPS, implementations
from lirank_ext.verify import compare

pytest.importorskip("triton", reason="Triton is not installed: the extra 'test' has it")

FAMILIES = ("quantized_embedding", "hashed_embedding", "hashing", "static_vocabulary")
SCRIPT = REPOSITORY / "tests/triton_tables_interpreted.py"
CHECKS = [
    line.removeprefix("def ").partition("(")[0]
    for before, line in zip(
        SCRIPT.read_text().splitlines(), SCRIPT.read_text().splitlines()[1:], strict=False
    )
    if before == "@check"
]


@pytest.fixture(scope="module")
def found():
    """What every check found; they run in one process, under the interpreter."""
    environment = os.environ | {"TRITON_INTERPRET": "1", "LIRANK_NO_EXT": "1"}
    ran = subprocess.run([sys.executable, SCRIPT], capture_output=True, text=True, env=environment)
    assert ran.returncode == 0, ran.stderr
    return json.loads(ran.stdout.splitlines()[-1])


@pytest.mark.parametrize("check", CHECKS)
def test_interpreted(found, check):
    assert not found[check], found[check]


def test_every_op_on_tables_and_hashes_has_a_launcher():
    for name, op in OPS.items():
        if op.family in FAMILIES:
            assert gpu.has_launcher(op), name


def test_without_nvcc_triton_is_listed_for_every_op(monkeypatch):
    """On a machine with a GPU: ``implementations``, and the rows of verify."""
    monkeypatch.setattr(gpu, "_launched", set(OPS))
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    for name, op in OPS.items():
        if op.family not in FAMILIES:
            continue
        assert implementations(name)["triton"] is op.overload
        if not op.internal:
            assert ("triton", "cuda") in compare._backends(name, None)


def recorded(bags, count):
    """The launches of every table op on this many bags and ids, from meta tensors alone.

    Meta tensors hold no data: a launcher that waited for some would fail here. The sparse
    gradients, whose size is data, are missing.
    """
    from lirank_ext.benchmarks.triton_resources import _t
    from lirank_ext.kernels import launch

    ids, offsets = _t(count, dtype=torch.int64), _t(bags, dtype=torch.int64)
    ends, rows, weights = _t(8 * bags + 1, dtype=torch.int64), _t(8).long(), _t(count)
    packed, flat = _t(100, 40, dtype=torch.uint8), _t(8 * 4000, dtype=torch.uint8)
    codes, row = _t(bags, 32, dtype=torch.int8), _t(bags)
    tables, four = (_t(100, 32), _t(7, 32)) * 2, (packed, packed[:7]) * 2
    grad, rule, last = _t(bags, 32), (700, 32, 8), (False, False)
    sums = (_t(100), _t(7)) * 2
    backward = (grad, ids, offsets, weights, 700, 7, 0, "sum", *last)
    calls = [
        ("quantize_rows", _t(bags, 32)),
        ("dequantize_rows", codes, row, row),
        ("pack_rows", codes, row, row),
        ("unpack_rows", _t(bags, 40, dtype=torch.uint8), 32),
        ("quantized_embedding_bag", packed, ids, offsets, 32),
        ("quantized_embedding_bag_backward", grad, packed, ids, offsets, 32, 8, False),
        ("quantized_embedding_bags", flat, rows, rows, ids, ends, 8, "sum", weights,
         torch.float32, 256),
        ("quantized_embedding_bags_backward", _t(bags, 256), flat, rows, rows, ids, ends, 8),
        ("hashed_embedding_bag", ids, offsets, *tables, 700),
        ("hashed_embedding_bag_backward", *backward),
        ("hashed_embedding_bag_update", grad, ids, offsets, weights, *tables, *sums, _t(), 700, 0,
         False, *last, 0.1, 1e-8),
        ("hashed_embedding_bag_backward_weights", grad, ids, offsets, *tables, 700,
         0, *last),
        ("quantized_hashed_embedding_bag", ids, offsets, *four, *rule),
        ("quantized_hashed_embedding_bag_backward", grad, ids, offsets, *four,
         *rule, 0, *last),
        ("murmur_hash", ids),
        ("hash_strings", _t(count, dtype=torch.uint8), offsets),
        ("vocabulary_lookup", ids, _t(500, dtype=torch.uint8)),
    ]  # fmt: skip
    named = {call[0] for call in calls} | {"hashed_embedding_bag_backward_sparse"}
    assert named == {name for name, op in OPS.items() if op.family in FAMILIES}
    with launch.recording() as launches:
        for name, *args in calls:
            gpu.launcher(OPS[name])(*args)
    return launches


def test_a_new_batch_size_compiles_nothing():
    """Numbers that change with the batch are not specialized, and no constant changes."""
    few, many = recorded(512, 4096), recorded(531, 4301)
    assert len(few) == len(many) == 27
    for a, b in zip(few, many, strict=True):
        assert a.kernel is b.kernel and a.constants == b.constants
        for parameter, x, y in zip(a.kernel.params, a.args, b.args, strict=False):
            if isinstance(x, (int, float)) and x != y:
                where = f"{a.kernel.__name__}: {parameter.name}"
                assert not parameter.is_constexpr, where
                assert parameter.do_not_specialize, where


def test_a_damaged_vocabulary_has_words_of_its_own():
    buffer = errors.findings(torch.device("cpu"))
    buffer.copy_(torch.tensor([3, 6, 12, 5, 4, 300]))
    with pytest.raises(ValueError, match=r"'table'.*part 12 .*3 such findings"):
        device_errors.check_errors()
    buffer.copy_(torch.tensor([1, 6, -1, 0, 100, 99]))
    with pytest.raises(ValueError, match=r"'table'.*damaged header"):
        device_errors.check_errors()
