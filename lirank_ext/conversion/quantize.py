"""``lirank_ext.quantize`` converts a model's embedding tables to int8 or int4 rows, in place."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from .._table import plain_table
from ..nn._tagged import tags_in
from ..nn.hashed_embedding import TABLES as HASHED_TABLES
from ..nn.hashed_embedding import HashedEmbeddingBag, QuantizedHashedEmbeddingBag
from ..nn.quantized_embedding import QuantizedEmbedding, QuantizedEmbeddingBag
from ..nn.reference_hashed_embedding import ReferenceHashedEmbeddingBag
from ..ops.quantized_embedding_rows import dequantize_rows, unpack_rows
from .surgery import Found, Leave, exchange, find, refuse_hooks, type_name

TWINS = {
    nn.Embedding: QuantizedEmbedding,
    nn.EmbeddingBag: QuantizedEmbeddingBag,
    HashedEmbeddingBag: QuantizedHashedEmbeddingBag,
    ReferenceHashedEmbeddingBag: QuantizedHashedEmbeddingBag,
}
# Rows to compare at a time. At width 64 they take 16 MB of float32.
CHUNK = 65_536


@dataclass(frozen=True)
class QuantizeRow:
    """One table that ``quantize`` replaced or left.

    Attributes:
        paths: paths of the table's parameter. There are several if modules or parameters are
            shared.
        source: type of the module that holds the table.
        target: type of the module after the call, or None if the table was left.
        rows, dim: shape of the table.
        bytes_before, bytes_after: size of the table. They are equal if the table was left.
        max_error: largest difference between a value and its dequantized value.
        worst_row: the row of that value.
        reason: why the table was left, otherwise empty.
    """

    paths: tuple[str, ...]
    source: str
    target: str | None
    rows: int
    dim: int
    bytes_before: int
    bytes_after: int
    max_error: float = 0.0
    worst_row: int = 0
    reason: str = ""

    @property
    def path(self) -> str:
        return self.paths[0]


@dataclass(frozen=True)
class QuantizeReport:
    """The result of ``quantize``, which prints as a table."""

    rows: tuple[QuantizeRow, ...]
    bits: int

    @property
    def replaced(self) -> tuple[QuantizeRow, ...]:
        """The rows of what was quantized."""
        return tuple(row for row in self.rows if row.target is not None)

    @property
    def left(self) -> tuple[QuantizeRow, ...]:
        """The rows of what was left, each with its reason."""
        return tuple(row for row in self.rows if row.target is None)

    @property
    def bytes_before(self) -> int:
        """Size of all embedding tables before, including those that were left."""
        return sum(row.bytes_before for row in self.rows)

    @property
    def bytes_after(self) -> int:
        """Size of all embedding tables after, including those that were left."""
        return sum(row.bytes_after for row in self.rows)

    @property
    def max_error(self) -> float:
        """The largest error of a value in any table."""
        return max((row.max_error for row in self.rows), default=0.0)

    def __str__(self) -> str:
        title = f"quantize: {len(self.replaced)} to int{self.bits}, {len(self.left)} left"
        if not self.rows:
            return title
        saved = 1 - self.bytes_after / max(1, self.bytes_before)
        title += f"; {self.bytes_before:,} to {self.bytes_after:,} bytes (-{saved:.1%})"
        columns = ("table", "was", "now", ">rows", ">width", ">bytes before", ">after", ">error")
        return plain_table(title, (*columns, "note"), [_cells(r) for r in self.rows]).rstrip()


def _cells(row: QuantizeRow) -> tuple[str, ...]:
    numbers = (row.rows, row.dim, row.bytes_before, row.bytes_after)
    error = f"{row.max_error:.2e}" if row.target else ""
    names = (", ".join(row.paths), row.source, row.target or "left")
    return (*names, *(f"{n:,}" for n in numbers), error, row.reason)


def quantize(model: nn.Module, bits: int = 8) -> QuantizeReport:
    """Replace every embedding table of a model by its quantized twin, in place, for serving.

    ``nn.Embedding``, ``nn.EmbeddingBag`` and ``HashedEmbeddingBag`` (or its eager reference) become
    ``QuantizedEmbedding``, ``QuantizedEmbeddingBag`` and ``QuantizedHashedEmbeddingBag``. Each row
    is stored as ``bits``-bit codes with its own scale and middle. The results have the dtype of the
    table, and follow later conversions of the model such as ``model.bfloat16()``. Quantized tables
    have no gradient. A table on the meta device gets a twin there, so that a state dict of a
    quantized model can be loaded without float tables.

    A module at several paths is replaced once, at all of them. A parameter that several tables
    share is stored once. The following are left unchanged, and the report says why: tables with
    ``max_norm`` (it changes rows when they are read) or with weights that are tied to a module that
    stays, float64 tables, tables with rows that are not finite, subclasses, modules with hooks, and
    the model itself. Code that reads ``module.weight`` gets the dequantized table.

    Args:
        model: any module.
        bits: 8 or 4.

    Returns:
        The report, with ``rows``, ``replaced``, ``left``, ``bytes_before``, ``bytes_after`` and
        ``max_error``. ``print(report)`` shows it as a table.

    Raises:
        TypeError: ``model`` is not a module.
        ValueError: ``bits`` is neither 8 nor 4.

    Examples:
        >>> model = torch.nn.Sequential(torch.nn.EmbeddingBag(1000, 64), torch.nn.Linear(64, 1))
        >>> report = lirank_ext.quantize(model, bits=8)
        >>> f"{report.bytes_before:,} bytes became {report.bytes_after:,}"
        '256,000 bytes became 72,000'
        >>> type(model[0]).__name__
        'QuantizedEmbeddingBag'
    """
    if not isinstance(model, nn.Module):
        raise TypeError(f"quantize: model: wanted a torch.nn.Module, got {type(model).__name__}")
    if bits not in (8, 4):
        raise ValueError(f"quantize: bits: wanted 8 or 4, got {bits!r}")
    modules = find(model)
    tables = [found for found in modules if isinstance(found.module, tuple(TWINS))]
    new: dict[nn.Module, nn.Module] = {}
    reasons: dict[nn.Module, str] = {}
    for found in tables:
        try:
            new[found.module] = _quantized(found.module, found.module is model, bits)
        except Leave as reason:
            reasons[found.module] = str(reason)
    users = _users(modules)
    _leave_tied(new, reasons, users)
    rows = _report(tables, new, reasons, users, bits)
    exchange(model, new)
    return QuantizeReport(tuple(rows), bits)


def quantize_like(model: nn.Module, state_dict: Mapping[str, Any]) -> bool:
    """Quantize the tables that are quantized in a state dict, so that the model can load it.

    Args:
        model: with float tables, on the meta device for the sake of memory.
        state_dict: of a model that :func:`quantize` converted.

    Returns:
        Whether there was a quantized table.

    Raises:
        RuntimeError: the model has no table where the state dict has one.
    """
    new: dict[nn.Module, nn.Module] = {}
    for path, tag in tags_in(state_dict).items():
        if "bits" not in tag:
            continue
        try:
            module = model.get_submodule(path)
        except AttributeError as error:
            raise RuntimeError(f"quantize: the model has no table '{path}'") from error
        if type(module) not in TWINS:
            text = f"quantize: '{path}': wanted an embedding table, got {type_name(module)}"
            raise RuntimeError(text)
        new[module] = TWINS[type(module)].from_float(module, tag["bits"]).train(module.training)
    exchange(model, new)
    return bool(new)


def table_names(module: nn.Module) -> tuple[str, ...]:
    """Names of the parameters that are tables."""
    return ("weight",) if isinstance(module, (nn.Embedding, nn.EmbeddingBag)) else HASHED_TABLES


def _buffer(made: nn.Module, name: str) -> str:
    """Name of the packed table in the quantized twin."""
    return name if isinstance(made, QuantizedHashedEmbeddingBag) else "packed"


def _quantized(module: nn.Module, is_model: bool, bits: int) -> nn.Module:
    twin = TWINS.get(type(module))
    if twin is None:
        base = next(kind for kind in type(module).__mro__ if kind in TWINS)
        raise Leave(f"a subclass of {type_name(base)}, whose forward may differ")
    if is_model:
        raise Leave(f"it is the model itself: use {twin.__name__}.from_float")
    refuse_hooks(module)
    if getattr(module, "max_norm", None) is not None:
        raise Leave("max_norm changes rows when they are read")
    dtypes = {getattr(module, name).dtype for name in table_names(module)}
    if not dtypes <= {torch.float32, torch.float16, torch.bfloat16}:
        kinds = ", ".join(sorted(str(dtype).removeprefix("torch.") for dtype in dtypes))
        raise Leave(f"its rows are {kinds}: wanted float32, float16 or bfloat16")
    try:
        return twin.from_float(module, bits).train(module.training)
    except ValueError as error:  # a row that is not finite
        raise Leave(str(error)) from error


def _users(modules: Iterable[Found]) -> dict[Tensor, list[tuple[nn.Module, tuple[str, ...]]]]:
    """The modules that hold each parameter, and the parameter's paths in them."""
    users: dict[Tensor, list[tuple[nn.Module, tuple[str, ...]]]] = {}
    for found in modules:
        for name, parameter in found.module._parameters.items():
            if parameter is not None:
                paths = tuple(f"{path}.{name}".lstrip(".") for path in found.paths)
                users.setdefault(parameter, []).append((found.module, paths))
    return users


