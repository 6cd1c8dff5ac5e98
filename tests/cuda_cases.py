"""Inputs for the CUDA kernels beyond those of ``verify``.

They reach code that only these kernels have: runs of several bags, rings of rows on their way,
bags of one id, 16-byte loads and stores, rows with any strides, runs of one row over many chunks,
and the backward ops by themselves.
``cuda_on_host.py`` runs them without a GPU, ``test_cuda_graph.py`` on one.
"""

from __future__ import annotations

import itertools

import torch
from torch import Tensor

from lirank_ext.verify.cases import Case
from lirank_ext.verify.cases.quantized_embedding import bags, table

RULE = (10_007, 100)  # num_buckets, num_remainders
WIDTHS = (1, 6, 8, 30, 32, 64, 128, 131, 192, 520)


def cases(op: str) -> list[Case]:
    """The cases of one op; the same in every call."""
    generator = torch.Generator().manual_seed(1)
    made = _QUANTIZED.get(op) or _HASHED.get(op)
    return [Case(op, *case[:2], **case[2]) for case in made(generator)] if made else []


def _ids(generator, *shape: int) -> Tensor:
    return torch.randint(-(1 << 63), (1 << 63) - 1, shape, generator=generator)


def _cut(t: Tensor, by: int) -> Tensor:
    """The same values at an address that is ``by`` bytes past a multiple of 64."""
    space = torch.empty(t.numel() * t.element_size() + 128, dtype=torch.uint8)
    start = -space.data_ptr() % 64 + by
    inside = space[start : start + t.numel() * t.element_size()].view(t.dtype).view(t.shape)
    return inside.copy_(t)


# ---- quantized tables --------------------------------------------------------------------


def _bag(generator):
    for dim, bits, wide in itertools.product(WIDTHS, (8, 4), (torch.int32, torch.int64)):
        packed = table(generator, 40, dim, bits)
        ids, offsets = bags(generator, 7, 9, 40, wide)
        name = f"dim {dim}, {bits} bits, {wide}"
        yield name, (packed, ids, offsets, dim, bits), {}
        yield (
            f"{name}, one each",
            (packed, ids, None, dim, bits, "sum", None, False, torch.half),
            {},
        )
    packed = table(generator, 40, 128, 8)
    for most, mode in itertools.product((1, 2, 3, 7), ("sum", "mean")):
        ids, offsets = bags(generator, 2100, most, 40, include_last=True)
        yield f"{mode} of up to {most}", (packed, ids, offsets, 128, 8, mode, None, True), {}
    weights = torch.randn(len(ids), generator=generator)
    yield "weights over runs", (packed, ids, offsets, 128, 8, "sum", weights, True), {}
    wrong = offsets.clone()
    wrong[1000] = wrong[1001] + 1
    yield "offsets fall", (packed, ids, wrong, 128, 8, "sum", None, True), {"raises": "'offsets'"}
    wrong = ids.clone()
    wrong[2000] = 40
    far = (packed, wrong, offsets, 128, 8, "sum", None, True)
    yield "one index too high", far, {"raises": "indices[2000] = 40 is"}
    none = torch.zeros(3, dtype=torch.int64)
    yield "no rows", (packed[:0], none, None, 128), {"raises": "indices["}
    yield "no rows, no ids", (packed[:0], none[:0], none, 128), {}
    yield "8 bytes past 16", (_cut(packed, 8), ids, offsets, 128, 8, "sum", None, True), {}
    yield from _ones(generator)
    ids, offsets = bags(generator, 7000, 2, 40, include_last=True)
    yield "7000 bags", (packed, ids, offsets, 128, 8, "mean", None, True), {}
    aligned = {
        "raises": "argument 'packed': wanted a table whose address is a multiple of 8, got one"
    }
    yield "an odd address", (_cut(packed, 3), ids, None, 128), aligned
    apart = torch.stack([packed, packed], 1)[:, 0]
    strided = {"raises": "argument 'packed': wanted a contiguous table, got a strided one"}
    yield "strided rows", (apart, ids, None, 128), strided


