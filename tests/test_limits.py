"""At the limits of a process: forks, exits, memory that is short, read-only or shared.

What would take the test's process with it runs in a process of its own.
"""

from __future__ import annotations

import os
import subprocess
import sys
import textwrap

import pytest
import torch
from conftest import REPOSITORY, needs_library

import lirank_ext
from lirank_ext.library.op import OPS, implementations

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="limits of Linux processes")

START = """
import os, resource, sys, threading
import torch
import lirank_ext
"""


def run(code: str, *, seconds: float = 120.0, **environment: str) -> subprocess.CompletedProcess:
    path = os.pathsep.join([str(REPOSITORY), *filter(None, [os.environ.get("PYTHONPATH")])])
    return subprocess.run(
        [sys.executable, "-c", START + textwrap.dedent(code)],
        env={**os.environ, "PYTHONPATH": path, **environment},
        capture_output=True,
        text=True,
        timeout=seconds,
    )


def test_a_forked_process_computes_on_one_thread():
    """After parallel work OpenMP hangs in a forked process, in PyTorch's own ops too. One thread
    does not, which is what the guide to production says to set."""
    done = run(
        """
        ids = torch.arange(1 << 16)
        wanted = lirank_ext.murmur_hash(ids)
        torch.set_num_threads(1)
        child = os.fork()
        if child == 0:
            torch.set_num_threads(1)
            os._exit(0 if torch.equal(lirank_ext.murmur_hash(ids), wanted) else 3)
        print(os.waitpid(child, 0)[1])
        """
    )
    assert done.stdout.split() == ["0"], done.stderr


def test_python_ends_while_ops_run_in_other_threads():
    """Threads that are joined at exit finish their calls; nothing is left hanging or aborted."""
    done = run(
        """
        def work():
            for _ in range(30):
                lirank_ext.murmur_hash(torch.arange(1 << 18))
        for _ in range(3):
            threading.Thread(target=work).start()
        print("end")
        """
    )
    assert done.returncode == 0 and done.stdout.split() == ["end"], done.stderr
    assert not done.stderr  # a thread that dies leaves a traceback alone


CALLS_WITHOUT_ROOM = {
    "murmur_hash": "lirank_ext.murmur_hash(torch.zeros(1).long().expand(2**34))",
    "quantized_embedding_bag": (
        "lirank_ext.quantized_embedding_bag(lirank_ext.pack_rows(*lirank_ext.quantize_rows("
        "torch.randn(3, 4096))), torch.zeros(0).long(), torch.zeros(1).long().expand(2**22), 4096)"
    ),
    "dequantize_rows": (
        "lirank_ext.dequantize_rows(torch.zeros(1, 1).char().expand(2**18, 2**16), "
        "torch.ones(1).expand(2**18), torch.ones(1).expand(2**18))"
    ),
}


@needs_library
@pytest.mark.parametrize("op", CALLS_WITHOUT_ROOM)
def test_out_of_memory_names_the_op_and_the_process_lives(op):
    done = run(
        f"""
        used = int(open("/proc/self/statm").read().split()[0]) * resource.getpagesize()
        resource.setrlimit(resource.RLIMIT_AS, (used + (3 << 30),) * 2)
        try:
            {CALLS_WITHOUT_ROOM[op]}
        except (RuntimeError, MemoryError) as error:
            print(error)
        print(int(lirank_ext.murmur_hash(torch.arange(3)).numel()))
        """
    )
    message, count = done.stdout.strip().splitlines()[0], done.stdout.split()[-1]
    assert f"lirank::{op}: " in message and "out of memory" in message, done.stdout + done.stderr
    assert "/" not in message and count == "3"


def test_a_table_may_lie_in_memory_that_nobody_may_write(tmp_path):
    """A file is mapped for reading alone; a write would end the process by a signal."""
    path = tmp_path / "table.bin"
    table = lirank_ext.pack_rows(*lirank_ext.quantize_rows(torch.randn(1000, 64)))
    path.write_bytes(table.numpy().tobytes())
    done = run(
        f"""
        import mmap, warnings
        warnings.simplefilter("ignore")
        with open({str(path)!r}, "rb") as file:
            held = mmap.mmap(file.fileno(), 0, prot=mmap.PROT_READ)
        table = torch.frombuffer(held, dtype=torch.uint8).view(1000, -1)
        out = lirank_ext.quantized_embedding_bag(table, torch.arange(1000)[:, None], None, 64)
        lirank_ext.unpack_rows(table, 64)
        print(tuple(out.shape))
        """
    )
    assert done.stdout.strip() == "(1000, 64)", done.stderr


