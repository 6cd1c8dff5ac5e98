"""Inputs for the cross layers and the attention inside them."""

from __future__ import annotations

import torch
from torch import Tensor

from . import Case

# What a rank costs in precision: a result sums d + r products, one after another.
SUMS = 256.0


def _normal(generator, *size, scale=1.0, dtype=torch.float32) -> Tensor:
    return (torch.randn(size, generator=generator, dtype=torch.float64) * scale).to(dtype)


def _cross(generator, batch, dim, rank, kernels=1, dtype=torch.float32, bias=True):
    """x0, x, the kernels onto the rank, u and bias; hidden values of order 1."""
    x0, x = (_normal(generator, batch, dim, dtype=dtype) for _ in range(2))
    onto = [_normal(generator, rank, dim, scale=dim**-0.5, dtype=dtype) for _ in range(kernels)]
    u = _normal(generator, dim, rank, scale=rank**-0.5, dtype=dtype)
    return (x0, x, *onto, u, _normal(generator, dim, dtype=dtype) if bias else None)


def _low_rank(generator) -> list[Case]:
    op, grad, found = "low_rank_cross", (0, 1, 2, 3, 4), []
    for batch, dim, rank in [
        (0, 8, 3),
        (1, 1, 1),
        (2, 16, 4),
        (5, 33, 7),
        (20, 48, 1),
        (70, 65, 66),
    ]:
        args = _cross(generator, batch, dim, rank)
        found.append(Case(op, f"B={batch}, d={dim}, r={rank}", args, grad, tolerance=SUMS))
    args = _cross(generator, 9, 24, 5, bias=False)
    found.append(Case(op, "no bias", args, grad[:4], tolerance=SUMS))
    x0, x, v, u, bias = _cross(generator, 37, 130, 20)
    found.append(Case(op, "x is x0", (x0, x0, v, u, bias), grad, tolerance=SUMS))
    strided = (x0.T.contiguous().T, x.repeat(1, 2)[:, ::2], v.T.contiguous().T, u.flip(0), bias)
    found.append(Case(op, "strided", strided, grad, tolerance=SUMS))
    double = _cross(generator, 19, 40, 12, dtype=torch.float64)
    found.append(Case(op, "float64", double, grad, tolerance=SUMS))
    for dtype in (torch.bfloat16, torch.float16):
        half = _cross(generator, 19, 40, 12, dtype=dtype)
        found.append(Case(op, str(dtype), half, grad, tolerance=4.0))
    tiny = _cross(generator, 6, 20, 4)
    nan = (tiny[0], tiny[1].index_fill(0, torch.tensor([2]), torch.nan), *tiny[2:])
    found.append(Case(op, "NaN stays in its row", nan))
    large = tuple(t * 1e15 for t in tiny[:2])
    found.append(Case(op, "large values", (*large, *tiny[2:]), grad, tolerance=SUMS))
    wide = _cross(generator, 300, 256, 64)
    found.append(Case(op, "several tiles", wide, grad, tolerance=SUMS, big=True))
    x0, x, v, u, bias = tiny
    refused = [
        ("x narrower", (x0, x[:, :-1], v, u, bias), "x"),
        ("dtypes differ", (x0, x.double(), v, u, bias), "x"),
        ("v of another width", (x0, x, v[:, 1:], u, bias), "v"),
        ("u of another rank", (x0, x, v, u[:, 1:], bias), "v"),
        ("u of another width", (x0, x, v, u[1:], bias), "u"),
        ("bias too long", (x0, x, v, u, torch.zeros(21)), "bias"),
        ("rank 0", (x0, x, v[:0], u[:, :0], bias), "u"),
        ("width 0", (x0[:, :0], x[:, :0], v[:, :0], u[:0], bias[:0]), "x0"),
        ("integers", (x0.long(), x, v, u, bias), "x0"),
        ("one dimension", (x0[0], x[0], v, u, bias), "x0"),
    ]
    return found + [Case(op, label, args, raises=f"'{name}'") for label, args, name in refused]


