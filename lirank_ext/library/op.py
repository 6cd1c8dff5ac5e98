"""``@op`` makes one annotated function an op's public signature, schema and reference.

The dispatcher is the only switch. CPU tensors go to the C++ kernel, CUDA tensors to the CUDA or
Triton kernel, meta tensors to the fake kernel, and all others to the reference. If no library is
built, all tensors go to the reference. No other code chooses a backend at call time.

::

    @op
    def scale(x: Tensor, by: float = 1.0) -> Tensor:
        \"\"\"Docstring for users.\"\"\"
        return x * by

    @scale.check                      # runs before the reference, fake kernel and Triton launcher
    def _(a): check_floating(a, "x")

    @scale.fake                       # returns the result without data
    def _(a): return torch.empty_like(a.x)

    @scale.backward(saves=())         # returns the gradient of each argument, by name
    def _(a, grad): return {"x": grad * a.by}

``a`` is the call: a named tuple of the op's arguments that has the name of the op. Defaults are
filled in.
"""

from __future__ import annotations

import functools
import inspect
import sys
from collections import namedtuple
from collections.abc import Callable, Sequence
from typing import Any, ParamSpec, Protocol, TypeVar, overload

import torch

from . import autocast, autograd, flops, gpu
from .load import extension, library

P = ParamSpec("P")
R = TypeVar("R", covariant=True)


class Op:
    """One registered op.

    Attributes:
        name: its name in ``torch.ops.lirank``.
        family: the stem of the files that hold its kernels, cases and tests.
        module: the file of ``ops/`` that defines it.
        internal: whether the op only serves other ops and is not for users.
        mutated: where in a call the tensors are that the op changes in place.
        schema: the schema that PyTorch infers from the function's annotations.
        reference: the decorated function, preceded by the checks.
        overload: the callable that goes through the dispatcher.
        call: the class of ``a``.
        differentiable: whether it has a backward.
        autocast_rule: what it does under ``torch.autocast``; None leaves its arguments alone.
    """

    def __init__(
        self,
        function: Callable[..., Any],
        name: str,
        family: str,
        internal: bool,
        mutates: Sequence[str] = (),
    ) -> None:
        self.name, self.family, self.internal = name, family, internal
        self.module = function.__module__.rsplit(".", 1)[-1]
        # The stable ABI of C++ ops has no symbolic numbers.
        schema = torch.library.infer_schema(function, mutates_args=mutates)
        self.schema = f"{name}{schema.replace('SymInt', 'int')}"
        parameters = inspect.signature(function).parameters.values()
        defaults = [p.default for p in parameters if p.default is not p.empty]
        self.call = namedtuple(name, [p.name for p in parameters], defaults=defaults)
        self.mutated = tuple(map(self.call._fields.index, mutates))
        self.differentiable = False
        self.autocast_rule: autocast.Rule | None = None
        self._check: Callable[[Any], None] = lambda a: None

        def reference(*args: Any, **kwargs: Any) -> Any:
            return function(*self.bind(*args, **kwargs))

        self.reference = functools.wraps(function)(reference)
        if extension is None:
            library.define(self.schema)
        library.impl(name, self.reference, "CompositeExplicitAutograd")
        self.overload: torch._ops.OpOverload = getattr(torch.ops.lirank, name).default
        gpu.register(library, self)
        OPS[name] = self

    def bind(self, *args: Any, **kwargs: Any) -> Any:
        """The checked call, with its defaults filled in."""
        a = self.call(*args, **kwargs)
        self._check(a)
        return a

    def check(self, function: Callable[[Any], None]) -> Callable[[Any], None]:
        """Register the checks. They may read shapes, dtypes and numbers, but no data."""
        self._check = function
        return function

    def fake(self, function: Callable[[Any], Any]) -> Callable[[Any], Any]:
        """Register the fake kernel, which returns the result on tensors without data."""

        def fake(*args: Any, **kwargs: Any) -> Any:
            return function(self.bind(*args, **kwargs))

        torch.library.register_fake(f"lirank::{self.name}", fake, lib=library)
        return function

    def backward(self, **options: Any) -> Callable[[Callable], Callable]:
        """Register the gradients. The options are those of :func:`autograd.register`."""

        def register(formula: Callable[..., dict]) -> Callable[..., dict]:
            autograd.register(library, self, formula, **options)
            self.differentiable = True
            return formula

        return register

    def in_parts(self, function: Callable[[Any], Any]) -> Callable[[Any], Any]:
        """Register differentiable ops that do the same, for where a derivative is wanted."""
        autograd.register_in_parts(library, self, function)
        self.differentiable = True
        return function

    def autocast(self, rule: autocast.Rule) -> None:
        """Declare to which dtype ``torch.autocast`` casts the arguments; see the module there."""
        self.autocast_rule = rule
        autocast.register(library, self, rule)

    def flops(self, formula: Callable[[Any], int]) -> Callable[[Any], int]:
        """Register the number of floating-point operations of a call."""
        flops.register(self, formula)
        return formula

    def no_gradient(self, refusal: str | None = None, only_transforms: bool = False) -> None:
        """Declare that the results never require a gradient.

        A call whose arguments require one is refused with ``refusal``, if that is given; with
        ``only_transforms`` in forward mode and in ``torch.func`` alone.
        """
        if refusal is None:
            library.impl(self.name, torch.library.fallthrough_kernel, "Autograd")
        else:
            autograd.refuse(library, self, refusal, only_transforms)


