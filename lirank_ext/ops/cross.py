"""Residual cross layers: low rank (DCN-V2), and with attention between the low-rank maps."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from ..library._old_checks import check
from ..library.op import register
from . import _cross_fakes
from ._cross_checks import (
    check_attention,
    check_cross,
    check_grad,
    check_net,
    check_tokens,
    kept_columns,
    trains,
)
from ._cross_math import plus, scores, wide


def low_rank_cross(x0: Tensor, x: Tensor, v: Tensor, u: Tensor, bias: Tensor | None) -> Tensor:
    """One low-rank cross layer (DCN-V2, arXiv 2008.13535)::

        result = x0 * (x @ v.T @ u.T + bias) + x

    Half precision is computed in float32 and rounded once. Training keeps the inputs and of
    the (B, r) projection as many columns as make 55 % of what eager keeps: all of them where
    ``9 * r <= 2 * d``, else on the CPU the first ``d / 10 + 0.55 * r`` and on a GPU none.

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
    """
    # In part only where recomputing the rest costs more than copying: not measured on a GPU.
    keeps = u.dim() == 2 and (9 * u.shape[1] <= 2 * u.shape[0] or x0.device.type == "cpu")
    if keeps and trains(x0, x, v, u, bias):
        return _low_rank_cross_train(x0, x, v, u, bias)[0]
    return _low_rank_cross(x0, x, v, u, bias)


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
    """
    if isinstance(temperature, Tensor):
        q, temperature = q / _checked("outer_attention", temperature), 1.0
    return _outer_attention(q, k, v, temperature, token_dim)


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
    op = _attention_cross_train if trains(x0, x, q, k, v, u, bias) else _attention_cross
    out = op(x0, x, q, k, v, u, bias, temperature, token_dim, skip)
    return out if isinstance(out, Tensor) else out[0]


def _checked(op: str, temperature: Tensor) -> Tensor:
    """A 0-d tensor; its sign is looked at where that needs no wait for a device."""
    check(temperature.dim() == 0, op, "temperature", "a float or a 0-d tensor", temperature)
    concrete = type(temperature) in (Tensor, torch.nn.Parameter)
    if concrete and temperature.device.type == "cpu" and not torch.compiler.is_compiling():
        value = float(temperature.detach())
        check(value > 0, op, "temperature", "a positive number", value)
    return temperature


# ---- definitions and gradients ---------------------------------------------------------


def low_rank_cross_reference(
    x0: Tensor, x: Tensor, v: Tensor, u: Tensor, bias: Tensor | None
) -> Tensor:
    check_cross("low_rank_cross", x0, x, {"v": v}, u, bias)
    out = x0.dtype
    x0, x, v, u, bias = wide(x0, x, v, u, bias)
    return (x0 * plus(x @ v.T @ u.T, bias) + x).to(out)


def low_rank_cross_train_reference(x0, x, v, u, bias):
    """The result, and the first columns of x @ v.T for the backward."""
    out = low_rank_cross_reference(x0, x, v, u, bias)
    x, v = wide(x, v[: kept_columns(x.shape[1], v.shape[0])])
    return out, (x @ v.T).to(out.dtype)


def low_rank_cross_backward_reference(grad, x0, x, v, u, bias, hidden=None):
    """Gradients for x0, x, v, u and bias (that one also where there is no bias).

    hidden: the first columns of x @ v.T, or none of them.
    """
    op = "low_rank_cross_backward"
    check_cross(op, x0, x, {"v": v}, u, bias)
    check_grad(op, grad, x0)
    out = x0.dtype
    grad, x0, x, v, u, bias, hidden = wide(grad, x0, x, v, u, bias, hidden)
    h = x @ v.T if hidden is None else torch.cat([hidden, x @ v[hidden.shape[1] :].T], dim=1)
    dt = grad * x0
    dh = dt @ u
    found = (grad * plus(h @ u.T, bias), grad + dh @ v, dh.T @ x, dt.T @ h, dt.sum(0))
    return tuple(t.to(out) for t in found)