def _attention(generator) -> list[Case]:
    op, grad, found = "outer_attention", (0, 1, 2), []

    def qkv(batch, rank, scale=1.0, dtype=torch.float32):
        q = _normal(generator, batch, rank, scale=scale, dtype=dtype)
        return q, *(_normal(generator, batch, rank, dtype=dtype) for _ in range(2))

    shapes = [(0, 4, 1), (1, 1, 1), (3, 16, 1), (2, 17, 1), (5, 64, 1), (3, 100, 1)]
    shapes += [(2, 12, 3), (3, 12, 12), (2, 68, 2), (2, 160, 5)]
    for batch, rank, token in shapes:
        args = (*qkv(batch, rank), 0.7, token)
        found.append(Case(op, f"B={batch}, r={rank}, token_dim={token}", args, grad))
    for scale in (0.0, 0.03, 0.3, 1.0, 3.0):
        args = (*qkv(8, 256, scale), 1.0, 1)
        found.append(Case(op, f"r=256, q of order {scale}", args, grad))
    q, k, v = qkv(4, 40)
    found.append(Case(op, "constant keys", (q, k * 0 + 2.5, v, 1.0, 1), (1, 2)))
    found.append(Case(op, "constant queries", (q * 0 - 1.5, k, v, 1.0, 1), grad))
    found.append(Case(op, "scores up to 1e4", (q * 100, k * 50, v, 1.0, 1), (2,)))
    found.append(Case(op, "scores up to 1e12", (q * 1e6, k * 1e6, v, 1.0, 1), (2,)))
    found.append(Case(op, "small temperature", (q, k, v, 1e-3, 1), (2,)))
    found.append(Case(op, "large values", (q, k, v * 1e30, 2.0, 1), (2,)))
    one = torch.tensor([1])
    found.append(Case(op, "NaN in q", (q.index_fill(1, one, torch.nan), k, v, 1.0, 1)))
    found.append(Case(op, "NaN in k", (q, k.index_fill(1, one, torch.nan), v, 1.0, 1)))
    found.append(Case(op, "NaN in v", (q, k, v.index_fill(1, one, torch.nan), 1.0, 1)))
    found.append(Case(op, "infinite keys", (q, k.index_fill(1, one, -torch.inf), v, 1.0, 1)))
    strided = (q.T.contiguous().T, k.flip(1), v.repeat(1, 2)[:, ::2], 1.0, 2)
    found.append(Case(op, "strided", strided, grad))
    for token in (1, 4):
        double = (*qkv(3, 36, dtype=torch.float64), 0.5, token)
        found.append(Case(op, f"float64, token_dim={token}", double, grad))
    for dtype in (torch.bfloat16, torch.float16):
        found.append(Case(op, str(dtype), (*qkv(3, 50, dtype=dtype), 1.0, 1), grad, tolerance=4.0))
    found.append(Case(op, "many samples", (*qkv(700, 32), 1.0, 1), grad, big=True))
    refused = [
        ("temperature 0", (q, k, v, 0.0, 1), "temperature"),
        ("temperature NaN", (q, k, v, float("nan"), 1), "temperature"),
        ("tokens do not fit", (q, k, v, 1.0, 3), "token_dim"),
        ("token_dim 0", (q, k, v, 1.0, 0), "token_dim"),
        ("k narrower", (q, k[:, 1:], v, 1.0, 1), "k"),
        ("v shorter", (q, k, v[1:], 1.0, 1), "v"),
        ("dtypes differ", (q, k, v.double(), 1.0, 1), "v"),
        ("rank 0", (q[:, :0], k[:, :0], v[:, :0], 1.0, 1), "q"),
        ("three dimensions", (q[None], k[None], v[None], 1.0, 1), "q"),
    ]
    return found + [Case(op, label, args, raises=f"'{name}'") for label, args, name in refused]


def _attention_cross(generator) -> list[Case]:
    op, grad, found = "attention_cross", tuple(range(7)), []
    shapes = [(0, 8, 4, 1), (1, 1, 1, 1), (2, 16, 4, 2), (5, 33, 7, 1), (66, 40, 18, 3)]
    for batch, dim, rank, token in shapes:
        for skip in (True, False):
            args = (*_cross(generator, batch, dim, rank, 3), 0.8, token, skip)
            label = f"B={batch}, d={dim}, r={rank}, token_dim={token}, skip={skip}"
            found.append(Case(op, label, args, grad, tolerance=SUMS))
    args = (*_cross(generator, 9, 24, 6, 3, bias=False), 1.0, 1, True)
    found.append(Case(op, "no bias", args, grad[:6], tolerance=SUMS))
    x0, x, q, k, v, u, bias = _cross(generator, 21, 90, 32, 3)
    found.append(Case(op, "x is x0", (x0, x0, q, k, v, u, bias), grad, tolerance=SUMS))
    strided = (x0, x.T.contiguous().T, q.flip(1), k.T.contiguous().T, v, u.flip(0), bias)
    found.append(Case(op, "strided", strided, grad, tolerance=SUMS))
    double = _cross(generator, 7, 20, 8, 3, dtype=torch.float64)
    found.append(Case(op, "float64", double, grad, tolerance=SUMS))
    for dtype in (torch.bfloat16, torch.float16):
        half = _cross(generator, 7, 20, 8, 3, dtype=dtype)
        found.append(Case(op, str(dtype), half, grad, tolerance=4.0))
    wide = _cross(generator, 300, 200, 64, 3)
    found.append(Case(op, "several tiles", wide, grad, tolerance=SUMS, big=True))
    refused = [
        ("q of another rank", (x0, x, q[1:], k, v, u, bias), "q"),
        ("k of another width", (x0, x, q, k[:, 1:], v, u, bias), "k"),
        ("dtypes differ", (x0, x, q, k, v.double(), u, bias), "v"),
        ("temperature negative", (x0, x, q, k, v, u, bias, -1.0), "temperature"),
        ("tokens do not fit", (x0, x, q, k, v, u, bias, 1.0, 5), "token_dim"),
        ("rank 0", (x0, x, q[:0], k[:0], v[:0], u[:, :0], bias), "u"),
    ]
    return found + [Case(op, label, args, raises=f"'{name}'") for label, args, name in refused]


def cases(generator: torch.Generator) -> list[Case]:
    return [*_low_rank(generator), *_attention(generator), *_attention_cross(generator)]
