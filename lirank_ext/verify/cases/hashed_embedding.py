"""Inputs for look-ups in hashed tables."""

from __future__ import annotations

import torch

from ...ops import _quantized_reference as quantized
from . import Case

OP, PACKED = "hashed_embedding_bag", "quantized_hashed_embedding_bag"
TRAINED = (2, 3, 4, 5)
SMALL = (10_007, 100)  # num_buckets, not a multiple of num_remainders


def _ids(generator, *shape):
    return torch.randint(-(1 << 63), (1 << 63) - 1, shape, generator=generator)


def _tables(generator, dim, num_buckets, remainders, dtype=torch.float32):
    rows = (-(-num_buckets // remainders), remainders) * 2
    return [torch.randn(n, dim, generator=generator).to(dtype) for n in rows]


def _bags(generator, bags, most, dtype=torch.int64, include_last=False):
    lengths = torch.randint(0, most + 1, (bags,), generator=generator)
    offsets = torch.cat([torch.zeros(1).long(), lengths.cumsum(0)])
    return _ids(generator, int(offsets[-1])), (offsets if include_last else offsets[:-1]).to(dtype)


def _float_cases(generator) -> list[Case]:
    found, (n, m) = [], SMALL

    def add(label, *args, **kwargs):
        kwargs.setdefault("grad", TRAINED)
        found.append(Case(OP, label, args, **kwargs))

    for i, dim in enumerate((1, 7, 30, 64, 131, 200)):
        ids, offsets = _bags(generator, 9, 8, torch.int32 if i % 2 else torch.int64)
        small = dim < 64
        rule = (10, 3) if small else SMALL
        add(f"dim {dim}", ids, offsets, *_tables(generator, dim, *rule), rule[0])
    tables = _tables(generator, 16, n, m)
    ids, offsets = _bags(generator, 13, 6, include_last=True)
    weights = torch.randn(len(ids), generator=generator)
    last = (*tables, n, 7, "sum", weights, True)
    add("weights, seed", ids, offsets, *last, grad=(*TRAINED, 9))
    add("mean", ids, offsets, *tables, n, 0, "mean", None, True)
    add("prehashed", ids, offsets, *tables, n, 0, "sum", None, True, True)
    add("strided ids", torch.stack([ids, ids], 1)[:, 0], offsets, *last)
    turned = [t.t().contiguous().t() for t in tables]
    add("strided tables", ids, offsets, *turned, *last[4:])
    add("plain look-up", ids, None, *tables, n)
    add("bags of 3", ids[: len(ids) // 3 * 3].view(-1, 3), None, *tables, n, 0, "mean")
    matrix = _ids(generator, 4, 5)
    add("weighted bags of 5", matrix, None, *tables, n, 0, "sum", matrix.sign() * 0.5,
        grad=(*TRAINED, 9))  # fmt: skip
    none = torch.empty(0, dtype=torch.int64)
    add("no bags", none, none, *tables, n)
    add("no bags, no offsets", none, None, *tables, n)
    add("bags of 0", none.view(4, 0), None, *tables, n)
    add("empty bags only", none, torch.zeros(5).long(), *tables, n)
    add("one bag", ids, torch.zeros(1).int(), *tables, n)
    add("one id", ids[:1], None, *tables, n)
    behind = torch.tensor([0, 2])
    add("ids behind the last bag", ids, behind, *tables, n, 0, "sum", None, True)
    edges = torch.tensor([0, -1, 1 << 63 - 1, -(1 << 63), (1 << 63) - 1, 1 << 32, (1 << 32) - 1])
    for rule in ((1, 1), (1, 5), (2, 2), (7, 1), (12, 4), (13, 4), (255, 256), (65_537, 1000)):
        rule_tables = _tables(generator, 3, *rule)
        label = f"{rule[0]} buckets, {rule[1]} remainders"
        add(label, edges, None, *rule_tables, rule[0], 0, "sum", None, False, True)
    most = 1 << 32
    high = _tables(generator, 2, most, 1 << 20)
    add("2^32 buckets", edges, None, *high, most, 0, "sum", None, False, True)
    long = [_ids(generator, 300), torch.tensor([0, 63, 64, 65, 129, 130, 290])]
    add("long bags", *long, *tables, n, 0, "mean")
    for dtype in (torch.bfloat16, torch.float16):
        for dim in (16, 13):
            half = _tables(generator, dim, n, m, dtype)
            add(f"{dtype}, dim {dim}", ids, offsets, *half, n, 0, "sum", None, True, grad=())
            narrow = weights.to(dtype)
            add(f"{dtype} weights, dim {dim}", ids, offsets, *half, n, 0, "sum", narrow, True,
                tolerance=4.0, grad=())  # fmt: skip
    double = _tables(generator, 9, n, m, torch.float64)
    add("float64", ids, offsets, *double, n, 0, "sum", weights.double(), True, grad=(*TRAINED, 9))
    large = _ids(generator, 40_000)
    large[::3] = 5  # one row takes a third of all
    starts = torch.arange(0, 40_000, 20)
    add("several tasks", large, starts, *tables, n, tolerance=1024.0, big=True)
    add("several tasks, mean", large, starts, *tables, n, 0, "mean", tolerance=1024.0, big=True)
    return found + _float_refused(ids, offsets, tables, weights, n)


def _float_refused(ids, offsets, tables, weights, n) -> list[Case]:
    qb, rb, qc, rc = tables
    last = (0, "sum", None, True)
    refused = [
        ("int32 ids", (ids.int(), offsets, *tables, n, *last), "ids"),
        ("float ids", (ids.double(), offsets, *tables, n, *last), "ids"),
        ("ids of 2 dimensions", (ids[:6].view(2, 3), offsets, *tables, n, *last), "ids"),
        ("ids of 3 dimensions", (ids[:8].view(2, 2, 2), None, *tables, n), "ids"),
        ("float offsets", (ids, offsets.float(), *tables, n, *last), "offsets"),
        ("offsets from 1", (ids, offsets + 1, *tables, n), "offsets"),
        ("offsets fall", (ids, torch.tensor([0, 5, 3]), *tables, n), "offsets"),
        ("offsets too far", (ids, torch.tensor([0, 999]), *tables, n), "offsets"),
        ("no last offset", (ids, offsets[:0], *tables, n, *last), "offsets"),
        ("last without offsets", (ids, None, *tables, n, *last), "include_last_offset"),
        ("short quotient_b", (ids, offsets, qb[1:], rb, qc, rc, n, *last), "quotient_b"),
        ("short quotient_c", (ids, offsets, qb, rb, qc[1:], rc, n, *last), "quotient_c"),
        ("short remainder_c", (ids, offsets, qb, rb, qc, rc[1:], n, *last), "remainder_c"),
        ("no remainders", (ids, offsets, qb, rb[:0], qc, rc[:0], n, *last), "remainder_b"),
        ("narrow", (ids, offsets, qb, rb[:, 1:], qc, rc, n, *last), "remainder_b"),
        ("width 0", (ids, offsets, *(t[:, :0] for t in tables), n, *last), "quotient_b"),
        ("dtypes differ", (ids, offsets, qb, rb, qc.double(), rc, n, *last), "quotient_c"),
        ("integer tables", (ids, offsets, *(t.long() for t in tables), n, *last), "quotient_b"),
        ("flat table", (ids, offsets, qb, rb.reshape(-1), qc, rc, n, *last), "remainder_b"),
        ("0 buckets", (ids, offsets, *tables, 0, *last), "num_buckets"),
        ("too many buckets", (ids, offsets, *tables, (1 << 32) + 1, *last), "num_buckets"),
        ("negative seed", (ids, offsets, *tables, n, -1, *last[1:]), "seed"),
        ("large seed", (ids, offsets, *tables, n, 1 << 32, *last[1:]), "seed"),
        ("mode max", (ids, offsets, *tables, n, 0, "max"), "mode"),
        ("weighted mean", (ids, offsets, *tables, n, 0, "mean", weights), "per_sample_weights"),
        ("few weights", (ids, offsets, *tables, n, 0, "sum", weights[:2]), "per_sample_weights"),
        ("whole weights", (ids, offsets, *tables, n, 0, "sum", ids), "per_sample_weights"),
    ]
    return [Case(OP, label, args, raises=f"'{name}'") for label, args, name in refused]


def _packed(tables, bits):
    return [quantized.pack_rows(*quantized.quantize_rows(t, bits), bits) for t in tables]


def _packed_cases(generator) -> list[Case]:
    found, (n, m) = [], SMALL

    def add(label, *args, **kwargs):
        found.append(Case(PACKED, label, args, **kwargs))

    for i, dim in enumerate((1, 7, 30, 64, 96, 131, 200)):
        for bits in (8, 4):
            rule = (10, 3) if dim < 64 else (1_000, 7)
            tables = _packed(_tables(generator, dim, *rule), bits)
            ids, offsets = _bags(generator, 9, 8, torch.int32 if i % 2 else torch.int64)
            add(f"dim {dim}, {bits} bits", ids, offsets, *tables, rule[0], dim, bits)
    tables = _packed(_tables(generator, 24, n, m), 8)
    ids, offsets = _bags(generator, 13, 6, include_last=True)
    weights = torch.randn(len(ids), generator=generator)
    add("weights", ids, offsets, *tables, n, 24, 8, 7, "sum", weights, True, grad=(11,))
    add("mean", ids, offsets, *tables, n, 24, 8, 0, "mean", None, True)
    add("prehashed", ids, offsets, *tables, n, 24, 8, 0, "sum", None, True, True)
    add("strided ids", torch.stack([ids, ids], 1)[:, 0], offsets, *tables, n, 24, 8, 0, "sum",
        None, True)  # fmt: skip
    add("plain look-up", ids, None, *tables, n, 24)
    add("bags of 3", ids[: len(ids) // 3 * 3].view(-1, 3), None, *tables, n, 24, 8, 0, "mean")
    none = torch.empty(0, dtype=torch.int64)
    add("no bags", none, none, *tables, n, 24)
    add("bags of 0", none.view(4, 0), None, *tables, n, 24)
    add("empty bags only", none, torch.zeros(5).long(), *tables, n, 24)
    long = [_ids(generator, 300), torch.tensor([0, 63, 64, 65, 129, 130, 290])]
    add("long bags", *long, *tables, n, 24, 8, 0, "mean")
    most, below = 1 << 32, 3_999_999_999  # float32 rounds it up, into the next row of 50 000
    high = _packed(_tables(generator, 2, most, 50_000), 8)
    split = torch.tensor([below, (below - most) << 32])
    add("2^32 buckets", split, None, *high, most, 2, 8, 0, "sum", None, False, True)
    for dtype in (torch.float16, torch.bfloat16, torch.float64):
        # summed in float32, whatever the result's dtype
        tolerance = 64.0 if dtype != torch.float64 else 64.0 * 2**29
        add(str(dtype), ids, offsets, *tables, n, 24, 8, 0, "sum", None, True, False, dtype,
            tolerance=tolerance)  # fmt: skip
    last = (8, 0, "sum", None, True)
    refused = [
        ("another dim", (ids, offsets, *tables, n, 64, *last), "quotient_b"),
        ("dim 0", (ids, offsets, *tables, n, 0, *last), "dim"),
        ("5 bits", (ids, offsets, *tables, n, 24, 5, *last[1:]), "bits"),
        ("float table", (ids, offsets, tables[0].float(), *tables[1:], n, 24, *last), "quotient_b"),
        ("short table", (ids, offsets, *tables[:3], tables[3][1:], n, 24, *last), "remainder_c"),
        ("0 buckets", (ids, offsets, *tables, 0, 24, *last), "num_buckets"),
        ("negative seed", (ids, offsets, *tables, n, 24, 8, -1), "seed"),
        ("int32 ids", (ids.int(), offsets, *tables, n, 24, *last), "ids"),
        ("offsets too far", (ids, torch.tensor([0, 999]), *tables, n, 24), "offsets"),
        ("mode max", (ids, offsets, *tables, n, 24, 8, 0, "max"), "mode"),
        ("weighted mean", (ids, offsets, *tables, n, 24, 8, 0, "mean", weights), "per_sample"),
        ("integer result", (ids, offsets, *tables, n, 24, *last, False, torch.int32), "output"),
    ]
    return found + [Case(PACKED, label, args, raises=text) for label, args, text in refused]


def cases(generator: torch.Generator) -> list[Case]:
    return _float_cases(generator) + _packed_cases(generator)
