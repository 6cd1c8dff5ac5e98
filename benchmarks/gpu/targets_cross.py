"""Cross layers and calibration on a GPU, in bfloat16."""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterator

import torch
from torch import Tensor
from torch.nn.functional import linear, scaled_dot_product_attention

from lirank_ext import capture, isotonic_calibration, low_rank_cross, outer_attention
from lirank_ext.benchmarks.bench_request_sharing import make_model, model_inputs, plain
from lirank_ext.benchmarks.gpu.target import Place, Target
from lirank_ext.nn import ResidualCrossNet
from lirank_ext.nn.reference_cross import ReferenceResidualCrossNet

# (B, d, r, layers): LiRank's widths, a serving batch, and the layers of MLPerf's DLRM-DCNv2.
LAYERS = (
    (4096, 1024, 64, 1),
    (4096, 1024, 256, 1),
    (32, 1024, 64, 1),
    (4096, 3456, 512, 3),
    (32, 3456, 512, 1),
)
TOLERANCE = 3e-2  # of the largest result: bfloat16 keeps 8 bits, eager rounds between its steps


def _eager(x0: Tensor, x: Tensor, v: Tensor, u: Tensor, bias: Tensor) -> Tensor:
    return x0 * (x @ v.T @ u.T + bias) + x


def _stack(layer: Callable[..., Tensor], layers: int) -> Callable[..., Tensor]:
    def call(x0, x, *weights):
        for i in range(layers):
            x = layer(x0, x, *weights[3 * i : 3 * i + 3])
        return x

    return call


def _bare_products(layers: int) -> Callable[..., Tensor]:
    """The matrix products of the layers and nothing else: what cuBLAS takes for them."""

    def call(x0, x, *weights):
        for i in range(layers):
            v, u, _ = weights[3 * i : 3 * i + 3]
            x = x @ v.T @ u.T
        return x

    return call


def _double(function: Callable[..., Tensor]) -> Callable[..., Tensor]:
    return lambda *tensors: function(*(t.detach().double() for t in tensors))


def _weights(place: Place, d: int, r: int, layers: int) -> list[Tensor]:
    found = []
    for i in range(layers):
        found += [
            place.randn(r, d, seed=3 * i) * d**-0.5,
            place.randn(d, r, seed=3 * i + 1) * r**-0.5,
            place.randn(d, seed=3 * i + 2),
        ]
    return [t.bfloat16() for t in found]


def low_rank(place: Place) -> Iterator[Target]:
    for batch, d, r, layers in LAYERS:
        batch = place.size(batch)
        nbytes = 2 * (3 * batch * d)
        weights = _weights(place, d, r, layers)
        sets = [
            tuple(place.randn(batch, d, seed=2 * s + j, dtype=torch.bfloat16) for j in (0, 1))
            + tuple(weights)
            for s in range(place.copies(nbytes))
        ]
        eager = _stack(_eager, layers)
        yield Target(
            "low_rank_cross",
            f"bfloat16 B={batch} d={d} r={r}" + (f", {layers} layers" if layers > 1 else ""),
            sets,
            _stack(low_rank_cross, layers),
            _double(eager),
            tolerance=TOLERANCE * layers,
            bytes=layers * (nbytes + 2 * 2 * d * r),
            flops=layers * 4 * batch * d * r,
            peers={"eager": eager},
            compiled={"compile": lambda eager=eager: torch.compile(eager, dynamic=False)},
            floors={"bare products": _bare_products(layers)},
        )


def _step(function: Callable[..., Tensor]) -> Callable[..., tuple[Tensor, ...]]:
    """Forward, and the gradients of all tensors but the last, which is the result's gradient."""

    def call(*tensors):
        leaves = [t.detach().requires_grad_() for t in tensors[:-1]]
        with torch.enable_grad():
            return torch.autograd.grad(function(*leaves), leaves, tensors[-1])

    return call


def low_rank_step(place: Place) -> Iterator[Target]:
    batch, d, r = place.size(4096), 1024, 64
    weights = _weights(place, d, r, 1)
    sets = []
    for s in range(place.copies(14 * batch * d)):
        x0, x, grad = (
            place.randn(batch, d, seed=3 * s + j, dtype=torch.bfloat16) for j in range(3)
        )
        sets.append((x0, x, *weights, grad))
    yield Target(
        "low_rank_cross",
        f"bfloat16 B={batch} d={d} r={r}, forward and backward",
        sets,
        _step(low_rank_cross),
        lambda *t: _step(_eager)(*(x.double() for x in t)),
        tolerance=TOLERANCE,
        bytes=2 * 9 * batch * d,
        flops=12 * batch * d * r,
        peers={"eager": _step(_eager)},
        compiled={"compile": lambda: _step(torch.compile(_eager, dynamic=False))},
    )


