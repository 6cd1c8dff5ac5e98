"""Inputs for the residual cross net and its score, whose stacks of layers are lists of tensors."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from . import Case, cases_of

# As for a single layer. The largest error over four seeds took 29 for a net and 80 for a score.
SUMS = 256.0
# A score in half precision is one number, a sum over d of layers that were each rounded to it: the
# reference itself took 24.
HALF_SCORES = 48.0


def _stacks(normal, dim: int, rank: int, layers: tuple[int, int]) -> dict[str, list[Tensor]]:
    """(v, u, bias) for every low-rank layer, (q, k, v, u, bias) for every attention layer."""

    def layer(kernels: int) -> list[Tensor]:
        onto = [normal(rank, dim, scale=dim**-0.5) for _ in range(kernels)]
        return [*onto, normal(dim, rank, scale=rank**-0.5), normal(dim, scale=0.1)]

    low, high = layers
    return {
        "low_rank": [t for _ in range(low) for t in layer(1)],
        "attention": [t for _ in range(high) for t in layer(3)],
    }


def _drawn(generator, dtype=torch.float32):
    def normal(*size, scale=1.0) -> Tensor:
        return (torch.randn(size, generator=generator, dtype=torch.float64) * scale).to(dtype)

    return normal


def _net(generator) -> list[Case]:
    case, made = cases_of("residual_cross_net"), []

    def add(label, batch, dim, rank, layers=(2, 2), dtype=torch.float32, big=False, **options):
        normal = _drawn(generator, dtype)
        args: dict[str, Any] = {"x": normal(batch, dim), **_stacks(normal, dim, rank, layers)}
        args |= {"temperature": 1.0, "log_temperatures": []} | options
        tolerance = SUMS if dtype in (torch.float32, torch.float64) else 4.0
        made.append(case(label, **args, tolerance=tolerance, big=big))

    for batch, dim, rank in [(0, 8, 4), (1, 1, 1), (2, 16, 4), (5, 33, 7), (40, 66, 18)]:
        add(f"B={batch}, d={dim}, r={rank}", batch, dim, rank)
    for merge in (1, 2):
        add(f"merge={merge}", 7, 24, 6, merge=merge)
    add("no skip, tokens of 3", 7, 24, 6, skip=False, token_dim=3, temperature=0.6)
    learned = [torch.tensor(0.3), torch.tensor(-0.4)]
    add("learned temperatures", 7, 24, 6, log_temperatures=learned)
    add("one layer and three", 7, 24, 6, layers=(1, 3))
    add("float64", 7, 24, 6, dtype=torch.float64)
    for dtype in (torch.bfloat16, torch.float16):
        add(str(dtype), 7, 24, 6, dtype=dtype)
    add("several tiles", 300, 130, 20, big=True)
    whole = made[2].args
    turned = whole["x"].T.contiguous().T
    made.append(case("strided", **whole | {"x": turned}, tolerance=SUMS))
    return made


def _score(generator) -> list[Case]:
    case, made = cases_of("residual_cross_score"), []

    def add(label, counts, dims, rank, layers=(2, 2), outputs=1, big=False, **options):
        dtype = options.pop("dtype", torch.float32)
        normal, (of_request, of_item) = _drawn(generator, dtype), dims
        dim = of_request + of_item
        args: dict[str, Any] = {
            "request": normal(len(counts), of_request),
            "items": normal(sum(counts), of_item),
            "counts": torch.tensor(counts, dtype=torch.int64),
            **_stacks(normal, dim, rank, layers),
        }
        args |= {"temperature": 1.0, "log_temperatures": []} | options
        if outputs:
            width = 2 * dim if options.get("merge") == 2 and all(layers) else dim
            args["weight"] = normal(outputs, width, scale=width**-0.5)
            args["bias"] = normal(outputs)
        tolerance = SUMS if dtype in (torch.float32, torch.float64) else HALF_SCORES
        made.append(case(label, **args, tolerance=tolerance, big=big))

    add("no request", [], (5, 3), 2)
    add("no candidate", [0, 0], (5, 3), 2)
    add("one candidate", [1], (9, 7), 4)
    add("few candidates", [3, 0, 12, 20], (40, 25), 8)
    add("folded", [70], (150, 30), 4)
    add("first products", [30], (120, 30), 40)
    add("several requests, some folded", [1, 90, 6, 33], (150, 31), 5, outputs=3)
    add("without weight", [40, 2], (60, 21), 4, outputs=0)
    for layers in ((3, 0), (0, 2)):
        for outputs in (0, 2):
            add(f"layers {layers}, m={outputs}", [50, 2], (90, 15), 4, layers, outputs)
    for merge in (1, 2):
        add(f"merge={merge}", [60, 3], (80, 20), 6, merge=merge)
    add("no skip, tokens of 3", [60], (80, 20), 6, skip=False, token_dim=3, temperature=0.6)
    learned = [torch.tensor(0.3), torch.tensor(-0.4)]
    add("learned temperatures", [60], (80, 20), 6, log_temperatures=learned)
    add("float64", [50], (80, 20), 6, dtype=torch.float64)
    for dtype in (torch.bfloat16, torch.float16):
        add(str(dtype), [50], (80, 20), 6, dtype=dtype)
    add("many candidates", [400, 5], (300, 60), 16, big=True)
    return made


def cases(generator: torch.Generator) -> list[Case]:
    return [*_net(generator), *_score(generator)]
