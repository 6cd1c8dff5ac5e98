"""The residual cross net in Triton against its reference: on a GPU, or interpreted on the CPU.

``TRITON_INTERPRET=1 LIRANK_NO_EXT=1 python tests/triton_net.py TURN`` runs every case in plan
number TURN of the launcher (the last is layer by layer); ``python tests/triton_net.py`` on a GPU
runs every third through the dispatcher: each compiles kernels of its own. Prints how many
launches took a whole net, and the failures, as JSON.
"""

from __future__ import annotations

import json
import sys
from unittest import mock

import torch

from lirank_ext.kernels import cross_net, launch
from lirank_ext.library import gpu
from lirank_ext.library.op import OPS
from lirank_ext.verify import check_case
from lirank_ext.verify.cases import Case

OP = "residual_cross_net"
# (B, d, r, attention rank, layers of each stack)
SHAPES = (
    (0, 8, 3, 3, (2, 2)),
    (1, 1, 1, 1, (1, 1)),
    (2, 16, 4, 9, (2, 2)),
    (5, 33, 7, 5, (3, 1)),  # rows of an odd number of bytes in bfloat16
    (37, 70, 20, 17, (1, 3)),
    (35, 130, 16, 16, (2, 2)),
    (18, 67, 34, 40, (2, 2)),  # two launches in float32; keys and values in scratch of their own
    (4, 40, 70, 20, (2, 1)),  # layer by layer in float32
)


def _stack(generator, layers: int, d: int, r: int, kernels: int, dtype) -> list:
    def draw(*size, scale=1.0):
        return (torch.randn(size, generator=generator) * scale).to(dtype)

    found = []
    for _ in range(layers):
        found += [draw(r, d, scale=d**-0.5) for _ in range(kernels)]
        found += [draw(d, r, scale=0.5 * r**-0.5), draw(d, scale=0.1)]
    return found


def _case(generator, label, shape, dtype=torch.float32, learnt=False, **options) -> Case:
    batch, d, r, s, (low, high) = shape
    x = torch.randn(batch, d, generator=generator).to(dtype)
    first = _stack(generator, low, d, r, 1, dtype)
    second = _stack(generator, high, d, s, 3, dtype)
    logs = list(torch.linspace(-0.5, 0.5, high).to(dtype)) if learnt else []
    rest = (options.get("token_dim", 1), options.get("skip", True), options.get("merge", 0))
    args = (x, first, second, options.get("temperature", 1.0), logs, *rest)
    # A result sums d + r products per layer; half precision is rounded after each.
    tolerance = 8.0 if dtype in (torch.bfloat16, torch.float16) else 512.0
    return Case(OP, f"{label} {shape} {dtype}", args, tolerance=tolerance)


def cases() -> list[Case]:
    generator, found = torch.Generator().manual_seed(0), []
    for dtype in (torch.float32, torch.bfloat16, torch.float16):
        for i, shape in enumerate(SHAPES):
            options = {"skip": i % 2 == 0, "merge": i % 3, "temperature": 0.6}
            found.append(_case(generator, f"{options}", shape, dtype, **options))
    small = (19, 40, 12, 10, (2, 2))
    for merge in (0, 1, 2):
        found.append(_case(generator, f"merge {merge}", small, merge=merge))
    wide = (18, 67, 34, 40, (2, 2))
    for merge in (1, 2):
        found.append(_case(generator, f"two launches, merge {merge}", wide, merge=merge))
    for dtype in (torch.float32, torch.bfloat16):
        found.append(_case(generator, "learnt temperature", small, dtype, True))
    found.append(_case(generator, "small temperature", small, temperature=1e-3))
    found.append(_case(generator, "tokens of 2", small, token_dim=2))
    found.append(_case(generator, "float64", small, torch.float64))
    case = _case(generator, "strided", small)
    x, first, second, *rest = case.args
    turned = [
        [t.mT.contiguous().mT if t.dim() == 2 else t.repeat_interleave(2)[::2] for t in stack]
        for stack in (first, second)
    ]
    case.args = (x.repeat(1, 2)[:, ::2], *turned, *rest)
    found.append(case)
    case = _case(generator, "NaN stays in its row", small)
    case.args[0][2, 3] = torch.nan
    found.append(case)
    mixed = _case(generator, "ranks differ", small)
    mixed.args[1][3:] = _stack(generator, 1, 40, 5, 1, torch.float32)
    found.append(mixed)
    return found


def main(turn: str | None = None) -> None:
    device = "cpu" if launch.INTERPRETED else "cuda"
    call = gpu.launcher(OPS[OP]) if launch.INTERPRETED else OPS[OP].overload
    launched, failures, ran = 0, [], 0

    def count(*args, **constants):
        nonlocal launched
        launched += 1
        return launch.launch(*args, **constants)

    with mock.patch.object(cross_net, "launch", count):
        for case in cases()[:: 1 if launch.INTERPRETED else 3]:
            with launch.turn(int(turn or 0)):
                outcome = check_case(case, call, device)
            ran += 1
            if not outcome.passed:
                failures.append(f"{case.label}: {outcome.problem}")
    print(json.dumps({"ran": ran, "whole nets": launched, "failures": failures}))
    sys.exit(bool(failures))


if __name__ == "__main__":
    main(*sys.argv[1:])
