"""``lirank_ext.swap`` replaces modules by faster equivalents, in place."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from torch import nn

from .._table import plain_table
from .sources import CANDIDATE, FOREIGN, NOTES, TWINS, known_base, name_of
from .surgery import Found, Leave, exchange, find, refuse_hooks, type_name

Convert = Callable[[nn.Module], nn.Module]

_registered: dict[type[nn.Module], Convert] = {}


@dataclass(frozen=True)
class SwapRow:
    """One module that ``swap`` replaced, or a candidate that it left.

    Attributes:
        paths: paths of the module in the model. A shared module has several. The model itself has
            the path "".
        source: type of the module.
        target: type of the module after the call, or None if it was left.
        reason: why the module was left, or a note about the replacement. It may be empty.
    """

    paths: tuple[str, ...]
    source: str
    target: str | None
    reason: str = ""

    @property
    def path(self) -> str:
        return self.paths[0]


@dataclass(frozen=True)
class SwapReport:
    """What ``swap`` did, or would do in a dry run. It prints as a table."""

    rows: tuple[SwapRow, ...]
    dry_run: bool = False

    @property
    def replaced(self) -> tuple[SwapRow, ...]:
        """The rows of what was replaced."""
        return tuple(row for row in self.rows if row.target is not None)

    @property
    def left(self) -> tuple[SwapRow, ...]:
        """The rows of what was left, each with its reason."""
        return tuple(row for row in self.rows if row.target is None)

    def __str__(self) -> str:
        verb = "to be replaced (dry run)" if self.dry_run else "replaced"
        title = f"swap: {len(self.replaced)} {verb}, {len(self.left)} left"
        if not self.rows:
            return title
        cells = [
            (", ".join(p or "(the model)" for p in r.paths), r.source, r.target or "left", r.reason)
            for r in self.rows
        ]
        return plain_table(title, ("module", "was", "now", "note"), cells).rstrip()


def swap(model: nn.Module, dry_run: bool = False) -> SwapReport:
    """Replace every module of a model that has a faster equivalent here, in place.

    - This package's ``Reference*`` modules: the object stays and only its class changes, so
      parameters, hooks and other references to it keep working. This works for the model itself
      too.
    - TorchRec ``LowRankCrossNet``, ``LowRankMixtureCrossNet`` and ``CrossNet``, FuxiCTR
      ``CrossNetMix``, DeepCTR-Torch ``CrossNetMix`` and ``CrossNet(parameterization="matrix")``:
      they become a module of ``lirank_ext.nn`` that holds the same parameters. The keys of the
      state dict change. ``CrossNetMix`` drops the batch axis of a single row, its replacement does
      not.
    - Your own types, once you call ``swap.register(source_type, convert)``.

    Outputs agree up to float32 rounding. Optimizers keep working, because the parameters are the
    same objects. Training mode, ``requires_grad``, device and dtype do not change. A module at
    several paths is replaced once, at all of them. Subclasses of a known type are left, because
    their forward may differ. Modules with hooks are left too, because a new object would lose them.

    Args:
        model: any module.
        dry_run: report what would be replaced, but change nothing. The ``convert`` functions do
            run.

    Returns:
        The report, with ``rows``, ``replaced`` and ``left``. ``print(report)`` shows it as a table.

    Raises:
        TypeError: ``model`` is not a module, or a ``convert`` did not return a module.
        RuntimeError: a ``convert`` failed. The message names the module. The model is unchanged.
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
    if not dry_run:
        for module, kind in classes.items():
            module.__class__ = kind
        exchange(model, new)
    return SwapReport(tuple(rows), dry_run)


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
        return lambda function: register(source_type, function)
    if not callable(convert):
        raise TypeError(f"swap.register: convert: wanted a function, got {convert!r}")
    _registered[source_type] = convert
    return convert


swap.register = register
swap.Leave = Leave


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
        made = _converted(module, convert, found.paths[0])
    except Leave as reason:
        return SwapRow(found.paths, source, None, str(reason))
    new[module] = made
    kept = set(map(id, made.parameters()))
    same = all(id(p) in kept for p in module.parameters())
    note = NOTES.get(name_of(module), "")
    note = note if same else "it has new parameters: pass them to the optimizer again"
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


def _leave_candidate(module: nn.Module, is_model: bool) -> None:
    """Raise ``Leave`` with the reason if a module looks like a candidate, otherwise do nothing."""
    base = known_base(module, tuple(_registered))
    if base is not None:
        raise Leave(f"a subclass of {type_name(base)}, whose forward may differ: use swap.register")
    kind = type(module)
    other = kind.__module__.split(".")[0] not in ("torch", "lirank_ext") and not is_model
    if other and CANDIDATE.search(kind.__qualname__):
        raise Leave("swap does not know this type: add it with swap.register(type, convert)")
