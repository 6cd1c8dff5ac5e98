"""Random calls of every public op: sizes, layouts, dtypes and bags that nobody thought of."""

from __future__ import annotations

import random
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor

from ..library.op import OPS

FLOATS = (torch.float32, torch.float32, torch.float64, torch.bfloat16, torch.float16)
EDGES = (-(1 << 63), -(1 << 31), -1, 0, 1, (1 << 31) - 1, 1 << 32, (1 << 63) - 1)
Arguments = dict[str, Any]


class Draw:
    """Random numbers, sizes and tensors; the same for the same seed."""

    def __init__(self, seed: int) -> None:
        self.random = random.Random(seed)
        self.generator = torch.Generator().manual_seed(seed)

    def one(self, *choices: Any) -> Any:
        return self.random.choice(choices)

    def chance(self, share: float) -> bool:
        return self.random.random() < share

    def size(self) -> int:
        """Of a batch: often 0 or 1."""
        return self.one(0, 1, self.random.randint(2, 17), self.random.randint(2, 70))

    def width(self) -> int:
        """Of a row: around the lanes of a register, odd, or wide."""
        near = self.one(1, 2, 3, 7, 8, 9, 15, 16, 17, 31, 32, 33, 64, 65, 127, 128, 130, 257)
        return self.one(near, self.random.randint(1, 70))

    def bits(self) -> int:
        return self.one(4, 8)

    def floats(self, *shape: int, dtype: torch.dtype = torch.float32, scale: float = 1.0) -> Tensor:
        """Normal numbers of some magnitude; at times constant or of many magnitudes."""
        x = torch.randn(shape, generator=self.generator, dtype=torch.float64) * scale
        kind = self.random.random()
        if kind < 0.05:
            x = torch.full_like(x, self.one(0.0, -0.0, 1.0, -2.5))
        elif kind < 0.1:
            x = x * 10.0 ** self.random.uniform(-4, 2)
        return self.laid_out(x.to(dtype))

    def laid_out(self, x: Tensor) -> Tensor:
        """The same values in another place: shifted, with gaps, or column after column."""
        kind = self.random.random()
        if x.dim() == 0 or kind < 0.6:
            return x
        if kind < 0.7:
            store = x.new_empty(x.numel() + 3)
            return store[3:].view(x.shape).copy_(x)
        if kind < 0.8:
            store = x.new_empty((*x.shape[:-1], 2 * x.shape[-1] + 1))
            return store[..., 1::2].copy_(x)
        if kind < 0.9 and x.dim() == 2:
            return x.t().contiguous().t()
        return x.flip(0).contiguous().flip(0)

    def ids(self, count: int, rows: int | None) -> Tensor:
        """Rows of a table; or, without a table, any 64-bit numbers."""
        if rows is None:
            whole = torch.randint(-(1 << 62), 1 << 62, (count,), generator=self.generator)
            if count and self.chance(0.3):
                whole[self.random.randrange(count)] = self.one(*EDGES)
            return self.laid_out(whole)
        made = torch.randint(0, max(rows, 1), (count,), generator=self.generator)
        if count and self.chance(0.05):
            made[self.random.randrange(count)] = self.one(-1, rows, rows + 1, (1 << 31) - 1)
        return self.laid_out(made.to(self.one(torch.int32, torch.int64)))

    def bags(self, name: str, rows: int | None, dtype: torch.dtype) -> Arguments:
        """Ids with or without offsets, and perhaps a mode or weights."""
        if self.chance(0.2):
            count, each = self.size(), self.one(0, 1, 3, 5)
            ids = self.ids(count * each, rows).reshape(count, each)
            call = {name: ids, "offsets": None}
        else:
            count, bags, last = self.size() * self.one(1, 1, 4), self.size(), self.chance(0.5)
            bounds = sorted(self.random.randint(0, count) for _ in range(bags))
            bounds = [0, *bounds] if last else [0, *bounds][:bags]
            if bounds and self.chance(0.05):
                bounds[self.random.randrange(len(bounds))] = self.one(-1, 1, count + 1, 1 << 30)
            offsets = torch.tensor(bounds, dtype=self.one(torch.int32, torch.int64))
            call = {name: self.ids(count, rows), "offsets": self.laid_out(offsets)}
            call["include_last_offset"] = last
        if self.chance(0.3):
            call["per_sample_weights"] = self.floats(*call[name].shape, dtype=dtype)
        else:
            call["mode"] = self.one("sum", "mean")
        return call

    def packed(self, rows: int, dim: int, bits: int) -> Tensor:
        codes, scale, mid = OPS["quantize_rows"].reference(self.finite(rows, dim), bits)
        return OPS["pack_rows"].reference(codes, scale, mid, bits)

    def finite(self, rows: int, dim: int) -> Tensor:
        return torch.randn(rows, dim, generator=self.generator) * 10.0 ** self.random.randint(-3, 3)


