"""Inputs for isotonic calibration."""

from __future__ import annotations

import torch

from . import Case

OP = "isotonic_calibration"
LOWER, STEP = -4.0, 0.25


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
    embedding = None
    if features:
        embedding = torch.randn((*size, buckets), generator=generator).to(dtype)
    return logits, weight, bias, LOWER, STEP, embedding


def cases(generator: torch.Generator) -> list[Case]:
    found = []
    for size, buckets in [((0,), 8), ((1,), 1), ((7,), 5), ((33, 3), 40), ((1000,), 500)]:
        for features in (False, True):
            args = _inputs(generator, size, buckets, features=features)
            grad = (0, 1, 2, 5) if features else (0, 1, 2)
            label = f"logits {size}, k={buckets}" + (", embedding" if features else "")
            found.append(Case(OP, label, args, grad))
    long = _inputs(generator, (40_000,), 64)
    found.append(Case(OP, "several tasks", long, (0, 1, 2), tolerance=256.0, big=True))
    double = _inputs(generator, (50,), 9, torch.float64, features=True)
    found.append(Case(OP, "float64", double, (0, 1, 2, 5)))
    for dtype in (torch.bfloat16, torch.float16):
        found.append(Case(OP, str(dtype), _inputs(generator, (50,), 9, dtype)))
    logits, weight, bias, *rest = _inputs(generator, (40,), 12)
    strided = torch.stack([logits, logits], 1)[:, 0]
    found.append(Case(OP, "strided", (strided, weight.flip(0), bias, *rest), (0, 1, 2)))
    far = torch.tensor([-1e30, 1e30, -torch.inf, torch.inf, LOWER - 1e-3])
    found.append(Case(OP, "far outside", (far, weight, bias, *rest), (0, 1, 2)))
    found.append(Case(OP, "NaN stays NaN", (far * torch.nan, weight, bias, *rest)))
    found.append(Case(OP, "all slopes clipped", (logits, -weight.abs(), bias, *rest), (0, 1, 2)))
    refused = [
        ("no buckets", (logits, weight[:0], bias, *rest), "weight"),
        ("step 0", (logits, weight, bias, LOWER, 0.0, None), "step"),
        ("dtypes differ", (logits, weight.double(), bias, *rest), "weight"),
        ("bias of two", (logits, weight, torch.zeros(2), *rest), "bias"),
        ("integer logits", (logits.long(), weight, bias, *rest), "logits"),
        ("embedding narrow", (logits, weight, bias, LOWER, STEP, torch.zeros(40, 3)), "embedding"),
    ]
    found += [Case(OP, label, args, raises=f"'{name}'") for label, args, name in refused]
    return found
