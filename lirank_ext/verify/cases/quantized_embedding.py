"""Inputs for quantizing, packing and looking up rows."""

from __future__ import annotations

import torch

from ...ops import _quantized_reference as ref
from . import Case


def table(generator, rows, dim, bits, scale=1.0):
    """A packed table of random rows, made by the reference."""
    weight = torch.randn(rows, dim, generator=generator) * scale
    return ref.pack_rows(*ref.quantize_rows(weight, bits), bits)


def bags(generator, bags, most, rows, dtype=torch.int64, include_last=False):
    """Random ids in bags of 0 to ``most``, and their offsets."""
    lengths = torch.randint(0, most + 1, (bags,), generator=generator)
    offsets = torch.cat([torch.zeros(1).long(), lengths.cumsum(0)])
    ids = torch.randint(0, rows, (int(offsets[-1]),), generator=generator)
    return ids.to(dtype), (offsets if include_last else offsets[:-1]).to(dtype)


def _row_cases(generator) -> list[Case]:
    found = []
    for bits in (8, 4):
        for shape in [(9, 16), (1, 1), (5, 30), (0, 8), (33, 131), (3, 64)]:
            w = torch.randn(shape, generator=generator)
            label = f"{shape}, {bits} bits"
            found.append(Case("quantize_rows", label, (w, bits), exact=True))
            codes, scale, mid = ref.quantize_rows(w, bits)
            found.append(Case("dequantize_rows", label, (codes, scale, mid), (1, 2)))
            found.append(Case("pack_rows", label, (codes, scale, mid, bits), exact=True))
            packed = ref.pack_rows(codes, scale, mid, bits)
            found.append(Case("unpack_rows", label, (packed, shape[1], bits), exact=True))
        w = torch.randn(6, 40, generator=generator)
        special = [
            ("constant rows", torch.full((3, 7), -2.5)),
            ("halfway codes", torch.arange(-128, 128).float().repeat(2, 1) / 2),
            ("tiny range", w * 1e-42),
            ("large values", w * 1e29),
            ("strided", w.t()),
            ("bfloat16", w.bfloat16()),
            ("float16", w.half()),
        ]
        for label, weight in special:
            label = f"{label}, {bits} bits"
            found.append(Case("quantize_rows", label, (weight, bits), exact=True))
    w = w.clone()  # the case "strided" shares its storage
    w[3, 5] = torch.nan
    far = torch.tensor([[0.0, 1.0], [-3e38, 3e38]])
    found += [
        Case("quantize_rows", "NaN", (w, 8), raises="got row 3"),
        Case("quantize_rows", "Inf", (far * torch.inf, 8), raises="got row 0"),
        Case("quantize_rows", "range overflows", (far, 8), raises="got row 1"),
        Case("quantize_rows", "width 0", (w[:, :0], 8), raises="'weight'"),
        Case("quantize_rows", "float64", (w.double(), 8), raises="'weight'"),
        Case("quantize_rows", "5 bits", (w, 5), raises="'bits'"),
        Case("dequantize_rows", "short scale", (codes, scale[:1], mid), raises="'scale'"),
        Case("pack_rows", "code of 8 bits in 4", (codes + 9, scale, mid, 4), raises="'codes'"),
        Case("pack_rows", "float codes", (codes.float(), scale, mid, 8), raises="'codes'"),
        Case("unpack_rows", "another width", (packed, 500, 8), raises="'packed'"),
        Case("unpack_rows", "width 0", (packed, 0, 8), raises="'dim'"),
    ]
    return found


