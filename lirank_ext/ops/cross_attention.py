"""Attention among the components of a vector, and the cross layer that holds it (LiRank 3.3)."""

from __future__ import annotations

import torch
from torch import Tensor

from ..library.checks import check
from ..library.op import op
from .cross_checks import (
    check_attention,
    check_cross,
    check_grad,
    check_temperature,
    check_tokens,
)
from .cross_math import attend, attend_backward, empty_like, plus, widen


def outer_attention(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    temperature: float | Tensor = 1.0,
    token_dim: int = 1,
) -> Tensor:
    """Scaled dot-product attention among the components of one sample's vectors.

    Each row is seen as ``h = r / token_dim`` tokens of width ``token_dim``. Per sample::

        result = softmax(q @ k.T / (temperature * sqrt(token_dim))) @ v      # (h, h) scores

    Never holds the B * h * h scores, forward or backward. With ``token_dim = 1`` the result
    is, for each sample, the ratio of two smooth functions of the single number ``q_i``; where a
    proven bound allows, a CPU computes both at a few Chebyshev nodes and interpolates them:
    float32, O(r) exponentials a sample instead of O(r^2) (``csrc/simd/cross_chebyshev.h``).

    Args:
        q, k, v: (B, r); float32, float64, bfloat16 or float16.
        temperature: positive; a float, or a 0-d tensor, which gets a gradient.
        token_dim: width of a token; divides r.

    Returns:
        (B, r), dtype of ``q``.

    Raises:
        ValueError, TypeError, RuntimeError: shapes, dtypes or devices do not fit, the rank
            is 0, ``token_dim`` does not divide it, or ``temperature`` is not positive.

    Source:
        LiRank (arXiv 2402.06859), section 3.3, read so: the score matrix is per
        sample, so that identity scores give the plain low-rank cross layer.

    Examples:
        >>> q = torch.zeros(1, 4)  # equal scores: every component gets the mean of v
        >>> v = torch.tensor([[1.0, 2.0, 3.0, 6.0]])
        >>> lirank_ext.outer_attention(q, q, v)
        tensor([[3., 3., 3., 3.]])
    """
    if isinstance(temperature, Tensor):
        q, temperature = q / _checked("outer_attention", temperature), 1.0
    return _outer_attention(q, k, v, temperature, token_dim)


@op(name="outer_attention", family="cross")
def _outer_attention(
    q: Tensor, k: Tensor, v: Tensor, temperature: float = 1.0, token_dim: int = 1
) -> Tensor:
    return attend(*widen(q, k, v), temperature, token_dim).to(q.dtype)


_outer_attention.check(check_attention)
_outer_attention.autocast("lower")


