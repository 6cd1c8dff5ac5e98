"""The ablations: what each changes, what it is compared with, and the paper's sign."""

from __future__ import annotations

from dataclasses import dataclass, replace

from lirank_ext.models import (
    MLP,
    Calibration,
    Cross,
    Embedding,
    Head,
    HistoryBlock,
    LiRankConfig,
    Popularity,
    Schema,
    Table,
)

from .data import Prepared
from .plan import Plan

REFERENCE = "ids"
SPARE = 16  # buckets per id where nothing is compressed: hardly two ids share a row


@dataclass(frozen=True)
class Paper:
    """What the paper says of a change: "+", "0" or "" (nothing), and its figures."""

    sign: str
    text: str


@dataclass(frozen=True)
class Variant:
    """A row of the table.

    Attributes:
        name: of the row and of its files.
        label: in words.
        against: the row that it is compared with; "" for none.
        paper: what the paper says of the difference.
    """

    name: str
    label: str
    against: str
    paper: Paper


def variants(data: Prepared, plan: Plan) -> list[Variant]:
    """The rows of a data set, those compared with first."""
    ids = REFERENCE
    rows = [
        Variant("base", "no ids", "", Paper("", "")),
        Variant(ids, "ids", "base", Paper("+", "Feed +1.89 %, Ads AUC +1.27 %")),
        Variant("low-rank", "low-rank DCNv2", ids, Paper("+", "Feed +1.26 %, Ads +0.10 %")),
        Variant("rdcn", "Residual DCN", ids, Paper("+", "Feed +2.15 %")),
        Variant("gating", "dense gating", ids, Paper("+", "Feed +1.00 %; Jobs none")),
        Variant("wide", "wide MLP", ids, Paper("+", "Feed +1.23 %")),
        Variant(
            "isotonic",
            "isotonic",
            ids,
            Paper("+", "Feed +1.08 %, Ads AUC +0.12 %, O/E ratio +1.84 %"),
        ),
        Variant("grouped", "MTL: one tower for both tasks", ids, Paper("+", "Feed +0.75 %")),
        Variant("mmoe", "MTL: MMoE", ids, Paper("+", "Feed +1.19 %")),
        Variant("ple", "MTL: PLE", ids, Paper("+", "Feed +1.34 %")),
        Variant("int8", "int8 tables", ids, Paper("0", "Ads AUC +0.01 %")),
        Variant("int4", "int4 tables", ids, Paper("", "not in the paper")),
    ]
    if not data.schema.history:
        return rows
    item = Paper("+", "with calibration features; no figure of its own")
    rows.insert(7, Variant("isotonic-item", "isotonic, shifted by the item", ids, item))
    qr = (Paper("0", "JYMBII AUC 0, at 5x"), Paper("0", "Feed and Ads parity, at 1000x"))
    rows += [
        Variant("qr-5", "QR hashing, 5x", ids, qr[0]),
        Variant("qr-100", "QR hashing, 100x", ids, qr[1]),
    ]
    figures = ("Feed +1.31 %, Ads AUC +0.93 %", "Feed +1.57 %", "Feed +1.66 %")
    for length, figure in zip(plan.lengths, figures, strict=True):
        rows.append(Variant(f"history-{length}", f"history, {length}", ids, Paper("+", figure)))
    rows += [
        Variant("low-rank-all", "low-rank DCNv2 + wide MLP + history", ids, Paper("+", "+3.45 %")),
        Variant("rdcn-all", "Residual DCN + wide MLP + history", ids, Paper("+", "Feed +3.62 %")),
    ]
    return rows


@dataclass(frozen=True)
class Contrast:
    """A comparison of two rows of which neither is the reference."""

    label: str
    name: str
    against: str
    paper: Paper


