"""``lirank_ext.swap`` replaces modules by faster equivalents, in place."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import replace
from typing import Any, Protocol, TypeVar, cast, overload

import torch
from torch import nn
from torch.nn.utils import parametrize

from .example import Call, differ, difference, linear_layers, low_rank, offers, record, run
from .sources import CANDIDATE, FOREIGN, NOTES, TWINS, known_base, name_of
from .surgery import Found, Leave, exchange, find, refuse_hooks, type_name
from .swap_report import SwapReport, SwapRow

Convert = Callable[[nn.Module], nn.Module]
M = TypeVar("M", bound=nn.Module)

# Values of a parameter that are looked up in the replacement.
SAMPLE = 1000

_registered: dict[type[nn.Module], Convert] = {}


def register(
    source_type: type[nn.Module], convert: Convert | None = None
) -> Convert | Callable[[Convert], Convert]:
    """Add a type to ``swap``, by ``swap.register(MyCross, convert)`` or as a decorator::

        @lirank_ext.swap.register(MyCross)
        def convert(module):
            made = lirank_ext.nn.LowRankCross(module.dim, module.rank)
            made.v, made.u, made.bias = module.down, module.up, module.bias
            return made

    Pass on the parameter objects where shapes match, so that an existing optimizer keeps working.
    ``convert`` must not change the module it is given. It may ``raise swap.Leave("why")``.
    Registering a type again replaces its function. Subclasses are not included.

    Args:
        source_type: the module type to replace.
        convert: a function from a module of that type to its replacement.

    Returns:
        ``convert``, or the decorator.

    Raises:
        TypeError: ``source_type`` is not a module type, or ``convert`` is not callable.
    """
    if not (isinstance(source_type, type) and issubclass(source_type, nn.Module)):
        raise TypeError(
            f"swap.register: source_type: wanted a subclass of nn.Module, got {source_type!r}"
        )
    if convert is None:

        def decorate(function: Convert) -> Convert:
            register(source_type, function)
            return function

        return decorate
    if not callable(convert):
        raise TypeError(f"swap.register: convert: wanted a function, got {convert!r}")
    _registered[source_type] = convert
    return convert


class Swap(Protocol):
    """The function :func:`swap` with what belongs to it."""

    register: Register
    low_rank: Callable[..., nn.Module]
    Leave: type[Leave]

    def __call__(
        self, model: nn.Module, dry_run: bool = False, example: Any = None
    ) -> SwapReport: ...


class Register(Protocol):
    """The function :func:`register`, called with a converter or as a decorator."""

    @overload
    def __call__(self, source_type: type[M], convert: Callable[[M], nn.Module]) -> object: ...

    @overload
    def __call__(
        self, source_type: type[M]
    ) -> Callable[[Callable[[M], nn.Module]], Callable[[M], nn.Module]]: ...


def _with_register(function: Callable[..., SwapReport]) -> Swap:
    """The function itself, of a type that knows its attributes."""
    whole = cast(Swap, function)
    whole.register = cast(Register, register)
    whole.low_rank = low_rank
    whole.Leave = Leave
    return whole


@_with_register
def swap(model: nn.Module, dry_run: bool = False, example: Any = None) -> SwapReport:
    """Replace every module of a model that has a faster equivalent here, in place.

    - This package's ``Reference*`` modules: the object stays and only its class changes, so
      parameters, hooks and other references to it keep working. This works for the model itself
      too.
    - TorchRec ``LowRankCrossNet``, ``LowRankMixtureCrossNet`` and ``CrossNet``, FuxiCTR
      ``CrossNetMix`` and ``CrossNetV2``, DeepCTR-Torch ``CrossNetMix`` and
      ``CrossNet(parameterization="matrix")``, Torch-RecHub ``CrossNetMix``, TorchEasyRec
      ``CrossV2``: they become a module of ``lirank_ext.nn`` that holds the same parameters under
      the same names and in the same order, so checkpoints and saved optimizer states still fit.
      ``CrossNetMix`` drops the batch axis of a single row, its replacement does not.
    - Your own types, once you call ``swap.register(source_type, convert)``.

    With ``example``, every module is compared before and after on what reaches it, and whatever
    differs by more than rounding stays as it was. Layers of two ``nn.Linear`` that compute a
    low-rank cross layer on it are named in the report, with the call that replaces them.

    Outputs agree up to float32 rounding. Optimizers keep working, because the parameters are the
    same objects. Training mode, ``requires_grad``, device and dtype do not change. A module at
    several paths is replaced once, at all of them. Subclasses of a known type are left, because
    their forward may differ. Modules with hooks are left too, because a new object would lose them.

    Args:
        model: any module.
        dry_run: report what would be replaced, but change nothing. The ``convert`` functions do
            run.
        example: an input of the model, or the tuple of its inputs. The model runs on it in
            evaluation mode.

    Returns:
        The report, with ``rows``, ``replaced`` and ``left``. ``print(report)`` shows it as a table.

    Raises:
        TypeError: ``model`` is not a module, or a ``convert`` did not return a module.
        RuntimeError: a ``convert`` failed. The message names the module. The model is unchanged.

    Examples:
        >>> from lirank_ext.nn.reference_cross import ReferenceResidualCrossNet
        >>> model = torch.nn.Sequential(ReferenceResidualCrossNet(64, 16), torch.nn.Linear(64, 1))
        >>> lirank_ext.swap(model).replaced[0].target
        'ResidualCrossNet'
    """
    if not isinstance(model, nn.Module):
        raise TypeError(f"swap: model: wanted a torch.nn.Module, got {type(model).__name__}")
    rows: list[SwapRow] = []
    new: dict[nn.Module, nn.Module] = {}
    classes: dict[nn.Module, type[nn.Module]] = {}
    gone: set[nn.Module] = set()
    for found in find(model):
        if found.module not in gone:
            row = _plan(found, model, new, classes)
            if row is not None:
                rows.append(row)
            if found.module in new:
                gone.update(found.module.modules())
    before = None
    if example is not None:
        before, rows = _compared(model, example, rows, new, classes)
    if not dry_run:
        were = {module: type(module) for module in classes}
        _apply(model, new, classes)
        differs = "" if before is None else _whole(model, example, before)
        if differs:
            _apply(model, {made: module for module, made in new.items()}, were)
            reason = f"on the example the whole model then gives {differs}"
            rows = [replace(r, target=None, reason=reason) if r.target else r for r in rows]
    return SwapReport(tuple(rows), dry_run)


def _apply(
    model: nn.Module,
    new: Mapping[nn.Module, nn.Module],
    classes: Mapping[nn.Module, type[nn.Module]],
) -> None:
    for module, kind in classes.items():
        module.__class__ = kind
    exchange(model, new)


def _whole(model: nn.Module, example: Any, before: Any) -> str:
    try:
        return differ(run(model, example), before)
    except Exception as error:
        return f"{type(error).__name__}: {error}"


def _compared(
    model: nn.Module,
    example: Any,
    rows: list[SwapRow],
    new: dict[nn.Module, nn.Module],
    classes: dict[nn.Module, type[nn.Module]],
) -> tuple[Any, list[SwapRow]]:
    """The output on the example, and the rows; ``new`` and ``classes`` lose what differs."""
    found = {item.module: item.paths for item in find(model)}
    by_path = {paths: module for module, paths in found.items()}
    others = [m for m in found if m is not model and linear_layers(m)]
    output, calls = record(model, example, [*new, *classes, *others])
    compared = []
    for row in rows:
        module = by_path[row.paths]
        if row.target is not None:
            row = _judged(row, module, calls.get(module), new, classes)
        compared.append(row)
    planned = {inner for module in (*new, *classes) for inner in module.modules()}
    listed = {path for row in rows for path in row.paths}
    known = {m: calls[m] for m in others if m in calls and m not in planned}
    for module, reason in offers(known).items():
        if not listed & set(found[module]):
            compared.append(SwapRow(found[module], type_name(module), None, reason))
    return output, compared


def _judged(
    row: SwapRow,
    module: nn.Module,
    call: Call | None,
    new: dict[nn.Module, nn.Module],
    classes: dict[nn.Module, type[nn.Module]],
) -> SwapRow:
    if call is None:
        note = "not compared: the example does not reach it"
        return replace(row, reason=f"{row.reason}; {note}" if row.reason else note)
    if module in new:
        differs = difference(new[module], call)
    else:
        was, module.__class__ = type(module), classes[module]
        try:
            differs = difference(module, call)
        finally:
            module.__class__ = was
    if not differs:
        return row
    new.pop(module, None)
    classes.pop(module, None)
    return replace(row, target=None, reason=f"on the example it gives {differs}")


def use_references(model: nn.Module) -> nn.Module:
    """Undo :func:`swap` for this package's modules, so that the eager PyTorch layers run again.

    Args:
        model: the model to change in place. Its parameters stay the same objects.

    Returns:
        The model.
    """
    references = {fast: reference for reference, fast in TWINS.items()}
    for module in model.modules():
        module.__class__ = references.get(type(module), type(module))
    return model


def _plan(
    found: Found,
    model: nn.Module,
    new: dict[nn.Module, nn.Module],
    classes: dict[nn.Module, type[nn.Module]],
) -> SwapRow | None:
    """Decide what to do with one module. The result is None if it is not a candidate."""
    module, source = found.module, type_name(found.module)
    convert = _registered.get(type(module))
    kind = TWINS.get(type(module)) if convert is None else None
    if kind is not None:
        classes[module] = kind
        return SwapRow(found.paths, source, kind.__name__)
    try:
        convert = convert or FOREIGN.get(name_of(module))
        if convert is None:
            _leave_candidate(module, is_model=module is model)
            return None
        if module is model:
            raise Leave("it is the model itself, which swap cannot replace: wrap it in a module")
        refuse_hooks(module)
        if any(map(parametrize.is_parametrized, module.modules())):
            raise Leave("it has parametrizations, which would be lost: remove them first")
        made = _converted(module, convert, found.paths[0])
        _refuse_dropped(module, made)
        _refuse_unknown_to_data_parallel(model, found.paths, module, made)
    except Leave as reason:
        return SwapRow(found.paths, source, None, str(reason))
    new[module] = made
    kept = set(map(id, made.parameters()))
    same = all(id(p) in kept for p in module.parameters())
    notes = [NOTES.get(name_of(module), "")]
    if not same:
        notes = ["it has new parameters: pass them to the optimizer again"]
    if getattr(module, "_compiled_call_impl", None) is not None:
        notes.append("it was compiled by its compile(), the replacement is not: call compile()")
    note = "; ".join(filter(None, notes))
    return SwapRow(found.paths, source, type_name(made), note)


def _converted(module: nn.Module, convert: Convert, path: str) -> nn.Module:
    where = f"swap: '{path}' ({type_name(module)})"
    try:
        made = convert(module)
    except Leave:
        raise
    except Exception as error:
        raise RuntimeError(
            f"{where}: convert failed, the model is unchanged: {type(error).__name__}: {error}"
        ) from error
    if not isinstance(made, nn.Module):
        raise TypeError(
            f"{where}: convert: wanted a torch.nn.Module, got {type(made).__name__}; "
            "the model is unchanged"
        )
    return _settled(module, made)


def _settled(source: nn.Module, made: nn.Module) -> nn.Module:
    """Give a new module the mode, device, dtype and frozen state of its source."""
    if source in set(made.modules()):
        raise Leave("its convert returned the module itself, or a module that contains it")
    made.train(source.training)
    held = {id(p) for p in source.parameters()}
    example = next((p for p in source.parameters() if p.is_floating_point()), None)
    if example is None:
        return made
    frozen = not any(p.requires_grad for p in source.parameters())
    for p in made.parameters():
        if id(p) not in held and p.is_floating_point():
            p.data = p.data.to(example.device, example.dtype)
            p.requires_grad_(p.requires_grad and not frozen)
    for b in made.buffers():
        b.data = b.data.to(example.device)
    return made


def _refuse_dropped(module: nn.Module, made: nn.Module) -> None:
    """Leave a module whose weights do not go into its replacement, whatever their order there."""
    held = {id(p) for p in made.parameters()}
    kept = [t.detach().flatten() for t in (*made.parameters(), *made.buffers()) if not t.is_meta]
    for name, p in module.named_parameters():
        if id(p) in held or p.is_meta or not bool(p.any()):
            continue
        some = p.detach().flatten()
        some = some[:: max(1, len(some) // SAMPLE)]
        if not any(bool(torch.isin(some.to(t.dtype), t).all()) for t in kept):
            raise Leave(f"its convert drops the values of '{name}'")


def _refuse_unknown_to_data_parallel(
    model: nn.Module, paths: tuple[str, ...], module: nn.Module, made: nn.Module
) -> None:
    held = {id(p) for p in module.parameters()}
    if all(id(p) in held for p in made.parameters()):
        return
    outer = [m for path, m in model.named_modules() if _holds(path, paths)]
    if any(isinstance(m, nn.parallel.DistributedDataParallel) for m in outer):
        raise Leave(
            "its replacement has new parameters, which DistributedDataParallel would not "
            "synchronize: swap the model before it is wrapped"
        )


def _holds(path: str, paths: tuple[str, ...]) -> bool:
    """Whether the module at a path holds the one at these paths."""
    return not path or any(f"{p}.".startswith(f"{path}.") for p in paths)


def _leave_candidate(module: nn.Module, is_model: bool) -> None:
    """Raise ``Leave`` with the reason if a module looks like a candidate, otherwise do nothing."""
    base = known_base(module, tuple(_registered))
    if base is not None:
        raise Leave(f"a subclass of {type_name(base)}, whose forward may differ: use swap.register")
    kind = type(module)
    other = kind.__module__.split(".")[0] not in ("torch", "lirank_ext") and not is_model
    if other and CANDIDATE.search(kind.__qualname__):
        raise Leave("swap does not know this type: add it with swap.register(type, convert)")