def _layer(draw: Draw, kernels: Sequence[str]) -> Arguments:
    batch, dim, rank, dtype = draw.size(), draw.width(), draw.width(), draw.one(*FLOATS)
    x0 = draw.floats(batch, dim, dtype=dtype)
    x = x0 if draw.chance(0.3) else draw.floats(batch, dim, dtype=dtype)
    onto = {name: draw.floats(rank, dim, dtype=dtype, scale=dim**-0.5) for name in kernels}
    u = draw.floats(dim, rank, dtype=dtype, scale=rank**-0.5)
    bias = draw.floats(dim, dtype=dtype) if draw.chance(0.7) else None
    return {"x0": x0, "x": x, **onto, "u": u, "bias": bias}


def _attention_options(draw: Draw, rank: int) -> Arguments:
    token = draw.one(1, 1, *(n for n in range(1, rank + 1) if rank % n == 0))
    return {"temperature": draw.one(1.0, 0.5, 3.0), "token_dim": token}


def low_rank_cross(draw: Draw) -> Arguments:
    return _layer(draw, ("v",))


def attention_cross(draw: Draw) -> Arguments:
    call = _layer(draw, ("q", "k", "v"))
    return {**call, **_attention_options(draw, call["q"].shape[0]), "skip": draw.chance(0.5)}


def outer_attention(draw: Draw) -> Arguments:
    batch, rank, dtype = draw.size(), draw.width(), draw.one(*FLOATS)
    call = {name: draw.floats(batch, rank, dtype=dtype) for name in "qkv"}
    return {**call, **_attention_options(draw, rank)}


def isotonic_calibration(draw: Draw) -> Arguments:
    dtype, buckets = draw.one(*FLOATS[:3]), draw.one(1, 2, 40, draw.width())
    size = (draw.size(),) if draw.chance(0.8) else (draw.size(), 3)
    # Between the knots: on one, float32 and float64 may rightly pick different sides.
    place = torch.randint(-2, buckets + 2, size, generator=draw.generator)
    share = torch.rand(size, generator=draw.generator, dtype=torch.float64)
    lower, step = draw.one(-4.0, 0.0, 3.0), draw.one(0.25, 0.5, 2.0)
    logits = (lower + (place + 0.1 + 0.8 * share) * step).to(dtype)
    call = {
        "logits": draw.laid_out(logits),
        "weight": draw.floats(buckets, dtype=dtype),
        "bias": draw.floats(*draw.one((), (1,)), dtype=dtype),
        "lower": lower,
        "step": step,
    }
    if draw.chance(0.4):
        call["embedding"] = draw.floats(*size, buckets, dtype=dtype)
    return call


def quantize_rows(draw: Draw) -> Arguments:
    dtype = draw.one(torch.float32, torch.float32, torch.float16, torch.bfloat16)
    return {"weight": draw.floats(draw.size(), draw.width(), dtype=dtype), "bits": draw.bits()}


def _quantized(draw: Draw, bits: int) -> tuple[Tensor, Tensor, Tensor]:
    return OPS["quantize_rows"].reference(draw.finite(draw.size(), draw.width()), bits)


def dequantize_rows(draw: Draw) -> Arguments:
    codes, scale, mid = _quantized(draw, draw.bits())
    return {
        "codes": draw.laid_out(codes),
        "scale": draw.laid_out(scale),
        "mid": draw.laid_out(mid),
    }


def pack_rows(draw: Draw) -> Arguments:
    bits = draw.bits()
    codes, scale, mid = _quantized(draw, bits)
    return {"codes": draw.laid_out(codes), "scale": scale, "mid": mid, "bits": bits}


def unpack_rows(draw: Draw) -> Arguments:
    dim, bits = draw.width(), draw.bits()
    return {"packed": draw.packed(draw.size(), dim, bits), "dim": dim, "bits": bits}


def quantized_embedding_bag(draw: Draw) -> Arguments:
    rows, dim, bits = draw.size(), draw.width(), draw.bits()
    table = {"packed": draw.packed(rows, dim, bits), "dim": dim, "bits": bits}
    return {**table, **draw.bags("indices", rows, draw.one(torch.float32, torch.float16))}


def quantized_embedding_bags(draw: Draw) -> Arguments:
    count, bags, bits = draw.one(1, 2, 5), draw.size(), draw.bits()
    dims = [draw.width() for _ in range(count)]
    rows = [draw.size() for _ in range(count)]
    packed = [draw.packed(n, d, bits).reshape(-1) for n, d in zip(rows, dims, strict=True)]
    lengths = [[draw.one(0, 1, 3) if n else 0 for _ in range(bags)] for n in rows]
    indices = [draw.ids(sum(each), n).long() for each, n in zip(lengths, rows, strict=True)]
    flat = torch.tensor([0, *(n for each in lengths for n in each)])
    return {
        "packed": torch.cat(packed),
        "rows": torch.tensor(rows),
        "dims": torch.tensor(dims),
        "indices": torch.cat(indices),
        "offsets": flat.cumsum(0),
        "bits": bits,
        "mode": draw.one("sum", "mean"),
        "total_dim": sum(dims),  # or the fake kernel cannot know the width
    }


