"""Benchmarks of look-ups in row-wise quantized tables, in one table and in many.

An id moves its row (the codes, the scale and the mid) and 8 bytes of its own. A bag moves 4 * D
bytes of result and an offset of 8 bytes. ``gather`` compares with a bare loop over rows of the same
size in a table of the same size. Scales and minima are exact in float16, so every peer holds the
same numbers. Peers that take one table per call are called once per table, and their results are
concatenated.

``LIRANK_BENCH_GRID=full`` runs every width, bag length, number of tables and distribution that fits
into memory. Without it a part of that grid runs.
"""

from __future__ import annotations

import importlib.util
import os
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from itertools import product

import torch
from torch import Tensor
from torch.nn.functional import embedding_bag

from lirank_ext import (
    concatenate_tables,
    dequantize_rows,
    pack_rows,
    quantize_rows,
    quantized_embedding_bag,
    quantized_embedding_bags,
    use_huge_pages,
)
from lirank_ext.benchmarks.harness import Workload

K, M = 1000, 1_000_000
# FBGEMM uses one thread by default. It reads this variable once, at its first call.
os.environ.setdefault("FBGEMM_TBE_MAX_NUM_THREADS", str(torch.get_num_threads()))


@dataclass(frozen=True)
class Shape:
    """``tables`` tables of ``rows`` rows, with ``bags`` bags of ``length`` ids in each."""

    tables: int
    rows: int
    width: int
    bags: int
    length: int
    ids: str = "uniform"
    bits: int = 8

    def __str__(self) -> str:
        size = f"{self.rows // M}M" if self.rows >= M else f"{self.rows // K}k"
        text = f"int{self.bits} T={self.tables} N={size} D={self.width} B={self.bags}"
        return f"{text} L={self.length} {self.ids}"

    @property
    def row_bytes(self) -> int:
        return self.width * self.bits // 8 + 8

    @property
    def table_bytes(self) -> int:
        return self.tables * self.rows * self.row_bytes


# READINGS are large look-ups, at which peers are compared. SMALL are small batches over many
# tables.
READINGS = (
    Shape(1, 4 * M, 64, 4096, 20),
    Shape(1, 4 * M, 64, 4096, 20, "zipf"),
    Shape(1, 4 * M, 128, 4096, 20),
    Shape(1, 100 * K, 64, 4096, 20),
    Shape(26, 200 * K, 32, 2048, 1),
    Shape(26, 200 * K, 32, 64, 1),
    Shape(1, 4 * M, 30, 4096, 20),
)
SMALL = (
    Shape(26, 200 * K, 32, 1, 1),
    Shape(26, 100 * K, 64, 16, 5),
    Shape(100, 100 * K, 32, 64, 1),
    Shape(100, 100 * K, 64, 8, 20, "zipf"),
)
WIDTHS, LENGTHS, TABLES, ROWS = (
    (16, 30, 32, 64, 128, 256),
    (1, 5, 20, 50),
    (1, 26, 100),
    (100 * K, 4 * M),
)
MOST_BYTES = 3 << 30  # largest size of the packed tables, and of the float tables of a peer
IDS = 80_000  # number of ids per call in the grid


def shapes(quick: bool) -> Iterator[Shape]:
    if quick:
        yield from (replace(s, rows=min(s.rows, M)) for s in READINGS[:6])
        yield from SMALL[:2]
        yield from (Shape(1, rows, 64, 8000, 1) for rows in (100 * K, M))
        yield replace(READINGS[0], rows=M, bits=4)
        return
    for bits in (8, 4):
        yield from (replace(s, bits=bits) for s in (*READINGS, *SMALL))
    yield from grid(os.environ.get("LIRANK_BENCH_GRID") == "full")


