"""What the first cross layers of a model do with its columns, averaged over rows."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor

from ..data.loader import Memory
from ..models import LiRank
from ..models.blocks import safe
from ..nn.cross import AttentionCross, LowRankCross

ROWS, CHUNK = 1024, 64
MOST = 24  # columns of a map


@dataclass
class Maps:
    """Averages over some rows; a map is None where the model has no such layer.

    Attributes:
        columns: names of the columns in ``products``.
        products: (columns, columns) mean size of what the first low-rank cross layer adds to the
            column of the row from the column of the matrix column.
        left_out: columns with the smallest products, which are not among them.
        attention: (tokens, tokens) mean attention weights of the first attention cross layer; row
            i holds the weights that token i gives to the others.
        rows: how many rows.
    """

    columns: list[str]
    products: np.ndarray | None
    left_out: int
    attention: np.ndarray | None
    rows: int


def slots(model: LiRank) -> list[tuple[str, int]]:
    """The parts of the model's joined input in order: names and widths."""
    config = model.config
    schema, dim = config.schema, config.embedding.dim
    found = [(name, 1) for name in schema.numeric if config.numeric.enabled]
    for column in (column for members in model.columns.values() for column in members):
        kind = " (as id)" if column.name in schema.numeric else ""
        found.append((column.name + (" (binned)" if column.edges else kind), dim))
    if model.histories:
        histories: Any = model.histories
        found += [(h.name, histories[safe(h.name)].out_dim) for h in schema.history]
    return found


@torch.no_grad()
def maps_of(model: LiRank, batches: Memory, device: str) -> Maps:
    """The maps of the first cross layer of either kind."""
    low = next((m for m in model.modules() if isinstance(m, LowRankCross)), None)
    attention = next((m for m in model.modules() if isinstance(m, AttentionCross)), None)
    x = _input(model, batches, device)
    products = weights = None
    names: list[str] = []
    left_out = 0
    if low is not None:
        names, products = _products(low, x, slots(model))
        names, products, left_out = _largest(names, products)
    if attention is not None:
        weights = _weights(attention, x)
    return Maps(names, products, left_out, weights, len(x))


def _input(model: LiRank, batches: Memory, device: str) -> Tensor:
    """(N, input_dim) of up to :data:`ROWS` rows."""
    parts, rows = [], 0
    for batch in batches:
        features = batch.to(torch.device(device)).features
        parts.append(model.join_input(features, model.bags(features)).float())
        rows += len(parts[-1])
        if rows >= ROWS:
            break
    return torch.cat(parts)[:ROWS]


@torch.no_grad()
def _products(
    layer: LowRankCross, x: Tensor, parts: list[tuple[str, int]]
) -> tuple[list[str], np.ndarray]:
    """Norms of ``x0_a * (W_ab x_b)`` for columns a and b, averaged over the rows."""
    edges = np.cumsum([0, *(width for _, width in parts)])
    v, u = layer.v.float(), layer.u.float()
    sizes = np.zeros((len(parts), len(parts)))
    for b in range(len(parts)):
        part = slice(edges[b], edges[b + 1])
        added = x * (x[:, part] @ v[:, part].T @ u.T)
        for a in range(len(parts)):
            sizes[a, b] = float(added[:, edges[a] : edges[a + 1]].norm(dim=1).mean())
    return [name for name, _ in parts], sizes


def _largest(names: list[str], products: np.ndarray) -> tuple[list[str], np.ndarray, int]:
    """The columns with the largest products, in their order, and how many are left out."""
    totals = products.sum(0) + products.sum(1)
    kept = np.sort(np.argsort(-totals, kind="stable")[:MOST])
    return [names[i] for i in kept], products[np.ix_(kept, kept)], len(names) - len(kept)


def _weights(layer: AttentionCross, x: Tensor) -> np.ndarray:
    """Mean of the (tokens, tokens) attention weights; tokens in order of what they receive."""
    width, total = layer.token_dim, torch.zeros((), device=x.device)
    scale = layer.temperature * width**0.5
    kernels: list[Any] = [layer.q, layer.k]
    for rows in torch.split(x, CHUNK):
        q, k = ((rows @ w.float().T).unflatten(1, (-1, width)) for w in kernels)
        total = total + (q @ k.transpose(1, 2) / scale).softmax(-1).sum(0)
    mean: np.ndarray = (total / len(x)).cpu().numpy()
    order = np.argsort(-mean.sum(0), kind="stable")
    return mean[np.ix_(order, order)]