def _ones(generator):
    """As many ids as bags: in order, or moved from some bags to others."""
    for dim, bits, out in itertools.product((6, 128, 520), (8, 4), (torch.float32, torch.half)):
        packed = table(generator, 40, dim, bits)
        ids = torch.randint(0, 40, (700,), generator=generator)
        weights = torch.randn(700, generator=generator)
        name = f"as many ids as bags, dim {dim}, {bits} bits, {out}"
        for moved, wide in ((0, torch.int64), (5, torch.int32), (300, torch.int64)):
            lengths = torch.ones(700, dtype=torch.int64)
            places = torch.randint(0, 700, (moved,), generator=generator)
            lengths[places] = 0
            lengths[350] += 700 - int(lengths.sum())
            ends = torch.cat([torch.zeros(1).long(), lengths.cumsum(0)]).to(wide)
            call = (packed, ids.to(wide), ends, dim, bits)
            yield f"{name}, {moved} moved", (*call, "mean", None, True, out), {}
            yield f"{name}, {moved} moved, weights", (*call, "sum", weights, True, out), {}
    ids = ids.clone()
    ids[600] = 40
    wrong = {"raises": "indices[600] = 40 is"}
    yield "as many ids as bags, one too high", (packed, ids, ends, dim, bits), wrong
    ends = ends.clone()
    ends[100] = ends[101] + 1
    yield (
        "as many ids as bags, offsets fall",
        (packed, ids, ends, dim, bits),
        {"raises": "'offsets'"},
    )


def _bag_backward(generator):
    for dim, bits, wide in itertools.product(WIDTHS, (8, 4), (torch.int32, torch.int64)):
        packed = table(generator, 40, dim, bits)
        ids, offsets = bags(generator, 7, 9, 40, wide, include_last=True)
        grad = torch.randn(7, dim, generator=generator)
        name = f"dim {dim}, {bits} bits, {wide}"
        yield name, (grad, packed, ids, offsets, dim, bits, True), {}
        odd = _cut(grad, 4)
        yield f"{name}, grad at 4", (odd, packed, ids, offsets, dim, bits, True), {}
    yield "ids behind the last bag", (grad[:2], packed, ids, offsets[:3], 520, 4, True), {}
    ids = ids.clone()
    ids[3] = 40
    wrong = {"raises": "indices[3] = 40 is"}
    yield "one index too high", (grad, packed, ids, offsets, 520, 4, True), wrong


def _tables(generator, bits: int, dims: tuple, wide: torch.dtype, count: int, most: int):
    """Packed tables behind one another, their rows and dims, ids and offsets of ``count`` bags."""
    rows = [20 + 7 * i for i in range(len(dims))]
    packed = [table(generator, n, d, bits).reshape(-1) for n, d in zip(rows, dims, strict=True)]
    parts = [bags(generator, count, most, n, wide, include_last=True) for n in rows]
    offsets, start = [torch.zeros(1, dtype=wide)], 0
    for ids, ends in parts:
        offsets.append(ends[1:] + start)
        start += len(ids)
    sizes = torch.tensor(rows), torch.tensor(dims)
    return torch.cat(packed), *sizes, torch.cat([p[0] for p in parts]), torch.cat(offsets)


def _bags(generator):
    for bits, wide in itertools.product((8, 4), (torch.int32, torch.int64)):
        for dims, count, most in (((128, 32, 7), 40, 5), ((64,) * 35, 3, 4), ((128, 128), 1100, 1)):
            call = _tables(generator, bits, dims, wide, count, most)
            name = f"{len(dims)} tables of {dims[0]}, {bits} bits, {wide}"
            rest = (bits, "mean", None, torch.float16, sum(dims))
            yield name, (*call, *rest), {}
        *sizes, _, _ = call
        ids = torch.randint(0, 20, (2 * 1100,), generator=generator).to(wide)
        ends = torch.arange(2 * 1100 + 1, dtype=wide)
        yield f"one id each, {bits} bits, {wide}", (*sizes, ids, ends, *rest), {}
    packed, *rest = call
    strided = {"raises": "argument 'packed': wanted a contiguous table, got a strided one"}
    yield "strided bytes", (torch.stack([packed, packed], 1)[:, 0], *rest, bits), strided


def _bags_backward(generator):
    for bits, wide in itertools.product((8, 4), (torch.int32, torch.int64)):
        for dims, count in (((128, 32, 7), 40), ((64,) * 35, 3)):
            call = _tables(generator, bits, dims, wide, count, 5)
            grad = torch.randn(count, sum(dims), generator=generator)
            yield f"{len(dims)} tables, {bits} bits, {wide}", (grad, *call, bits), {}


