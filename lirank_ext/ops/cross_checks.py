"""Argument checks of the cross ops: the Python half of the ones in ``csrc/cross.cpp``.

An op that keeps more for the backward reports itself by the name that its users call.
"""

from __future__ import annotations

from operator import eq
from typing import Any

from torch import Tensor

from ..library.checks import check, check_device, check_dim, check_dtype, check_floating, shape


def check_attention(a: Any) -> None:
    """q, k, v: (B, r)."""
    check_floating(a, "q")
    check_dim(a, "q", 2)
    check(a.q.shape[1] > 0, a, "q", "a rank of at least 1", shape(a.q))
    for name, t in (("k", a.k), ("v", a.v)):
        check_dtype(a, name, a.q.dtype)
        check(t.shape == a.q.shape, a, name, f"shape {tuple(a.q.shape)}")
        check_device(a, name, a.q.device)
    op = type(a).__name__
    check_tokens(op, a.q.shape[1], a.temperature, a.token_dim)


# Below it the scores of ordinary inputs leave float32's range.
LEAST_TEMPERATURE = 1e-30


def check_temperature(op: str, temperature: float) -> None:
    fits = temperature >= LEAST_TEMPERATURE
    check(fits, op, "temperature", f"a number of {LEAST_TEMPERATURE:g} or more", temperature)


def check_tokens(op: str, rank: int, temperature: float, token_dim: int) -> None:
    check_temperature(op, temperature)
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
    check_dim(op, "x0", 2, x0)
    dim, rank = x0.shape[1], u.shape[-1] if u.dim() else 0
    check(dim > 0, op, "x0", "a width of at least 1", shape(x0))
    wanted = {"x": (x, tuple(x0.shape)), "u": (u, (dim, rank))}
    wanted |= {name: (t, (rank, dim)) for name, t in kernels.items()}
    if bias is not None:
        wanted["bias"] = (bias, (dim,))
    for name, (t, sizes) in wanted.items():
        check_dtype(op, name, x0.dtype, t)
        check_dim(op, name, len(sizes), t)
        check(all(map(eq, t.shape, sizes)), op, name, f"shape {sizes}", t)
        check_device(op, name, x0.device, t)
    check(rank > 0, op, "u", "a rank of at least 1", shape(u))


def check_grad(a: Any, like: Tensor) -> None:
    check_dtype(a, "grad", like.dtype)
    check(a.grad.shape == like.shape, a, "grad", f"shape {tuple(like.shape)}")
    check_device(a, "grad", like.device)


def check_net(a: Any) -> None:
    """low_rank: (v, u, bias) per layer; attention: (q, k, v, u, bias) per layer."""
    check_layers(a, a.x)


def check_layers(a: Any, x: Tensor, either: bool = False) -> None:
    """The layers of a net on the input x; with ``either`` one of the stacks may be empty."""
    op, whole = type(a).__name__, "at least one layer of {} tensors"
    needed = not either or not (a.low_rank or a.attention)
    for name, each in (("low_rank", 3), ("attention", 5)):
        count = len(getattr(a, name))
        check((count > 0 or not needed) and count % each == 0, a, name, whole.format(each), count)
    for i in range(0, len(a.low_rank), 3):
        v, u, bias = a.low_rank[i : i + 3]
        check_cross(op, x, x, {"v": v}, u, bias)
    for i in range(0, len(a.attention), 5):
        q, k, v, u, bias = a.attention[i : i + 5]
        check_cross(op, x, x, {"q": q, "k": k, "v": v}, u, bias)
        check_tokens(op, v.shape[0], a.temperature, a.token_dim)
    check(a.merge in (0, 1, 2), a, "merge", "0, 1 or 2")
    learned = len(a.log_temperatures)
    fits = learned in (0, len(a.attention) // 5)
    check(fits, a, "log_temperatures", "none, or one per layer", learned)
    for t in a.log_temperatures:
        check_dtype(a, "log_temperatures", x.dtype, t)
        check_dim(a, "log_temperatures", 0, t)
