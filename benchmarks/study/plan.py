"""How large a study is."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import Any

from lirank_ext.errors import UserError


class StudyError(UserError, ValueError):
    """A study that cannot go on; the message is one sentence."""


@dataclass(frozen=True)
class Plan:
    """Sizes of a study; all of them end up in its records.

    Attributes:
        seeds: runs of every variant, with the seeds 0, 1, ...
        train_rows, valid_rows, test_rows: most rows of each part, drawn at random within it.
        epochs: of a training; the best weights of an evaluation every half epoch are kept.
            ``adult_epochs``: of Adult, which has fewer rows.
        batch_size: of the training.
        dim: width of an embedding.
        dense_lr, table_lr: learning rates.
        lengths: of the histories; ``history_width`` that of a step in their encoder.
        wide: width of the wide MLP's four layers.
        increments: rounds of incremental training after the cold start.
        cold_share: of the training rows, the oldest, for the cold start.
        fisher_rows: samples behind the Fisher information.
        draws: Thompson draws per bandit impression.
        resamples: of the bootstrap behind the bandit's intervals.
    """

    seeds: int = 3
    train_rows: int = 80_000
    valid_rows: int = 8_000
    test_rows: int = 30_000
    epochs: int = 2
    adult_epochs: int = 6
    batch_size: int = 512
    dim: int = 12
    dense_lr: float = 2e-3
    table_lr: float = 0.3
    lengths: tuple[int, ...] = (25, 50, 100)
    history_width: int = 16
    wide: int = 400
    increments: int = 4
    cold_share: float = 0.6
    fisher_rows: int = 512
    draws: int = 200
    resamples: int = 4000

    def to_dict(self) -> dict[str, Any]:
        """Plain values, as JSON gives them back."""
        return {k: list(v) if isinstance(v, tuple) else v for k, v in asdict(self).items()}


QUICK = Plan(
    seeds=2,
    train_rows=1500,
    valid_rows=500,
    test_rows=1000,
    epochs=1,
    adult_epochs=1,
    batch_size=256,
    dim=8,
    lengths=(5, 10, 20),
    wide=200,
    increments=2,
    fisher_rows=16,
    draws=20,
    resamples=1000,
)