def grid(full: bool) -> Iterator[Shape]:
    """The whole grid, or every seventh shape: 7 shares no factor with the axes of the grid."""
    axes = product((8, 4), ("uniform", "zipf"), ROWS, TABLES, LENGTHS, WIDTHS)
    for i, (bits, ids, rows, tables, length, width) in enumerate(axes):
        shape = Shape(tables, rows, width, max(1, IDS // tables // length), length, ids, bits)
        if shape.table_bytes <= MOST_BYTES and (full or i % 7 == 0):
            yield shape


def absent_peers() -> list[str]:
    return [] if importlib.util.find_spec("fbgemm_gpu") else ["fbgemm_gpu (FBGEMM)"]


def draw_ids(shape: Shape, generator: torch.Generator) -> Tensor:
    """The ids of all tables, one table after the other.

    ``zipf`` has the exponent 1.2, and its ranks are scattered over the table.
    """
    count = shape.tables * shape.bags * shape.length
    if shape.ids == "uniform":
        return torch.randint(0, shape.rows, (count,), generator=generator)
    u = torch.rand(count, generator=generator, dtype=torch.float64).clamp(min=1e-12)
    return u.pow(-1 / 0.2).clamp(max=1e15).long() % shape.rows * 2654435761 % shape.rows


class Tables:
    """The same tables in every layout.

    Rows repeat after 50,000, which saves time and does not help any cache.
    """

    def __init__(self, shape: Shape) -> None:
        self.shape, bits = shape, shape.bits
        generator = torch.Generator().manual_seed(shape.width)
        few = torch.randn(min(shape.rows, 50_000), shape.width, generator=generator)
        codes, scale, _ = quantize_rows(few, bits)
        self.half = 2 ** (bits - 1)
        scale = (scale * 256).ceil() / 256
        low = -(torch.randint(64, 256, scale.shape, generator=generator) / 128)
        self.few = codes, scale, low + self.half * scale
        self.low = low

    def all_rows(self, t: Tensor) -> Tensor:
        times = -(-self.shape.rows // len(t))
        return t.repeat(times, *[1] * (t.dim() - 1))[: self.shape.rows]

    def packed(self) -> Tensor:
        return pack_rows(*map(self.all_rows, self.few), self.shape.bits)

    def floats(self) -> Tensor:
        return self.all_rows(dequantize_rows(*self.few))

    def unsigned(self) -> Tensor:
        """Codes from 0 up, with two 4-bit codes per byte, as torch and FBGEMM store them."""
        q = (self.few[0] + self.half).to(torch.uint8) if self.shape.bits == 4 else None
        if q is None:
            return self.few[0].view(torch.uint8) ^ 0x80
        return q[:, 0::2] | (q[:, 1::2] << 4)

    def torch_rows(self) -> Tensor:
        kind = torch.float16 if self.shape.bits == 4 else torch.float32
        pair = torch.stack([self.few[1], self.low], 1).to(kind).view(torch.uint8)
        return self.all_rows(torch.cat([self.unsigned(), pair], 1))

    def fbgemm_rows(self) -> Tensor:
        pair = torch.stack([self.few[1], self.low], 1).half().view(torch.uint8)
        return torch.cat([pair, self.unsigned()], 1)


def workloads(device: str, peers: bool, quick: bool) -> Iterator[Workload]:
    for shape in shapes(quick):
        yield _at(shape, device, peers)


def _at(shape: Shape, device: str, peers: bool) -> Workload:
    tables, generator = Tables(shape), torch.Generator().manual_seed(7)
    ids = draw_ids(shape, generator).to(device)
    bags = shape.tables * shape.bags
    offsets = torch.arange(0, bags * shape.length + 1, shape.length, device=device)
    split = _split(shape, ids)
    floats = _float_tables(shape, tables, device)
    providers: dict[str, Callable] = {"lirank": _ours(shape, tables, ids, offsets, device)}
    if floats is not None:
        providers["fp32 embedding_bag"] = lambda: _side_by_side(
            embedding_bag(i, w, o, mode="sum") for w, (i, o) in zip(floats, split, strict=True)
        )
    if device == "cpu":
        providers |= _torch_rowwise(shape, tables, split)
    if peers and not absent_peers():
        providers["fbgemm"] = _fbgemm(shape, tables, ids, offsets, device)
    few = dequantize_rows(*tables.few).double()
    return Workload(
        "quantized_embedding_bag" if shape.tables == 1 else "quantized_embedding_bags",
        str(shape),
        providers,
        expect=lambda: _side_by_side(
            embedding_bag(i % len(few), few.to(device), o, mode="sum") for i, o in split
        ),
        bytes=len(ids) * (shape.row_bytes + 8) + bags * (4 * shape.width + 8),
        items=len(ids),
        ceiling="gather",
        gather=(shape.row_bytes, shape.table_bytes),
    )


def _side_by_side(parts) -> Tensor:
    parts = list(parts)
    return parts[0] if len(parts) == 1 else torch.cat(parts, 1)


def _split(shape: Shape, ids: Tensor) -> list[tuple[Tensor, Tensor]]:
    """Ids and offsets of each table, for peers that take one table per call."""
    offsets = torch.arange(0, shape.bags * shape.length, shape.length, device=ids.device)
    return [(part, offsets) for part in ids.view(shape.tables, -1)]


def _float_tables(shape: Shape, tables: Tables, device: str) -> list[Tensor] | None:
    if shape.tables * shape.rows * shape.width * 4 > MOST_BYTES:
        return None
    return [tables.floats().to(device) for _ in range(shape.tables)]


def _ours(shape: Shape, tables: Tables, ids: Tensor, offsets: Tensor, device: str) -> Callable:
    if shape.tables == 1:
        packed, starts = tables.packed().to(device), offsets[:-1]
        return lambda: quantized_embedding_bag(packed, ids, starts, shape.width, shape.bits)
    rows, dims = (torch.tensor([n] * shape.tables).to(device) for n in (shape.rows, shape.width))
    packed = concatenate_tables([tables.packed()] * shape.tables).to(device)
    total = shape.tables * shape.width
    return lambda: quantized_embedding_bags(
        packed, rows, dims, ids, offsets, shape.bits, total_dim=total
    )


def _torch_rowwise(shape: Shape, tables: Tables, split: list) -> dict[str, Callable]:
    if shape.bits == 4 and shape.width % 2:
        return {}
    op = torch.ops.quantized
    name, call = "torch byte rowwise", op.embedding_bag_byte_rowwise_offsets
    if shape.bits == 4:
        name, call = "torch 4-bit rowwise", op.embedding_bag_4bit_rowwise_offsets
    rows = [tables.torch_rows() for _ in range(shape.tables)]

    def look_up(rows: list[Tensor]) -> Tensor:
        return _side_by_side(call(w, i, o, mode=0) for w, (i, o) in zip(rows, split, strict=True))

    found = {name: lambda: look_up(rows)}
    if shape.tables == 1:  # shows how much of the difference is due to our huge pages
        moved = tables.torch_rows()
        if use_huge_pages(moved):
            found[f"{name}, huge pages"] = lambda: look_up([moved])
    return found


def _fbgemm(shape: Shape, tables: Tables, ids: Tensor, offsets: Tensor, device: str) -> Callable:
    from fbgemm_gpu.split_embedding_configs import SparseType
    from fbgemm_gpu.split_table_batched_embeddings_ops_common import EmbeddingLocation
    from fbgemm_gpu.split_table_batched_embeddings_ops_inference import (
        IntNBitTableBatchedEmbeddingBagsCodegen,
    )

    kind = SparseType.INT8 if shape.bits == 8 else SparseType.INT4
    place = EmbeddingLocation.HOST if device == "cpu" else EmbeddingLocation.DEVICE
    specs = [(f"t{t}", shape.rows, shape.width, kind, place) for t in range(shape.tables)]
    op = IntNBitTableBatchedEmbeddingBagsCodegen(specs, device=device, output_dtype=SparseType.FP32)
    op.fill_random_weights()
    made = tables.fbgemm_rows()
    for weights, _ in op.split_embedding_weights(split_scale_shifts=False):
        weights[:, : made.shape[1]] = tables.all_rows(made).to(device)
    narrow, starts = ids.int(), offsets.int()  # FBGEMM's preferred types
    return lambda: op(narrow, starts)