@_outer_attention.flops
def _(a) -> int:
    return 4 * a.q.numel() * (a.q.shape[1] // a.token_dim)


@_outer_attention.fake
def _(a):
    return empty_like(a.q)[0]


@op(family="cross", internal=True)
def outer_attention_backward(
    grad: Tensor, q: Tensor, k: Tensor, v: Tensor, temperature: float = 1.0, token_dim: int = 1
) -> tuple[Tensor, Tensor, Tensor]:
    """Gradients for q, k and v."""
    gradients = attend_backward(*widen(grad, q, k, v), temperature, token_dim)
    return tuple(t.to(q.dtype) for t in gradients)


@outer_attention_backward.check
def _(a) -> None:
    check_attention(a)
    check_grad(a, a.q)


@outer_attention_backward.flops
def _(a) -> int:
    return 10 * a.q.numel() * (a.q.shape[1] // a.token_dim)


@outer_attention_backward.fake
def _(a):
    return empty_like(a.q, a.k, a.v)


@_outer_attention.backward(saves=("q", "k", "v"), by_reference=True)
def _(a, grad):
    q, k, v = outer_attention_backward(grad, *a)
    return {"q": q, "k": k, "v": v}


def attention_cross(
    x0: Tensor,
    x: Tensor,
    q: Tensor,
    k: Tensor,
    v: Tensor,
    u: Tensor,
    bias: Tensor | None,
    temperature: float | Tensor = 1.0,
    token_dim: int = 1,
    skip: bool = True,
) -> Tensor:
    """One cross layer with attention between the two low-rank maps (LiRank, section 3.3).

    With ``q', k', v' = x @ q.T, x @ k.T, x @ v.T`` and ``o = outer_attention(q', k', v')``::

        result = x0 * ((o + v' if skip else o) @ u.T + bias) + x

    Args:
        x0: (B, d) input of the whole stack; float32, float64, bfloat16 or float16.
        x: (B, d) input of this layer; may be ``x0`` itself.
        q, k, v: (r, d) kernels onto the low rank.
        u: (d, r) kernel back to the full width.
        bias: (d,), or None.
        temperature: positive; a float, or a 0-d tensor, which gets a gradient.
        token_dim: width of a token; divides r.
        skip: add ``v'`` to the attention's result.

    Returns:
        (B, d), dtype of ``x0``.

    Raises:
        ValueError, TypeError, RuntimeError: as :func:`low_rank_cross` and
            :func:`outer_attention`.
    """
    if isinstance(temperature, Tensor):
        q, temperature = q / _checked("attention_cross", temperature), 1.0
    return _attention_cross(x0, x, q, k, v, u, bias, temperature, token_dim, skip)


def _checked(op: str, temperature: Tensor) -> Tensor:
    """A 0-d tensor; its sign is looked at where that needs no wait for a device."""
    check(temperature.dim() == 0, op, "temperature", "a float or a 0-d tensor", temperature)
    if not torch.compiler.is_compiling() and _has_value(temperature):
        value = float(temperature.detach())
        check_temperature(op, value)
    return temperature


def _has_value(t: Tensor) -> bool:
    """On a CPU, neither fake nor batched, and not about to become a constant of a trace."""
    concrete = type(t) in (Tensor, torch.nn.Parameter) and t.device.type == "cpu"
    transformed = torch._C._functorch.is_functorch_wrapped_tensor(t)
    return concrete and not transformed and not torch.jit.is_tracing()


@op(name="attention_cross", family="cross")
def _attention_cross(
    x0: Tensor,
    x: Tensor,
    q: Tensor,
    k: Tensor,
    v: Tensor,
    u: Tensor,
    bias: Tensor | None,
    temperature: float = 1.0,
    token_dim: int = 1,
    skip: bool = True,
) -> Tensor:
    out = x0.dtype
    x0, x, q, k, v, u, bias = widen(x0, x, q, k, v, u, bias)
    _, mixed = _mix(x, q, k, v, temperature, token_dim, skip)
    return (x0 * plus(mixed @ u.T, bias) + x).to(out)


def _mix(x, q, k, v, temperature, token_dim, skip) -> tuple[Tensor, Tensor]:
    """(B, 3r) queries, keys and values, and (B, r) what enters u."""
    queries, keys, values = x @ q.T, x @ k.T, x @ v.T
    mixed = attend(queries, keys, values, temperature, token_dim)
    return torch.cat([queries, keys, values], dim=1), mixed + values if skip else mixed


def _check_layer(op: str, a) -> None:
    check_cross(op, a.x0, a.x, {"q": a.q, "k": a.k, "v": a.v}, a.u, a.bias)
    check_tokens(op, a.v.shape[0], a.temperature, a.token_dim)


@_attention_cross.check
def _check(a) -> None:
    _check_layer("attention_cross", a)


_attention_cross.autocast("lower")


@_attention_cross.flops
def _flops(a) -> int:
    rank = a.v.shape[0]
    return 8 * a.x.numel() * rank + 4 * a.x.shape[0] * rank * (rank // a.token_dim)


@_attention_cross.fake
def _(a):
    return empty_like(a.x0)[0]


@op(family="cross", internal=True)
def attention_cross_train(
    x0: Tensor,
    x: Tensor,
    q: Tensor,
    k: Tensor,
    v: Tensor,
    u: Tensor,
    bias: Tensor | None,
    temperature: float = 1.0,
    token_dim: int = 1,
    skip: bool = True,
) -> tuple[Tensor, Tensor, Tensor]:
    """The result; for the backward (B, 3r) queries, keys and values, and (B, r) what enters u."""
    rest = (temperature, token_dim, skip)
    out = _attention_cross.op.reference(x0, x, q, k, v, u, bias, *rest)
    hidden, mixed = _mix(*widen(x, q, k, v), *rest)
    return out, hidden.to(out.dtype), mixed.to(out.dtype)


attention_cross_train.check(_check)
attention_cross_train.flops(_flops)


@attention_cross_train.fake
def _(a):
    batch, rank = a.x.shape[0], a.v.shape[0]
    return empty_like(a.x0)[0], a.x.new_empty(batch, 3 * rank), a.x.new_empty(batch, rank)


@op(family="cross", internal=True)
def attention_cross_backward(
    grad: Tensor,
    x0: Tensor,
    x: Tensor,
    q: Tensor,
    k: Tensor,
    v: Tensor,
    u: Tensor,
    bias: Tensor | None,
    temperature: float = 1.0,
    token_dim: int = 1,
    skip: bool = True,
    hidden: Tensor | None = None,
    mixed: Tensor | None = None,
) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor, Tensor, Tensor]:
    """Gradients for x0, x, q, k, v, u and bias (that one also where there is no bias)."""
    out = x0.dtype
    tensors = widen(grad, x0, x, q, k, v, u, bias, hidden, mixed)
    grad, x0, x, q, k, v, u, bias, hidden, mixed = tensors
    if hidden is None or mixed is None:
        hidden, mixed = _mix(x, q, k, v, temperature, token_dim, skip)
    dt = grad * x0
    dp = dt @ u
    dq, dk, dv = attend_backward(dp, *hidden.chunk(3, dim=1), temperature, token_dim)
    dv = dv + dp if skip else dv
    dx = grad + dq @ q + dk @ k + dv @ v
    dx0, du = grad * plus(mixed @ u.T, bias), dt.T @ mixed
    gradients = (dx0, dx, dq.T @ x, dk.T @ x, dv.T @ x, du, dt.sum(0))
    return tuple(t.to(out) for t in gradients)


@attention_cross_backward.check
def _(a) -> None:
    _check_layer("attention_cross_backward", a)
    check_grad(a, a.x0)


@attention_cross_backward.flops
def _(a) -> int:
    rank = a.v.shape[0]
    again = (
        0 if a.hidden is not None and a.mixed is not None else _flops(a) - 2 * a.x.numel() * rank
    )
    return again + 18 * a.x.numel() * rank + 10 * a.x.shape[0] * rank * (rank // a.token_dim)


@attention_cross_backward.fake
def _(a):
    return (*empty_like(a.x0, a.x, a.q, a.k, a.v, a.u), a.u.new_empty(a.u.shape[0]))


@_attention_cross.backward(
    saves=("x0", "x", "q", "k", "v", "u", "bias"),
    forward=attention_cross_train,
    by_reference=True,
)
def _(a, grad, hidden, mixed):
    x0, x, q, k, v, u, bias = attention_cross_backward(grad, *a, hidden, mixed)
    return {"x0": x0, "x": x, "q": q, "k": k, "v": v, "u": u, "bias": bias}
