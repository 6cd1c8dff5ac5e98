"""The residual low-rank cross layer (DCN-V2)."""

from __future__ import annotations

import torch
from torch import Tensor

from ..library.op import op
from .cross_checks import check_cross, check_grad
from .cross_math import empty_like, plus, widen


@op
def low_rank_cross(x0: Tensor, x: Tensor, v: Tensor, u: Tensor, bias: Tensor | None) -> Tensor:
    """One low-rank cross layer (DCN-V2, arXiv 2008.13535)::

        result = x0 * (x @ v.T @ u.T + bias) + x

    Half precision is computed in float32 and rounded once. Training keeps the inputs and as much
    of the (B, r) projection as pays off, at most 55 % of what eager PyTorch keeps.

    Args:
        x0: (B, d) input of the whole stack; float32, float64, bfloat16 or float16.
        x: (B, d) input of this layer; may be ``x0`` itself.
        v: (r, d) kernel onto the low rank.
        u: (d, r) kernel back to the full width.
        bias: (d,), or None.

    Returns:
        (B, d), dtype of ``x0``.

    Raises:
        ValueError, TypeError, RuntimeError: shapes, dtypes or devices do not fit, or the
            width or the rank is 0.

    Examples:
        >>> x = torch.ones(1, 2)
        >>> v, u = torch.ones(1, 2), torch.tensor([[1.0], [3.0]])
        >>> lirank_ext.low_rank_cross(x, x, v, u, None)  # 1 * (2, 6) + 1
        tensor([[3., 7.]])
    """
    out = x0.dtype
    x0, x, v, u, bias = widen(x0, x, v, u, bias)
    return (x0 * plus(x @ v.T @ u.T, bias) + x).to(out)


@low_rank_cross.check
def _check(a) -> None:
    check_cross("low_rank_cross", a.x0, a.x, {"v": a.v}, a.u, a.bias)


low_rank_cross.autocast("lower")


@low_rank_cross.fake
def _(a):
    return empty_like(a.x0)[0]


@low_rank_cross.flops
def _flops(a) -> int:
    return 4 * a.x.numel() * a.v.shape[0]


@op(internal=True)
def low_rank_cross_train(
    x0: Tensor, x: Tensor, v: Tensor, u: Tensor, bias: Tensor | None
) -> tuple[Tensor, Tensor]:
    """The result, and the first columns of x @ v.T for the backward."""
    out = low_rank_cross.op.reference(x0, x, v, u, bias)
    x, v = widen(x, v[: kept_columns(x.shape[1], v.shape[0])])
    return out, (x @ v.T).to(out.dtype)


low_rank_cross_train.check(_check)
low_rank_cross_train.flops(_flops)


@low_rank_cross_train.fake
def _(a):
    kept = kept_columns(a.x.shape[1], a.v.shape[0])
    return empty_like(a.x0)[0], a.x.new_empty(a.x.shape[0], kept)


@op(internal=True)
def low_rank_cross_backward(
    grad: Tensor,
    x0: Tensor,
    x: Tensor,
    v: Tensor,
    u: Tensor,
    bias: Tensor | None,
    hidden: Tensor | None = None,
) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor]:
    """Gradients for x0, x, v, u and bias (that one also where there is no bias).

    hidden: the first columns of x @ v.T, or none of them.
    """
    out = x0.dtype
    grad, x0, x, v, u, bias, hidden = widen(grad, x0, x, v, u, bias, hidden)
    h = x @ v.T if hidden is None else torch.cat([hidden, x @ v[hidden.shape[1] :].T], dim=1)
    dt = grad * x0
    dh = dt @ u
    gradients = (grad * plus(h @ u.T, bias), grad + dh @ v, dh.T @ x, dt.T @ h, dt.sum(0))
    return tuple(t.to(out) for t in gradients)


@low_rank_cross_backward.check
def _(a) -> None:
    check_cross("low_rank_cross_backward", a.x0, a.x, {"v": a.v}, a.u, a.bias)
    check_grad(a, a.x0)


@low_rank_cross_backward.flops
def _(a) -> int:
    kept = 0 if a.hidden is None else a.hidden.shape[1]
    return 2 * a.x.numel() * (6 * a.v.shape[0] - kept)


@low_rank_cross_backward.fake
def _(a):
    return (*empty_like(a.x0, a.x, a.v, a.u), a.u.new_empty(a.u.shape[0]))


def kept_columns(dim: int, rank: int) -> int:
    """Columns of ``x @ v.T`` that low-rank training keeps: at most 55 % of what eager keeps.

    Two layers on one input keep ``2 * dim + 2 * kept`` numbers a sample, eager
    ``4 * dim + 2 * rank``. Whole cache lines where not all fit; as in ``csrc/cross.cpp``.
    """
    most = (2 * dim + 11 * rank) // 20
    return rank if most >= rank else most // 16 * 16


def _keeps(a) -> bool:
    """Whether a backward gets columns of the projection instead of computing all of them again.

    In part only where recomputing the rest costs more than copying: not measured on a GPU.
    """
    return a.u.dim() == 2 and (9 * a.u.shape[1] <= 2 * a.u.shape[0] or a.x0.device.type == "cpu")


@low_rank_cross.backward(
    saves=("x0", "x", "v", "u", "bias"),
    forward=low_rank_cross_train,
    when=_keeps,
    by_reference=True,
)
def _(a, grad, hidden=None):
    x0, x, v, u, bias = low_rank_cross_backward(grad, *a, hidden)
    return {"x0": x0, "x": x, "v": v, "u": u, "bias": bias}
