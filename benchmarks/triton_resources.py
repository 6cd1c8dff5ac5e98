"""Registers, shared memory and spills of every Triton kernel, compiled without a GPU.

``python -m lirank_ext.benchmarks.triton_resources`` prints the table;
``--write benchmarks/results/triton_resources.md`` keeps it. Every launcher is called on meta
tensors of the shapes below; instead of running, each kernel it would launch, in every
configuration it may choose, is compiled by Triton's own ptxas for each architecture and read
with its cuobjdump. A kernel that spills makes the command fail.
"""

from __future__ import annotations

import argparse
import re
import subprocess
import sys
import tempfile
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass
from multiprocessing import get_context
from pathlib import Path

import torch
import triton
from triton.backends.compiler import GPUTarget
from triton.runtime import driver

from lirank_ext.kernels import launch
from lirank_ext.library import gpu
from lirank_ext.library.op import OPS
from lirank_ext.ops.quantized_embedding_layout import layout

ARCHITECTURES = (80, 90, 100)
TOOLS = Path(triton.__file__).parent / "backends" / "nvidia" / "bin"
# Shared memory that one program may use, in bytes (CUDA programming guide, table of limits).
SHARED_LIMIT = {80: 163 * 1024, 90: 227 * 1024, 100: 227 * 1024}


@dataclass(frozen=True, order=True)
class Resources:
    """What ptxas gave one kernel in one configuration on one architecture."""

    kernel: str
    configuration: str
    architecture: int
    registers: int
    shared: int
    local: int

    @property
    def problem(self) -> str:
        if self.local:
            return f"spills: {self.local} bytes of local memory a thread"
        if self.shared > SHARED_LIMIT[self.architecture]:
            return f"{self.shared} bytes of shared memory do not fit"
        return ""


class _Compiler:
    """Stands in for the CUDA driver: names a target, has no device."""

    def __init__(self, architecture: int) -> None:
        self.architecture = architecture

    def get_current_target(self) -> GPUTarget:
        return GPUTarget("cuda", self.architecture, 32)

    def get_current_device(self) -> int:
        return self.architecture

    def get_current_stream(self, device: int) -> int:
        return 0

    def get_active_torch_device(self) -> torch.device:
        return torch.device("cpu")


def _t(*shape: int, dtype: torch.dtype = torch.float32) -> torch.Tensor:
    return torch.empty(shape, dtype=dtype, device="meta")


def calls():
    """(label, op, arguments): the shapes that the table is made for."""
    for dtype in (torch.float32, torch.bfloat16, torch.float16):
        yield from _cross_calls(dtype)
        yield from _net_calls(dtype)
    yield from _table_calls()
    for dtype in (torch.float32, torch.bfloat16, torch.float64):
        yield from _isotonic_calls(dtype)


def _cross_calls(dtype):
    for r in (64, 128, 256):
        x, v = _t(512, 1024, dtype=dtype), _t(r, 1024, dtype=dtype)
        u, bias, hidden = _t(1024, r, dtype=dtype), _t(1024, dtype=dtype), _t(512, r, dtype=dtype)
        yield "", "low_rank_cross_train", (x, x, v, u, bias)
        yield "", "low_rank_cross_backward", (x, x, x, v, u, bias, hidden)
    if dtype == torch.float16:  # as float32, in all that takes registers
        return
    yield "", "low_rank_cross", (x, x, v, u, bias)
    wide = _t(512, 1024, dtype=dtype), _t(1024, 512, dtype=dtype)
    yield "", "low_rank_cross", (x, x, *wide, bias)
    yield "", "attention_cross", (x, x, v, v, v, u, bias, 1.0, 1, True)
    for r, token_dim in ((64, 1), (64, 4), (256, 1), (300, 1)):
        q = _t(512, r, dtype=dtype)
        yield "", "outer_attention", (q, q, q, 1.0, token_dim)
        yield "", "outer_attention_backward", (q, q, q, q, 1.0, token_dim)