@needs_library
def test_rows_may_change_while_other_threads_look_them_up():
    """Each element read is the old one or the new one, and nobody waits or dies."""
    done = run(
        """
        tables = [torch.zeros(n, 64) for n in (100, 10, 100, 10)]
        ids = torch.arange(4096).view(-1, 4)
        stop, seen = threading.Event(), set()
        def read():
            while not stop.is_set():
                out = lirank_ext.hashed_embedding_bag(ids, None, *tables, 1000)
                seen.update(out.unique().tolist())
        readers = [threading.Thread(target=read) for _ in range(3)]
        for reader in readers:
            reader.start()
        for turn in range(60):
            for table in tables:
                table.fill_(turn % 2)
        stop.set()
        for reader in readers:
            reader.join()
        assert seen and seen <= set(map(float, range(17))), seen
        print("whole")
        """
    )
    assert done.stdout.split() == ["whole"] and not done.stderr, done.stderr


@needs_library
def test_one_module_serves_several_threads():
    done = run(
        """
        from concurrent.futures import ThreadPoolExecutor
        torch.manual_seed(0)
        net = lirank_ext.nn.ResidualCrossNet(64, 2, 16).eval()
        rows = [torch.randn(33 + i, 64) for i in range(8)]
        def score(x):
            with torch.inference_mode():
                return net(x)
        wanted = [score(x) for x in rows]
        with ThreadPoolExecutor(4) as pool:
            for _ in range(20):
                for got, want in zip(pool.map(score, rows), wanted):
                    assert torch.equal(got, want)
        print("same")
        """
    )
    assert done.stdout.split() == ["same"], done.stderr


@pytest.mark.parametrize("dim", [8192, 8193, 20_000])
def test_wide_rows(dim):
    weight = torch.randn(5, dim)
    for bits in (8, 4):
        codes = lirank_ext.quantize_rows(weight, bits)
        packed = lirank_ext.pack_rows(*codes, bits)
        rows = lirank_ext.dequantize_rows(*codes)
        ids, offsets = torch.tensor([4, 0, 2, 2]), torch.tensor([0, 3])
        got = lirank_ext.quantized_embedding_bag(packed, ids, offsets, dim, bits=bits)
        wanted = torch.stack([rows[[4, 0, 2]].sum(0), rows[2]])
        torch.testing.assert_close(got, wanted, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("dim", [30, 64])
@pytest.mark.parametrize("bits", [8, 4])
def test_a_table_may_begin_at_any_byte(dim, bits):
    """As rows in a file do that is mapped behind a header."""
    packed = lirank_ext.pack_rows(*lirank_ext.quantize_rows(torch.randn(10, dim), bits), bits)
    ids = torch.arange(10)[:, None]
    for offset in (1, 2, 7):
        room = torch.zeros(packed.numel() + offset, dtype=torch.uint8)
        table = room[offset:].view(packed.shape).copy_(packed)
        for name in implementations("quantized_embedding_bag").keys() & {"reference", "cpu"}:
            look_up = implementations("quantized_embedding_bag")[name]
            got, wanted = (look_up(t, ids, None, dim, bits) for t in (table, packed))
            assert torch.equal(got, wanted), (name, offset)


def subnormal(*shape: int) -> torch.Tensor:
    return torch.randn(*shape) * 1e-39


@needs_library
@pytest.mark.parametrize("flush", [False, True])
def test_denormals_are_numbers_like_others(flush):
    """They are read as such, or all as zeros where torch.set_flush_denormal asks for it."""
    if not torch.set_flush_denormal(flush):
        pytest.skip("the processor cannot flush")
    try:
        x0, x, v, u = torch.randn(4, 40), subnormal(4, 40), torch.randn(8, 40), torch.randn(40, 8)
        y = implementations("low_rank_cross")["cpu"](x0, x, v, u, None)
        exact = OPS["low_rank_cross"].reference(*(t.double() for t in (x0, x, v, u)), None)
        assert (y.double() - exact).abs().max() <= 1e-5 * exact.abs().max()
        q, k, values = subnormal(3, 16), subnormal(3, 16), torch.randn(3, 16)
        even = implementations("outer_attention")["cpu"](q, k, values)
        torch.testing.assert_close(even, values.mean(1, keepdim=True).expand(3, 16))
        weight = subnormal(3, 40)
        back = lirank_ext.dequantize_rows(*lirank_ext.quantize_rows(weight))
        assert (back - weight).abs().max() <= 0.02 * weight.abs().max()
    finally:
        torch.set_flush_denormal(False)


def test_sums_beyond_float16_are_infinite_as_in_the_reference():
    tables = [torch.full((n, 8), 30_000.0).half() for n in (3, 2, 3, 2)]
    args = (torch.arange(4), torch.tensor([0]), *tables, 6)
    for name, call in implementations("hashed_embedding_bag").items():
        if name in ("reference", "cpu"):
            assert call(*args).isinf().all(), name
