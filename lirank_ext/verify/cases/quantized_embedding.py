"""Inputs for quantizing, packing and looking up rows."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from ...ops.quantized_embedding import concatenate_tables
from ...ops.quantized_embedding_rows import pack_rows, quantize_rows
from . import Case, cases_of

_quantize, _pack = quantize_rows.op.reference, pack_rows.op.reference


def table(generator, rows, dim, bits, scale=1.0):
    """A packed table of random rows, made by the reference."""
    weight = torch.randn(rows, dim, generator=generator) * scale
    return _pack(*_quantize(weight, bits), bits)


def bags(generator, bags, most, rows, dtype=torch.int64, include_last=False):
    """Random ids in bags of 0 to ``most``, and their offsets."""
    lengths = torch.randint(0, most + 1, (bags,), generator=generator)
    offsets = torch.cat([torch.zeros(1).long(), lengths.cumsum(0)])
    ids = torch.randint(0, rows, (int(offsets[-1]),), generator=generator)
    return ids.to(dtype), (offsets if include_last else offsets[:-1]).to(dtype)


def _row_cases(generator) -> list[Case]:
    quantize, dequantize = cases_of("quantize_rows"), cases_of("dequantize_rows")
    pack, unpack = cases_of("pack_rows"), cases_of("unpack_rows")
    made = []
    for bits in (8, 4):
        for shape in [(9, 16), (1, 1), (5, 30), (0, 8), (33, 131), (3, 64)]:
            w = torch.randn(shape, generator=generator)
            label = f"{shape}, {bits} bits"
            made.append(quantize(label, weight=w, bits=bits, exact=True))
            codes, scale, mid = _quantize(w, bits)
            rows = {"codes": codes, "scale": scale, "mid": mid}
            made.append(dequantize(label, **rows, grad=("scale", "mid")))
            made.append(pack(label, **rows, bits=bits, exact=True))
            packed = _pack(codes, scale, mid, bits)
            made.append(unpack(label, packed=packed, dim=shape[1], bits=bits, exact=True))
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
            made.append(quantize(f"{label}, {bits} bits", weight=weight, bits=bits, exact=True))
    w = w.clone()  # the case "strided" shares its storage
    w[3, 5] = torch.nan
    far = torch.tensor([[0.0, 1.0], [-3e38, 3e38]])
    made += [
        quantize("NaN", weight=w, bits=8, raises="got row 3"),
        quantize("Inf", weight=far * torch.inf, bits=8, raises="got row 0"),
        quantize("range overflows", weight=far, bits=8, raises="got row 1"),
        quantize("constant beyond", weight=far[1:, 1:], bits=8, raises="got row 0"),
        quantize("width 0", weight=w[:, :0], bits=8, raises="'weight'"),
        quantize("float64", weight=w.double(), bits=8, raises="'weight'"),
        quantize("5 bits", weight=w, bits=5, raises="'bits'"),
        dequantize("short scale", **rows | {"scale": scale[:1]}, raises="'scale'"),
        pack("code of 8 bits in 4", **rows | {"codes": codes + 9}, bits=4, raises="'codes'"),
        pack("float codes", **rows | {"codes": codes.float()}, bits=8, raises="'codes'"),
        unpack("another width", packed=packed, dim=500, bits=8, raises="'packed'"),
        unpack("width 0", packed=packed, dim=0, bits=8, raises="'dim'"),
    ]
    return made


def _bag_cases(generator) -> list[Case]:
    make, made = cases_of("quantized_embedding_bag"), []

    def add(label, **args):
        made.append(make(label, **args))

    for dim in (1, 7, 16, 30, 32, 64, 96, 128, 131):
        for bits in (8, 4):
            packed = table(generator, 50, dim, bits)
            ids, offsets = bags(generator, 11, 9, 50, torch.int32 if dim % 2 else torch.int64)
            label = f"dim {dim}, {bits} bits"
            add(label, packed=packed, indices=ids, offsets=offsets, dim=dim, bits=bits)
    in_table: dict[str, Any] = {"packed": table(generator, 50, 40, 8), "dim": 40}
    ids, offsets = bags(generator, 13, 6, 50, include_last=True)
    weights = torch.randn(len(ids), generator=generator)
    good = {**in_table, "indices": ids, "offsets": offsets, "include_last_offset": True}
    add("weights", **good, per_sample_weights=weights, grad=("per_sample_weights",))
    add("mean", **good, mode="mean")
    add("mixed index types", **good | {"indices": ids.int()})
    add("mixed index types 2", **good | {"offsets": offsets.int()})
    add("strided ids", **good | {"indices": torch.stack([ids, ids], 1)[:, 0]})
    for dtype in (torch.float16, torch.bfloat16):
        add(str(dtype), **good, output_dtype=dtype)
    add("plain look-up", **in_table, indices=ids, offsets=None)
    threes = ids[: len(ids) // 3 * 3].view(-1, 3)
    add("bags of 3", **in_table, indices=threes, offsets=None, mode="mean")
    none = torch.empty(0, dtype=torch.int64)
    add("bags of 0", **in_table, indices=none.view(4, 0), offsets=None)
    add("no bags", **in_table, indices=none, offsets=none)
    add("empty bags only", **in_table, indices=none, offsets=torch.zeros(5).long())
    add("one bag", **in_table, indices=ids, offsets=torch.zeros(1).long())
    add("ids behind the last bag", **good | {"offsets": torch.tensor([0, 2])})
    long = torch.randint(0, 50, (30_000,), generator=generator)
    large = {"indices": long, "offsets": torch.arange(0, 30_000, 10)}
    add("several tasks", **in_table, **large, tolerance=256.0, big=True)
    return made + _bag_refused(good, weights)


def _bag_refused(good: dict[str, Any], weights: Tensor) -> list[Case]:
    make, made = cases_of("quantized_embedding_bag"), []
    packed, ids, offsets = (good[name] for name in ("packed", "indices", "offsets"))
    without_last = {"include_last_offset": False}

    def refuse(label: str, text: str, **change: Any) -> None:
        made.append(make(label, **good | change, raises=text))

    bad = ids.clone()
    bad[4] = 50
    low = ids.clone().int()  # one bad index: on a GPU the first found is any of them
    low[2] = -1
    refuse("index too high", "indices[4] = 50 is", indices=bad)
    refuse("index negative", "indices[2] = -1 is", indices=low)
    refuse("offsets from 1", "'offsets'", offsets=offsets + 1, **without_last)
    refuse("offsets fall", "'offsets'", offsets=torch.tensor([0, 5, 3]), **without_last)
    refuse("offsets too far", "'offsets'", offsets=torch.tensor([0, 999]), **without_last)
    refuse("float ids", "'indices'", indices=ids.float(), **without_last)
    refuse("another dim", "'packed'", dim=64, **without_last)
    refuse("dim 0", "'dim'", dim=0, **without_last)
    refuse("negative dim", "'dim'", dim=-3, **without_last)
    refuse("mode max", "'mode'", mode="max", **without_last)
    weighted_mean = {"mode": "mean", "per_sample_weights": weights}
    refuse("weighted mean", "'per_sample_weights'", **weighted_mean, **without_last)
    few = weights[:2]
    refuse("few weights", "'per_sample_weights'", per_sample_weights=few, **without_last)
    refuse("float table", "'packed'", packed=packed.float(), **without_last)
    refuse("integer result", "output", output_dtype=torch.int32)
    return made


def _tables_cases(generator) -> list[Case]:
    make, made = cases_of("quantized_embedding_bags"), []
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
        good = {"rows": torch.tensor(rows), "dims": torch.tensor(dims), "bits": bits}
        good |= {"packed": tight, "indices": ids, "offsets": torch.cat(offsets)}
        label, known = f"dims {dims}, {bits} bits", good | {"total_dim": sum(dims)}
        made.append(make(label, **known | {"packed": concatenate_tables(tables)}))
        made.append(make(f"{label}, tight", **known))
        weighted = known | {"per_sample_weights": torch.randn(len(ids), generator=generator)}
        made.append(make(f"{label}, weights", **weighted, grad=("per_sample_weights",)))
        made.append(make(f"{label}, mean", **known, mode="mean", output_dtype=torch.bfloat16))
        empty = {"indices": ids[:0], "offsets": torch.zeros(1).long()}
        made.append(make(f"{label}, B = 0", **known | empty))
    high = ids.clone()
    high[1] = 99
    none = {"rows": good["rows"][:0], "dims": good["dims"][:0]}
    made += [
        make("index too high", **good | {"indices": high}, raises="indices[1] = 99"),
        make("short table", **good | {"packed": tight[:-1]}, raises="'packed'"),
        make("wrong total", **good, total_dim=5, raises="total_dim"),
        make("rows of two dimensions", **good | {"rows": good["rows"][None]}, raises="'rows'"),
        make("dims of two dimensions", **good | {"dims": good["dims"][None]}, raises="'dims'"),
        make("width 0", **good | {"dims": good["dims"] * 0}, raises="'dim'"),
        make("no tables", **good | none, raises="'dims'"),
    ]
    return made


def cases(generator: torch.Generator) -> list[Case]:
    return _row_cases(generator) + _bag_cases(generator) + _tables_cases(generator)
