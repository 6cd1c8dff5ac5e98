"""The demo's ranker and how it is trained."""

from __future__ import annotations

import copy
import math

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from ..datasets import Batch, Dataset, progress
from ..nn.reference_cross import ReferenceResidualCrossNet
from ..nn.reference_hashed_embedding import ReferenceHashedEmbeddingBag
from ..nn.reference_isotonic import ReferenceIsotonicCalibration

NUM_REMAINDERS = 1000
BATCH_SIZE = 1024
EVALUATION_BATCH_SIZE = 4096
PATIENCE = 3  # evaluations without a better validation loss before the training stops


class Ranker(nn.Module):
    """Hashed ids and dense features through a residual cross net beside an MLP, calibrated.

    Its layers are the eager PyTorch ones: what ``lirank_ext.swap`` replaces.

    Args:
        data: gives the number of features and of distinct ids, which size the hashed tables.
        dim: embedding width of an id.
        rank: of the cross layers.
    """

    def __init__(self, data: Dataset, dim: int = 64, rank: int = 32) -> None:
        super().__init__()
        self.num_features = len(data.features)
        width = self.num_features * dim + data.dense.shape[1]
        # Two quotient tables with about a row per id, and two remainder tables of 1,000 rows.
        rows = max(NUM_REMAINDERS, len(data.vocabulary))
        self.embedding = ReferenceHashedEmbeddingBag(
            dim, num_buckets=rows * NUM_REMAINDERS, num_remainders=NUM_REMAINDERS, prehashed=True
        )
        # Whole features are dropped, so that none (the user id above all, which is often new in
        # the rows to come) is relied on alone. MovieLens: test AUC 0.788 without, 0.794 with.
        self.dropout = nn.Dropout1d(0.3)
        self.cross = ReferenceResidualCrossNet(width, rank, num_layers=2)
        self.deep = nn.Sequential(
            *(nn.Linear(width, 128), nn.ReLU(), nn.Dropout(0.2)),
            *(nn.Linear(128, 64), nn.ReLU(), nn.Dropout(0.2)),
        )
        self.output = nn.Linear(width + 64, 1)
        self.calibration = ReferenceIsotonicCalibration(lower=-8.0, upper=8.0, step=0.5)

    def logits(self, ids: Tensor, offsets: Tensor, dense: Tensor) -> Tensor:
        """The logits (B,) before calibration.

        Args:
            ids: int64, hashes of the text ids of B * F bags.
            offsets: (B * F,), feature by feature within a row.
            dense: (B, K).
        """
        bags = self.embedding(ids, offsets).view(len(dense), self.num_features, -1)
        x = torch.cat([self.dropout(bags).flatten(1), dense], 1)
        return self.output(torch.cat([self.cross(x), self.deep(x)], 1)).squeeze(1)

    def forward(self, ids: Tensor, offsets: Tensor, dense: Tensor) -> Tensor:
        """The calibrated logits (B,); arguments as in :meth:`logits`."""
        return self.calibration(self.logits(ids, offsets, dense))


def train(model: Ranker, data: Dataset, epochs: int, seed: int = 0) -> float:
    """Train all but the calibration; keeps the weights that validate best, returns their loss."""
    generator = torch.Generator().manual_seed(seed)
    tables = list(model.embedding.parameters())
    known = {id(p) for p in (*tables, *model.calibration.parameters())}
    weights = [p for p in model.parameters() if id(p) not in known]
    # AdaGrad suits rows that are seen rarely, and takes sparse gradients.
    optimizers = [torch.optim.Adagrad(tables, lr=0.02), torch.optim.AdamW(weights, 1e-3)]
    steps = math.ceil(len(data.train) / BATCH_SIZE)
    schedules = [_schedule(optimizer, steps * epochs) for optimizer in optimizers]
    looks = {steps - 1, steps // 2} if steps > 1 else {0}
    best, best_state, worse = math.inf, None, 0
    bar = progress(None, "training", total=steps * epochs, unit=" steps")
    for _ in range(epochs):
        model.train()
        order = data.train[torch.randperm(len(data.train), generator=generator)]
        for step, rows in enumerate(order.split(BATCH_SIZE)):
            # Said outright, as AdaGrad's sparse gradients make PyTorch warn otherwise.
            with torch.sparse.check_sparse_tensor_invariants(False):
                _step(model, data.batch(rows), optimizers, weights)
            for schedule in schedules:
                schedule.step()
            bar.update()
            if step in looks:
                loss = _loss(model, data, data.valid)
                bar.set_postfix(validation_loss=f"{loss:.4f}")
                if loss < best:
                    best, best_state, worse = loss, copy.deepcopy(model.state_dict()), 0
                else:
                    worse += 1
        if worse >= PATIENCE:
            break
    bar.close()
    model.load_state_dict(best_state)
    model.eval()
    return best


def _schedule(optimizer: torch.optim.Optimizer, steps: int) -> torch.optim.lr_scheduler.LambdaLR:
    """A linear warm-up over the first tenth, then half a cosine down to nothing."""
    warm = max(1, steps // 10)

    def factor(step: int) -> float:
        return min(1.0, (step + 1) / warm) * (0.5 + 0.5 * math.cos(math.pi * step / steps))

    return torch.optim.lr_scheduler.LambdaLR(optimizer, factor)


def _step(
    model: Ranker, batch: Batch, optimizers: list[torch.optim.Optimizer], weights: list[Tensor]
) -> None:
    logits = model.logits(batch.ids, batch.offsets, batch.dense)
    loss = F.binary_cross_entropy_with_logits(logits, batch.labels)
    for optimizer in optimizers:
        optimizer.zero_grad()
    loss.backward()
    nn.utils.clip_grad_norm_(weights, 1.0)
    for optimizer in optimizers:
        optimizer.step()


def predict(model: Ranker, data: Dataset, rows: Tensor, calibrated: bool = True) -> Tensor:
    """Logits of rows."""
    call = model if calibrated else model.logits
    model.eval()
    with torch.inference_mode():
        batches = (data.batch(part) for part in rows.split(EVALUATION_BATCH_SIZE))
        return torch.cat([call(b.ids, b.offsets, b.dense) for b in batches])


def _loss(model: Ranker, data: Dataset, rows: Tensor) -> float:
    logits = predict(model, data, rows, calibrated=False)
    model.train()
    return F.binary_cross_entropy_with_logits(logits, data.labels[rows]).item()


def calibrate(model: Ranker, data: Dataset, steps: int = 200) -> None:
    """Fit the calibration, the identity so far, on the rows to validate.

    They are later than the rows to train on, and the level of a model drifts with time. A
    penalty, worth ten rows a bucket, keeps a bucket with hardly a row near the identity.
    """
    logits = predict(model, data, data.valid, calibrated=False).clone()
    labels = data.labels[data.valid]
    weight = model.calibration.weight
    optimizer = torch.optim.Adam(model.calibration.parameters(), lr=0.02)
    for _ in range(steps):
        optimizer.zero_grad()
        loss = F.binary_cross_entropy_with_logits(model.calibration(logits), labels)
        (loss + 10 / len(labels) * (weight - 1).square().sum()).backward()
        optimizer.step()