def _net_calls(dtype):
    # (rank, layers): as large as one launch takes, as large as two take, and the usual net.
    largest = ((128, 1), (256, 2), (64, 2)) if dtype == torch.bfloat16 else ((32, 2), (128, 1))
    for r, layers in largest:
        x, v, u, bias = (
            _t(*size, dtype=dtype) for size in ((512, 1024), (r, 1024), (1024, r), (1024,))
        )
        net = ([v, u, bias] * layers, [v, v, v, u, bias] * layers, 1.0, [], 1, True, 0)
        yield "", "residual_cross_net", (x, *net)


def _table_calls():
    yield from _hash_calls()
    for dim, bits in ((16, 4), (64, 8), (64, 4), (128, 8)):
        yield from _quantized_calls(dim, bits)


def _hash_calls():
    ids, offsets, bags = _t(4096, dtype=torch.int64), _t(512, dtype=torch.int64), 512
    yield "", "murmur_hash", (ids,)
    yield "", "hash_strings", (_t(50_000, dtype=torch.uint8), offsets)
    yield "", "vocabulary_lookup", (ids, _t(100_000, dtype=torch.uint8))
    for dim in (16, 64, 128):
        label, tables = f"D={dim}", (_t(1000, dim), _t(100, dim)) * 2
        yield label, "hashed_embedding_bag", (ids, offsets, *tables, 100_000)
    args = (_t(bags, dim), ids, offsets, *tables, 100_000, 0, False, False)
    yield label, "hashed_embedding_bag_backward_weights", args
    rule = (100_000, 100, 0, "sum", False, False)
    yield label, "hashed_embedding_bag_backward", (_t(bags, dim), ids, offsets, None, *rule)
    args = (_t(4096, dim).double(), ids, None, _t(4096), *rule)
    yield f"float64, {label}", "hashed_embedding_bag_backward", args
    sums = [table[:, 0].contiguous() for table in tables]
    rule = (100_000, 0, False, False, False)
    for l2 in (0.0, 0.1):
        args = (_t(bags, dim), ids, offsets, None, *tables, *sums, _t(), *rule, l2, 1e-8)
        yield label, "hashed_embedding_bag_update", args


def _quantized_calls(dim, bits):
    label, width, bags = f"D={dim}", layout(dim, bits).row_bytes, 512
    ids, offsets = _t(4096, dtype=torch.int64), _t(bags, dtype=torch.int64)
    packed, few = _t(1000, width, dtype=torch.uint8), _t(100, width, dtype=torch.uint8)
    four, rule = (packed, few, packed, few), (100_000, dim, bits)
    rows, ends, weights = _t(8).long(), _t(513, dtype=torch.int64), _t(4096)
    tables = (packed.repeat(8, 1).view(-1), rows, rows, ids, ends, bits)
    together = ("sum", weights, torch.float32, 8 * dim)
    yield label, "quantize_rows", (_t(1000, dim), bits)
    yield label, "quantized_embedding_bag", (packed, ids, offsets, dim, bits)
    yield f"8 tables, {label}", "quantized_embedding_bags", (*tables, *together)
    yield label, "quantized_hashed_embedding_bag", (ids, offsets, *four, *rule)
    if dim != 64:
        return
    codes, pair, last = _t(1000, dim, dtype=torch.int8), _t(1000), (False, False)
    yield label, "pack_rows", (codes, pair, pair, bits)
    yield label, "unpack_rows", (packed, dim, bits)
    yield label, "dequantize_rows", (codes, pair, pair)
    yield label, "quantized_embedding_bag", (packed, ids, None, dim, bits)
    grad = _t(bags, dim)
    yield label, "quantized_embedding_bag_backward", (grad, packed, ids, offsets, dim, bits, False)
    args = (_t(64, 8 * dim), *tables)
    yield f"8 tables, {label}", "quantized_embedding_bags_backward", args
    args = (grad, ids, offsets, *four, *rule, 0, *last)
    yield label, "quantized_hashed_embedding_bag_backward", args


def _isotonic_calls(dtype):
    for n, k, features in ((4096, 500, False), (4096, 5000, False), (4096, 500, True)):
        x, w, b = _t(n, dtype=dtype), _t(k, dtype=dtype), _t(dtype=dtype)
        e = _t(n, k, dtype=dtype) if features else None
        yield "", "isotonic_calibration", (x, w, b, -17.0, 0.05, e)
        yield "", "isotonic_calibration_backward", (x, x, w, b, -17.0, 0.05, e)