def outer_attention_reference(
    q: Tensor, k: Tensor, v: Tensor, temperature: float = 1.0, token_dim: int = 1
) -> Tensor:
    check_attention("outer_attention", q, k, v, temperature, token_dim)
    out, shape = q.dtype, q.shape
    tokens = (shape[0], shape[1] // token_dim, token_dim)
    q, k, v = (t.reshape(tokens) for t in wide(q, k, v))
    return (scores(q, k, temperature) @ v).reshape(shape).to(out)


def outer_attention_backward_reference(
    grad: Tensor, q: Tensor, k: Tensor, v: Tensor, temperature: float = 1.0, token_dim: int = 1
) -> tuple[Tensor, Tensor, Tensor]:
    """Gradients for q, k and v."""
    op = "outer_attention_backward"
    check_attention(op, q, k, v, temperature, token_dim)
    check_grad(op, grad, q)
    out, shape = q.dtype, q.shape
    tokens = (shape[0], shape[1] // token_dim, token_dim)
    g, q, k, v = (t.reshape(tokens) for t in wide(grad, q, k, v))
    a = scores(q, k, temperature)
    da = g @ v.transpose(1, 2)
    ds = a * (da - (a * da).sum(-1, keepdim=True)) / (temperature * math.sqrt(token_dim))
    found = (ds @ k, ds.transpose(1, 2) @ q, a.transpose(1, 2) @ g)
    return tuple(t.reshape(shape).to(out) for t in found)


def attention_cross_reference(
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
    op = "attention_cross"
    check_cross(op, x0, x, {"q": q, "k": k, "v": v}, u, bias)
    check_tokens(op, v.shape[0], temperature, token_dim)
    out = x0.dtype
    x0, x, q, k, v, u, bias = wide(x0, x, q, k, v, u, bias)
    value = x @ v.T
    o = outer_attention_reference(x @ q.T, x @ k.T, value, temperature, token_dim)
    return (x0 * plus((o + value if skip else o) @ u.T, bias) + x).to(out)


def attention_cross_train_reference(
    x0, x, q, k, v, u, bias, temperature=1.0, token_dim=1, skip=True
):
    """The result; for the backward (B, 3r) queries, keys and values, and (B, r) what enters u."""
    out = attention_cross_reference(x0, x, q, k, v, u, bias, temperature, token_dim, skip)
    x, q, k, v = wide(x, q, k, v)
    hidden, mixed = _mix(x, q, k, v, temperature, token_dim, skip)
    return out, hidden.to(out.dtype), mixed.to(out.dtype)


def _mix(x, q, k, v, temperature, token_dim, skip):
    hidden = torch.cat([x @ q.T, x @ k.T, x @ v.T], dim=1)
    o = outer_attention_reference(*hidden.chunk(3, dim=1), temperature, token_dim)
    return hidden, (o + hidden.chunk(3, dim=1)[2] if skip else o)


def attention_cross_backward_reference(
    grad, x0, x, q, k, v, u, bias, temperature=1.0, token_dim=1, skip=True, hidden=None, mixed=None
):
    """Gradients for x0, x, q, k, v, u and bias (that one also where there is no bias)."""
    op = "attention_cross_backward"
    check_cross(op, x0, x, {"q": q, "k": k, "v": v}, u, bias)
    check_tokens(op, v.shape[0], temperature, token_dim)
    check_grad(op, grad, x0)
    out = x0.dtype
    tensors = wide(grad, x0, x, q, k, v, u, bias, hidden, mixed)
    grad, x0, x, q, k, v, u, bias, hidden, p = tensors
    if hidden is None or p is None:
        hidden, p = _mix(x, q, k, v, temperature, token_dim, skip)
    dt = grad * x0
    dp = dt @ u
    dh = outer_attention_backward_reference(dp, *hidden.chunk(3, dim=1), temperature, token_dim)
    dq, dk, dv = dh[0], dh[1], dh[2] + dp if skip else dh[2]
    dx = grad + dq @ q + dk @ k + dv @ v
    found = (grad * plus(p @ u.T, bias), dx, dq.T @ x, dk.T @ x, dv.T @ x, dt.T @ p, dt.sum(0))
    return tuple(t.to(out) for t in found)


def residual_cross_net_reference(
    x: Tensor,
    low_rank: list[Tensor],
    attention: list[Tensor],
    temperature: float,
    log_temperatures: list[Tensor],
    token_dim: int = 1,
    skip: bool = True,
    merge: int = 0,
) -> Tensor:
    """Two stacks on the same input, without gradients: serving in one call.

    low_rank: v, u, bias of each layer; attention: q, k, v, u, bias of each layer, all biases
    present; log_temperatures: one 0-d tensor per attention layer, or empty, then
    ``temperature`` serves all. merge: 0 sum, 1 mean, 2 concatenation.
    """
    check_net(x, low_rank, attention, temperature, log_temperatures, token_dim, merge)
    low, high = x, x
    for i in range(0, len(low_rank), 3):
        low = low_rank_cross_reference(x, low, *low_rank[i : i + 3])
    for i in range(0, len(attention), 5):
        scale = float(log_temperatures[i // 5].exp()) if log_temperatures else temperature
        layer = attention[i : i + 5]
        high = attention_cross_reference(x, high, *layer, scale, token_dim, skip)
    if merge == 2:
        return torch.cat([low, high], dim=-1)
    return (low + high) / (1 + merge)


# ---- autograd, registration ------------------------------------------------------------


def _kept(ctx, output) -> tuple[Tensor, ...]:
    """What the training op returns besides the result; it takes no gradient."""
    kept = () if isinstance(output, Tensor) else output[1:]
    ctx.mark_non_differentiable(*kept)
    return kept


def _low_rank_cross_setup(ctx, inputs, output):
    ctx.save_for_backward(*inputs, *_kept(ctx, output))


def _low_rank_cross_autograd(ctx, grad, *_):
    found = _low_rank_cross_backward(grad, *ctx.saved_tensors)
    return (*found[:4], None if ctx.saved_tensors[4] is None else found[4])


def _outer_attention_setup(ctx, inputs, output):
    ctx.save_for_backward(*inputs[:3])
    ctx.options = inputs[3:]


def _outer_attention_autograd(ctx, grad):
    return (*_outer_attention_backward(grad, *ctx.saved_tensors, *ctx.options), None, None)


def _attention_cross_setup(ctx, inputs, output):
    ctx.save_for_backward(*inputs[:7], *_kept(ctx, output))
    ctx.options = inputs[7:]


def _attention_cross_autograd(ctx, grad, *_):
    tensors, kept = ctx.saved_tensors[:7], ctx.saved_tensors[7:]
    found = _attention_cross_backward(grad, *tensors, *ctx.options, *kept)
    return (*found[:6], None if tensors[6] is None else found[6], None, None, None)


_low_rank_cross_backward = register(
    "low_rank_cross_backward(Tensor grad, Tensor x0, Tensor x, Tensor v, Tensor u, Tensor? bias, "
    "Tensor? hidden=None) -> (Tensor, Tensor, Tensor, Tensor, Tensor)",
    reference=low_rank_cross_backward_reference,
    fake=_cross_fakes.low_rank_cross_backward_fake,
    internal=True,
)
_low_rank_cross = register(
    "low_rank_cross(Tensor x0, Tensor x, Tensor v, Tensor u, Tensor? bias) -> Tensor",
    reference=low_rank_cross_reference,
    fake=_cross_fakes.low_rank_cross_fake,
    setup_context=_low_rank_cross_setup,
    backward=_low_rank_cross_autograd,
)
_low_rank_cross_train = register(
    "low_rank_cross_train(Tensor x0, Tensor x, Tensor v, Tensor u, Tensor? bias) "
    "-> (Tensor, Tensor)",
    reference=low_rank_cross_train_reference,
    fake=_cross_fakes.low_rank_cross_train_fake,
    setup_context=_low_rank_cross_setup,
    backward=_low_rank_cross_autograd,
    internal=True,
)
_outer_attention_backward = register(
    "outer_attention_backward(Tensor grad, Tensor q, Tensor k, Tensor v, float temperature=1.0, "
    "int token_dim=1) -> (Tensor, Tensor, Tensor)",
    reference=outer_attention_backward_reference,
    fake=_cross_fakes.outer_attention_backward_fake,
    internal=True,
)
_outer_attention = register(
    "outer_attention(Tensor q, Tensor k, Tensor v, float temperature=1.0, int token_dim=1) "
    "-> Tensor",
    reference=outer_attention_reference,
    fake=_cross_fakes.outer_attention_fake,
    setup_context=_outer_attention_setup,
    backward=_outer_attention_autograd,
)
_attention_cross_backward = register(
    "attention_cross_backward(Tensor grad, Tensor x0, Tensor x, Tensor q, Tensor k, Tensor v, "
    "Tensor u, Tensor? bias, float temperature=1.0, int token_dim=1, bool skip=True, "
    "Tensor? hidden=None, Tensor? mixed=None) "
    "-> (Tensor, Tensor, Tensor, Tensor, Tensor, Tensor, Tensor)",
    reference=attention_cross_backward_reference,
    fake=_cross_fakes.attention_cross_backward_fake,
    internal=True,
)
_attention_cross = register(
    "attention_cross(Tensor x0, Tensor x, Tensor q, Tensor k, Tensor v, Tensor u, Tensor? bias, "
    "float temperature=1.0, int token_dim=1, bool skip=True) -> Tensor",
    reference=attention_cross_reference,
    fake=_cross_fakes.attention_cross_fake,
    setup_context=_attention_cross_setup,
    backward=_attention_cross_autograd,
)
_attention_cross_train = register(
    "attention_cross_train(Tensor x0, Tensor x, Tensor q, Tensor k, Tensor v, Tensor u, "
    "Tensor? bias, float temperature=1.0, int token_dim=1, bool skip=True) "
    "-> (Tensor, Tensor, Tensor)",
    reference=attention_cross_train_reference,
    fake=_cross_fakes.attention_cross_train_fake,
    setup_context=_attention_cross_setup,
    backward=_attention_cross_autograd,
    internal=True,
)
residual_cross_net = register(
    "residual_cross_net(Tensor x, Tensor[] low_rank, Tensor[] attention, float temperature, "
    "Tensor[] log_temperatures, int token_dim=1, bool skip=True, int merge=0) -> Tensor",
    reference=residual_cross_net_reference,
    fake=_cross_fakes.residual_cross_net_fake,
    internal=True,
)
