"""Inputs for isotonic calibration."""

from __future__ import annotations

import math

import torch

from . import Case, cases_of

LOWER, STEP = -4.0, 0.25
TRAINED = ("logits", "weight", "bias")
case = cases_of("isotonic_calibration")


def _inputs(generator, size, buckets, dtype=torch.float32, features=False):
    """Random logits beyond both ends of the range, kept away from the knots.

    On a knot the slope jumps, so float32 and float64 may rightly pick different sides.
    """
    covered = buckets * STEP
    raw = torch.rand(size, generator=generator, dtype=torch.float64) * (covered + 4) + LOWER - 2
    within = (raw - LOWER) / STEP
    logits = ((within.floor() + (within - within.floor()) * 0.8 + 0.1) * STEP + LOWER).to(dtype)
    weight = torch.randn(buckets, generator=generator).to(dtype)
    bias = torch.randn((), generator=generator).to(dtype)
    made = {"logits": logits, "weight": weight, "bias": bias, "lower": LOWER, "step": STEP}
    if features:
        made["embedding"] = torch.randn((*size, buckets), generator=generator).to(dtype)
    return made


def cases(generator: torch.Generator) -> list[Case]:
    made = []
    for size, buckets in [((0,), 8), ((1,), 1), ((7,), 5), ((33, 3), 40), ((1000,), 500)]:
        for features in (False, True):
            inputs = _inputs(generator, size, buckets, features=features)
            grad = (*TRAINED, "embedding") if features else TRAINED
            label = f"logits {size}, k={buckets}" + (", embedding" if features else "")
            # Shares of a bucket are differences of numbers up to k steps large.
            tolerance = 256.0 if buckets == 500 else 64.0
            made.append(case(label, **inputs, grad=grad, tolerance=tolerance))
    long = _inputs(generator, (40_000,), 64)
    made.append(case("several tasks", **long, grad=TRAINED, tolerance=256.0, big=True))
    double = _inputs(generator, (50,), 9, torch.float64, features=True)
    made.append(case("float64", **double, grad=(*TRAINED, "embedding")))
    for dtype in (torch.bfloat16, torch.float16):
        made.append(case(str(dtype), **_inputs(generator, (50,), 9, dtype)))
    good = _inputs(generator, (40,), 12)
    logits, weight = good["logits"], good["weight"]
    far = torch.tensor([-1e30, 1e30, -torch.inf, torch.inf, LOWER - 1e-3])
    changed = {
        "strided": {"logits": torch.stack([logits, logits], 1)[:, 0], "weight": weight.flip(0)},
        "far outside": {"logits": far},
        "all slopes clipped": {"weight": -weight.abs()},
    }
    made += [case(label, **good | change, grad=TRAINED) for label, change in changed.items()]
    made.append(case("NaN stays NaN", **good | {"logits": far * torch.nan}))
    refused = {
        "no buckets": {"weight": weight[:0]},
        "step 0": {"step": 0.0},
        "dtypes differ": {"weight": weight.double()},
        "bias of two": {"bias": torch.zeros(2)},
        "integer logits": {"logits": logits.long()},
        "embedding narrow": {"embedding": torch.zeros(40, 3)},
    }
    for name, bad in (("step", 1e-31), ("step", 1e31), ("lower", -1e31), ("lower", 1e31)):
        refused[f"{name} {bad:g}"] = {name: bad}
        refused[f"{name} {bad * math.inf:g}"] = {name: bad * math.inf}
        refused[f"{name} NaN"] = {name: math.nan}
    for label, change in refused.items():
        made.append(case(label, **good | change, raises=f"'{next(iter(change))}'"))
    return made
