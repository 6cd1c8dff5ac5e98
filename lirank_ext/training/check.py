"""The ranker beside two simple rivals, so that a model that loses to them does not go unnoticed."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from ..data.features import Rows
from ..data.loader import Memory
from ..data.packages import need
from .metrics import difference_error, measure, score

if TYPE_CHECKING:
    from .trainer import Trainer

SAMPLE_ROWS, VALID_ROWS = 100_000, 50_000
HELD_BACK = 0.1  # share of the sample by which a rival's own setting is chosen
STRENGTHS = (0.1, 1.0, 10.0)  # C of the logistic regression
LEAVES = (15, 63)  # of a tree
RANKER, REGRESSION, TREES = "ranker", "logistic regression", "boosted trees"

Figures = dict[str, float | None]


@dataclass
class Table:
    """Rows as trees read them.

    Attributes:
        numbers: (N, K), NaN where missing.
        ids: (N, C) hashes of the columns with one id a row.
    """

    numbers: np.ndarray
    ids: np.ndarray


def compare(trainer: Trainer) -> dict[str, Any]:
    """A logistic regression on one-hot columns and gradient-boosted trees beside the ranker.

    Both are trained on a sample of the rows that the ranker was trained on. Each chooses among a
    few settings by a tenth of the sample that is held back. All three are measured on the same
    rows, which the ranker was validated on.

    Args:
        trainer: finished, with rows to validate on.

    Returns:
        the number of rows to compare on (``rows``) and of the sample (``sample``), ``tasks`` with
        the figures of each model, and ``warnings``, a sentence for every rival that is better than
        the ranker by more than the standard error of the difference.
    """
    sample = trainer.train_loader.sample(SAMPLE_ROWS)
    valid = trainer.valid_loader.sample(VALID_ROWS)
    converter = trainer.valid_loader.converter
    memory = Memory(valid, converter, trainer.settings.batch_size)
    ranked = score(trainer.model, memory, trainer.device).logits
    tasks, warnings = {}, []
    matrices, tables = _one_hot(sample, valid), _tables(sample, valid)
    # Among the rows left by ``negatives`` the odds are higher than those of all rows.
    shift = math.log(trainer.settings.negatives)
    for t, name in enumerate(trainer.model.task_names):
        labels, truth = sample.labels[:, t], valid.labels[:, t]
        logits = {RANKER: ranked[:, t]}
        if 0 < labels.sum() < len(labels) and 0 < truth.sum() < len(truth):
            logits[REGRESSION] = _regression(matrices, labels, sample.weights) + shift
            logits[TREES] = _trees(*tables, labels, sample.weights) + shift
        tasks[name] = {
            model: _figures(values, ranked[:, t], truth, valid.weights)
            for model, values in logits.items()
        }
        warnings += _warnings(name, tasks[name])
    return {"rows": len(valid), "sample": len(sample), "tasks": tasks, "warnings": warnings}


def _figures(
    logits: np.ndarray, ranked: np.ndarray, labels: np.ndarray, weights: np.ndarray | None
) -> Figures:
    """AUC, log-loss, AUC above the ranker's, and its standard error; None where there is none."""
    own = measure(logits, labels, weights)
    found = {"auc": own.auc, "log_loss": own.log_loss, "gain": 0.0, "error": 0.0}
    if logits is not ranked:
        found["gain"] = own.auc - measure(ranked, labels, weights).auc
        found["error"] = difference_error(logits, ranked, labels, "auc")
    return {name: value if math.isfinite(value) else None for name, value in found.items()}


def _warnings(task: str, models: dict[str, Figures]) -> list[str]:
    return [
        f"warning: a {name} ranks '{task}' better than this model: AUC {v['auc']:.4f} against "
        f"{models[RANKER]['auc']:.4f}: try --tune on, or look at the columns"
        for name, v in models.items()
        if name != RANKER and v["gain"] and v["error"] and v["gain"] > v["error"]
    ]


def _held_back(rows: int) -> np.ndarray:
    return np.random.default_rng(0).random(rows) < HELD_BACK


def _best(
    settings: Sequence[Any],
    fit: Callable[[Any, np.ndarray], Any],
    logits: Callable[[Any, np.ndarray], np.ndarray],
    labels: np.ndarray,
    weights: np.ndarray | None,
) -> Any:
    """The setting with the lowest log-loss on the part of the sample that is held back."""
    held = _held_back(len(labels))
    if not 0 < labels[~held].sum() < (~held).sum() or not held.any():
        return settings[0]
    own = None if weights is None else weights[held]
    losses = [measure(logits(fit(s, ~held), held), labels[held], own).log_loss for s in settings]
    return settings[int(np.argmin(losses))]


