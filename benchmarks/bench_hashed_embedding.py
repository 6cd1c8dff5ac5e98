"""Benchmarks of the hashed embedding: forward over float and packed tables, and backward.

"rows given" is the floor of the gathers: ``F.embedding_bag`` on each table, with row numbers that
were computed beforehand. "eager" hashes, splits, gathers four rows and pools in PyTorch, and
"compile" is ``torch.compile`` of it. "embedding_bag" computes the rows, pools each table by
``F.embedding_bag`` and adds the four results.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator

import torch
from torch import Tensor
from torch.nn.functional import embedding_bag

from .. import hashed_embedding_bag, pack_rows, quantize_rows, quantized_hashed_embedding_bag
from ..ops.hashed_embedding_rule import rows_of
from ..ops.hashing import murmur
from .harness import Workload

REMAINDERS = 1000
# (buckets, width, bags, ids per bag): tables larger and smaller than the cache, one id and many
SHAPES = (
    (1 << 32, 64, 4096, 20),
    (1 << 32, 30, 4096, 20),
    (1 << 32, 64, 4096, 1),
    (1 << 32, 128, 64, 20),
    (1_000_000, 64, 4096, 20),
    (1_000_000, 16, 512, 1),
)
QUICK = ((100_000_000, 64, 1024, 20), (1_000_000, 16, 512, 1))


def workloads(device: str, peers: bool, quick: bool) -> Iterator[Workload]:
    """Every shape forward, packed, and as gradients."""
    for buckets, dim, bags, length in QUICK if quick else SHAPES:
        generator = torch.Generator().manual_seed(0)
        ids = torch.randint(-(1 << 63), (1 << 63) - 1, (bags * length,), generator=generator)
        offsets = torch.arange(0, bags * length, length)
        rows = (-(-buckets // REMAINDERS), REMAINDERS) * 2
        tables = [torch.randn(n, dim, generator=generator).to(device) for n in rows]
        label = f"{rows[0]} quotients, D={dim}, {bags} bags of {length}"
        inputs = (ids.to(device), offsets.to(device), tables, buckets)
        yield _forward(label, *inputs)
        yield _packed(label, *inputs)
        yield _backward(label, *inputs)
        del tables, inputs  # frees the memory before the next tables are made


def _eager(ids: Tensor, tables: list[Tensor], buckets: int, bags: int) -> Tensor:
    """Hash, split, gather four rows, add them and pool. All bags have the same length."""
    rows = rows_of(ids, buckets, REMAINDERS, 0, False)
    each = sum(t[row] for t, row in zip(tables, rows, strict=True))
    return each.view(bags, -1, each.shape[1]).sum(1)


def _bagged(
    ids: Tensor, offsets: Tensor, tables: list[Tensor], buckets: int, train: bool = False
) -> Tensor:
    """Four pooled look-ups. For training, the quotient tables have sparse gradients."""
    hashes, parts = murmur(ids, 0), []
    for half, pair in ((hashes & 0xFFFFFFFF, tables[:2]), (hashes >> 32 & 0xFFFFFFFF, tables[2:])):
        bucket = half % buckets
        rows = (bucket // REMAINDERS, bucket % REMAINDERS)
        parts += [
            embedding_bag(row, t, offsets, mode="sum", sparse=train and t is pair[0])
            for row, t in zip(rows, pair, strict=True)
        ]
    return sum(parts)


def _given(rows: tuple[Tensor, ...], offsets: Tensor, tables: list[Tensor]) -> Tensor:
    pairs = zip(rows, tables, strict=True)
    return sum(embedding_bag(row, t, offsets, mode="sum") for row, t in pairs)


def _wide(ids: Tensor, offsets: Tensor, tables: list[Tensor], buckets: int) -> Tensor:
    """The result in float64. Only the rows in use are widened, because the tables take GBs."""
    rows = rows_of(ids, buckets, REMAINDERS, 0, False)
    each = sum(t[row].double() for t, row in zip(tables, rows, strict=True))
    return each.view(len(offsets), -1, each.shape[1]).sum(1)


def _forward(label: str, ids: Tensor, offsets: Tensor, tables: list[Tensor], n: int) -> Workload:
    compiled = torch.compile(_eager, fullgraph=True, dynamic=False)
    rows = rows_of(ids, n, REMAINDERS, 0, False)
    bags, dim = len(offsets), tables[0].shape[1]
    return Workload(
        "hashed_embedding_bag",
        label,
        {
            "lirank": lambda: hashed_embedding_bag(ids, offsets, *tables, n),
            "rows given": lambda: _given(rows, offsets, tables),
            "eager": lambda: _eager(ids, tables, n, bags),
            "compile": lambda: compiled(ids, tables, n, bags),
            "embedding_bag": lambda: _bagged(ids, offsets, tables, n),
        },
        expect=lambda: _wide(ids, offsets, tables, n),
        # Only the two quotient rows of each id come from memory. Remainder rows are in the cache.
        bytes=8 * len(ids) + 2 * len(ids) * dim * 4 + bags * dim * 4,
        items=len(ids),
        unit="id",
        ceiling="gather",
        gather=(dim * 4, 2 * tables[0].numel() * 4),
    )


def _packed(label: str, ids: Tensor, offsets: Tensor, tables: list[Tensor], n: int) -> Workload:
    packed = [pack_rows(*quantize_rows(t)) for t in tables]
    dim, bags = tables[0].shape[1], len(offsets)
    return Workload(
        "quantized_hashed_embedding_bag",
        f"{label}, int8",
        {
            "lirank": lambda: quantized_hashed_embedding_bag(ids, offsets, *packed, n, dim),
            "float tables": lambda: hashed_embedding_bag(ids, offsets, *tables, n),
        },
        expect=lambda: _wide(ids, offsets, tables, n),
        tolerance=0.02,  # quantization error: each code is off by up to half of 1/255 of the range
        bytes=8 * len(ids) + 2 * len(ids) * packed[0].shape[1] + bags * dim * 4,
        items=len(ids),
        unit="id",
        ceiling="gather",
        gather=(packed[0].shape[1], 2 * packed[0].numel()),
    )


def _backward(label: str, ids: Tensor, offsets: Tensor, tables: list[Tensor], n: int) -> Workload:
    """Sparse quotient gradients and dense remainder gradients, compared by their values."""
    leaves = [t.detach().requires_grad_() for t in tables]
    dim, bags = tables[0].shape[1], len(offsets)
    grad = torch.randn(bags, dim, generator=torch.Generator().manual_seed(1)).to(tables[0].device)
    outs = {
        "lirank": hashed_embedding_bag(ids, offsets, *leaves, n, sparse=True),
        "embedding_bag": _bagged(ids, offsets, leaves, n, train=True),
    }

    def gradients(out: Tensor) -> list[Tensor]:
        return list(torch.autograd.grad(out, leaves, grad, retain_graph=True))

    def values(name: str) -> Callable[[], list[Tensor]]:
        return lambda: _values(gradients(outs[name]))

    return Workload(
        "hashed_embedding_bag",
        f"{label}, sparse gradients",
        {name: values(name) for name in outs},
        expect=lambda: _wide_gradients(ids, offsets, tables, n, grad),
        tolerance=1e-4,
        bytes=4 * len(ids) * dim * 4 + 2 * len(ids) * dim * 4,
        items=len(ids),
        unit="id",
        direction="backward",
    )


def _values(gradients: list[Tensor]) -> list[Tensor]:
    """The gradients as dense tensors. A sparse one gives its row numbers and its coalesced values.

    Our sparse gradients are coalesced already.
    """
    found = []
    for g in gradients:
        if g.is_sparse:
            g = g.coalesce()  # does nothing if it is coalesced already
            found += [g.indices()[0], g.values()]
        else:
            found.append(g)
    return found


def _wide_gradients(
    ids: Tensor, offsets: Tensor, tables: list[Tensor], n: int, grad: Tensor
) -> list[Tensor]:
    each = grad.double().repeat_interleave(len(ids) // len(offsets), 0)
    found: list[Tensor] = []
    for place, rows in enumerate(rows_of(ids, n, REMAINDERS, 0, False)):
        if place % 2:
            zeros = each.new_zeros(REMAINDERS, each.shape[1])
            found.append(zeros.index_add(0, rows, each))
        else:
            unique, at = torch.unique(rows, return_inverse=True)
            zeros = each.new_zeros(len(unique), each.shape[1])
            found += [unique, zeros.index_add(0, at, each)]
    return found
