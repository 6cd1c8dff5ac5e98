"""``residual_cross_score`` in Triton under the interpreter, against its float64 reference.

``TRITON_INTERPRET=1 LIRANK_NO_EXT=1 python tests/triton_score.py`` runs the cases. Prints JSON.
"""

from __future__ import annotations

import json

import torch

from lirank_ext.kernels import launch
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
    (torch.float32, 2, 2, (8, 8), 1, True, 2, 3, (2, 1)),
    (torch.float32, 0, 1, (8, 8), 1, True, 0, 3, (1,)),
    (torch.float32, 1, 1, (8, 8), 1, True, 0, 3, (0, 0)),
    (torch.bfloat16, 2, 2, (8, 8), 1, True, 0, 5, (34,)),
    (torch.float64, 2, 2, (8, 8), 1, True, 0, 5, (20,)),
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
    failures = []
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
    print(json.dumps({"ran": len(CASES), "failures": failures}))


if __name__ == "__main__":
    main()
