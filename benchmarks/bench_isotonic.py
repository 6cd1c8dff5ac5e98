"""Benchmarks of isotonic calibration, which is limited by copying the samples.

The forward moves 8 bytes per float32 sample and the gradient 12. With an embedding (B, k) it also
moves the rows of the embedding. The forward needs them only up to the sample's bucket, but whole
rows are counted below.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator

import torch

from lirank_ext import isotonic_calibration
from lirank_ext.benchmarks.harness import Workload
from lirank_ext.library.op import OPS

OP = "isotonic_calibration"
reference = OPS[OP].reference.__wrapped__
# The range of logits that a ranker's sigmoid needs, in 500 buckets of 0.05.
LOWER, STEP = -17.0, 0.05
SHAPES = ((512, 500, False), (16_384, 500, False), (4096, 100, True))
SHAPES += ((1_000_000, 500, False), (8_000_000, 500, False))
# Eager PyTorch on equation 1 materializes (B, k) several times. It is left out beyond this many
# elements.
MOST_CELLS = 20_000_000


def _inputs(size: int, buckets: int, features: bool, device: str) -> tuple:
    generator = torch.Generator().manual_seed(size)
    # Logits stay away from the knots, where float32 and float64 may pick different slopes.
    bucket = torch.randint(0, buckets, (size,), generator=generator)
    within = torch.rand(size, generator=generator) * 0.8 + 0.1
    logits = LOWER + (bucket + within) * STEP
    weight = torch.rand(buckets, generator=generator) - 0.1
    embedding = torch.randn(size, buckets, generator=generator) if features else None
    tensors = (logits, weight, torch.zeros(()), embedding)
    return tuple(t if t is None else t.to(device) for t in tensors)


def _call(function: Callable, inputs: tuple) -> torch.Tensor:
    logits, weight, bias, embedding = inputs
    return function(logits, weight, bias, LOWER, STEP, embedding)


def _wide(inputs: tuple) -> tuple:
    return tuple(t if t is None else t.detach().double() for t in inputs)


def _gradients(function: Callable, inputs: tuple) -> Callable[[], tuple]:
    """One training step of this layer: forward, and backward to all inputs."""
    leaves = tuple(t if t is None else t.detach().requires_grad_() for t in inputs)
    wanted = [t for t in leaves if t is not None]
    gradient = torch.ones_like(inputs[0])
    return lambda: torch.autograd.grad(_call(function, leaves), wanted, gradient)


def eager(logits, weight, bias, lower, step, embedding=None):
    """Equation 1 as it is written, every bucket's share clamped by itself."""
    z = logits.clamp(lower, lower + len(weight) * step) - lower
    i = torch.arange(len(weight), dtype=logits.dtype, device=logits.device)
    shares = (z.unsqueeze(-1) - i * step).clamp(0, step)
    slope = (weight if embedding is None else embedding + weight).relu()
    return (slope * shares).sum(-1) + lower + bias


def gathers(logits, weight, bias, lower, step, embedding=None):
    """Prefix sums and two gathers, as a careful user would write it without an embedding."""
    slope = weight.relu()
    prefix = torch.cumsum(slope * step, 0) - slope * step + lower + bias
    z = logits.clamp(lower, lower + len(weight) * step) - lower
    i = (z / step).long().clamp(max=len(weight) - 1)
    return torch.addcmul(prefix[i], slope[i], z - i * step)


def _functions(cells: int, features: bool) -> dict[str, Callable]:
    found: dict[str, Callable] = {"lirank": isotonic_calibration}
    if cells <= MOST_CELLS:
        found |= {"eager": eager, "compile": torch.compile(eager)}
    if not features:
        found |= {"eager gathers": gathers, "compile gathers": torch.compile(gathers)}
    return found


def workloads(device: str, peers: bool, quick: bool) -> Iterator[Workload]:
    """Forward, and forward with all gradients. No peer library has this layer."""
    for size, buckets, features in SHAPES[:3] if quick else SHAPES:
        yield from _at(size, buckets, features, device)


def _at(size: int, buckets: int, features: bool, device: str) -> Iterator[Workload]:
    inputs = _inputs(size, buckets, features, device)
    functions = _functions(size * buckets, features)
    rows = 4 * buckets * size * features
    common = {"items": size, "unit": "sample"}
    label = f"B={size} k={buckets}" + (", embedding" if features else "")
    yield Workload(
        OP,
        label,
        {name: lambda f=f: _call(f, inputs) for name, f in functions.items()},
        expect=lambda: torch.cat([_call(reference, w) for w in _chunks(_wide(inputs))]),
        bytes=8 * size + rows,
        **common,
    )
    if size * buckets <= MOST_CELLS:
        yield Workload(
            OP,
            label,
            {name: _gradients(f, inputs) for name, f in functions.items()},
            expect=_gradients(reference, _wide(inputs)),
            bytes=20 * size + 3 * rows,
            direction="step",
            **common,
        )


def _chunks(inputs: tuple, size: int = 50_000) -> Iterator[tuple]:
    """The inputs in parts, because the float64 reference materializes (B, k)."""
    logits, weight, bias, embedding = inputs
    for i in range(0, len(logits), size):
        part = None if embedding is None else embedding[i : i + size]
        yield logits[i : i + size], weight, bias, part
