"""Benchmarks of the cross layers.

Low-rank layers are matrix products. Multiply-adds limit them, and in small batches reading the
weights does. Outer attention takes r^2 exponentials per sample by its plain formula. A fraction
above 1 of the exp ceiling shows what interpolation saves.
"""

from __future__ import annotations

import copy
import importlib.util
from collections.abc import Callable, Iterator
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.functional import scaled_dot_product_attention

from lirank_ext import low_rank_cross, outer_attention
from lirank_ext.benchmarks.harness import Workload
from lirank_ext.library.op import OPS
from lirank_ext.nn import ResidualCrossNet
from lirank_ext.nn.reference_cross import ReferenceResidualCrossNet

# The definitions in plain PyTorch, without the checks in front of them.
_low_rank_cross = OPS["low_rank_cross"].reference.__wrapped__
_outer_attention = OPS["outer_attention"].reference.__wrapped__

# (B, d, r): serving with small and large batches, training, and the width of LiRank's features.
LAYERS = ((1, 512, 64), (32, 512, 64), (256, 512, 64), (2048, 512, 64), (2048, 1024, 256))
WIDE_LAYERS = ((4096, 3456, 512),)  # on a GPU only
# (B, r)
ATTENTION = ((64, 64), (512, 128), (64, 256), (512, 256), (4096, 64), (4096, 256))
NETS = ((1, 512, 64), (16, 512, 64), (32, 512, 64), (256, 512, 64), (1024, 512, 64))
# Providers that materialize the scores are left out beyond this many of them (512 MB in float32).
MOST_SCORES = 128_000_000


def absent_peers() -> list[str]:
    """Peers of ``workloads(peers=True)`` that are not installed."""
    return [] if _torchrec() else ["torchrec (benchmarks/requirements-peers.txt)"]


def _torchrec() -> bool:
    return importlib.util.find_spec("torchrec") is not None


def _draw(shape: tuple[int, ...], device: str, scale: float = 1.0, seed: int = 0) -> Tensor:
    generator = torch.Generator().manual_seed(seed + sum(shape))
    return (torch.randn(shape, generator=generator) * scale).to(device, _dtype(device))


def _dtype(device: str) -> torch.dtype:
    """The usual dtype of these layers: bfloat16 on GPUs, float32 on CPUs."""
    return torch.bfloat16 if device == "cuda" else torch.float32


# Relative to the largest result. bfloat16 has 8 bits, and eager rounds between its steps.
TOLERANCE = {torch.float32: 1e-4, torch.bfloat16: 3e-2}


def _wide(tensors: tuple[Tensor, ...]) -> tuple[Tensor, ...]:
    return tuple(t.detach().double() for t in tensors)


def _step(function: Callable[..., Tensor], tensors: tuple[Tensor, ...]) -> Callable[[], Any]:
    """Forward, and the gradients of all tensors."""
    leaves = tuple(t.detach().clone().requires_grad_() for t in tensors)
    gradient = _draw(tensors[0].shape, "cpu", seed=7).to(tensors[0])
    return lambda: torch.autograd.grad(function(*leaves), leaves, gradient)


def _with_compile(functions: dict[str, Callable], device: str) -> dict[str, Callable]:
    """Adds eager under torch.compile, and on a GPU also with mode max-autotune."""
    found = functions | {"compile": torch.compile(functions["eager"])}
    if device == "cuda":
        found["max-autotune"] = torch.compile(functions["eager"], mode="max-autotune")
    return found


def _both(
    op: str,
    label: str,
    functions: dict[str, Callable],
    tensors: tuple[Tensor, ...],
    wanted: Callable[..., Tensor],
    steps: bool = True,
    **stated: Any,
) -> Iterator[Workload]:
    """The functions forward, and forward with backward, which is three times the work."""
    stated["tolerance"] = TOLERANCE[tensors[0].dtype]
    yield Workload(
        op,
        label,
        {name: lambda f=f: f(*tensors) for name, f in functions.items()},
        expect=lambda: wanted(*_wide(tensors)),
        unit="sample",
        **stated,
    )
    if not steps:
        return
    amounts = {name: 3 * stated[name] for name in ("bytes", "flops", "exps") if name in stated}
    yield Workload(
        op,
        label,
        {name: _step(f, tensors) for name, f in functions.items()},
        expect=_step(wanted, _wide(tensors)),
        unit="sample",
        direction="step",
        **{**stated, **amounts},
    )


def _torchrec_layer(v: Tensor, u: Tensor, bias: Tensor) -> Callable[[Tensor], Tensor]:
    from torchrec.modules.crossnet import LowRankCrossNet

    net = LowRankCrossNet(u.shape[0], 1, u.shape[1]).to(u)
    with torch.no_grad():
        net.W_kernels[0].copy_(u)
        net.V_kernels[0].copy_(v)
        net.bias[0].copy_(bias)
    return net


