"""Argument checks of the cross ops: the Python half of the ones in ``csrc/cross.cpp``."""

from __future__ import annotations

import torch
from torch import Tensor

from ..library._old_checks import check, check_device, check_dim, check_dtype, check_floating


def check_attention(
    op: str, q: Tensor, k: Tensor, v: Tensor, temperature: float, token_dim: int
) -> None:
    check_floating(op, "q", q)
    check_dim(op, "q", q, 2)
    check(q.shape[1] > 0, op, "q", "a rank of at least 1", q)
    for name, t in (("k", k), ("v", v)):
        check_dtype(op, name, t, q.dtype)
        check(t.shape == q.shape, op, name, f"shape {tuple(q.shape)}", t)
        check_device(op, name, t, q.device)
    check_tokens(op, q.shape[1], temperature, token_dim)


def check_tokens(op: str, rank: int, temperature: float, token_dim: int) -> None:
    check(temperature > 0, op, "temperature", "a positive number", temperature)
    divides = token_dim > 0 and rank % token_dim == 0
    check(divides, op, "token_dim", f"a divisor of the rank {rank}", token_dim)


def check_cross(
    op: str,
    x0: Tensor,
    x: Tensor,
    kernels: dict[str, Tensor],
    u: Tensor,
    bias: Tensor | None,
) -> None:
    """x0, x: (B, d); every kernel: (r, d); u: (d, r); bias: (d,) or None."""
    check_floating(op, "x0", x0)
    check_dim(op, "x0", x0, 2)
    dim, rank = x0.shape[1], u.shape[-1] if u.dim() else 0
    check(dim > 0, op, "x0", "a width of at least 1", x0)
    wanted = {"x": (x, tuple(x0.shape)), "u": (u, (dim, rank))}
    wanted |= {name: (t, (rank, dim)) for name, t in kernels.items()}
    if bias is not None:
        wanted["bias"] = (bias, (dim,))
    for name, (t, shape) in wanted.items():
        check_dtype(op, name, t, x0.dtype)
        check_dim(op, name, t, len(shape))
        check(all(a == b for a, b in zip(t.shape, shape, strict=True)), op, name, f"{shape}", t)
        check_device(op, name, t, x0.device)
    check(rank > 0, op, "u", "a rank of at least 1", u)


def check_grad(op: str, grad: Tensor, like: Tensor) -> None:
    check_dtype(op, "grad", grad, like.dtype)
    check(grad.shape == like.shape, op, "grad", f"shape {tuple(like.shape)}", grad)
    check_device(op, "grad", grad, like.device)


def check_net(
    x: Tensor,
    low_rank: list[Tensor],
    attention: list[Tensor],
    temperature: float,
    log_temperatures: list[Tensor],
    token_dim: int,
    merge: int,
) -> None:
    """low_rank: (v, u, bias) per layer; attention: (q, k, v, u, bias) per layer."""
    op = "residual_cross_net"
    whole = "at least one layer of {} tensors"
    fits = len(low_rank) > 0 and len(low_rank) % 3 == 0
    check(fits, op, "low_rank", whole.format(3), len(low_rank))
    fits = len(attention) > 0 and len(attention) % 5 == 0
    check(fits, op, "attention", whole.format(5), len(attention))
    for i in range(0, len(low_rank), 3):
        v, u, bias = low_rank[i : i + 3]
        check_cross(op, x, x, {"v": v}, u, bias)
    for i in range(0, len(attention), 5):
        q, k, v, u, bias = attention[i : i + 5]
        check_cross(op, x, x, {"q": q, "k": k, "v": v}, u, bias)
        check_tokens(op, v.shape[0], temperature, token_dim)
    check(merge in (0, 1, 2), op, "merge", "0, 1 or 2", merge)
    fits = len(log_temperatures) in (0, len(attention) // 5)
    check(fits, op, "log_temperatures", "none, or one per layer", len(log_temperatures))
    for t in log_temperatures:
        check_dtype(op, "log_temperatures", t, x.dtype)
        check_dim(op, "log_temperatures", t, 0)


def kept_columns(dim: int, rank: int) -> int:
    """Columns of ``x @ v.T`` that low-rank training keeps: at most 55 % of what eager keeps.

    Two layers on one input keep ``2 * dim + 2 * kept`` numbers a sample, eager
    ``4 * dim + 2 * rank``. Whole cache lines where not all fit; as in ``csrc/cross.cpp``.
    """
    most = (2 * dim + 11 * rank) // 20
    return rank if most >= rank else most // 16 * 16


def trains(*tensors: Tensor | None) -> bool:
    """A gradient will be wanted for one of them."""
    return torch.is_grad_enabled() and any(t is not None and t.requires_grad for t in tensors)