def _leave_tied(
    new: dict[nn.Module, nn.Module],
    reasons: dict[nn.Module, str],
    users: dict[Tensor, list[tuple[nn.Module, tuple[str, ...]]]],
) -> None:
    """Leave tables that a module which stays also uses, and store shared tables once."""
    left = -1
    while left != len(reasons):  # a module that is left may tie another
        left = len(reasons)
        for module in list(new):
            for name in table_names(module):
                for user, paths in users[getattr(module, name)]:
                    if user not in new:
                        reasons[module] = f"its {name} is also {paths[0]}, which stays"
        for module in reasons:
            new.pop(module, None)
    stored: dict[Tensor, Tensor] = {}
    for module, made in new.items():
        for name in table_names(module):
            buffer = _buffer(made, name)
            packed = stored.setdefault(getattr(module, name), getattr(made, buffer))
            setattr(made, buffer, packed)


def _report(
    tables: Iterable[Found],
    new: dict[nn.Module, nn.Module],
    reasons: dict[nn.Module, str],
    users: dict[Tensor, list[tuple[nn.Module, tuple[str, ...]]]],
    bits: int,
) -> list[QuantizeRow]:
    rows, seen = [], set()
    for found in tables:
        for name in table_names(found.module):
            weight = getattr(found.module, name)
            if weight in seen:
                continue
            seen.add(weight)
            holders = users.get(weight, [(found.module, (f"{found.paths[0]}.{name}",))])
            paths = tuple(path for holder, some in holders for path in some)
            about = (paths, type_name(found.module))
            size = (*weight.shape, weight.nbytes)
            made = new.get(found.module)
            if made is None:
                reason = reasons[found.module]
                rows.append(QuantizeRow(*about, None, *size, weight.nbytes, reason=reason))
            else:
                packed = getattr(made, _buffer(made, name))
                error = _largest_error(weight, packed, bits)
                rows.append(QuantizeRow(*about, type_name(made), *size, packed.nbytes, *error))
    return rows


def _largest_error(weight: Tensor, packed: Tensor, bits: int) -> tuple[float, int]:
    """The largest difference to the dequantized table, and its row."""
    if weight.is_meta:
        return float("nan"), 0  # nothing to measure
    # The whole table is unpacked, because the place of a row's scale depends on the number of rows.
    codes, scale, mid = unpack_rows(packed, weight.shape[1], bits)
    worst, row = 0.0, 0
    for start in range(0, len(weight), CHUNK):
        part = slice(start, start + CHUNK)
        values = dequantize_rows(codes[part], scale[part], mid[part])
        errors = (weight.detach()[part] - values).abs().amax(1)
        if float(errors.max()) > worst:
            worst, row = float(errors.max()), start + int(errors.argmax())
    return worst, row