def launches(architecture: int) -> dict[tuple[str, str], launch.Launch]:
    """Every kernel and configuration that the calls lead to there, each once."""
    found = {}
    for label, name, args in calls():
        with launch.recording(architecture) as recorded:
            gpu.launcher(OPS[name])(*args)
        for one in recorded:
            found.setdefault((one.kernel.__name__, _describe(one, label)), one)
    return found


def _describe(one: launch.Launch, label: str) -> str:
    dtypes = [str(a.dtype).removeprefix("torch.") for a in one.args if torch.is_tensor(a)]
    named = dict(zip(one.kernel.arg_names, one.args, strict=False)) | one.constants
    constants = [f"{n}={named[n]}" for n in one.kernel.arg_names if n.isupper() and n in named]
    options = [f"{n[4:]}={one.constants[n]}" for n in ("num_warps", "num_stages") if n in named]
    return " ".join([label or dtypes[0], *constants, *options])


def compile_one(one: launch.Launch, architecture: int, name: str, described: str) -> Resources:
    driver.set_active(_Compiler(architecture))
    built = one.kernel.warmup(*one.args, grid=(1,), **(launch.FUSION | one.constants))
    with tempfile.NamedTemporaryFile(suffix=".cubin") as file:
        file.write(built.asm["cubin"])
        file.flush()
        command = [TOOLS / "cuobjdump", "-res-usage", file.name]
        text = subprocess.run(command, capture_output=True, text=True, check=True).stdout
    used = {key: int(value) for key, value in re.findall(r"(REG|STACK|LOCAL):(\d+)", text)}
    shared = built.metadata.shared
    local = used["STACK"] + used["LOCAL"]
    return Resources(name, described, architecture, used["REG"], shared, local)


Named = set[tuple[str, str]]


def _share(
    first: int, step: int, architectures: tuple[int, ...], only: Named | None
) -> list[Resources]:
    work = [
        (key, one, a)
        for a in architectures
        for key, one in launches(a).items()
        if only is None or key in only
    ]
    return [compile_one(one, a, *key) for key, one, a in work[first::step]]


def measure(
    architectures: tuple[int, ...] = ARCHITECTURES, processes: int = 2, only: Named | None = None
) -> list[Resources]:
    """All kernels on all architectures, sorted; or only those of these names and configurations."""
    with ProcessPoolExecutor(processes, mp_context=get_context("spawn")) as pool:
        shares = [pool.submit(_share, i, processes, architectures, only) for i in range(processes)]
        return sorted(r for share in shares for r in share.result())


def table(measured: list[Resources]) -> str:
    """As Markdown: a row per kernel and configuration, a column per architecture."""
    architectures = sorted({r.architecture for r in measured})
    rows: dict[tuple[str, str], dict[int, Resources]] = {}
    for r in measured:
        rows.setdefault((r.kernel, r.configuration), {})[r.architecture] = r
    head = " | ".join(f"sm_{a}" for a in architectures)
    lines = [
        "# Triton kernels as compiled",
        "",
        f"Triton {triton.__version__}: registers a thread / bytes of shared memory a program /",
        "bytes spilled a thread. Compiled, not run: no timing here.",
        "",
        f"| kernel | configuration | {head} |",
        "|---" * (2 + len(architectures)) + "|",
    ]
    for (kernel, configuration), by in rows.items():
        cells = [
            f"{by[a].registers} / {by[a].shared} / {by[a].local}" if a in by else ""
            for a in architectures
        ]
        lines.append(f"| `{kernel}` | {configuration} | {' | '.join(cells)} |")
    return "\n".join(lines) + "\n"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--write", metavar="FILE", type=Path, help="keep the table in FILE")
    parser.add_argument("--sm", type=int, nargs="+", default=ARCHITECTURES, metavar="NN")
    options = parser.parse_args()
    measured = measure(tuple(options.sm))
    text = table(measured)
    print(text)
    if options.write:
        options.write.write_text(text)
    problems = [r for r in measured if r.problem]
    for r in problems:
        print(f"{r.kernel} {r.configuration} sm_{r.architecture}: {r.problem}", file=sys.stderr)
    sys.exit(bool(problems))


if __name__ == "__main__":
    main()
