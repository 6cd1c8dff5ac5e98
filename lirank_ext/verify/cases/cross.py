"""Inputs for the cross layers and the attention inside them."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from . import Case, cases_of, cross_net

# The precision a rank costs: a result adds d + r products, one after another.
SUMS = 256.0
LOW_RANK = ("x0", "x", "v", "u", "bias")
ATTENTION = ("x0", "x", "q", "k", "v", "u", "bias")


def _normal(generator, *size, scale=1.0, dtype=torch.float32) -> Tensor:
    return (torch.randn(size, generator=generator, dtype=torch.float64) * scale).to(dtype)


def _layer(
    generator, batch, dim, rank, names=LOW_RANK, dtype=torch.float32, bias=True
) -> dict[str, Any]:
    """The arguments of a layer; hidden values are of order 1."""
    x0, x = (_normal(generator, batch, dim, dtype=dtype) for _ in range(2))
    kernels = names[2:-2]
    onto = [_normal(generator, rank, dim, scale=dim**-0.5, dtype=dtype) for _ in kernels]
    u = _normal(generator, dim, rank, scale=rank**-0.5, dtype=dtype)
    added = _normal(generator, dim, dtype=dtype) if bias else None
    return dict(zip(names, (x0, x, *onto, u, added), strict=True))


def _turned(t: Tensor) -> Tensor:
    """The same values, column after column in memory."""
    return t.T.contiguous().T


def _low_rank(generator) -> list[Case]:
    case, made = cases_of("low_rank_cross"), []

    def add(label, args, *, grad=LOW_RANK, tolerance=SUMS, **options):
        made.append(case(label, **args, grad=grad, tolerance=tolerance, **options))

    for batch, dim, rank in [
        (0, 8, 3),
        (1, 1, 1),
        (2, 16, 4),
        (5, 33, 7),
        (20, 48, 1),
        (70, 65, 66),
    ]:
        add(f"B={batch}, d={dim}, r={rank}", _layer(generator, batch, dim, rank))
    add("no bias", _layer(generator, 9, 24, 5, bias=False), grad=LOW_RANK[:4])
    a = _layer(generator, 37, 130, 20)
    add("x is x0", a | {"x": a["x0"]})
    strided = {"x0": _turned(a["x0"]), "x": a["x"].repeat(1, 2)[:, ::2]}
    add("strided", a | strided | {"v": _turned(a["v"]), "u": a["u"].flip(0)})
    add("float64", _layer(generator, 19, 40, 12, dtype=torch.float64))
    for dtype in (torch.bfloat16, torch.float16):
        add(str(dtype), _layer(generator, 19, 40, 12, dtype=dtype), tolerance=4.0)
    tiny = _layer(generator, 6, 20, 4)
    x0, x, v, u = (tiny[name] for name in LOW_RANK[:4])
    made.append(
        case(
            "NaN stays in its row",
            **tiny | {"x": x.index_fill(0, torch.tensor([2]), torch.nan)},
        )
    )
    add("large values", tiny | {"x0": x0 * 1e15, "x": x * 1e15})
    add("several tiles", _layer(generator, 300, 256, 64), big=True)
    empty = {"x0": x0[:, :0], "x": x[:, :0], "v": v[:, :0], "u": u[:0], "bias": torch.zeros(0)}
    refused = [
        ("x narrower", {"x": x[:, :-1]}, "x"),
        ("dtypes differ", {"x": x.double()}, "x"),
        ("v of another width", {"v": v[:, 1:]}, "v"),
        ("u of another rank", {"u": u[:, 1:]}, "v"),
        ("u of another width", {"u": u[1:]}, "u"),
        ("bias too long", {"bias": torch.zeros(21)}, "bias"),
        ("rank 0", {"v": v[:0], "u": u[:, :0]}, "u"),
        ("width 0", empty, "x0"),
        ("integers", {"x0": x0.long()}, "x0"),
        ("one dimension", {"x0": x0[0], "x": x[0]}, "x0"),
    ]
    return made + [case(label, **tiny | odd, raises=f"'{name}'") for label, odd, name in refused]


def _attention(generator) -> list[Case]:
    case, made, grad = cases_of("outer_attention"), [], ("q", "k", "v")

    def qkv(batch, rank, scale=1.0, dtype=torch.float32, temperature=1.0, token_dim=1):
        q = _normal(generator, batch, rank, scale=scale, dtype=dtype)
        k, v = (_normal(generator, batch, rank, dtype=dtype) for _ in range(2))
        return {"q": q, "k": k, "v": v, "temperature": temperature, "token_dim": token_dim}

    shapes = [(0, 4, 1), (1, 1, 1), (3, 16, 1), (2, 17, 1), (5, 64, 1), (3, 100, 1)]
    shapes += [(2, 12, 3), (3, 12, 12), (2, 68, 2), (2, 160, 5)]
    for batch, rank, token in shapes:
        args = qkv(batch, rank, temperature=0.7, token_dim=token)
        made.append(case(f"B={batch}, r={rank}, token_dim={token}", **args, grad=grad))
    for scale in (0.0, 0.03, 0.3, 1.0, 3.0):
        made.append(case(f"r=256, q of order {scale}", **qkv(8, 256, scale), grad=grad))
    a = qkv(4, 40)
    q, k, v = a["q"], a["k"], a["v"]
    made.append(case("constant keys", **a | {"k": k * 0 + 2.5}, grad=("k", "v")))
    made.append(case("constant queries", **a | {"q": q * 0 - 1.5}, grad=grad))
    made.append(case("scores up to 1e4", **a | {"q": q * 100, "k": k * 50}, grad=("v",)))
    made.append(case("scores up to 1e12", **a | {"q": q * 1e6, "k": k * 1e6}, grad=("v",)))
    made.append(case("small temperature", **a | {"temperature": 1e-3}, grad=("v",)))
    made.append(case("large values", **a | {"v": v * 1e30, "temperature": 2.0}, grad=("v",)))
    one = torch.tensor([1])
    for name in grad:
        made.append(case(f"NaN in {name}", **a | {name: a[name].index_fill(1, one, torch.nan)}))
    made.append(case("infinite keys", **a | {"k": k.index_fill(1, one, -torch.inf)}))
    strided = {"q": _turned(q), "k": k.flip(1), "v": v.repeat(1, 2)[:, ::2], "token_dim": 2}
    made.append(case("strided", **a | strided, grad=grad))
    for token in (1, 4):
        double = qkv(3, 36, dtype=torch.float64, temperature=0.5, token_dim=token)
        made.append(case(f"float64, token_dim={token}", **double, grad=grad))
    for dtype in (torch.bfloat16, torch.float16):
        made.append(case(str(dtype), **qkv(3, 50, dtype=dtype), grad=grad, tolerance=4.0))
    made.append(case("many samples", **qkv(700, 32), grad=grad, big=True))
    refused = [
        ("temperature 0", {"temperature": 0.0}, "temperature"),
        ("temperature 1e-31", {"temperature": 1e-31}, "temperature"),
        ("temperature NaN", {"temperature": float("nan")}, "temperature"),
        ("tokens do not fit", {"token_dim": 3}, "token_dim"),
        ("token_dim 0", {"token_dim": 0}, "token_dim"),
        ("k narrower", {"k": k[:, 1:]}, "k"),
        ("v shorter", {"v": v[1:]}, "v"),
        ("dtypes differ", {"v": v.double()}, "v"),
        ("rank 0", {"q": q[:, :0], "k": k[:, :0], "v": v[:, :0]}, "q"),
        ("three dimensions", {"q": q[None], "k": k[None], "v": v[None]}, "q"),
    ]
    return made + [case(label, **a | odd, raises=f"'{name}'") for label, odd, name in refused]


def _attention_cross(generator) -> list[Case]:
    case, made = cases_of("attention_cross"), []

    def layer(batch, dim, rank, **options):
        return _layer(generator, batch, dim, rank, ATTENTION, **options)

    def add(label, args, *, grad=ATTENTION, tolerance=SUMS, **options):
        made.append(case(label, **args, grad=grad, tolerance=tolerance, **options))

    shapes = [(0, 8, 4, 1), (1, 1, 1, 1), (2, 16, 4, 2), (5, 33, 7, 1), (66, 40, 18, 3)]
    for batch, dim, rank, token in shapes:
        for skip in (True, False):
            label = f"B={batch}, d={dim}, r={rank}, token_dim={token}, skip={skip}"
            options = {"temperature": 0.8, "token_dim": token, "skip": skip}
            add(label, layer(batch, dim, rank) | options)
    add("no bias", layer(9, 24, 6, bias=False), grad=ATTENTION[:6])
    a = layer(21, 90, 32)
    x, q, k, v, u = (a[name] for name in ATTENTION[1:6])
    add("x is x0", a | {"x": a["x0"]})
    strided = {"x": _turned(x), "q": q.flip(1), "k": _turned(k), "u": u.flip(0)}
    add("strided", a | strided)
    add("float64", layer(7, 20, 8, dtype=torch.float64))
    for dtype in (torch.bfloat16, torch.float16):
        add(str(dtype), layer(7, 20, 8, dtype=dtype), tolerance=4.0)
    add("several tiles", layer(300, 200, 64), big=True)
    refused = [
        ("q of another rank", {"q": q[1:]}, "q"),
        ("k of another width", {"k": k[:, 1:]}, "k"),
        ("dtypes differ", {"v": v.double()}, "v"),
        ("temperature negative", {"temperature": -1.0}, "temperature"),
        ("temperature 1e-31", {"temperature": 1e-31}, "temperature"),
        ("tokens do not fit", {"token_dim": 5}, "token_dim"),
        ("rank 0", {"q": q[:0], "k": k[:0], "v": v[:0], "u": u[:, :0]}, "u"),
    ]
    return made + [case(label, **a | odd, raises=f"'{name}'") for label, odd, name in refused]


def cases(generator: torch.Generator) -> list[Case]:
    layers = [*_low_rank(generator), *_attention(generator), *_attention_cross(generator)]
    return [*layers, *cross_net.cases(generator)]