def _bag_cases(generator) -> list[Case]:
    op, found = "quantized_embedding_bag", []

    def add(label, *args, **kwargs):
        found.append(Case(op, label, args, **kwargs))

    for dim in (1, 7, 16, 30, 32, 64, 96, 128, 131):
        for bits in (8, 4):
            packed = table(generator, 50, dim, bits)
            ids, offsets = bags(generator, 11, 9, 50, torch.int32 if dim % 2 else torch.int64)
            add(f"dim {dim}, {bits} bits", packed, ids, offsets, dim, bits)
    packed = table(generator, 50, 40, 8)
    ids, offsets = bags(generator, 13, 6, 50, include_last=True)
    weights = torch.randn(len(ids), generator=generator)
    add("weights", packed, ids, offsets, 40, 8, "sum", weights, True, grad=(6,))
    add("mean", packed, ids, offsets, 40, 8, "mean", None, True)
    add("mixed index types", packed, ids.int(), offsets, 40, 8, "sum", None, True)
    add("mixed index types 2", packed, ids, offsets.int(), 40, 8, "sum", None, True)
    strided = torch.stack([ids, ids], 1)[:, 0]
    add("strided ids", packed, strided, offsets, 40, 8, "sum", None, True)
    for dtype in (torch.float16, torch.bfloat16):
        add(str(dtype), packed, ids, offsets, 40, 8, "sum", None, True, dtype)
    add("plain look-up", packed, ids, None, 40)
    add("bags of 3", packed, ids[: len(ids) // 3 * 3].view(-1, 3), None, 40, 8, "mean")
    none = torch.empty(0, dtype=torch.int64)
    add("bags of 0", packed, none.view(4, 0), None, 40)
    add("no bags", packed, none, none, 40)
    add("empty bags only", packed, none, torch.zeros(5).long(), 40)
    add("one bag", packed, ids, torch.zeros(1).long(), 40)
    add("ids behind the last bag", packed, ids, torch.tensor([0, 2]), 40, 8, "sum", None, True)
    long = torch.randint(0, 50, (30_000,), generator=generator)
    starts = torch.arange(0, 30_000, 10)
    add("several tasks", packed, long, starts, 40, tolerance=256.0, big=True)
    bad = ids.clone()
    bad[4] = 50
    low = ids.clone().int()  # one bad index: on a GPU the first found is any of them
    low[2] = -1
    refused = [
        ("index too high", (packed, bad, offsets, 40, 8, "sum", None, True), "indices[4] = 50 is"),
        ("index negative", (packed, low, offsets, 40, 8, "sum", None, True), "indices[2] = -1 is"),
        ("offsets from 1", (packed, ids, offsets + 1, 40), "'offsets'"),
        ("offsets fall", (packed, ids, torch.tensor([0, 5, 3]), 40), "'offsets'"),
        ("offsets too far", (packed, ids, torch.tensor([0, 999]), 40), "'offsets'"),
        ("float ids", (packed, ids.float(), offsets, 40), "'indices'"),
        ("another dim", (packed, ids, offsets, 64), "'packed'"),
        ("dim 0", (packed, ids, offsets, 0), "'dim'"),
        ("negative dim", (packed, ids, offsets, -3), "'dim'"),
        ("mode max", (packed, ids, offsets, 40, 8, "max"), "'mode'"),
        ("weighted mean", (packed, ids, offsets, 40, 8, "mean", weights), "'per_sample_weights'"),
        ("few weights", (packed, ids, offsets, 40, 8, "sum", weights[:2]), "'per_sample_weights'"),
        ("float table", (packed.float(), ids, offsets, 40), "'packed'"),
        ("integer result", (packed, ids, offsets, 40, 8, "sum", None, True, torch.int32), "output"),
    ]
    return found + [Case(op, label, args, raises=text) for label, args, text in refused]


def _tables_cases(generator) -> list[Case]:
    op, found = "quantized_embedding_bags", []
    for bits, dims in ((8, (16, 64, 30)), (4, (7, 128)), (8, (32,))):
        rows = [20 + 13 * t for t in range(len(dims))]
        tables = [table(generator, n, d, bits) for n, d in zip(rows, dims, strict=True)]
        parts = [bags(generator, 6, 5, n, include_last=True) for n in rows]
        ids = torch.cat([p[0] for p in parts])
        start, offsets = 0, [torch.zeros(1).long()]
        for part_ids, part_offsets in parts:
            offsets.append(part_offsets[1:] + start)
            start += len(part_ids)
        tight = torch.cat([t.reshape(-1) for t in tables])
        flat = [torch.nn.functional.pad(t.reshape(-1), (0, -t.numel() % 64)) for t in tables]
        call = [torch.tensor(rows), torch.tensor(dims), ids, torch.cat(offsets), bits]
        width = sum(dims)
        label = f"dims {dims}, {bits} bits"
        rest = ("sum", None, torch.float32, width)
        found.append(Case(op, label, (torch.cat(flat), *call, *rest)))
        found.append(Case(op, f"{label}, tight", (tight, *call, *rest)))
        weights = torch.randn(len(ids), generator=generator)
        weighted = (tight, *call, "sum", weights, torch.float32, width)
        found.append(Case(op, f"{label}, weights", weighted, grad=(7,)))
        found.append(
            Case(op, f"{label}, mean", (tight, *call, "mean", None, torch.bfloat16, width))
        )
        empty = [torch.tensor(rows), torch.tensor(dims), ids[:0], torch.zeros(1).long(), bits]
        found.append(Case(op, f"{label}, B = 0", (tight, *empty, *rest)))
    high = call[2].clone()
    high[1] = 99
    found += [
        Case(op, "index too high", (tight, *call[:2], high, *call[3:]), raises="indices[1] = 99"),
        Case(op, "short table", (tight[:-1], *call), raises="'packed'"),
        Case(op, "wrong total", (tight, *call, "sum", None, torch.float32, 5), raises="total_dim"),
        Case(op, "width 0", (tight, call[0], call[1] * 0, *call[2:]), raises="'dim'"),
        Case(op, "no tables", (tight, call[0][:0], call[1][:0], *call[2:]), raises="'dims'"),
    ]
    return found


def cases(generator: torch.Generator) -> list[Case]:
    return _row_cases(generator) + _bag_cases(generator) + _tables_cases(generator)
