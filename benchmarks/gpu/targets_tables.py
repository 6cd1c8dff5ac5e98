"""Look-ups on a GPU: quantized tables, hashed tables, hashes, vocabularies."""

from __future__ import annotations

import importlib.util
from collections.abc import Callable, Iterator

import torch
from torch import Tensor
from torch.nn.functional import embedding_bag

from lirank_ext import (
    concatenate_tables,
    dequantize_rows,
    hash_strings,
    hashed_embedding_bag,
    murmur_hash,
    pack_rows,
    quantize_rows,
    quantized_embedding_bag,
    quantized_embedding_bags,
    quantized_hashed_embedding_bag,
    vocabulary_lookup,
)
from lirank_ext.benchmarks.ceilings import gather_rows
from lirank_ext.benchmarks.gpu.target import Place, Target
from lirank_ext.nn import StaticVocabulary

REMAINDERS = 1000
DISTINCT = 50_000  # rows of a table that differ; they repeat, which no cache can know
HALF_TOLERANCE = 2e-3  # of the largest result: float16 keeps 11 bits


def _packed(place: Place, codes: tuple[Tensor, ...], rows: int) -> Tensor:
    """A packed table of so many rows; packing them is part of what is checked."""
    return pack_rows(*(_rows(t.to(place.device), rows) for t in codes))