def _quantized_rows(generator):
    """Widths around the parts of a row that a lane keeps, and codes next to a half."""
    for dim, bits in itertools.product((4, 12, 100, 132, 508, 512, 516), (8, 4)):
        weight = torch.randn(70, dim, generator=generator)
        name = f"dim {dim}, {bits} bits"
        yield name, (weight, bits), {"exact": True}
        yield f"{name}, address 4", (_cut(weight, 4), bits), {"exact": True}
        low = -(1 << bits >> 1)
        steps = torch.arange(dim) % (-2 * low - 1) + low + 0.5
        steps[0], steps[-1] = low, -low - 1
        near = steps * torch.rand(70, 1, generator=generator)
        near += near.abs() * torch.randint(-2, 3, near.shape, generator=generator) * 2.0**-24
        yield f"{name}, next to a half", (near, bits), {"exact": True}


# ---- hashed tables -----------------------------------------------------------------------


def _hashed_tables(generator, dim: int, dtype: torch.dtype, rule: tuple = RULE) -> list[Tensor]:
    rows = (-(-rule[0] // rule[1]), rule[1]) * 2
    return [torch.randn(n, dim, generator=generator).to(dtype) for n in rows]


def _packed_tables(generator, dim: int, bits: int) -> list[Tensor]:
    rows = (-(-RULE[0] // RULE[1]), RULE[1]) * 2
    return [table(generator, n, dim, bits) for n in rows]


DTYPES = (torch.float32, torch.float64, torch.float16, torch.bfloat16)


def _hashed_offsets(generator, count: int, most: int, wide: torch.dtype):
    """Ids in bags of 0 to ``most``, and their offsets with the end of the last."""
    _, offsets = bags(generator, count, most, 1, wide, include_last=True)
    return _ids(generator, int(offsets[-1])), offsets


def _hashed(generator):
    for dim, dtype in itertools.product((1, 4, 8, 30, 64, 128, 264, 600), DTYPES):
        tables = _hashed_tables(generator, dim, dtype)
        ids, offsets = _hashed_offsets(generator, 9, 40, torch.int32)
        rest = (RULE[0], 3, "mean", None, True)
        yield f"dim {dim}, {dtype}", (ids, offsets, *tables, *rest), {}
        yield f"dim {dim}, {dtype}, one each", (ids, None, *tables, RULE[0]), {}
    tables = _hashed_tables(generator, 64, torch.float32)
    padded = [torch.cat([t, t], 1)[:, :64] for t in tables]
    mixed = [t.t().contiguous().t() if i % 2 else t for i, t in enumerate(tables)]
    moved = [_cut(t, 4) for t in tables]
    spread = [t.repeat_interleave(2, 1)[:, ::2] for t in tables]
    for name, given in (("rows apart", padded), ("two turned", mixed), ("address 4", moved),
                        ("columns apart", spread)):  # fmt: skip
        yield name, (ids, offsets, *given, RULE[0], 0, "sum", None, True), {}
    weights = torch.randn(len(ids), generator=generator)
    yield "weights", (ids, offsets, *tables, RULE[0], 0, "sum", weights, True), {}


def _hashed_packed(generator):
    for dim, bits in itertools.product(WIDTHS, (8, 4)):
        tables = _packed_tables(generator, dim, bits)
        ids, offsets = _hashed_offsets(generator, 9, 40, torch.int64)
        rest = (RULE[0], dim, bits, 5)
        last = ("mean", None, True, False, torch.bfloat16)
        yield f"dim {dim}, {bits} bits", (ids, offsets, *tables, *rest, *last), {}
        yield f"dim {dim}, {bits} bits, one each", (ids, None, *tables, *rest), {}
        moved = [_cut(t, 8) for t in tables]
        yield f"dim {dim}, {bits} bits, moved", (ids, offsets, *moved, *rest, *last), {}
    tables[2] = _cut(tables[2], 5)
    wrong = {"raises": "argument 'quotient_c': wanted a table whose address is a multiple of 8"}
    yield "an odd address", (ids, None, *tables, *rest), wrong
    tables[2] = torch.stack([tables[0], tables[0]], 1)[:, 0]
    wrong = {"raises": "argument 'quotient_c': wanted a contiguous table, got a strided one"}
    yield "strided rows", (ids, None, *tables, *rest), wrong


def _hashed_weights(generator):
    for dim, dtype in itertools.product((1, 4, 30, 64, 128, 264, 600), DTYPES):
        tables = _hashed_tables(generator, dim, dtype)
        ids, offsets = _hashed_offsets(generator, 7, 70, torch.int64)
        grad = torch.randn(7, dim, generator=generator).to(dtype)
        for name, g in (("", grad), (", grad moved", _cut(grad, 8))):
            call = (g, ids, offsets, *tables, RULE[0], 3, True, False)
            yield f"dim {dim}, {dtype}{name}", call, {}


def _hashed_packed_weights(generator):
    for dim, bits in itertools.product(WIDTHS, (8, 4)):
        tables = _packed_tables(generator, dim, bits)
        ids, offsets = _hashed_offsets(generator, 7, 70, torch.int64)
        grad = torch.randn(7, dim, generator=generator)
        call = (grad, ids, offsets, *tables, RULE[0], dim, bits, 5, True, False)
        yield f"dim {dim}, {bits} bits", call, {}


def _hashed_gradients(generator):
    """Rows that many ids hit: a run over more than 32 chunks is joined by a whole block."""
    for dim, count, share in ((5, 9000, 1.0), (40, 6000, 0.7), (130, 4500, 0.95), (64, 65, 0.5)):
        ids = _ids(generator, count)
        ids[torch.rand(count, generator=generator) < share] = 77
        for dtype in DTYPES if dim == 64 else (torch.float32,):
            grad = torch.randn(count, dim, generator=generator).to(dtype)
            call = (grad, ids, None, None, 1000, 10, 0, "sum", False, False)
            yield f"{count} ids, {share} of one, dim {dim}, {dtype}", call, {"tolerance": 256.0}
    ids, offsets = _hashed_offsets(generator, 50, 9, torch.int32)
    grad = torch.randn(50, 33, generator=generator)
    weights = torch.randn(len(ids), generator=generator)
    for name, given, mode in (("weights", weights, "sum"), ("mean", None, "mean")):
        yield name, (grad, ids, offsets, given, *RULE, 4, mode, True, False), {}
    yield "one row in each table", (grad, ids, offsets, None, 1, 1, 4, "sum", True, False), {}


def _hashed_update(generator):
    """Runs over many chunks, rows wider than the registers of a warp hold, and every dtype."""
    shapes = ((5, 9000, 1.0), (40, 6000, 0.7), (128, 700, 0.3), (129, 700, 0.5), (300, 4500, 0.95))
    for dim, count, share in shapes:
        ids = _ids(generator, count)
        ids[torch.rand(count, generator=generator) < share] = 77
        for dtype in DTYPES if dim in (128, 129) else (torch.float32,):
            grad = torch.randn(count, dim, generator=generator).to(dtype)
            for name, l2, start in (("", 0.0, 0.5), (", penalty", 0.3, 0.5), (", SGD", 0.3, None)):
                tables = _hashed_tables(generator, dim, dtype, (1000, 10))
                sums = [None if start is None else _sums_of(t, start) for t in tables]
                rate = torch.tensor(0.05)
                call = (grad, ids, None, None, *tables, *sums, rate, 1000, 0)
                label = f"{count} ids, {share} of one, dim {dim}, {dtype}{name}"
                yield label, (*call, False, False, False, l2, 1e-8), {"tolerance": 256.0}
    ids, offsets = _hashed_offsets(generator, 50, 9, torch.int32)
    grad = torch.randn(50, 33, generator=generator)
    weights = torch.randn(len(ids), generator=generator)
    for name, given, mean in (("weights", weights, False), ("mean", None, True)):
        tables = _hashed_tables(generator, 33, torch.float32)
        sums = [_sums_of(t, 0.1) for t in tables]
        call = (grad, ids, offsets, given, *tables, *sums, torch.tensor(0.05), RULE[0], 4)
        yield name, (*call, mean, True, False, 0.1, 1e-8), {}


def _sums_of(table: Tensor, start: float) -> Tensor:
    wide = torch.float64 if table.dtype == torch.float64 else torch.float32
    return torch.full((len(table),), start, dtype=wide)


_QUANTIZED = {
    "quantized_embedding_bag": _bag,
    "quantized_embedding_bag_backward": _bag_backward,
    "quantized_embedding_bags": _bags,
    "quantized_embedding_bags_backward": _bags_backward,
    "quantize_rows": _quantized_rows,
}
_HASHED = {
    "hashed_embedding_bag": _hashed,
    "quantized_hashed_embedding_bag": _hashed_packed,
    "hashed_embedding_bag_backward_weights": _hashed_weights,
    "quantized_hashed_embedding_bag_backward": _hashed_packed_weights,
    "hashed_embedding_bag_backward": _hashed_gradients,
    "hashed_embedding_bag_backward_sparse": _hashed_gradients,
    "hashed_embedding_bag_update": _hashed_update,
}
