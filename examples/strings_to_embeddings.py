"""From columns of strings to trained embeddings, without a dictionary.

Every value is hashed with the name of its column, and its hash gives rows of a hashed table. The
data are UCI Adult, which ships with the package.
Needs pyarrow and scikit-learn. Run: python examples/strings_to_embeddings.py
"""

import pyarrow.compute as pc
import torch
from pyarrow import parquet
from sklearn.metrics import roc_auc_score
from torch import Tensor, nn

import lirank_ext
from lirank_ext.data import ADULT

COLUMNS = ["workclass", "education", "marital-status", "occupation", "native-country", "gender"]


def hashes_of(table) -> Tensor:
    """One hash per row and column: (N, columns)."""
    return torch.stack(
        [
            lirank_ext.hash_strings(pc.binary_join_element_wise(f"{name}=", table[name], ""))
            for name in COLUMNS
        ],
        dim=1,
    )


def main() -> None:
    torch.manual_seed(0)
    table = parquet.read_table(ADULT)
    hashes = hashes_of(table)
    labels = torch.tensor([v.startswith(">50K") for v in table["income"].to_pylist()]).float()
    print(f"{hashes.numel():,} strings, {len(hashes.unique()):,} of them different")

    # 20,000 buckets for each half of a hash: 2 x (200 + 100) rows in all.
    bags = lirank_ext.nn.HashedEmbeddingBag(
        32, num_buckets=20_000, num_remainders=100, prehashed=True, sparse=False
    )
    model = nn.Sequential(bags, lirank_ext.nn.GatedMLP([32, 32, 1]))
    optimizer = torch.optim.Adam(model.parameters(), lr=3e-3)
    order = torch.randperm(len(hashes))
    fit, test = order[:40_000], order[40_000:]
    for rows in fit.split(512):
        logits = model(hashes[rows])[:, 0]
        loss = nn.functional.binary_cross_entropy_with_logits(logits, labels[rows])
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()

    with torch.inference_mode():
        auc = roc_auc_score(labels[test].numpy(), model.eval()(hashes[test])[:, 0].numpy())
        print(f"AUC on rows that were held back: {auc:.4f}")
        new = lirank_ext.hash_strings(["occupation=Astronaut", "education=Doctorate"])
        print("a value that training never saw has rows too:", tuple(bags(new[None]).shape))
    print(lirank_ext.quantize(model, bits=8))


if __name__ == "__main__":
    main()