def _rows(few: Tensor, rows: int) -> Tensor:
    return few.repeat(-(-rows // len(few)), *[1] * (few.dim() - 1))[:rows].contiguous()


def _unique_bytes(ids: Tensor, row_bytes: int) -> int:
    return int(ids.unique().numel()) * row_bytes


def _few(place: Place, dim: int, bits: int = 8) -> tuple[Tensor, Tensor, Tensor]:
    """Codes, scales and middles made on the CPU, whose kernels the test suite has compared."""
    weight = torch.randn(min(DISTINCT, 200_000 // place.scale), dim, generator=torch.Generator())
    return quantize_rows(weight, bits)


def _peer_bags(rows: int, dim: int, few: Tensor, dtype: torch.dtype, device: str) -> Callable:
    table = _rows(few.to(device, dtype), rows)
    return lambda ids, offsets: embedding_bag(
        ids, table, offsets, mode="sum", include_last_offset=True
    )


def quantized_bag(place: Place) -> Iterator[Target]:
    """One int8 table beyond the cache: bags of 20 ids, and one id a bag."""
    rows, dim = place.size(4_000_000), 128
    codes = _few(place, dim)
    packed = _packed(place, codes, rows)
    few = dequantize_rows(*codes)
    wide = few.double().to(place.device)
    gather = _gather_loop(place, rows, packed.shape[1])
    for length, dtype in ((20, torch.float16), (20, torch.float32), (1, torch.float16)):
        bags = place.size(52_428 if length == 20 else 1_048_576)
        count = bags * length
        sets = []
        for seed in range(4):
            ids = place.integers(0, rows, count, seed=seed)
            sets.append((ids, torch.arange(0, count + 1, length, device=place.device)))
        size = torch.finfo(dtype).bits // 8
        peers = {}
        if dtype == torch.float16:
            peers["F.embedding_bag float16"] = _peer_bags(
                rows, dim, few, torch.float16, place.device
            )
            peers |= _fbgemm(place, wide, rows, 1, sets)
        else:
            peers["F.embedding_bag float32"] = _peer_bags(
                rows, dim, few, torch.float32, place.device
            )
        yield Target(
            "quantized_embedding_bag",
            f"int8 {rows} x {dim}, {bags} bags of {length}, {str(dtype)[6:]} result",
            sets,
            lambda ids, offsets, dtype=dtype: quantized_embedding_bag(
                packed, ids, offsets, dim, include_last_offset=True, output_dtype=dtype
            ),
            lambda ids, offsets: embedding_bag(
                ids % len(few), wide, offsets, mode="sum", include_last_offset=True
            ),
            tolerance=HALF_TOLERANCE if dtype == torch.float16 else 1e-5,
            bytes=_unique_bytes(sets[0][0], packed.shape[1]) + 8 * count + bags * (dim * size + 8),
            peers=peers,
            floors={
                "gather loop": lambda ids, offsets, length=length: gather(ids.view(-1, length))
            },
        )


def quantized_bags(place: Place) -> Iterator[Target]:
    """Ten int8 tables of a million rows; about a million ids a call."""
    tables, rows, dim = 10, place.size(1_000_000), 128
    codes = _few(place, dim)
    one = _packed(place, codes, rows)
    row_bytes, packed = one.shape[1], concatenate_tables([one] * tables)
    del one
    wide = dequantize_rows(*codes).double().to(place.device)
    heights, dims = (
        torch.full((tables,), n, dtype=torch.int64, device=place.device) for n in (rows, dim)
    )
    shapes = ((1, "zipf", 104_857), (1, "uniform", 104_857), (20, "uniform", 5_243))
    for length, kind, bags in shapes:
        bags = place.size(bags)
        count = tables * bags * length
        ends = torch.arange(0, count + 1, length, device=place.device)
        sets = []
        for seed in range(4):
            if kind == "zipf":
                ids = place.zipf(rows, count, 1.05, seed)
            else:
                ids = place.integers(0, rows, count, seed=seed)
            sets.append((ids, ends))

        def expect(ids, ends, bags=bags):
            parts = embedding_bag(ids % len(wide), wide, ends, mode="sum", include_last_offset=True)
            return parts.view(tables, bags, dim).transpose(0, 1).reshape(bags, tables * dim)

        unique = sum(_unique_bytes(part, row_bytes) for part in sets[0][0].view(tables, -1))
        yield Target(
            "quantized_embedding_bags",
            f"int8, 10 tables of {rows} x {dim}, {bags} bags of {length}, {kind}, float16 result",
            sets,
            lambda ids, ends: quantized_embedding_bags(
                packed,
                heights,
                dims,
                ids,
                ends,
                output_dtype=torch.float16,
                total_dim=tables * dim,
            ),
            expect,
            tolerance=HALF_TOLERANCE,
            bytes=unique + 8 * count + tables * bags * (dim * 2 + 8),
            peers=_fbgemm(place, wide, rows, tables, sets),
        )


def _fbgemm(
    place: Place, few: Tensor, rows: int, tables: int, sets: list[tuple]
) -> dict[str, Callable]:
    """FBGEMM's inference kernel, where a folder on the path carries it: see ``benchmarks/gpu.sh``.

    Without the check of the indices that its module launches before each look-up, which that
    folder does not hold.
    """
    if place.device == "cpu" or importlib.util.find_spec("fbgemm_peer") is None:
        return {}
    from fbgemm_peer import Int8Tables, fbgemm_int8_bags, usable

    if not usable():
        return {}
    held = Int8Tables([_rows(few.float(), rows)] * tables)
    calls = {
        ids.data_ptr(): fbgemm_int8_bags(held, ids.int(), ends.int(), torch.float16)
        for ids, ends in sets
    }
    return {"FBGEMM int8": lambda ids, ends: calls[ids.data_ptr()]()}


def _gather_loop(place: Place, rows: int, row_bytes: int) -> Callable[[Tensor], None]:
    """Sums rows of about so many bytes by the bare loop of ``kernels/ceilings.cu``."""
    table = place.randn(rows, -(-row_bytes // 16) * 4)

    def call(indices: Tensor) -> None:
        out = table.new_empty(len(indices), table.shape[1])
        if place.device == "cuda":
            gather_rows(table, indices, out)

    return call


# ---- hashed tables -----------------------------------------------------------------------


def _row_numbers(ids: Tensor, buckets: int) -> list[Tensor]:
    """The four rows of each id, from hashes computed on the CPU."""
    hashes = murmur_hash(ids.cpu()).to(ids.device)
    found = []
    for half in (hashes & 0xFFFFFFFF, hashes >> 32 & 0xFFFFFFFF):
        bucket = half % buckets
        found += [bucket // REMAINDERS, bucket % REMAINDERS]
    return found


def _sum_of_rows(tables: list[Tensor], rows: list[Tensor], length: int) -> Tensor:
    found = None
    for table, row in zip(tables, rows, strict=True):
        each = table[row].double()
        found = each if found is None else found.add_(each)
    return found.view(-1, length, found.shape[1]).sum(1)


def _hashed_tables(place: Place, buckets: int, dim: int, dtype: torch.dtype) -> list[Tensor]:
    heights = (-(-buckets // REMAINDERS), REMAINDERS) * 2
    return [place.randn(n, dim, seed=i, dtype=dtype) for i, n in enumerate(heights)]


def _four_bags(tables: list[Tensor]) -> Callable[..., Tensor]:
    def call(ids, offsets, *rows):
        if offsets is None:
            offsets = torch.arange(len(ids), device=ids.device)
        return sum(
            embedding_bag(row, table, offsets, mode="sum")
            for row, table in zip(rows, tables, strict=True)
        )

    return call


def hashed(place: Place) -> Iterator[Target]:
    """Float16 tables of 2^32 buckets, D = 128: bags of 20 ids, and plain look-ups."""
    buckets, dim, dtype = (1 << 32) // place.scale, 128, torch.float16
    tables = _hashed_tables(place, buckets, dim, dtype)
    gather = _gather_loop(place, len(tables[0]), dim * 2)
    for length in (20, 1):
        bags = place.size(52_428 if length == 20 else 1_048_576)
        count = bags * length
        offsets = None if length == 1 else torch.arange(0, count, length, device=place.device)
        sets: list[tuple] = []
        pairs: dict[int, Tensor] = {}
        for seed in range(3):
            ids = place.integers(-(1 << 62), 1 << 62, count, seed=seed)
            rows = _row_numbers(ids, buckets)
            sets.append((ids, offsets, *rows))
            pairs[ids.data_ptr()] = torch.stack([rows[0], rows[2]], 1).view(-1, 2 * length)
        yield Target(
            "hashed_embedding_bag",
            f"float16 {tables[0].shape[0]} quotients x {dim}, "
            + (f"{bags} bags of 20" if length == 20 else f"{bags} plain look-ups"),
            sets,
            lambda ids, offsets, *_: hashed_embedding_bag(ids, offsets, *tables, buckets),
            lambda ids, offsets, *rows, length=length: _sum_of_rows(tables, rows, length),
            tolerance=HALF_TOLERANCE,
            bytes=count * (8 + 2 * dim * 2) + bags * (dim * 2 + (8 if length == 20 else 0)),
            peers={"4 x F.embedding_bag, rows given": _four_bags(tables)},
            floors={
                "gather loop, two rows an id": lambda ids, *_, p=pairs: gather(p[ids.data_ptr()])
            },
        )


def hashed_packed(place: Place) -> Iterator[Target]:
    """The same in int8 rows."""
    buckets, dim = (1 << 32) // place.scale, 128
    codes = _few(place, dim)
    heights = (-(-buckets // REMAINDERS), REMAINDERS) * 2
    tables = [_packed(place, codes, n) for n in heights]
    wide = dequantize_rows(*codes).double().to(place.device)
    bags = place.size(52_428)
    count = bags * 20
    offsets = torch.arange(0, count, 20, device=place.device)
    sets = []
    for seed in range(3):
        ids = place.integers(-(1 << 62), 1 << 62, count, seed=seed)
        sets.append((ids, offsets, *_row_numbers(ids, buckets)))
    yield Target(
        "quantized_hashed_embedding_bag",
        f"int8 {tables[0].shape[0]} quotients x {dim}, {bags} bags of 20, float16 result",
        sets,
        lambda ids, offsets, *_: quantized_hashed_embedding_bag(
            ids, offsets, *tables, buckets, dim, output_dtype=torch.float16
        ),
        lambda ids, offsets, *rows: _sum_of_rows([wide] * 4, [r % len(wide) for r in rows], 20),
        tolerance=HALF_TOLERANCE,
        bytes=count * (8 + 2 * tables[0].shape[1]) + bags * (dim * 2 + 8),
    )


def hashed_backward(place: Place) -> Iterator[Target]:
    """Dense gradients of four tables, of uniform ids and of ids of which one takes a tenth."""
    buckets, dim = 1_000_000_000 // place.scale, 64
    bags = place.size(52_428)
    count = bags * 20
    quotients = -(-buckets // REMAINDERS)
    offsets = torch.arange(0, count, 20, device=place.device)
    tables = [place.randn(n, dim, seed=i) for i, n in enumerate((quotients, REMAINDERS) * 2)]
    for kind in ("uniform", "one id takes a tenth"):
        sets = []
        for seed in range(2):
            ids = place.integers(-(1 << 62), 1 << 62, count, seed=seed)
            if kind != "uniform":
                ids[::10] = 5
            grad = place.randn(bags, dim, seed=seed)
            sets.append((grad, ids, *_row_numbers(ids, buckets)))

        def expect(grad, ids, *rows):
            each = grad.double().repeat_interleave(20, 0)
            return tuple(
                torch.zeros_like(t, dtype=torch.float64).index_add_(0, row, each)
                for t, row in zip(tables, rows, strict=True)
            )

        def four_bags(grad, ids, *rows):
            leaves = [t.detach().requires_grad_() for t in tables]
            with torch.enable_grad():
                out = _four_bags(leaves)(ids, offsets, *rows)
            return torch.autograd.grad(out, leaves, grad)

        yield Target(
            "hashed_embedding_bag_backward",
            f"float32 {quotients} quotients x {dim}, {bags} bags of 20, {kind}",
            sets,
            lambda grad, ids, *_: torch.ops.lirank.hashed_embedding_bag_backward(
                grad, ids, offsets, None, buckets, REMAINDERS, 0, "sum", False, False
            ),
            expect,
            # every table: the gradient of each bag, a sorted list of 12 bytes an id read and
            # written in four passes, and the whole table written
            bytes=4 * bags * dim * 4 + 4 * count * 12 * 2 + 2 * (quotients + REMAINDERS) * dim * 4,
            peers={"4 x F.embedding_bag backward (with forward), rows given": four_bags},
        )


# ---- hashes, vocabularies, rows ----------------------------------------------------------


def hashing(place: Place) -> Iterator[Target]:
    count = place.size(16_000_000)
    sets = [(place.integers(-(1 << 62), 1 << 62, count, seed=i),) for i in range(3)]
    yield Target(
        "murmur_hash",
        f"{count} ids",
        sets,
        lambda ids: murmur_hash(ids),
        lambda ids: murmur_hash(ids.cpu()).to(ids.device),
        bytes=16 * count,
    )
    strings = place.size(1_000_000)
    length = place.integers(4, 28, strings)
    ends = torch.cat([length.new_zeros(1), length.cumsum(0)])
    data = place.integers(97, 123, int(ends[-1])).to(torch.uint8)
    yield Target(
        "hash_strings",
        f"{strings} strings of 4 to 27 bytes",
        [(data, ends), (data.clone(), ends.clone())],
        lambda data, ends: hash_strings((data, ends)),
        lambda data, ends: hash_strings((data.cpu(), ends.cpu())).to(data.device),
        bytes=int(ends[-1]) + 16 * strings,
    )


def vocabulary(place: Place) -> Iterator[Target]:
    keys = torch.randperm(place.size(1_000_000), generator=torch.Generator().manual_seed(0)) * 3
    table = StaticVocabulary.build(keys).table.to(place.device)
    on_device = keys.to(place.device)
    count = place.size(4_000_000)
    sets = []
    for seed in range(3):
        drawn = on_device[place.integers(0, len(keys), count, seed=seed)]
        sets.append((drawn,))
    yield Target(
        "vocabulary_lookup",
        f"{count} look-ups among {len(keys)} keys",
        sets,
        lambda wanted: vocabulary_lookup(wanted, table),
        lambda wanted: vocabulary_lookup(wanted.cpu(), table.cpu()).to(wanted.device),
        bytes=16 * count + table.numel(),
    )


def quantizing(place: Place) -> Iterator[Target]:
    rows, dim = place.size(1_000_000), 128
    sets = [(place.randn(rows, dim, seed=i),) for i in range(2)]
    yield Target(
        "quantize_rows",
        f"float32 {rows} x {dim} to int8",
        sets,
        lambda weight: quantize_rows(weight, 8),
        lambda weight: tuple(t.to(weight.device) for t in quantize_rows(weight.cpu(), 8)),
        tolerance=0.0,
        bytes=rows * (4 * dim + dim + 8),
        captured=False,  # waits for the row that cannot be quantized
    )