OPS: dict[str, Op] = {}


class OpFunction(Protocol[P, R]):
    """The function that ``@op`` returns: it has the same signature, and the handles of the op."""

    op: Op
    check: Callable[[Callable], Callable]
    fake: Callable[[Callable], Callable]
    backward: Callable[..., Callable[[Callable], Callable]]
    no_gradient: Callable[..., None]
    in_parts: Callable[[Callable], Callable]
    autocast: Callable[[autocast.Rule], None]
    flops: Callable[[Callable], Callable]

    def __call__(self, *args: P.args, **kwargs: P.kwargs) -> R: ...


@overload
def op(function: Callable[P, R]) -> OpFunction[P, R]: ...


@overload
def op(
    *,
    name: str | None = None,
    family: str | None = None,
    internal: bool = False,
    mutates: Sequence[str] = (),
) -> Callable[[Callable[P, R]], OpFunction[P, R]]: ...


def op(function=None, *, name=None, family=None, internal=False, mutates=()):
    """Define ``lirank::<name>`` by a function, unless C++ has defined it already.

    Args:
        function: plain PyTorch with annotations that ``torch.library.infer_schema`` can read.
        name: name of the op, by default the function's name.
        family: the stem of its kernels, cases and tests, by default the function's module.
        internal: the op is not for users, as with backward kernels.
        mutates: names of the tensors that it changes in place. Such an op returns None.

    Returns:
        The function that users call, or the decorator.
    """
    if function is None:
        options = {"name": name, "family": family, "internal": internal, "mutates": mutates}
        return lambda function: op(function, **options)
    family = family or function.__module__.rsplit(".", 1)[-1]
    made = Op(function, name or function.__name__, family, internal, mutates)
    run = made.overload

    # Only the arguments that were given are passed on, because each costs 0.3 us on its way to C++.
    @functools.wraps(function)
    def call(*args: Any, **kwargs: Any) -> Any:
        try:
            return run(*args, **kwargs)
        except (RuntimeError, MemoryError) as error:
            raise _python_error(made, error, args, kwargs) from None

    call.__signature__ = inspect.signature(function)
    call.__name__ = call.__qualname__ = made.name
    call.op, call.check, call.fake, call.backward = made, made.check, made.fake, made.backward
    call.in_parts, call.no_gradient = made.in_parts, made.no_gradient
    call.autocast, call.flops = made.autocast, made.flops
    return call


def _python_error(op: Op, error: Exception, args: tuple, kwargs: dict) -> Exception:
    """The error that the reference would raise. C++ ops can only raise RuntimeError."""
    sharded = sys.modules.get("torch.distributed.tensor")  # whoever has a DTensor has imported it
    for name, value in (*zip(op.call._fields, args, strict=False), *kwargs.items()):
        if sharded is not None and isinstance(value, sharded.DTensor):
            return TypeError(
                f"lirank::{op.name}: argument '{name}': wanted a plain tensor, got a DTensor: give "
                "it the part of this process, by to_local(), where rows of a batch are sharded, "
                "and wrap layers with fully_shard, whose parameters are plain within forward; "
                "nn.shard_rows spreads hashed tables"
            )
    devices = [a.device.type for a in (*args, *kwargs.values()) if isinstance(a, torch.Tensor)]
    if devices and devices[0] in autocast.KEYS:  # the checks see what the op saw
        args = autocast.cast(args, devices[0], op.autocast_rule)
        named = autocast.cast(kwargs.values(), devices[0], op.autocast_rule)
        kwargs = dict(zip(kwargs, named, strict=True))
    try:
        op.bind(*args, **kwargs)
    except (TypeError, ValueError) as refusal:
        return refusal
    text = str(error)
    if text.startswith(f"lirank::{op.name}: indices["):
        return IndexError(text)
    if text.startswith(f"lirank::{op.name}: argument '"):
        return ValueError(text)
    if isinstance(error, MemoryError):
        return MemoryError(f"lirank::{op.name}: out of memory")
    return RuntimeError(f"lirank::{op.name}: {text}") if "out of memory: " in text else error


def implementations(op_name: str) -> dict[str, Callable[..., Any]]:
    """The usable backends of one op.

    Args:
        op_name: name without namespace, such as ``"low_rank_cross"``.

    Returns:
        The callables by backend (``"reference"``, ``"cpu"``, ``"triton"``, ``"cuda"``), but only
        those that can run here. Every callable takes the op's arguments.

    Raises:
        ValueError: there is no op of that name.

    Examples:
        >>> "reference" in lirank_ext.implementations("low_rank_cross")
        True
    """
    if op_name not in OPS:
        known = ", ".join(name for name, op in OPS.items() if not op.internal)
        raise ValueError(f"implementations: no op named '{op_name}'; known ops: {known}")
    op = OPS[op_name]
    found: dict[str, Callable[..., Any]] = {"reference": op.reference}
    if torch._C._dispatch_has_kernel_for_dispatch_key(f"lirank::{op_name}", "CPU"):
        found["cpu"] = op.overload
    on_gpu = gpu.backend(op)
    if on_gpu and torch.cuda.is_available():
        found[on_gpu] = op.overload
    return found
