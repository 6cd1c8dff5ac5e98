"""Fitting a trained model's calibration to other rows."""

from __future__ import annotations

from collections.abc import Iterable

import torch
from torch.nn import functional as F

from ..data.features import Batch
from ..models import LiRank


def calibrate(
    model: LiRank,
    batches: Iterable[Batch],
    device: torch.device | str = "cpu",
    l2: float = 10.0,
    steps: int = 300,
) -> None:
    """Fit the isotonic layers, in place; every other weight stays.

    Args:
        model: with a calibration.
        batches: labeled rows, preferably not trained on. Their logits are held in memory.
        device: of the model.
        l2: pull of a bucket's weight to 1, worth so many rows.
        steps: of Adam on all rows.

    Raises:
        ValueError: the model has no calibration, or there is no row.
    """
    if model.calibration is None:
        raise ValueError("calibrate: the model has no calibration")
    parts, labels, weights = [], [], []
    model.eval()
    with torch.no_grad():
        for batch in batches:
            features = batch.to(torch.device(device)).features
            bags = model.bags(features)
            shifts = model._calibration_features(bags)
            logits = model.add_effects(model.logits(features), features)
            parts.append((logits, shifts))
            labels.append(batch.labels.to(device))
            if batch.weights is not None:
                weights.append(batch.weights.to(device))
    if not labels:
        raise ValueError("calibrate: no row to fit to")
    weight = torch.cat(weights) if weights else None
    logits, wanted = torch.cat([p[0] for p in parts]), torch.cat(labels)
    shifts = None if parts[0][1] is None else torch.cat([p[1] for p in parts])
    for t, layer in enumerate(model.calibration):
        with torch.enable_grad():
            optimizer = torch.optim.Adam(layer.parameters(), lr=0.02)
            for _ in range(steps):
                optimizer.zero_grad()
                loss = F.binary_cross_entropy_with_logits(
                    layer(logits[:, t], shifts), wanted[:, t], weight
                )
                pull = (layer.weight - 1).square().sum() * l2 / (2 * len(wanted))
                (loss + pull).backward()
                optimizer.step()