def contrasts(data: Prepared, plan: Plan) -> list[Contrast]:
    """Comparisons between variants, as far as the paper makes them."""
    rows = [
        Contrast("Residual DCN over low-rank DCNv2", "rdcn", "low-rank", Paper("+", "2.15 > 1.26")),
        Contrast("MMoE over one tower", "mmoe", "grouped", Paper("+", "1.19 > 0.75")),
        Contrast("PLE over MMoE", "ple", "mmoe", Paper("+", "1.34 > 1.19")),
    ]
    if not data.schema.history:
        return rows
    figures = ("1.57 > 1.31", "1.66 > 1.57")
    pairs = zip(plan.lengths[1:], plan.lengths[:-1], figures, strict=True)
    for longer, shorter, figure in pairs:
        label = f"history {longer} over {shorter}"
        names = (f"history-{longer}", f"history-{shorter}")
        rows.append(Contrast(label, *names, Paper("+", figure)))
    label = "Residual DCN over low-rank, both with wide MLP and history"
    rows.append(Contrast(label, "rdcn-all", "low-rank-all", Paper("+", "3.62 > 3.45")))
    stale = Paper("", "")
    gain = Paper("+", "Feed +1.02 %, Ads AUC +0.18 %")
    return [
        *rows,
        Contrast("incremental over full retraining", "incremental", "retrained", gain),
        Contrast("incremental over no update", "incremental", "stale", stale),
        Contrast("incremental over no penalty", "incremental", "unpenalised", stale),
    ]


def without(schema: Schema, names: tuple[str, ...]) -> Schema:
    """A schema less some categorical columns, and less the histories of those."""
    categorical = [c for c in schema.categorical if c.name not in names]
    history = [h for h in schema.history if h.candidate not in names]
    return replace(schema, categorical=categorical, history=history)


def configuration(name: str, data: Prepared, plan: Plan) -> LiRankConfig:
    """The model of a variant.

    The common ground is the paper's Feed baseline: an MLP of four layers of 100 on numbers and
    embeddings, a tower per task; every other block is off until a variant switches it on.
    """
    schema = data.schema
    if not name.startswith("history-") and not name.endswith("-all"):
        schema = replace(schema, history=[])
    if name == "base":
        schema = without(schema, data.ids)
    tables = {t: table_size(data.distinct.get(t, 0)) for t in schema.tables()}
    config = LiRankConfig(
        schema,
        Embedding(dim=plan.dim, dropout=0.1, tables=tables),
        cross=Cross(low_rank=False, attention=False, rank=16),
        mlp=MLP(gate=None, batch_norm=True, dropout=0.1),
        head=Head(tower_dims=[64]),
        calibration=Calibration(enabled=False),
        popularity=Popularity(enabled=False),
        # Attention with dropout has no fused kernel on a CPU: six times the time at length 100.
        history=HistoryBlock(action_dim=4, width=plan.history_width, num_heads=1, dropout=0.0),
    )
    return _changed(name, config, data, plan)


def _changed(name: str, config: LiRankConfig, data: Prepared, plan: Plan) -> LiRankConfig:
    whole = name.endswith("-all")
    if name.startswith(("low-rank", "rdcn")):
        cross = replace(config.cross, low_rank=True, attention=name.startswith("rdcn"))
        config = replace(config, cross=cross)
    if name == "gating":
        config = replace(config, mlp=replace(config.mlp, gate="tanh"))
    if name == "wide" or whole:
        config = replace(config, mlp=replace(config.mlp, dims=[plan.wide] * 4))
    if name.startswith("isotonic"):
        columns = ["movie"] if name == "isotonic-item" else []
        config = replace(config, calibration=Calibration(columns=columns))
    if name in ("grouped", "mmoe", "ple"):
        groups = [config.head.groups, [[t.name for t in config.schema.tasks]]][name == "grouped"]
        config = replace(config, head=replace(config.head, kind=name, groups=groups))
    if name.startswith("qr-"):
        tables = dict(config.embedding.tables)
        for table in data.ids:
            tables[table] = table_size(data.distinct[table], float(name.removeprefix("qr-")))
        config = replace(config, embedding=replace(config.embedding, tables=tables))
    return config


def history_length(name: str, plan: Plan) -> int | None:
    """The longest history that a variant sees; None where it has none."""
    if name.startswith("history-"):
        return int(name.removeprefix("history-"))
    return plan.lengths[1] if name.endswith("-all") else None


def table_size(ids: int, factor: float = 0.0) -> Table:
    """Buckets and remainders for a table of so many ids.

    Args:
        ids: distinct ids.
        factor: ids per row, over all four tables; 0 does not compress: quotient tables alone,
            with room for :data:`SPARE` times the ids.
    """
    if not factor:
        return Table(SPARE * max(16, ids), 1)
    half = max(2, round(ids / factor / 2))  # rows of one quotient and one remainder table
    remainders = half // 2
    return Table(remainders * (half - remainders), remainders)