def murmur_hash(draw: Draw) -> Arguments:
    ids = draw.ids(draw.size(), None)
    ids = ids.int() if draw.chance(0.2) else ids
    return {"ids": ids, "seed": draw.one(0, 1, (1 << 32) - 1)}


def hash_strings(draw: Draw) -> Arguments:
    lengths = [draw.one(0, 1, 7, 8, 15, 16, 17, 40) for _ in range(draw.size())]
    total = sum(lengths)
    data = torch.randint(0, 256, (total,), generator=draw.generator, dtype=torch.uint8)
    return {"bytes": draw.laid_out(data), "offsets": torch.tensor([0, *lengths]).cumsum(0)}


def _rule(draw: Draw) -> tuple[int, int]:
    return draw.one((1, 1), (7, 3), (100, 10), (1000, 7), (255, 256))


def _heights(buckets: int, remainders: int) -> tuple[int, int, int, int]:
    return (-(-buckets // remainders), remainders) * 2


TABLES = ("quotient_b", "remainder_b", "quotient_c", "remainder_c")


def _hashed_options(draw: Draw, dtype: torch.dtype) -> Arguments:
    call = draw.bags("ids", None, dtype)
    call |= {"seed": draw.one(0, 5), "prehashed": draw.chance(0.3)}
    if not call["prehashed"] and draw.chance(0.2):
        call["ids"] = call["ids"].int()
    return call


def hashed_embedding_bag(draw: Draw) -> Arguments:
    rule, dim, dtype = _rule(draw), draw.width(), draw.one(*FLOATS)
    tables = [draw.floats(n, dim, dtype=dtype) for n in _heights(*rule)]
    call = dict(zip(TABLES, tables, strict=True), num_buckets=rule[0])
    return call | _hashed_options(draw, dtype)


def quantized_hashed_embedding_bag(draw: Draw) -> Arguments:
    rule, dim, bits = _rule(draw), draw.width(), draw.bits()
    tables = [draw.packed(n, dim, bits) for n in _heights(*rule)]
    call = dict(zip(TABLES, tables, strict=True), num_buckets=rule[0], dim=dim, bits=bits)
    return call | _hashed_options(draw, torch.float32)


def vocabulary_lookup(draw: Draw) -> Arguments:
    from ..nn.static_vocabulary import StaticVocabulary

    keys = torch.randperm(300, generator=draw.generator)[: draw.size()]
    table = StaticVocabulary.build(keys, draw.one(0, 8, 13)).table
    if draw.chance(0.3):  # damaged: refused, or read without leaving the table
        at = draw.random.randrange(table.shape[0])
        table[at] = table[at] ^ (1 << draw.random.randrange(8))
    return {"keys": draw.laid_out(torch.arange(-5, draw.size() * 5)), "table": table, "oov": -1}


GENERATORS: dict[str, Callable[[Draw], Arguments]] = {
    function.__name__: function
    for function in (
        attention_cross,
        dequantize_rows,
        hash_strings,
        hashed_embedding_bag,
        isotonic_calibration,
        low_rank_cross,
        murmur_hash,
        outer_attention,
        pack_rows,
        quantize_rows,
        quantized_embedding_bag,
        quantized_embedding_bags,
        quantized_hashed_embedding_bag,
        unpack_rows,
        vocabulary_lookup,
    )
}


# Without the right total_dim the fake kernel cannot know the width.
UNSPOILED = ("total_dim",)


def spoiled(draw: Draw, call: Arguments) -> Arguments:
    """The call with one argument of another dtype, size or magnitude."""
    name = draw.one(*(n for n in call if n not in UNSPOILED))
    value = call[name]
    if isinstance(value, Tensor):
        kind = draw.one("dtype", "shorter", "dimension", "extreme")
        if kind == "dtype":
            types = (torch.int32, torch.int64, torch.float32, torch.float64, torch.uint8)
            value = value.nan_to_num(0.0).to(draw.one(*types))
        elif kind == "shorter" and value.dim():
            value = value[1:] if draw.chance(0.5) else value[..., 1:]
        elif kind == "dimension":
            value = value.unsqueeze(0)
        elif value.is_floating_point() and value.numel():
            value = value.clone(memory_format=torch.contiguous_format)
            extremes = (float("nan"), float("inf"), -float("inf"), 3e38, 1e-45)
            value.view(-1)[draw.random.randrange(value.numel())] = draw.one(*extremes)
    elif isinstance(value, bool) or value is None:
        return call
    elif isinstance(value, int):
        value = draw.one(-1, 0, 1, 3, (1 << 31), (1 << 63) - 1)
    elif isinstance(value, float):
        value = draw.one(0.0, -1.0, 1e-45, 1e30, float("nan"), float("inf"))
    return call | {name: value}


def random_call(op: str, seed: int) -> Arguments:
    """Arguments by name, the same for the same seed. One call in seven has a spoiled argument."""
    draw = Draw(seed)
    call = GENERATORS[op](draw)
    return spoiled(draw, call) if draw.chance(1 / 7) else call
