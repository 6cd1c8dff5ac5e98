"""One small module for each op, for the table of what works with what (``verify/matrix.py``)."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from ..library.op import OPS, Op
from ..ops.decompositions import decompositions
from ..ops.hashed_embedding_rule import TABLES
from ..ops.quantized_embedding import concatenate_tables
from ..ops.quantized_embedding_rows import pack_rows, quantize_rows

DIM, RANK, IDS_PER_BAG = 12, 3, 3


class Sample(nn.Module):
    """A call of one op with weights of its own, on inputs of any number of rows.

    Args:
        name: of the op.
        weights: float tensors, which become parameters; other tensors become buffers.
        call: ``call(op, weights, inputs, dtype)``; ``dtype`` is the float dtype of the sample.
        inputs: a function from a number of rows and a generator to the inputs.
    """

    def __init__(
        self,
        name: str,
        weights: dict[str, Tensor],
        call: Callable[[Callable, dict[str, Tensor], Sequence[Tensor], torch.dtype], Any],
        inputs: Callable[[int, torch.Generator], Sequence[Tensor]],
    ) -> None:
        super().__init__()
        self.name, self._call, self._inputs = name, call, inputs
        self.names = tuple(weights)
        self.dtype, self.by_reference = torch.float32, False
        for key, t in weights.items():
            if t.is_floating_point():
                self.register_parameter(key, nn.Parameter(t))
            else:
                self.register_buffer(key, t)

    def forward(self, *inputs: Tensor) -> tuple[Tensor, ...]:
        op = OPS[self.name]
        function = _reference(op) if self.by_reference else op.overload
        held = {key: getattr(self, key) for key in self.names}
        found = self._call(function, held, inputs, self.dtype)
        return (found,) if isinstance(found, Tensor) else tuple(found)

    def inputs(self, rows: int, seed: int = 0) -> tuple[Tensor, ...]:
        made = self._inputs(rows, torch.Generator().manual_seed(1000 * seed + rows))
        return tuple(t.to(self.dtype) if t.is_floating_point() else t for t in made)

    def in_dtype(self, dtype: torch.dtype) -> Sample:
        self.dtype = dtype
        return self.to(dtype)


def _reference(op: Op) -> Callable[..., Any]:
    """That of a net reads learned temperatures as numbers, which have no derivative."""
    return decompositions()[op.overload] if op.name == "residual_cross_net" else op.reference


def samples() -> dict[str, Sample]:
    """A sample of every op that users call, and of the one behind ``nn.ResidualCrossNet``."""
    state = torch.random.get_rng_state()
    torch.manual_seed(0)
    try:
        made = [*_layers(), *_rows(), *_bags(), *_ids()]
    finally:
        torch.random.set_rng_state(state)
    return {sample.name: sample for sample in made}


def _layers() -> list[Sample]:
    low = {"v": torch.randn(RANK, DIM), "u": torch.randn(DIM, RANK), "bias": torch.randn(DIM)}
    high = {key: torch.randn(RANK, DIM) for key in "qkv"} | {"u": low["u"], "bias": low["bias"]}
    net = {f"low_{key}": t.clone() for key, t in low.items()}
    net |= {f"high_{key}": t.clone() for key, t in high.items()}
    net |= {"log": torch.zeros(1)}  # learned temperatures have an axis; the op takes numbers
    calibration = {"weight": torch.rand(16) + 0.5, "bias": torch.zeros(1)}

    def stacks(f: Callable, w: dict, x: Sequence[Tensor], dtype: torch.dtype) -> Tensor:
        parts = [[t for key, t in w.items() if key.startswith(kind)] for kind in ("low", "high")]
        return f(x[0], *parts, 1.0, [w["log"].reshape(())])

    return [
        Sample("low_rank_cross", low, lambda f, w, x, _: f(*x, *w.values()), _floats(2)),
        Sample("outer_attention", {}, lambda f, w, x, _: f(*x), _floats(3)),
        Sample("attention_cross", high, lambda f, w, x, _: f(*x, *w.values()), _floats(2)),
        Sample("residual_cross_net", net, stacks, _floats(1)),
        Sample(
            "isotonic_calibration",
            calibration,
            lambda f, w, x, _: f(x[0][:, 0], *w.values(), -4.0, 0.5),
            _floats(1),
        ),
    ]


def _floats(count: int) -> Callable[[int, torch.Generator], list[Tensor]]:
    return lambda rows, g: [torch.randn(rows, DIM, generator=g) for _ in range(count)]


def _rows() -> list[Sample]:
    def codes(rows: int, g: torch.Generator) -> tuple[Tensor, ...]:
        return quantize_rows(torch.randn(rows, DIM, generator=g))

    return [
        Sample("quantize_rows", {}, lambda f, w, x, _: f(*x), _floats(1)),
        Sample("dequantize_rows", {}, lambda f, w, x, _: f(*x), codes),
        Sample("pack_rows", {}, lambda f, w, x, _: f(*x), codes),
        Sample(
            "unpack_rows",
            {},
            lambda f, w, x, _: f(*x, DIM),
            lambda rows, g: (pack_rows(*codes(rows, g)),),
        ),
    ]


def _bags() -> list[Sample]:
    def ids(rows: int, g: torch.Generator) -> tuple[Tensor, ...]:
        """Ids below 50, where the bags begin, and a weight for each id."""
        count = IDS_PER_BAG * rows
        drawn = torch.randint(0, 50, (count,), generator=g)
        return drawn, torch.arange(rows) * IDS_PER_BAG, torch.rand(count, generator=g)

    def of_two_tables(rows: int, g: torch.Generator) -> tuple[Tensor, ...]:
        one, other = ids(rows, g), ids(rows, g)
        offsets = torch.arange(2 * rows + 1) * IDS_PER_BAG
        return torch.cat([one[0], other[0]]), offsets, torch.cat([one[2], other[2]])

    def hashed(f: Callable, w: dict, x: Sequence[Tensor], dtype: torch.dtype) -> Tensor:
        return f(x[0], x[1], *w.values(), 1000, 0, "sum", x[2])

    def packed_hashed(f: Callable, w: dict, x: Sequence[Tensor], dtype: torch.dtype) -> Tensor:
        options = (1000, DIM, 8, 0, "sum", x[2], False, False, dtype)
        return f(x[0], x[1], *w.values(), *options)

    def packed(f: Callable, w: dict, x: Sequence[Tensor], dtype: torch.dtype) -> Tensor:
        return f(w["packed"], x[0], x[1], DIM, 8, "sum", x[2], False, dtype)

    def several(f: Callable, w: dict, x: Sequence[Tensor], dtype: torch.dtype) -> Tensor:
        return f(*w.values(), x[0], x[1], 8, "sum", x[2], dtype, 2 * DIM)

    tables = {t: torch.randn(100 if "quotient" in t else 10, DIM) for t in TABLES}
    bytes_of = {t: pack_rows(*quantize_rows(table)) for t, table in tables.items()}
    table = pack_rows(*quantize_rows(torch.randn(50, DIM)))
    two = {
        "packed": concatenate_tables([table, table]),
        "rows": torch.tensor([50, 50]),
        "dims": torch.tensor([DIM, DIM]),
    }
    return [
        Sample("quantized_embedding_bag", {"packed": table}, packed, ids),
        Sample("quantized_embedding_bags", two, several, of_two_tables),
        Sample("hashed_embedding_bag", tables, hashed, ids),
        Sample("quantized_hashed_embedding_bag", bytes_of, packed_hashed, ids),
    ]


def _ids() -> list[Sample]:
    from ..nn import StaticVocabulary

    def drawn(rows: int, g: torch.Generator) -> tuple[Tensor]:
        return (torch.randint(0, 100, (rows,), generator=g),)

    def text(rows: int, g: torch.Generator) -> tuple[Tensor, Tensor]:
        letters = torch.randint(97, 123, (rows * 3,), generator=g, dtype=torch.uint8)
        return letters, torch.arange(rows + 1) * 3

    known = StaticVocabulary.build(torch.arange(0, 100, 7)).table
    return [
        Sample("murmur_hash", {}, lambda f, w, x, _: f(x[0]), drawn),
        Sample("hash_strings", {}, lambda f, w, x, _: f(*x), text),
        Sample("vocabulary_lookup", {"t": known}, lambda f, w, x, _: f(x[0], w["t"]), drawn),
    ]
