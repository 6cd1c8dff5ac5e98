"""``@op``: one annotated function is an op's public signature, schema and reference.

The dispatcher is the only switch: CPU tensors reach the C++ kernel, CUDA tensors the
CUDA or Triton kernel, meta tensors the fake kernel, and everything else (or everything,
where no library is built) the reference. Nothing chooses a backend at call time.

::

    @op
    def scale(x: Tensor, by: float = 1.0) -> Tensor:
        \"\"\"Docstring for users.\"\"\"
        return x * by

    @scale.check                      # before the reference, the fake kernel and a Triton launcher
    def _(a): check_floating(a, "x")

    @scale.fake                       # what comes out, on tensors without data
    def _(a): return torch.empty_like(a.x)

    @scale.backward(saves=())         # the gradient of each argument, by name
    def _(a, grad): return {"x": grad * a.by}

``a`` is the call: a named tuple of the op's arguments, defaults filled in, named like the op.
"""

from __future__ import annotations

import functools
import inspect
from collections import namedtuple
from collections.abc import Callable
from typing import Any, ParamSpec, Protocol, TypeVar, overload

import torch

from . import autograd, gpu
from .load import extension, library

P = ParamSpec("P")
R = TypeVar("R", covariant=True)


class Op:
    """One registered op.

    Attributes:
        name: its name in ``torch.ops.lirank``.
        family: the stem of the files that hold its kernels, cases and tests.
        internal: users do not call it: it serves other ops.
        schema: as PyTorch reads the function's annotations.
        reference: the definition, with the checks in front of it.
        overload: what the dispatcher runs.
        call: the class of ``a``.
        differentiable: it has a backward.
    """

    def __init__(self, function: Callable[..., Any], name: str, family: str, internal: bool):
        self.name, self.family, self.internal = name, family, internal
        # The stable ABI of C++ ops has no symbolic numbers.
        schema = torch.library.infer_schema(function, mutates_args=())
        self.schema = f"{name}{schema.replace('SymInt', 'int')}"
        parameters = inspect.signature(function).parameters.values()
        defaults = [p.default for p in parameters if p.default is not p.empty]
        self.call = namedtuple(name, [p.name for p in parameters], defaults=defaults)
        self.differentiable = False
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
        """The call with its defaults filled in, checked."""
        a = self.call(*args, **kwargs)
        self._check(a)
        return a

    def check(self, function: Callable[[Any], None]) -> Callable[[Any], None]:
        """Register what refuses a call, from shapes, dtypes and numbers alone."""
        self._check = function
        return function

    def fake(self, function: Callable[[Any], Any]) -> Callable[[Any], Any]:
        """Register what the op returns on tensors without data."""

        def fake(*args: Any, **kwargs: Any) -> Any:
            return function(self.bind(*args, **kwargs))

        torch.library.register_fake(f"lirank::{self.name}", fake, lib=library)
        return function

    def backward(self, **options: Any) -> Callable[[Callable], Callable]:
        """Register the gradients; the options are those of :func:`autograd.register`."""

        def register(formula: Callable[..., dict]) -> Callable[..., dict]:
            autograd.register(library, self, formula, **options)
            self.differentiable = True
            return formula

        return register

    def without_gradient(self) -> None:
        """The results are constants, whatever the arguments require."""
        library.impl(self.name, torch.library.fallthrough_kernel, "Autograd")


OPS: dict[str, Op] = {}


class OpFunction(Protocol[P, R]):
    """What ``@op`` makes of a function: the same to its callers, and the handles of the op."""

    op: Op
    check: Callable[[Callable], Callable]
    fake: Callable[[Callable], Callable]
    backward: Callable[..., Callable[[Callable], Callable]]

    def __call__(self, *args: P.args, **kwargs: P.kwargs) -> R: ...


@overload
def op(function: Callable[P, R]) -> OpFunction[P, R]: ...


