"""Attention at Chebyshev nodes in Triton, interpreted, on both sides of its bound.

``TRITON_INTERPRET=1 LIRANK_NO_EXT=1 python tests/triton_attention.py`` runs the cases of tokens of
width 1 through the kernels at nodes, whatever their rank: those kernels sum exactly what the bound
refuses. Which samples it refuses is told by results of the exact kernel, bit for bit. Prints what
failed, and how many samples of each scale of q were taken at nodes, as JSON.
"""

from __future__ import annotations

import json
from unittest import mock

import torch

from lirank_ext.kernels import cross_attention, launch
from lirank_ext.kernels import cross_attention_chebyshev as chebyshev
from lirank_ext.library.op import OPS
from lirank_ext.verify import check_case
from lirank_ext.verify.cases import all_cases

BACKWARD = OPS["outer_attention_backward"]
NODES, EXACT = 2, 0  # places in the list of candidates


class _AnyRank:
    """Both directions at nodes, as autograd calls them."""

    def __call__(self, q, k, v, temperature, token_dim):
        return _Attention.apply(q, k, v, temperature, token_dim)


class _Attention(torch.autograd.Function):
    @staticmethod
    def forward(context, q, k, v, temperature, token_dim):
        context.save_for_backward(q, k, v)
        context.rest = temperature, token_dim
        return cross_attention.forward(q, k, v, temperature, token_dim, False)

    @staticmethod
    def backward(context, grad):
        call = BACKWARD.call(grad, *context.saved_tensors, *context.rest)
        return *cross_attention.outer_attention_backward(call), None, None


def failures() -> tuple[list[str], int]:
    found, ran = [], 0
    for case in all_cases("outer_attention"):
        if case.big or case.raises or case.args["token_dim"] != 1:
            continue
        with launch.turn(NODES), mock.patch.object(chebyshev, "SMALLEST", 1):
            outcome = check_case(case, _AnyRank())
        ran += 1
        if not outcome.passed:
            found.append(f"{case.label}: {outcome.problem}")
    return found, ran


def taken(scale: float, r: int) -> tuple[int, float]:
    """How many of 6 samples are taken at nodes, and the largest error, of values of order 1."""
    generator = torch.Generator().manual_seed(1)
    q, k, v = (torch.randn(6, r, generator=generator) for _ in range(3))
    q = q * scale
    with launch.turn(NODES):
        at_nodes = cross_attention.forward(q, k, v, 1.0, 1, False)
    with launch.turn(EXACT):
        exact = cross_attention.forward(q, k, v, 1.0, 1, False)
    a = torch.softmax(q.double()[:, :, None] * k.double()[:, None, :], -1)
    error = (at_nodes - (a @ v.double()[:, :, None])[..., 0]).abs().max()
    return int((at_nodes != exact).any(1).sum()), float(error)


def main() -> None:
    assert launch.INTERPRETED, "set TRITON_INTERPRET=1"
    problems, ran = failures()
    sides = {f"{scale} {r}": taken(scale, r) for scale, r in ((1.0, 256), (0.3, 150), (6.0, 256))}
    print(json.dumps({"ran": ran, "failures": problems, "sides": sides}))


if __name__ == "__main__":
    main()