def _attention(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    scores = q.unsqueeze(2) * k.unsqueeze(1)
    return (scores.float().softmax(-1).to(v.dtype) @ v.unsqueeze(2)).squeeze(2)


def _attention_wide(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    parts = []
    for a, b, c in zip(q.split(256), k.split(256), v.split(256), strict=True):
        scores = a.double().unsqueeze(2) * b.double().unsqueeze(1)
        parts.append((scores.softmax(-1) @ c.double().unsqueeze(2)).squeeze(2))
    return torch.cat(parts)


def _sdpa(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    return scaled_dot_product_attention(*(t.unsqueeze(-1) for t in (q, k, v)), scale=1.0).squeeze(
        -1
    )


def _compiled_attention(step: bool) -> Callable:
    compiled = torch.compile(_attention, dynamic=False)
    return _step(compiled) if step else compiled


def attention(place: Place) -> Iterator[Target]:
    for batch, r, step in ((4096, 256, False), (4096, 64, False), (4096, 256, True)):
        batch = place.size(batch)
        count = 4 if step else 3
        sets = [
            tuple(
                place.randn(batch, r, seed=count * s + j, dtype=torch.bfloat16)
                for j in range(count)
            )
            for s in range(place.copies(2 * count * batch * r))
        ]
        peers: dict = {"eager": _attention, "sdpa": _sdpa}
        label = f"bfloat16 B={batch} r={r}"
        if step:
            wide = _attention_step_wide
            peers = {name: _step(f) for name, f in peers.items()}
            label += ", forward and backward"
        else:
            wide = _attention_wide
        yield Target(
            "outer_attention",
            label,
            sets,
            _step(outer_attention) if step else outer_attention,
            wide,
            tolerance=TOLERANCE,
            bytes=2 * (4 + 7 * step) * batch * r,
            exps=batch * r * r * (1 + 2 * step),
            peers=peers,
            compiled={"compile": lambda step=step: _compiled_attention(step)},
        )


def _attention_step_wide(*tensors: Tensor) -> tuple[Tensor, ...]:
    parts = zip(*(t.double().split(256) for t in tensors), strict=True)
    found = [_step(_attention_wide)(*part) for part in parts]
    return tuple(torch.cat(column) for column in zip(*found, strict=True))


def net(place: Place) -> Iterator[Target]:
    """The residual cross net: two low-rank and two attention layers."""
    for batch, d, r in ((4096, 1024, 64), (32, 512, 64)):
        batch = place.size(batch)
        torch.manual_seed(0)
        ours = ResidualCrossNet(d, r).to(place.device, torch.bfloat16).requires_grad_(False)
        eager = ReferenceResidualCrossNet(d, r).to(place.device, torch.bfloat16)
        eager.load_state_dict(ours.state_dict())
        eager.requires_grad_(False)
        wide = copy.deepcopy(eager).double()
        sets = [
            (place.randn(batch, d, seed=s, dtype=torch.bfloat16),)
            for s in range(place.copies(4 * batch * d))
        ]
        yield Target(
            "residual_cross_net",
            f"bfloat16 B={batch} d={d} r={r}, 2 + 2 layers",
            sets,
            ours,
            lambda x, wide=wide: wide(x.double()),
            tolerance=TOLERANCE,
            bytes=2 * (2 * batch * d + 12 * d * r),
            flops=2 * 12 * batch * d * r,
            exps=2 * batch * r * r,
            peers={"eager": eager},
            compiled={"compile": lambda eager=eager: torch.compile(eager, dynamic=False)},
        )


def score(place: Place) -> Iterator[Target]:
    """Candidates of requests whose columns are 0.6 of the width, through the net and a weight."""
    d, r, outputs = 1024, 64, 64
    d_u = int(0.6 * d)
    for requests, candidates, dtype in (
        (1, 500, torch.float32),
        (64, 500, torch.float32),
        (64, 500, torch.bfloat16),
    ):
        torch.manual_seed(0)
        ours = ResidualCrossNet(d, r).to(place.device, dtype).requires_grad_(False)
        eager = ReferenceResidualCrossNet(d, r).to(place.device, dtype)
        eager.load_state_dict(ours.state_dict())
        eager.requires_grad_(False)
        wide = copy.deepcopy(eager).double()
        weight = (place.randn(outputs, d, seed=7) * d**-0.5).to(dtype)
        candidates = place.size(candidates)
        count = requests * candidates
        counts = torch.full((requests,), candidates, device=place.device)
        rows = torch.arange(requests, device=place.device).repeat_interleave(counts)
        sets = []
        for s in range(place.copies(3 * dtype.itemsize * count * d)):
            request = place.randn(requests, d_u, seed=2 * s, dtype=dtype)
            items = place.randn(count, d - d_u, seed=2 * s + 1, dtype=dtype)
            sets.append((request, items, torch.cat([request[rows], items], dim=1)))

        def on_joined(net, weight=weight):
            return lambda request, items, x0: linear(net(x0), weight)

        yield Target(
            "residual_cross_score",
            f"{str(dtype)[6:]} R={requests} N={candidates} d={d} s=0.6 r={r}, 2 + 2 layers",
            sets,
            lambda request, items, _, net=ours, counts=counts, weight=weight: net.score(
                request, items, counts, weight
            ),
            lambda request, items, x0, net=wide, weight=weight: linear(
                net(x0.double()), weight.double()
            ),
            tolerance=1e-4 if dtype == torch.float32 else TOLERANCE,
            bytes=dtype.itemsize * (count * (d - d_u + outputs) + 13 * d * r),
            flops=2 * count * (12 * (d - d_u) * r + (d - d_u) * outputs),
            peers={"lirank forward": on_joined(ours), "eager": on_joined(eager)},
            compiled={"compile": lambda net=eager: on_joined(torch.compile(net, dynamic=False))},
            captured=False,  # the counts are read on the host
        )


def ranker(place: Place) -> Iterator[Target]:
    """The whole feed model on candidates of one member, with what each call costs the host."""
    model = make_model("feed", device=place.device).requires_grad_(False)
    eager = plain(model)
    wide = copy.deepcopy(eager).double()
    for rows in (place.size(512), place.size(4096)):
        sets = [(model_inputs(model, 1, rows, place.device)[3],) for _ in range(2)]
        compiled = {"compile": lambda: torch.compile(eager, dynamic=False)}
        if place.device == "cuda":
            compiled["compile, CUDA graphs"] = lambda: torch.compile(
                eager, dynamic=False, mode="reduce-overhead"
            )
        yield Target(
            "LiRank",
            f"feed model, float32, {rows} rows",
            sets,
            model if place.device == "cpu" else capture(model, *(s[0] for s in sets)),
            lambda features, wide=wide: wide(
                {k: v.double() if v.is_floating_point() else v for k, v in features.items()}
            ),
            tolerance=1e-3,
            # the features, and the weights beside the tables
            bytes=sum(t.nbytes for t in (*sets[0][0].values(), *model.head.parameters())),
            peers={"lirank, not captured": model, "eager": eager},
            compiled=compiled,
            captured=False,  # what the host does is part of it
        )


def isotonic(place: Place) -> Iterator[Target]:
    k, lower, step = 500, -12.5, 0.05
    for count in (1_000_000, 8_000_000):
        count = place.size(count)
        weight, bias = place.randn(k, seed=1), place.randn(1, seed=2)
        sets = [
            (place.randn(count, seed=3 + s) * 4, weight, bias)
            for s in range(place.copies(8 * count))
        ]

        def expect(logits, weight, bias):
            """In float64, by prefix sums instead of the formula's (B, k) terms."""
            slope = weight.double().relu() * step
            before = torch.cat([slope.new_zeros(1), slope.cumsum(0)])
            z = logits.double().clamp(lower, lower + k * step) - lower
            at = (z / step).floor().clamp(0, k - 1).long()
            rest = (z - at * step) * weight.double().relu()[at]
            return before[at] + rest + lower + bias.double()

        yield Target(
            "isotonic_calibration",
            f"float32 {count} logits, {k} buckets",
            sets,
            lambda logits, weight, bias: isotonic_calibration(logits, weight, bias, lower, step),
            expect,
            tolerance=1e-4,
            bytes=8 * count,
        )
