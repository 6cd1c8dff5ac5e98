"""A logistic regression on one-hot columns, and LightGBM."""

from __future__ import annotations

from typing import Any

import numpy as np

from lirank_ext.data.packages import need

from .data import Set
from .neural import Encoded

ROUNDS, PATIENCE = 2000, 50


def draw_regression(rng: np.random.Generator) -> dict[str, Any]:
    """A setting of the logistic regression, drawn at random."""
    return {"C": float(10 ** rng.uniform(-2, 1))}


def fit_regression(data: Encoded, s: dict[str, Any], seed: int) -> dict[str, np.ndarray]:
    """Logits of the rows to validate and to test on."""
    sparse = need("scipy.sparse")

    def one_hot(part: str) -> Any:
        codes = data.codes[part].numpy()
        rows = np.repeat(np.arange(len(codes)), codes.shape[1])
        ones = np.ones(codes.size, np.float32)
        return sparse.csr_matrix((ones, (rows, codes.ravel())), (len(codes), data.size))

    model = need("sklearn.linear_model").LogisticRegression(C=s["C"], max_iter=500)
    model.fit(one_hot("train"), data.labels["train"])
    return {part: model.decision_function(one_hot(part)) for part in ("valid", "test")}


def draw_trees(rng: np.random.Generator) -> dict[str, Any]:
    """A setting of LightGBM, drawn at random."""
    return {
        "num_leaves": int(rng.choice([15, 31, 63, 127, 255])),
        "learning_rate": float(rng.choice([0.03, 0.05, 0.1])),
        "min_child_samples": int(rng.choice([5, 20, 50, 100])),
        "colsample_bytree": float(rng.choice([0.5, 0.8, 1.0])),
        "reg_lambda": float(rng.choice([0.0, 1.0, 10.0])),
        "cat_smooth": float(rng.choice([1.0, 10.0, 50.0])),
        "cat_l2": float(rng.choice([1.0, 10.0, 50.0])),
    }


def fit_trees(data: Set, s: dict[str, Any], seed: int) -> dict[str, np.ndarray]:
    """Logits of the rows to validate and to test on."""
    lightgbm = need("lightgbm")
    frames = {part: data.frame(part) for part in ("train", "valid", "test")}
    for name in frames["train"][0]:
        if frames["train"][0][name].dtype.kind in "if":
            continue
        known = np.unique(frames["train"][0][name].astype(str))
        for frame, _ in frames.values():
            texts = frame[name].astype(str).to_numpy()
            places = np.searchsorted(known, texts).clip(max=len(known) - 1)
            codes = np.where(known[places] == texts, places, -1)
            frame[name] = need("pandas").Categorical.from_codes(codes, known)
    options = {"n_estimators": ROUNDS, "random_state": seed, "n_jobs": 1, "verbose": -1}
    model = lightgbm.LGBMClassifier(**options, **s)
    stop = lightgbm.early_stopping(PATIENCE, verbose=False)
    valid = [frames["valid"]]
    model.fit(*frames["train"], eval_set=valid, eval_metric="auc", callbacks=[stop])
    return {p: model.predict(frames[p][0], raw_score=True) for p in ("valid", "test")}
