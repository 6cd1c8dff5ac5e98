"""Inputs for look-ups in hashed tables."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from ...ops.hashed_embedding_rule import TABLES
from ...ops.hashed_embedding_update import SUMS
from ...ops.quantized_embedding_rows import pack_rows, quantize_rows
from . import Case, cases_of

UPDATE = "hashed_embedding_bag_update"
SMALL = (10_007, 100)  # num_buckets, not a multiple of num_remainders


def _ids(generator, *shape):
    return torch.randint(-(1 << 63), (1 << 63) - 1, shape, generator=generator)


def _tables(generator, dim, num_buckets, remainders, dtype=torch.float32) -> dict[str, Any]:
    """Four random tables, and the number of buckets that they are for."""
    rows = (-(-num_buckets // remainders), remainders) * 2
    tables = [torch.randn(n, dim, generator=generator).to(dtype) for n in rows]
    return dict(zip(TABLES, tables, strict=True), num_buckets=num_buckets)


def _each(tables: dict[str, Any], change) -> dict[str, Any]:
    return tables | {name: change(tables[name]) for name in TABLES}


def _bags(generator, bags, most, dtype=torch.int64, include_last=False) -> dict[str, Any]:
    lengths = torch.randint(0, most + 1, (bags,), generator=generator)
    offsets = torch.cat([torch.zeros(1).long(), lengths.cumsum(0)])
    ids = _ids(generator, int(offsets[-1]))
    if include_last:
        return {"ids": ids, "offsets": offsets.to(dtype), "include_last_offset": True}
    return {"ids": ids, "offsets": offsets[:-1].to(dtype)}


def _plain(ids: Tensor, **more: Any) -> dict[str, Any]:
    return {"ids": ids, "offsets": None, **more}


def _float_cases(generator) -> list[Case]:
    make, made = cases_of("hashed_embedding_bag"), []

    def add(label, grad=TABLES, **args):
        made.append(make(label, grad=grad, **args))

    for i, dim in enumerate((1, 7, 30, 64, 131, 200)):
        bags = _bags(generator, 9, 8, torch.int32 if i % 2 else torch.int64)
        rule = (10, 3) if dim < 64 else SMALL
        add(f"dim {dim}", **bags, **_tables(generator, dim, *rule))
    tables = _tables(generator, 16, *SMALL)
    bags = _bags(generator, 13, 6, include_last=True)
    ids = bags["ids"]
    weights = torch.randn(len(ids), generator=generator)
    weighted = {**bags, "seed": 7, "per_sample_weights": weights}
    add("weights, seed", **weighted, **tables, grad=(*TABLES, "per_sample_weights"))
    add("mean", **bags, **tables, mode="mean")
    add("prehashed", **bags, **tables, prehashed=True)
    strided = torch.stack([ids, ids], 1)[:, 0]
    add("strided ids", **weighted | {"ids": strided}, **tables)
    small = {**weighted, "ids": ids.int()}
    add("int32 ids", **small, **tables, grad=(*TABLES, "per_sample_weights"))
    add("strided tables", **weighted, **_each(tables, lambda t: t.t().contiguous().t()))
    add("plain look-up", **_plain(ids), **tables)
    add("bags of 3", **_plain(ids[: len(ids) // 3 * 3].view(-1, 3), mode="mean"), **tables)
    matrix = _ids(generator, 4, 5)
    halves = _plain(matrix, per_sample_weights=matrix.sign() * 0.5)
    add("weighted bags of 5", **halves, **tables, grad=(*TABLES, "per_sample_weights"))
    none = torch.empty(0, dtype=torch.int64)
    add("no bags", ids=none, offsets=none, **tables)
    add("no bags, no offsets", **_plain(none), **tables)
    add("bags of 0", **_plain(none.view(4, 0)), **tables)
    add("empty bags only", ids=none, offsets=torch.zeros(5).long(), **tables)
    add("one bag", ids=ids, offsets=torch.zeros(1).int(), **tables)
    add("one id", **_plain(ids[:1]), **tables)
    behind = {"offsets": torch.tensor([0, 2]), "include_last_offset": True}
    add("ids behind the last bag", ids=ids, **behind, **tables)
    edges = torch.tensor([0, -1, 1 << 63 - 1, -(1 << 63), (1 << 63) - 1, 1 << 32, (1 << 32) - 1])
    hashes = _plain(edges, prehashed=True)
    for rule in ((1, 1), (1, 5), (2, 2), (7, 1), (12, 4), (13, 4), (255, 256), (65_537, 1000)):
        label = f"{rule[0]} buckets, {rule[1]} remainders"
        add(label, **hashes, **_tables(generator, 3, *rule))
    add("2^32 buckets", **hashes, **_tables(generator, 2, 1 << 32, 1 << 20))
    long = {"ids": _ids(generator, 300), "offsets": torch.tensor([0, 63, 64, 65, 129, 130, 290])}
    add("long bags", **long, **tables, mode="mean")
    for dtype in (torch.bfloat16, torch.float16):
        for dim in (16, 13):
            half = _tables(generator, dim, *SMALL, dtype)
            add(f"{dtype}, dim {dim}", **bags, **half, grad=())
            narrow = {**bags, "per_sample_weights": weights.to(dtype)}
            add(f"{dtype} weights, dim {dim}", **narrow, **half, tolerance=4.0, grad=())
    double = {**bags, "per_sample_weights": weights.double()}
    in_double = _tables(generator, 9, *SMALL, torch.float64)
    add("float64", **double, **in_double, grad=(*TABLES, "per_sample_weights"))
    large = {"ids": _ids(generator, 40_000), "offsets": torch.arange(0, 40_000, 20)}
    large["ids"][::3] = 5  # one row takes a third of all
    add("several tasks", **large, **tables, tolerance=1024.0, big=True)
    add("several tasks, mean", **large, **tables, mode="mean", tolerance=1024.0, big=True)
    return made + _float_refused(bags, tables, weights)


def _float_refused(bags: dict, tables: dict, weights: Tensor) -> list[Case]:
    make, made = cases_of("hashed_embedding_bag"), []
    ids, offsets, qb, rb, qc, rc = (
        (bags | tables)[name] for name in ("ids", "offsets", *TABLES)
    )  # fmt: skip

    def refuse(label: str, name: str, **change: Any) -> None:
        made.append(make(label, **bags | tables | change, raises=f"'{name}'"))

    refuse("int16 ids", "ids", ids=ids.short())
    refuse("int32 hashes", "ids", ids=ids.int(), prehashed=True)
    refuse("float ids", "ids", ids=ids.double())
    refuse("ids of 2 dimensions", "ids", ids=ids[:6].view(2, 3))
    refuse("ids of 3 dimensions", "ids", **_plain(ids[:8].view(2, 2, 2)), include_last_offset=False)
    refuse("float offsets", "offsets", offsets=offsets.float())
    refuse("offsets from 1", "offsets", offsets=offsets + 1, include_last_offset=False)
    falling, far = torch.tensor([0, 5, 3]), torch.tensor([0, 999])
    refuse("offsets fall", "offsets", offsets=falling, include_last_offset=False)
    refuse("offsets too far", "offsets", offsets=far, include_last_offset=False)
    refuse("no last offset", "offsets", offsets=offsets[:0])
    refuse("last without offsets", "include_last_offset", offsets=None)
    refuse("short quotient_b", "quotient_b", quotient_b=qb[1:])
    refuse("short quotient_c", "quotient_c", quotient_c=qc[1:])
    refuse("short remainder_c", "remainder_c", remainder_c=rc[1:])
    refuse("no remainders", "remainder_b", remainder_b=rb[:0], remainder_c=rc[:0])
    refuse("narrow", "remainder_b", remainder_b=rb[:, 1:])
    refuse("width 0", "quotient_b", **_each(tables, lambda t: t[:, :0]))
    refuse("dtypes differ", "quotient_c", quotient_c=qc.double())
    refuse("integer tables", "quotient_b", **_each(tables, lambda t: t.long()))
    refuse("flat table", "remainder_b", remainder_b=rb.reshape(-1))
    refuse("0 buckets", "num_buckets", num_buckets=0)
    refuse("too many buckets", "num_buckets", num_buckets=(1 << 32) + 1)
    refuse("negative seed", "seed", seed=-1)
    refuse("large seed", "seed", seed=1 << 32)
    refuse("mode max", "mode", mode="max", include_last_offset=False)
    for label, wrong in (
        ("weighted mean", {"mode": "mean", "per_sample_weights": weights}),
        ("few weights", {"per_sample_weights": weights[:2]}),
        ("whole weights", {"per_sample_weights": ids}),
    ):
        refuse(label, "per_sample_weights", **wrong, include_last_offset=False)
    return made


def _packed(tables: dict[str, Any], bits: int) -> dict[str, Any]:
    """The tables packed by the references, and what a call says of them."""
    dim = tables["quotient_b"].shape[1]
    pack, quantize = pack_rows.op.reference, quantize_rows.op.reference
    return _each(tables, lambda t: pack(*quantize(t, bits), bits)) | {"dim": dim, "bits": bits}


def _packed_cases(generator) -> list[Case]:
    make, made = cases_of("quantized_hashed_embedding_bag"), []

    def add(label, **args):
        made.append(make(label, **args))

    for i, dim in enumerate((1, 7, 30, 64, 96, 131, 200)):
        for bits in (8, 4):
            rule = (10, 3) if dim < 64 else (1_000, 7)
            tables = _packed(_tables(generator, dim, *rule), bits)
            bags = _bags(generator, 9, 8, torch.int32 if i % 2 else torch.int64)
            add(f"dim {dim}, {bits} bits", **bags, **tables)
    tables = _packed(_tables(generator, 24, *SMALL), 8)
    bags = _bags(generator, 13, 6, include_last=True)
    ids = bags["ids"]
    weights = torch.randn(len(ids), generator=generator)
    weighted = {**bags, "seed": 7, "per_sample_weights": weights}
    add("weights", **weighted, **tables, grad=("per_sample_weights",))
    add("int32 ids", **weighted | {"ids": ids.int()}, **tables, grad=("per_sample_weights",))
    add("mean", **bags, **tables, mode="mean")
    add("prehashed", **bags, **tables, prehashed=True)
    add("strided ids", **bags | {"ids": torch.stack([ids, ids], 1)[:, 0]}, **tables)
    add("plain look-up", **_plain(ids), **tables)
    add("bags of 3", **_plain(ids[: len(ids) // 3 * 3].view(-1, 3), mode="mean"), **tables)
    none = torch.empty(0, dtype=torch.int64)
    add("no bags", ids=none, offsets=none, **tables)
    add("bags of 0", **_plain(none.view(4, 0)), **tables)
    add("empty bags only", ids=none, offsets=torch.zeros(5).long(), **tables)
    long = {"ids": _ids(generator, 300), "offsets": torch.tensor([0, 63, 64, 65, 129, 130, 290])}
    add("long bags", **long, **tables, mode="mean")
    most, below = 1 << 32, 3_999_999_999  # float32 rounds it up, into the next row of 50 000
    high = _packed(_tables(generator, 2, most, 50_000), 8)
    split = torch.tensor([below, (below - most) << 32])
    add("2^32 buckets", **_plain(split, prehashed=True), **high)
    for dtype in (torch.float16, torch.bfloat16, torch.float64):
        # summed in float32, whatever the result's dtype
        tolerance = 64.0 if dtype != torch.float64 else 64.0 * 2**29
        add(str(dtype), **bags, **tables, output_dtype=dtype, tolerance=tolerance)
    return made + _packed_refused(bags, tables, weights)


def _packed_refused(bags: dict, tables: dict, weights: Tensor) -> list[Case]:
    make, made = cases_of("quantized_hashed_embedding_bag"), []

    def refuse(label: str, text: str, **change: Any) -> None:
        made.append(make(label, **bags | tables | change, raises=text))

    refuse("another dim", "quotient_b", dim=64)
    refuse("dim 0", "dim", dim=0)
    refuse("5 bits", "bits", bits=5)
    refuse("float table", "quotient_b", quotient_b=tables["quotient_b"].float())
    refuse("short table", "remainder_c", remainder_c=tables["remainder_c"][1:])
    refuse("0 buckets", "num_buckets", num_buckets=0)
    refuse("negative seed", "seed", seed=-1, include_last_offset=False)
    refuse("int16 ids", "ids", ids=bags["ids"].short())
    refuse("int32 hashes", "ids", ids=bags["ids"].int(), prehashed=True)
    refuse("a width beyond counting", "dim", dim=(1 << 63) - 1)
    far = torch.tensor([0, 999])
    refuse("offsets too far", "offsets", offsets=far, include_last_offset=False)
    refuse("mode max", "mode", mode="max", include_last_offset=False)
    mean = {"mode": "mean", "per_sample_weights": weights, "include_last_offset": False}
    refuse("weighted mean", "per_sample", **mean)
    refuse("integer result", "output", output_dtype=torch.int32)
    return made


def _step(
    generator, tables: dict[str, Any], bags: dict[str, Any], start: float | None = 0.5
) -> dict[str, Any]:
    """The arguments of an update; ``start`` is where the sums are, None for SGD."""
    first = tables["quotient_b"]
    ids, offsets = bags["ids"], bags["offsets"]
    last = bags.get("include_last_offset", False)
    count = len(ids) if offsets is None else len(offsets) - last
    wide = torch.float64 if first.dtype == torch.float64 else torch.float32
    grad = torch.randn(count, first.shape[1], generator=generator).to(first.dtype)
    totals = [None if start is None else torch.full((len(tables[n]),), start) for n in TABLES]
    sums = [total if total is None else total.to(wide) for total in totals]
    made = {"per_sample_weights": None, "seed": 0, "mean": False, "prehashed": False}
    made |= {"grad": grad, "lr": torch.tensor(0.1), "l2": 0.0, "eps": 1e-8}
    return made | dict(zip(SUMS, sums, strict=True)) | bags | {"include_last_offset": last} | tables


def _update_cases(generator) -> list[Case]:
    made = []

    # The op has an argument `grad`, which is an option of cases_of.
    def add(label: str, step: dict[str, Any], big: bool = False, **change: Any) -> None:
        tolerance = 1024.0 if big else 64.0
        made.append(Case(UPDATE, label, step | change, tolerance=tolerance, big=big))

    for i, dim in enumerate((1, 7, 30, 64, 131, 200)):
        bags = _bags(generator, 9, 8, torch.int32 if i % 2 else torch.int64)
        tables = _tables(generator, dim, *((10, 3) if dim < 64 else SMALL))
        add(f"dim {dim}", _step(generator, tables, bags), l2=0.3 * (i % 2))
        add(f"dim {dim}, SGD", _step(generator, tables, bags, None), l2=0.3 * (i % 2))
    tables = _tables(generator, 16, *SMALL)
    bags = _bags(generator, 13, 6, include_last=True)
    ids = bags["ids"]
    step = _step(generator, tables, bags)
    weights = torch.randn(len(ids), generator=generator)
    add("weights, seed, penalty", step, per_sample_weights=weights, seed=7, l2=0.5)
    add("mean", step, mean=True)
    add("prehashed", step, prehashed=True)
    add("strided ids", step, ids=torch.stack([ids, ids], 1)[:, 0])
    add("strided gradient", step, grad=step["grad"].t().contiguous().t())
    add("int32 ids", step, ids=ids.int())
    add("rate in double precision", step, lr=torch.tensor(0.03, dtype=torch.float64))
    add("rate 0", step, lr=torch.tensor(0.0))
    add("no gradient, but a penalty", step, grad=torch.zeros_like(step["grad"]), l2=0.5)
    half = step["grad"].clone()
    half[:, ::2] = 0
    add("half of the columns without a gradient", step, grad=half, l2=0.5)
    add("sums from 0", _step(generator, tables, bags, 0.0))
    add("plain look-up", _step(generator, tables, _plain(ids)))
    matrix = _plain(ids[: len(ids) // 3 * 3].view(-1, 3))
    add("bags of 3", _step(generator, tables, matrix), mean=True)
    none = torch.empty(0, dtype=torch.int64)
    add("no bags", _step(generator, tables, {"ids": none, "offsets": none}))
    add("no bags, no offsets", _step(generator, tables, _plain(none)))
    empty = {"ids": none, "offsets": torch.zeros(5).long()}
    add("empty bags only", _step(generator, tables, empty))
    behind = {"ids": ids, "offsets": torch.tensor([0, 2]), "include_last_offset": True}
    add("ids behind the last bag", _step(generator, tables, behind), l2=0.5)
    for rule in ((1, 1), (1, 5), (7, 1), (255, 256), (65_537, 1000)):
        label = f"{rule[0]} buckets, {rule[1]} remainders"
        add(label, _step(generator, _tables(generator, 3, *rule), _plain(ids)))
    long = {"ids": _ids(generator, 300), "offsets": torch.tensor([0, 63, 64, 65, 129, 130, 290])}
    long["ids"][::3] = 5
    add("long bags, one id often", _step(generator, tables, long), mean=True)
    for dtype in (torch.bfloat16, torch.float16, torch.float64):
        for dim in (16, 13):
            other = _tables(generator, dim, *SMALL, dtype)
            add(f"{dtype}, dim {dim}", _step(generator, other, bags), l2=0.5)
    large = {"ids": _ids(generator, 40_000), "offsets": torch.arange(0, 40_000, 20)}
    large["ids"][::3] = 5  # one row takes a third of all
    for dim in (16, 150):
        tables = _tables(generator, dim, *SMALL)
        add(f"several tasks, dim {dim}", _step(generator, tables, large), big=True)
        add(f"several tasks, SGD, dim {dim}", _step(generator, tables, large, None), big=True)
    return made + _update_refused(step)


def _update_refused(step: dict[str, Any]) -> list[Case]:
    made = []

    def refuse(label: str, name: str, **change: Any) -> None:
        made.append(Case(UPDATE, label, step | change, raises=f"'{name}'"))

    grad, table, total = step["grad"], step["quotient_c"], step["sum_quotient_c"]
    refuse("int16 ids", "ids", ids=step["ids"].short())
    refuse("offsets from 1", "offsets", offsets=step["offsets"] + 1)
    refuse("few gradients", "grad", grad=grad[1:])
    refuse("narrow gradient", "grad", grad=grad[:, 1:])
    refuse("gradient of another dtype", "grad", grad=grad.double())
    refuse("strided table", "quotient_c", quotient_c=table.t().contiguous().t())
    refuse("short table", "quotient_c", quotient_c=table[1:])
    refuse("half of the sums", "sum_quotient_c", sum_quotient_c=None)
    refuse("short sums", "sum_quotient_c", sum_quotient_c=total[1:])
    refuse("sums in double precision", "sum_quotient_c", sum_quotient_c=total.double())
    refuse("strided sums", "sum_quotient_c", sum_quotient_c=torch.stack([total, total], 1)[:, 0])
    refuse("whole rate", "lr", lr=torch.tensor(1))
    refuse("many rates", "lr", lr=torch.ones(2))
    weighted = {"per_sample_weights": torch.ones(len(step["ids"])), "mean": True}
    refuse("weighted mean", "per_sample_weights", **weighted)
    refuse("0 buckets", "num_buckets", num_buckets=0)
    refuse("large seed", "seed", seed=1 << 32)
    return made


def cases(generator: torch.Generator) -> list[Case]:
    return _float_cases(generator) + _packed_cases(generator) + _update_cases(generator)
