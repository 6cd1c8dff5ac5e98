"""DCN-V2 and FinalMLP in plain PyTorch, trained as FuxiCTR trains them."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from sklearn.metrics import roc_auc_score
from torch import Tensor, nn
from torch.nn import functional as F

from .data import Set

BINS = 32  # of a number with more values
EPOCHS, PATIENCE = 30, 2


@dataclass
class Encoded:
    """Columns as codes; 0 is a value that the rows to train on do not have."""

    codes: dict[str, Tensor]
    labels: dict[str, np.ndarray]
    size: int

    @property
    def columns(self) -> int:
        """How many columns there are."""
        return self.codes["train"].shape[1]


def encode(data: Set) -> Encoded:
    """Codes of all columns; numbers with many values are cut into bins of equal counts."""
    frames = {part: data.frame(part) for part in ("train", "valid", "test")}
    codes: dict[str, list[np.ndarray]] = {part: [] for part in frames}
    size = 0
    for name in frames["train"][0]:
        column = {part: frame[name] for part, (frame, _) in frames.items()}
        if column["train"].dtype.kind in "if" and column["train"].nunique() > BINS:
            edges = np.unique(np.nanquantile(column["train"], np.arange(1, BINS) / BINS))
            values = {part: np.digitize(c, edges).astype(str) for part, c in column.items()}
        else:
            values = {part: c.astype(str).to_numpy() for part, c in column.items()}
        known = np.unique(values["train"])
        for part, texts in values.items():
            places = np.searchsorted(known, texts).clip(max=len(known) - 1)
            codes[part].append(np.where(known[places] == texts, size + 1 + places, size))
        size += len(known) + 1
    tensors = {part: torch.from_numpy(np.stack(c, 1)) for part, c in codes.items()}
    return Encoded(tensors, {part: y for part, (_, y) in frames.items()}, size)


def _mlp(width: int, dims: tuple[int, ...], dropout: float) -> nn.Sequential:
    layers: list[nn.Module] = []
    for out in dims:
        layers += [nn.Linear(width, out), nn.BatchNorm1d(out), nn.ReLU(), nn.Dropout(dropout)]
        width = out
    return nn.Sequential(*layers)


class DCNV2(nn.Module):
    """Cross layers with full matrices beside an MLP (arXiv 2008.13535)."""

    def __init__(self, size: int, columns: int, s: dict[str, Any]) -> None:
        super().__init__()
        self.table = nn.Embedding(size, s["dim"])
        nn.init.normal_(self.table.weight, std=1e-4)
        width = columns * s["dim"]
        self.cross = nn.ModuleList(nn.Linear(width, width) for _ in range(s["layers"]))
        self.mlp = _mlp(width, s["dims"], s["dropout"])
        self.out = nn.Linear(width + s["dims"][-1], 1)

    def forward(self, codes: Tensor) -> Tensor:
        x0 = x = self.table(codes).flatten(1)
        for layer in self.cross:
            x = x0 * layer(x) + x
        return self.out(torch.cat([x, self.mlp(x0)], 1))[:, 0]


class FinalMLP(nn.Module):
    """Two MLPs over gated inputs, fused by a bilinear form (arXiv 2304.00902)."""

    def __init__(self, size: int, columns: int, s: dict[str, Any]) -> None:
        super().__init__()
        self.table = nn.Embedding(size, s["dim"])
        nn.init.normal_(self.table.weight, std=1e-4)
        width = columns * s["dim"]
        self.gates = nn.ParameterList([nn.Parameter(torch.zeros(width)) for _ in range(2)])
        self.streams = nn.ModuleList(_mlp(width, s["dims"], s["dropout"]) for _ in range(2))
        out = s["dims"][-1]
        self.linear = nn.Linear(2 * out, 1)
        self.heads, each = s["layers"], out // s["layers"]
        self.form = nn.Parameter(torch.randn(self.heads, each, each) / each)

    def forward(self, codes: Tensor) -> Tensor:
        x = self.table(codes).flatten(1)
        one, two = (
            stream(x * 2 * gate.sigmoid())
            for stream, gate in zip(self.streams, self.gates, strict=True)
        )
        each = self.form.shape[1]
        a, b = (h[:, : self.heads * each].unflatten(1, (self.heads, each)) for h in (one, two))
        fused = torch.einsum("bhi,hij,bhj->b", a, self.form, b)
        return self.linear(torch.cat([one, two], 1))[:, 0] + fused


MODELS = {"DCN-V2": DCNV2, "FinalMLP": FinalMLP}


def draw(rng: np.random.Generator) -> dict[str, Any]:
    """A setting, drawn at random."""
    return {
        "dim": int(rng.choice([8, 16, 32])),
        "dims": [(400, 400), (256, 128), (400, 400, 400)][rng.integers(3)],
        "layers": int(rng.choice([2, 3, 4])),
        "dropout": float(rng.choice([0.0, 0.2, 0.4])),
        "l2": float(rng.choice([0.0, 1e-6, 1e-4, 1e-3, 1e-2, 5e-2])),
        "lr": float(rng.choice([5e-4, 1e-3, 2e-3])),
        "batch": int(rng.choice([512, 2048, 4096])),
    }


def fit(name: str, data: Encoded, s: dict[str, Any], seed: int) -> dict[str, np.ndarray]:
    """Train one setting and give the logits of the rows to validate and to test on.

    Adam, an L2 penalty of the whole table, the rate cut to a tenth and the count of patience at an
    evaluation that is no better; the best weights count.
    """
    torch.manual_seed(seed)
    rng = np.random.default_rng(seed)
    model = MODELS[name](data.size, data.columns, s)
    optimizer = torch.optim.Adam(model.parameters(), s["lr"])
    codes, labels = data.codes["train"], torch.tensor(data.labels["train"]).float()
    best, kept, worse = -np.inf, {}, 0
    for _ in range(EPOCHS):
        model.train()
        order = rng.permutation(len(codes))
        for batch in np.array_split(order, max(1, len(order) // s["batch"])):
            optimizer.zero_grad()
            loss = F.binary_cross_entropy_with_logits(model(codes[batch]), labels[batch])
            (loss + s["l2"] / 2 * model.table.weight.square().sum()).backward()
            nn.utils.clip_grad_norm_(model.parameters(), 10.0)
            optimizer.step()
        logits = {part: _score(model, data.codes[part]) for part in ("valid", "test")}
        area = roc_auc_score(data.labels["valid"], logits["valid"])
        if area > best:
            best, kept, worse = area, logits, 0
            continue
        worse += 1
        if worse >= PATIENCE:
            break
        for group in optimizer.param_groups:
            group["lr"] /= 10
    return kept


@torch.no_grad()
def _score(model: nn.Module, codes: Tensor) -> np.ndarray:
    model.eval()
    return torch.cat([model(part) for part in codes.split(8192)]).numpy()