@overload
def op(
    *, name: str | None = None, family: str | None = None, internal: bool = False
) -> Callable[[Callable[P, R]], OpFunction[P, R]]: ...


def op(function=None, *, name=None, family=None, internal=False):
    """Define ``lirank::<name>`` (unless C++ has) by a function; return what users call.

    Args:
        function: plain PyTorch with annotations that ``torch.library.infer_schema`` reads.
        name: of the op; the function's own by default.
        family: the stem of its kernels, cases and tests; the function's module by default.
        internal: users do not call it (backward kernels).
    """
    if function is None:
        return lambda function: op(function, name=name, family=family, internal=internal)
    family = family or function.__module__.rsplit(".", 1)[-1]
    made = Op(function, name or function.__name__, family, internal)
    run = made.overload

    # Only the arguments that were given go on: each costs 0.3 us on its way to C++.
    @functools.wraps(function)
    def call(*args: Any, **kwargs: Any) -> Any:
        try:
            return run(*args, **kwargs)
        except RuntimeError as error:
            raise _python_error(made, error, args, kwargs) from None

    call.__signature__ = inspect.signature(function)
    call.op, call.check, call.fake, call.backward = made, made.check, made.fake, made.backward
    return call


def _python_error(op: Op, error: RuntimeError, args: tuple, kwargs: dict) -> Exception:
    """What the reference would raise: C++ ops raise RuntimeError alone."""
    try:
        op.bind(*args, **kwargs)
    except (TypeError, ValueError) as refusal:
        return refusal
    for text, known in (("out of range", IndexError), ("got row", ValueError)):
        if text in str(error):
            return known(str(error))
    return error


def implementations(op_name: str) -> dict[str, Callable[..., Any]]:
    """The usable backends of one op.

    Args:
        op_name: name without namespace, such as ``"low_rank_cross"``.

    Returns:
        ``{"reference": f, "cpu": f, "triton": f, "cuda": f}``, holding only those that can
        run here. Every callable takes the op's own arguments.

    Raises:
        ValueError: no op of that name.
    """
    if op_name not in OPS:
        known = ", ".join(name for name, op in OPS.items() if not op.internal)
        raise ValueError(f"implementations: no op named '{op_name}'; there are: {known}")
    op = OPS[op_name]
    found: dict[str, Callable[..., Any]] = {"reference": op.reference}
    if torch._C._dispatch_has_kernel_for_dispatch_key(f"lirank::{op_name}", "CPU"):
        found["cpu"] = op.overload
    on_gpu = gpu.backend(op)
    if on_gpu and torch.cuda.is_available():
        found[on_gpu] = op.overload
    return found


def register(
    schema: str,
    *,
    reference: Callable[..., Any],
    fake: Callable[..., Any],
    setup_context: Callable[..., None] | None = None,
    backward: Callable[..., Any] | None = None,
    internal: bool = False,
    stem: str | None = None,
) -> torch._ops.OpOverload:
    """Define ``lirank::<schema>`` for families that do not use ``@op`` yet."""
    made = Op.__new__(Op)
    made.name = schema.split("(", 1)[0]
    made.schema, made.reference, made.internal = schema, reference, internal
    made.family = stem or reference.__module__.rsplit(".", 1)[-1]
    made.differentiable, made.call = backward is not None, None
    if extension is None:
        library.define(schema)
    library.impl(made.name, reference, "CompositeExplicitAutograd")
    torch.library.register_fake(f"lirank::{made.name}", fake, lib=library)
    made.overload = getattr(torch.ops.lirank, made.name).default
    if backward is not None:
        autograd.register_old(library, made.name, setup_context, backward)
    gpu.register(library, made)
    OPS[made.name] = made
    return made.overload


def index_error(error: RuntimeError) -> Exception:
    """IndexError where the op's RuntimeError reports an index out of range."""
    return IndexError(str(error)) if "out of range" in str(error) else error