def _low_rank(batch: int, d: int, r: int, device: str, peers: bool) -> Iterator[Workload]:
    x = _draw((batch, d), device)
    v, u = _draw((r, d), device, d**-0.5), _draw((d, r), device, r**-0.5)
    tensors = (x, x.clone(), v, u, _draw((d,), device))
    stated = {"items": batch, "flops": 4 * batch * d * r, "ceiling": "fma"}
    stated |= {"bytes": x.element_size() * (3 * batch * d + 2 * d * r)}
    label = f"B={batch} d={d} r={r}"
    functions = {"lirank": low_rank_cross, "eager": _low_rank_cross}
    yield from _both(
        "low_rank_cross",
        label,
        _with_compile(functions, device),
        tensors,
        _low_rank_cross,
        steps=batch >= 256,
        **stated,
    )
    if device == "cpu":
        short = tuple(t.bfloat16() for t in tensors)
        long = tuple(t.float() for t in short)
        compiled = torch.compile(_low_rank_cross)
        yield Workload(
            "low_rank_cross",
            f"{label} bf16",
            {
                "lirank": lambda: low_rank_cross(*short),
                "lirank fp32": lambda: low_rank_cross(*long),
                "eager bf16": lambda: _low_rank_cross(*short),
                "compile bf16": lambda: compiled(*short),
            },
            expect=lambda: _low_rank_cross(*_wide(short)),
            tolerance=TOLERANCE[torch.bfloat16],
            unit="sample",
            **stated,
        )
    if peers and _torchrec():
        net = _torchrec_layer(*tensors[2:])
        yield Workload(
            "low_rank_cross",
            f"{label}, x is x0",
            {
                "lirank": lambda: low_rank_cross(x, x, *tensors[2:]),
                "torchrec": lambda: net(x),
            },
            expect=lambda: _low_rank_cross(*_wide((x, x, *tensors[2:]))),
            tolerance=TOLERANCE[x.dtype],
            unit="sample",
            **stated,
        )


def _sdpa(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    """Attention with heads of width 1."""
    return scaled_dot_product_attention(*(t.unsqueeze(-1) for t in (q, k, v))).squeeze(-1)


def _attention_in_parts(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    """The definition, a few samples at a time, because it materializes their scores."""
    size = max(1, 8_000_000 // q.shape[1] ** 2)
    parts = zip(*(t.split(size) for t in (q, k, v)), strict=True)
    return torch.cat([_outer_attention(*part, 1.0, 1) for part in parts])


def _attention(batch: int, r: int, device: str) -> Iterator[Workload]:
    tensors = tuple(_draw((batch, r), device, seed=i) for i in range(3))
    functions: dict[str, Callable] = {"lirank": outer_attention, "sdpa": _sdpa}
    if batch * r * r <= MOST_SCORES:
        functions["eager"] = lambda q, k, v: _outer_attention(q, k, v, 1.0, 1)
        functions = _with_compile(functions, device)
    stated = {
        "items": batch,
        "exps": batch * r * r,
        "ceiling": "exp",
        "bytes": 4 * batch * r * tensors[0].element_size(),
    }
    label = f"B={batch} r={r}"
    yield from _both("outer_attention", label, functions, tensors, _attention_in_parts, **stated)


def _training_step(net: nn.Module, x: Tensor) -> Callable[[], Any]:
    leaves = [x.detach().clone().requires_grad_(), *net.parameters()]
    return lambda: torch.autograd.grad(net(leaves[0]).square().mean(), leaves)


def _net(batch: int, d: int, r: int, device: str) -> Iterator[Workload]:
    """The whole residual cross net, with two layers in each stack."""
    x = _draw((batch, d), device)
    torch.manual_seed(0)
    ours = ResidualCrossNet(d, r).to(x)
    eager = ReferenceResidualCrossNet(d, r).to(x)
    eager.load_state_dict(ours.state_dict())
    wide = ReferenceResidualCrossNet(d, r).to(device).double()
    wide.load_state_dict(ours.state_dict())
    nets = _with_compile({"lirank": ours, "eager": eager}, device)
    flops = 2 * 12 * batch * d * r
    label = f"ResidualCrossNet B={batch} d={d} r={r}"
    common = {"items": batch, "unit": "sample", "ceiling": "fma", "tolerance": TOLERANCE[x.dtype]}
    yield Workload(
        "attention_cross",
        label,
        {name: lambda net=net: net(x) for name, net in nets.items()},
        expect=lambda: wide(x.double()),
        flops=flops,
        **common,
    )
    if batch >= 256:
        yield Workload(
            "attention_cross",
            label,
            {name: _training_step(net, x) for name, net in nets.items()},
            expect=_training_step(wide, x.double()),
            flops=3 * flops,
            direction="step",
            **common,
        )
    if device == "cpu":
        yield _half(ours, x, f"{label} bf16", {**common, "flops": flops, "tolerance": 3e-2})


def _half(ours: ResidualCrossNet, x: Tensor, label: str, stated: dict[str, Any]) -> Workload:
    """Compares bfloat16 weights with the same weights in float32, and with eager in bfloat16."""
    half, single = (copy.deepcopy(ours).bfloat16() for _ in range(2))
    single.float()
    eager = ReferenceResidualCrossNet(ours.dim, ours.low_rank[0].rank).bfloat16()
    eager.load_state_dict(half.state_dict())
    compiled = torch.compile(eager)
    wide = ReferenceResidualCrossNet(ours.dim, ours.low_rank[0].rank).double()
    wide.load_state_dict(half.state_dict())
    short, long = x.bfloat16(), x.bfloat16().float()
    providers = {
        "lirank": lambda: half(short),
        "lirank fp32": lambda: single(long),
        "eager bf16": lambda: eager(short),
        "compile bf16": lambda: compiled(short),
    }
    return Workload("attention_cross", label, providers, lambda: wide(short.double()), **stated)


def workloads(device: str, peers: bool, quick: bool) -> Iterator[Workload]:
    """Single low-rank layers, outer attention, and the residual net of both stacks."""
    layers = (LAYERS[1], LAYERS[3]) if quick else LAYERS
    for shape in layers + WIDE_LAYERS if device == "cuda" else layers:
        yield from _low_rank(*shape, device, peers)
    for shape in (ATTENTION[0], ATTENTION[2]) if quick else ATTENTION:
        yield from _attention(*shape, device)
    for shape in (NETS[1], NETS[3]) if quick else NETS:
        yield from _net(*shape, device)
