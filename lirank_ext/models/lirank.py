"""The LiRank ranker, one module that a configuration turns into the Feed, Jobs or Ads model."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from itertools import chain

import torch
from torch import Tensor, nn

from ..nn._common import check_shape, refuse
from ..nn.dwell import LongDwellLabels
from ..nn.explore import NeuralLinear
from ..nn.inputs import NumericBatchNorm
from ..nn.isotonic import IsotonicCalibration
from ..nn.random_effect import RandomEffect
from ._parse import ConfigError
from .blocks import HistoryFeature, SeparateHead, SharedHead, by_rows, make_table, safe
from .config import LiRankConfig
from .schema import Dwell
from .score import Scoring

Features = Mapping[str, Tensor]


class LiRank(nn.Module):
    """Predicts every task of a row from numbers, hashed ids and histories.

    The input is the concatenation of numbers (after batch norm), pooled embeddings of the hashed
    ids, and encoded histories. A cross net (low rank and attention in parallel) and a gated MLP
    both read it. Towers map their outputs to a logit per task. A random effect of the popularity
    column is added to each logit, and an isotonic layer calibrates the sum. The paper names these
    parts, but shows their order only in its figure 8. The order here is a reconstruction.

    Features are a dictionary of tensors, as ``lirank_ext.data`` makes them from a file:

    ==========================  =============================================================
    ``numeric``                 (B, columns) float, NaN where missing
    ``ids/<table>``             (n,) int64 hashes of the bags of B rows times C columns
    ``offsets/<table>``         (B * C,) int64, column by column within a row
    ``history/<name>/items``    (B, L) int64 hashes, newest first, padded at the end
    ``history/<name>/actions``  the same, if the history has actions
    ``history/<name>/lengths``  (B,) int64
    ``popularity``              (B,) int64 hashes
    ==========================  =============================================================

    Args:
        config: columns and blocks of the model.

    Raises:
        ConfigError: there is no task or no column to read, or a value of a block is out of range.

    Source: LiRank (arXiv 2402.06859).
    """

    def __init__(self, config: LiRankConfig) -> None:
        super().__init__()
        self.config = config
        schema = config.schema
        self.task_names = [t.name for t in schema.tasks]
        if not self.task_names:
            raise ConfigError("schema.tasks: wanted at least one task, got none")
        try:
            self._build(config)
        except ValueError as error:
            raise ConfigError(str(error)) from error

    def _build(self, config: LiRankConfig) -> None:
        schema, dim = config.schema, config.embedding.dim
        ids = config.embedding.enabled
        self.columns = schema.tables() if ids else {}
        self.tables = nn.ModuleDict(
            {safe(name): make_table(config.embedding, name) for name in self.columns}
        )
        self.dropout = nn.Dropout1d(config.embedding.dropout)
        wanted = schema.history if ids and config.history.enabled else []
        self.histories = nn.ModuleDict(
            {safe(h.name): HistoryFeature(config.history, dim, bool(h.actions)) for h in wanted}
        )
        numeric = len(schema.numeric) if config.numeric.enabled else 0
        self.normalize = None
        if numeric and config.numeric.batch_norm:
            log = [schema.numeric.index(name) for name in schema.log]
            self.normalize = NumericBatchNorm(numeric, log)
        width = numeric + dim * sum(map(len, self.columns.values()))
        width += sum(history.out_dim for history in self.histories.values())
        if not width:
            raise ConfigError("schema: no column to read")
        self.input_dim = width
        head = SeparateHead if config.head.interactions == "per_tower" else SharedHead
        self.groups = self._groups(config)
        self.head = head(width, self.groups, config.cross, config.mlp, config.head)
        self._build_corrections(config)

    def _groups(self, config: LiRankConfig) -> list[list[int]]:
        """The task numbers of every tower."""
        if config.head.kind != "grouped" or config.head.groups is None:
            return [[t] for t in range(len(self.task_names))]
        return [[self.task_names.index(name) for name in g] for g in config.head.groups]

    def _build_corrections(self, config: LiRankConfig) -> None:
        """Build the random effects, the calibration and the posteriors."""
        self.effects = self.calibration = self.posteriors = None
        tasks = range(len(self.task_names))
        if config.popularity.enabled and config.schema.popularity:
            effects = [RandomEffect(l2=config.popularity.l2) for _ in tasks]
            self.effects = nn.ModuleList(effects)
        block = config.calibration
        if block.enabled:
            if block.columns and not config.embedding.enabled:
                raise ConfigError("calibration.columns: the embeddings are switched off")
            sizes = (block.lower, block.upper, block.step)
            features = len(block.columns) * config.embedding.dim
            layers = [IsotonicCalibration(*sizes, features) for _ in tasks]
            self.calibration = nn.ModuleList(layers)
        if config.explore.enabled:
            precision = config.explore.prior_precision
            widths = [_last(self.head.towers[self._tower(t)]).in_features for t in tasks]
            # One more than the tower's width, for the intercept.
            self.posteriors = nn.ModuleList(NeuralLinear(w + 1, 1, precision) for w in widths)

        # The thresholds that made the labels of these tasks. The model does not read them.
        dwell = {t.name: t.dwell for t in config.schema.tasks if t.dwell is not None}
        self.dwell = nn.ModuleDict({safe(n): make_dwell(d) for n, d in dwell.items()})

    def _load_from_state_dict(self, state_dict, prefix, *rest) -> None:
        # ``normalize`` was once spelled otherwise.
        old = f"{prefix}normalise."
        for key in [key for key in state_dict if key.startswith(old)]:
            state_dict[f"{prefix}normalize.{key[len(old) :]}"] = state_dict.pop(key)
        super()._load_from_state_dict(state_dict, prefix, *rest)

    def forward(self, features: Features) -> Tensor:
        """Features -> calibrated logits (B, T)."""
        bags = self.bags(features)
        logits = self.head(self.join_input(features, bags))
        logits = self.add_effects(logits, features)
        return self.calibrate(logits, lambda: self._calibration_features(bags))

    def score(self, request: Features, items: Features, counts: Tensor) -> Tensor:
        """Calibrated logits of the candidates of requests, equal to ``forward`` to rounding.

        ``forward`` would need the columns of a request in every row of its candidates. Here they
        are given once, and all that depends on them alone is computed once: look-ups, the
        normalization, the input map and the first layer of histories, and their part of the cross
        net and of the first layer of each MLP and tower. In training, and where a hook watches a
        module, only the look-ups are shared.

        Args:
            request: the features of the columns in ``Schema.request``, with R rows.
            items: the features of all other columns, with one row per candidate, request by
                request. The popularity column is among them, unless ``Schema.request`` names a
                categorical column of its name.
            counts: (R,) int64, candidates of each request; 0 is allowed.

        Returns:
            (N, T), in the order of ``items``.

        Raises:
            ValueError: a feature is missing or of another shape, a count is negative, the counts
                do not add up to N, or ``Schema.request`` names no column or all columns.
            TypeError: ``counts`` is not int64.
        """
        return Scoring(self, request, items, counts).logits()

    def calibrate(self, logits: Tensor, shifts: Callable[[], Tensor | None]) -> Tensor:
        """Calibrated logits (B, T); ``shifts`` makes the features of the calibration."""
        if self.calibration is None:
            return logits
        features = shifts()
        columns = zip(self.calibration, logits.unbind(1), strict=True)
        return torch.stack([layer(logit, features) for layer, logit in columns], dim=1)

    def predict(self, features: Features) -> Tensor:
        """Features -> probabilities (B, T)."""
        return self(features).sigmoid()

    def logits(self, features: Features) -> Tensor:
        """Features -> logits (B, T) before the random effects and the calibration."""
        return self.head(self.join_input(features, self.bags(features)))

    def bags(self, features: Features) -> dict[str, Tensor]:
        """Pooled embeddings (B, columns, dim) of every table."""
        pooled, rows = {}, self._rows(features)
        for name, columns in self.columns.items():
            ids, offsets = _get(features, f"ids/{name}"), _get(features, f"offsets/{name}")
            out = self.tables[safe(name)](ids, offsets)
            pooled[name] = by_rows("LiRank", out, rows, len(columns), f"offsets/{name}")
        return pooled

    def _rows(self, features: Features) -> int | None:
        """The number of rows, from a feature with one entry for each; None if there is none.

        As the size of an input, it may be 1 in an exported program. A quotient of sizes may not:
        PyTorch would keep the guard that it is not 1.
        """
        keys = ["numeric", "popularity"]
        keys += [f"history/{h.name}/lengths" for h in self.config.schema.history]
        keys += [f"offsets/{name}" for name, columns in self.columns.items() if len(columns) == 1]
        return next((features[key].shape[0] for key in keys if key in features), None)

    def join_input(self, features: Features, bags: dict[str, Tensor]) -> Tensor:
        """The input of the interactions, (B, input_dim); ``bags`` are those of :meth:`bags`."""
        parts = []
        if self.config.numeric.enabled and self.config.schema.numeric:
            numbers = _get(features, "numeric")
            check_shape("LiRank", "numeric", numbers, "B", len(self.config.schema.numeric))
            parts.append(
                numbers.nan_to_num() if self.normalize is None else self.normalize(numbers)
            )
        parts += [self.dropout(bag).flatten(1) for bag in bags.values()]
        for history in self.config.schema.history if self.histories else ():
            key = f"history/{history.name}"
            table, place = self.place_of(history.candidate)
            parts.append(
                self.histories[safe(history.name)](
                    self.tables[safe(table)],
                    bags[table][:, place],
                    _get(features, f"{key}/items"),
                    _get(features, f"{key}/lengths"),
                    _get(features, f"{key}/actions") if history.actions else None,
                )
            )
        return torch.cat(parts, dim=1)

    def place_of(self, column: str) -> tuple[str, int]:
        """The table of a categorical column, and its position among the table's columns."""
        for table, columns in self.columns.items():
            for place, known in enumerate(columns):
                if known.name == column:
                    return table, place
        raise KeyError(column)

    def add_effects(self, logits: Tensor, features: Features) -> Tensor:
        """Logits (B, T) with the random effects of the feature ``popularity``."""
        if self.effects is None:
            return logits
        ids = _get(features, "popularity")
        columns = zip(self.effects, logits.unbind(1), strict=True)
        return torch.stack([effect(logit, ids) for effect, logit in columns], dim=1)

    def _calibration_features(self, bags: dict[str, Tensor]) -> Tensor | None:
        columns = self.config.calibration.columns
        if not columns:
            return None
        places = map(self.place_of, columns)
        return torch.cat([bags[table][:, place] for table, place in places], dim=1)

    def _tower(self, task: int) -> int:
        """The tower that gives a task's logit."""
        if len(self.head.towers) == len(self.task_names):
            return task
        return next(i for i, group in enumerate(self.groups) if task in group)

    @torch.no_grad()
    def fit_popularity(self, logits: Tensor, ids: Tensor, labels: Tensor) -> None:
        """Refit the random effects to the residual of the main model.

        Args:
            logits: (n, T) results of :meth:`logits`.
            ids: (n,) hashes, the feature ``popularity``.
            labels: (n, T), 0 or 1.

        Raises:
            RuntimeError: the configuration has no popularity column, or the block is off.
        """
        if self.effects is None:
            raise RuntimeError("LiRank.fit_popularity: the configuration has no popularity column")
        for t, effect in enumerate(self.effects):
            effect.fit(logits[:, t], ids, labels[:, t])

    @torch.no_grad()
    def representations(self, features: Features) -> list[Tensor]:
        """The input of each task's last layer with a constant 1 appended, (B, width + 1) each."""
        caught: dict[int, Tensor] = {}
        hooks = [
            _last(tower).register_forward_pre_hook(
                lambda _, inputs, i=i: caught.__setitem__(i, inputs[0])
            )
            for i, tower in enumerate(self.head.towers)
        ]
        try:
            self.logits(features)
        finally:
            for hook in hooks:
                hook.remove()
        ones = {i: h.new_ones(len(h), 1) for i, h in caught.items()}
        towers = map(self._tower, range(len(self.task_names)))
        return [torch.cat([caught[i], ones[i]], dim=1) for i in towers]

    @torch.no_grad()
    def update_posteriors(self, features: Features, labels: Tensor) -> None:
        """Add rows to the posteriors of the last layers. Labels (B, T) are NaN where unknown."""
        for posterior, z, y in self._posteriors(features, labels.unbind(1)):
            known = y.isfinite()
            posterior.update(z[known], y[known].unsqueeze(1))

    @torch.no_grad()
    def explore(self, features: Features, generator: torch.Generator | None = None) -> Tensor:
        """Thompson sampling: scores (B, T) under weights drawn from the posteriors."""
        draws = self._posteriors(features, self.task_names)
        scores = [p(z, p.sample(generator=generator))[:, 0] for p, z, _ in draws]
        return torch.stack(scores, dim=1)

    def _posteriors(self, features: Features, others):
        if self.posteriors is None:
            raise RuntimeError("LiRank: the configuration has explore.enabled = false")
        return zip(self.posteriors, self.representations(features), others, strict=True)

    def table_parameters(self) -> list[nn.Parameter]:
        """The embedding tables, for a row-wise optimizer."""
        tables = [*self.tables.values()]
        tables += [h.actions for h in self.histories.values() if h.actions is not None]
        return list(chain.from_iterable(table.parameters() for table in tables))

    def tables_read_once(self) -> list[nn.Module]:
        """The tables that a forward pass looks up once.

        The others are those in which a history looks up its items, beside the candidate.
        """
        histories = self.config.schema.history if self.histories else ()
        shared = {self.place_of(history.candidate)[0] for history in histories}
        tables = [self.tables[safe(name)] for name in self.columns if name not in shared]
        return tables + [h.actions for h in self.histories.values() if h.actions is not None]

    def dense_parameters(self) -> list[nn.Parameter]:
        """All other parameters."""
        tables = {id(p) for p in self.table_parameters()}
        return [p for p in self.parameters() if id(p) not in tables]


def make_dwell(block: Dwell) -> LongDwellLabels:
    """Make the long-dwell labels of a task. Their thresholds are not measured yet."""
    # Without cluster columns every row gets the same cluster number.
    columns = max(1, len(block.clusters))
    return LongDwellLabels(block.quantile, columns, block.window, block.min_count)


def _get(features: Features, key: str) -> Tensor:
    if key not in features:
        refuse("LiRank", key, "a tensor", f"none (given features: {', '.join(features)})")
    return features[key]


def _last(tower: nn.Module) -> nn.Linear:
    return tower.layers[-1]
