"""``residual_cross_score`` in Triton under the interpreter, against its float64 reference.

``TRITON_INTERPRET=1 LIRANK_NO_EXT=1 python tests/triton_score.py`` runs the cases;
``python tests/triton_score.py compile`` compiles the kernels, without a GPU. Prints JSON.
"""

from __future__ import annotations

import json
import sys

import torch

from lirank_ext.kernels import cross_score, launch
from lirank_ext.library import gpu
from lirank_ext.library.op import OPS

OP = OPS["residual_cross_score"]
# Relative to the largest result; half precision is rounded after each layer.
TOLERANCE = {torch.float32: 2e-5, torch.bfloat16: 3e-2, torch.float64: 1e-12}
# dtype, low-rank layers, attention layers, ranks, token_dim, skip, merge, outputs, counts
CASES = (
    (torch.float32, 2, 2, (8, 8), 1, True, 0, None, (1, 0, 40)),
    (torch.float32, 2, 2, (8, 6), 2, False, 1, 5, (30, 12)),
    (torch.float32, 1, 3, (4, 8), 1, True, 2, 40, (33,)),
    (torch.float32, 3, 0, (8, 8), 1, True, 0, 3, (33,)),
    (torch.float32, 0, 2, (8, 8), 1, True, 2, None, (33,)),
    (torch.float32, 2, 2, (8, 8), 1, True, 2, 3, (2, 1)),  # joined
    (torch.float32, 0, 1, (8, 8), 1, True, 0, 3, (1,)),  # joined
    (torch.float32, 1, 1, (8, 8), 1, True, 0, 3, (0, 0)),
    (torch.bfloat16, 2, 2, (8, 8), 1, True, 0, 5, (34,)),
    (torch.float64, 2, 2, (8, 8), 1, True, 0, 5, (20,)),  # joined
)


def _arguments(case) -> tuple:
    dtype, lows, highs, (low, high), token_dim, skip, merge, outputs, counts = case
    generator = torch.Generator().manual_seed(0)

    def draw(*size):
        return (torch.randn(size, generator=generator) * 0.3).to(dtype)

    first, second = [], []
    for _ in range(lows):
        first += [draw(low, 24), draw(24, low), draw(24)]
    for _ in range(highs):
        second += [*(draw(high, 24) for _ in range(3)), draw(24, high), draw(24)]
    logs = [draw() for _ in range(highs)] if token_dim > 1 else []
    wide = 48 if merge == 2 and lows and highs else 24
    weight = None if outputs is None else draw(outputs, wide)
    bias = None if outputs is None else draw(outputs)
    numbers = torch.tensor(counts)
    inputs = (draw(len(counts), 15), draw(sum(counts), 9), numbers)
    return (*inputs, first, second, 0.7, logs, token_dim, skip, merge, weight, bias)


def _double(value):
    if isinstance(value, list):
        return [t.double() for t in value]
    floating = isinstance(value, torch.Tensor) and value.is_floating_point()
    return value.double() if floating else value


def _turned(value):
    """Matrices column after column in memory."""
    if isinstance(value, list):
        return [_turned(t) for t in value]
    matrix = isinstance(value, torch.Tensor) and value.dim() == 2
    return value.t().contiguous().t() if matrix else value


def main() -> None:
    assert launch.INTERPRETED, "set TRITON_INTERPRET=1"
    failures, launched, call = [], [], cross_score.launch

    def counted(kernel, *args, **constants):
        launched.append(kernel.__name__)
        call(kernel, *args, **constants)

    cross_score.launch = counted
    for case, strided in [*((case, False) for case in CASES), (CASES[1], True), (CASES[3], True)]:
        args = _arguments(case)
        args = tuple(map(_turned, args)) if strided else args
        got, wanted = gpu.launcher(OP)(*args), OP.reference(*map(_double, args))
        largest = float(wanted.abs().max()) if wanted.numel() else 0.0
        error = float((got.double() - wanted).abs().max()) if wanted.numel() else 0.0
        if got.dtype != case[0] or not error <= TOLERANCE[case[0]] * largest:
            failures.append(f"{case}: error {error:.2e} of {largest:.2e}")
    for counts in ((3, 2), (-1, 7)):
        args = list(_arguments(CASES[3]))
        args[0], args[1], args[2] = torch.ones(2, 15), torch.ones(6, 9), torch.tensor(counts)
        try:
            gpu.launcher(OP)(*args)
            failures.append(f"counts {counts} were taken")
        except ValueError as error:
            if "argument 'counts': wanted" not in str(error):
                failures.append(str(error))
    shown = {name: launched.count(name) for name in set(launched)}
    print(json.dumps({"ran": len(CASES), "launched": shown, "failures": failures}))


def compile_kernels() -> None:
    from lirank_ext.benchmarks import triton_resources

    problems, compiled = [], []
    for dtype in (torch.float32, torch.bfloat16):

        def empty(*size, dtype=dtype):
            return torch.empty(size, device="meta", dtype=dtype)

        m = empty(4, 192, 64, dtype=torch.float32)
        tiles = empty(20, 3, dtype=torch.int64)
        for architecture in (80, 90):
            with launch.recording(architecture) as recorded:
                cross_score._folded(empty(192, 614), empty(614, 64), empty(4, 614))
                sides = (empty(512, 410), empty(192, 410), empty(512, 64), m, empty(4, 192))
                cross_score._scored(*sides, tiles)
            for one in recorded:
                name = one.kernel.__name__
                found = triton_resources.compile_one(one, architecture, name, str(dtype))
                compiled.append(f"{name} {dtype} sm_{architecture}")
                if found.problem:
                    problems.append(f"{compiled[-1]}: {found.problem}")
    print(json.dumps({"compiled": compiled, "failures": problems}))


if __name__ == "__main__":
    compile_kernels() if sys.argv[1:] == ["compile"] else main()