def _regression(
    matrices: tuple[Any, Any], labels: np.ndarray, weights: np.ndarray | None
) -> np.ndarray:
    """Logits of a logistic regression whose strength of regularization is chosen."""
    train, valid = matrices
    model = need("sklearn.linear_model").LogisticRegression

    def fit(strength: float, rows: np.ndarray) -> Any:
        own = None if weights is None else weights[rows]
        return model(C=strength, max_iter=300).fit(train[rows], labels[rows], own)

    chosen = _best(
        STRENGTHS, fit, lambda m, rows: m.decision_function(train[rows]), labels, weights
    )
    return fit(chosen, np.ones(len(labels), bool)).decision_function(valid)


def _trees(
    sample: Table, valid: Table, labels: np.ndarray, weights: np.ndarray | None
) -> np.ndarray:
    """Logits of boosted trees that read an id as the mean label of its other rows."""
    model = need("sklearn.ensemble").HistGradientBoostingClassifier
    train, scored = sample.numbers, valid.numbers
    if sample.ids.shape[1]:
        encoder = need("sklearn.preprocessing").TargetEncoder(target_type="binary")
        means = np.empty(sample.ids.shape)
        for most, rest in need("sklearn.model_selection").KFold(5).split(sample.ids):
            means[rest] = encoder.fit(sample.ids[most], labels[most]).transform(sample.ids[rest])
        train = np.hstack([train, means])
        scored = np.hstack([scored, encoder.fit(sample.ids, labels).transform(valid.ids)])

    def fit(leaves: int, rows: np.ndarray) -> Any:
        own = None if weights is None else weights[rows]
        options = {"max_leaf_nodes": leaves, "early_stopping": True, "random_state": 0}
        return model(**options).fit(train[rows], labels[rows], own)

    chosen = _best(LEAVES, fit, lambda m, rows: m.decision_function(train[rows]), labels, weights)
    return fit(chosen, np.ones(len(labels), bool)).decision_function(scored)


def _one_hot(sample: Rows, valid: Rows) -> tuple[Any, Any]:
    """Sparse matrices with a column for every id of the sample, and the scaled numbers."""
    sparse = need("scipy.sparse")
    parts: tuple[list[Any], list[Any]] = ([], [])
    for key in sample.bags:
        known = np.unique(sample.bags[key][0])
        for rows, blocks in zip((sample, valid), parts, strict=True):
            ids, lengths = rows.bags[key]
            places = np.searchsorted(known, ids).clip(max=max(0, len(known) - 1))
            there = known[places] == ids if len(known) else np.zeros(len(ids), bool)
            row = np.repeat(np.arange(len(lengths)), lengths)[there]
            ones = np.ones(len(row), np.float32)
            shape = (len(lengths), max(1, len(known)))
            blocks.append(sparse.csr_matrix((ones, (row, places[there])), shape))
    if sample.numeric.shape[1]:
        # The numbers are also there as the ids of their bins, so that extremes may be cut.
        low, middle, high = np.nanquantile(_present(sample.numeric), [0.05, 0.5, 0.95], axis=0)
        spread = np.where(high > low, high - low, 1.0)
        for rows, blocks in zip((sample, valid), parts, strict=True):
            scaled = np.nan_to_num((rows.numeric - middle) / spread).clip(-3, 3)
            blocks.append(sparse.csr_matrix(scaled.astype(np.float32)))
    return tuple(sparse.hstack(blocks, "csr") for blocks in parts)


def _present(numbers: np.ndarray) -> np.ndarray:
    """The numbers with a 0 in columns that are empty, which have no quantiles."""
    return np.where(np.isnan(numbers).all(0), 0.0, numbers)


def _tables(sample: Rows, valid: Rows) -> tuple[Table, Table]:
    """Both with those id columns that hold one id in every row of either."""
    single = [k for k in sample.bags if all((r.bags[k][1] == 1).all() for r in (sample, valid))]

    def table(rows: Rows) -> Table:
        ids = [rows.bags[key][0] for key in single]
        return Table(rows.numeric, np.stack(ids, 1) if ids else np.zeros((len(rows), 0), np.int64))

    return table(sample), table(valid)
