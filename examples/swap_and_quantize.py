"""Train a ranker of plain PyTorch modules, then swap and quantize it, and prove what that costs.

The data are six columns of UCI Adult, which ships with the package.
Needs pyarrow and scikit-learn. Run: python examples/swap_and_quantize.py
"""

import copy
import time

import torch
from pyarrow import parquet
from sklearn.metrics import roc_auc_score
from torch import Tensor, nn

import lirank_ext
from lirank_ext.data import ADULT
from lirank_ext.nn.reference_cross import ReferenceLowRankCross

COLUMNS = ["workclass", "education", "marital-status", "occupation", "relationship", "gender"]


class Ranker(nn.Module):
    """Embeddings of a row's ids, a cross layer, and an MLP."""

    def __init__(self, ids: int, dim: int = 64, rank: int = 16) -> None:
        super().__init__()
        self.ids = nn.EmbeddingBag(ids, dim, mode="sum")
        self.cross = ReferenceLowRankCross(dim, rank)
        self.mlp = nn.Sequential(nn.Linear(dim, 32), nn.ReLU(), nn.Linear(32, 1))

    def forward(self, ids: Tensor) -> Tensor:
        x = self.ids(ids)
        return self.mlp(self.cross(x, x))[:, 0]


def read() -> tuple[Tensor, Tensor, int]:
    """Ids (N, columns), each column in a range of its own; labels; the number of ids."""
    table = parquet.read_table(ADULT, columns=[*COLUMNS, "income"]).combine_chunks()
    codes, first = [], 0
    for name in COLUMNS:
        column = table[name].chunk(0).dictionary_encode()
        codes.append(torch.from_numpy(column.indices.to_numpy().copy()).long() + first)
        first += len(column.dictionary)
    labels = torch.tensor([value.startswith(">50K") for value in table["income"].to_pylist()])
    return torch.stack(codes, 1), labels.float(), first


def train(model: nn.Module, ids: Tensor, labels: Tensor) -> None:
    optimizer = torch.optim.Adam(model.parameters(), lr=3e-3)
    for rows in torch.randperm(len(ids)).split(512):
        loss = nn.functional.binary_cross_entropy_with_logits(model(ids[rows]), labels[rows])
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()


@torch.inference_mode()
def measure(name: str, model: nn.Module, ids: Tensor, labels: Tensor) -> None:
    """Print AUC, bytes of the weights, and the time of a batch of 256 rows."""
    auc = roc_auc_score(labels.numpy(), model(ids).numpy())
    size = sum(t.numel() * t.element_size() for t in model.state_dict().values())
    times = []
    for _ in range(50):
        start = time.perf_counter()
        model(ids[:256])
        times.append(time.perf_counter() - start)
    print(f"{name:10} AUC {auc:.4f}   {size:8,} bytes   {min(times) * 1e6:6.0f} us for 256 rows")


def main() -> None:
    torch.manual_seed(0)
    ids, labels, count = read()
    order = torch.randperm(len(ids))
    fit, test = order[:40_000], order[40_000:]
    model = Ranker(count)
    train(model, ids[fit], labels[fit])
    model.eval()

    swapped = copy.deepcopy(model)
    print(lirank_ext.swap(swapped))
    small = copy.deepcopy(swapped)
    print(lirank_ext.quantize(small, bits=8))
    for name, variant in (("eager", model), ("swapped", swapped), ("quantized", small)):
        measure(name, variant, ids[test], labels[test])


if __name__ == "__main__":
    main()
