"""Registers backward formulas of ops, with as little Python per call as PyTorch allows.

``torch.library.register_autograd`` adds as much time per call as one of our ops needs on a small
batch, even when no gradient is wanted. This module does the same for ops whose arguments are
tensors and numbers, without keyword-only arguments, lists of tensors or ``out``.
"""

from __future__ import annotations

import functools
import inspect
import operator
from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING, Any, NamedTuple

import torch
from torch import Tensor

if TYPE_CHECKING:
    from .op import Op

_C = torch._C


class Unsaved(NamedTuple):
    """Stands for a tensor that was not saved for the backward."""

    shape: torch.Size


def register(
    library: torch.library.Library,
    op: Op,
    formula: Callable[..., Mapping[str, Tensor | None]],
    *,
    saves: Sequence[str],
    saves_for: Mapping[str, Sequence[str]] | None = None,
    forward: Callable | None = None,
    when: Callable[[Any], bool] | None = None,
    twice: bool = False,
) -> None:
    """Give an op a backward.

    Args:
        library: the fragment of ``lirank`` that holds the registration.
        op: the op.
        formula: maps ``(a, *gradients, *kept)`` to a dict from argument name to gradient or None.
            ``a`` is the call of the forward. An :class:`Unsaved` replaces each tensor that was not
            saved. ``gradients`` has one tensor for each result. If the formula has a parameter
            ``needs``, it gets a call with True for each argument whose gradient is wanted.
        saves: names of the tensors that the formula reads.
        saves_for: further tensors that it reads only for the gradient of the named argument.
        forward: an ``@op`` function with the same arguments that runs instead of the op when a
            gradient is wanted. Whatever it returns after the result is ``kept`` for the formula.
        when: tells whether ``forward`` pays off for a call. By default it always does.
        twice: the formula consists of differentiable operations. Otherwise a second derivative
            is refused.

    Raises:
        TypeError: the schema has keyword-only arguments or lists of tensors.
    """
    for a in op.overload._schema.arguments:
        if a.kwarg_only or "List[Tensor]" in str(a.type):
            raise TypeError(
                f"lirank::{op.name}: argument '{a.name}': wanted no list of tensors and nothing "
                f"keyword-only in an op with a backward, got {a.type}"
            )
    names = op.call._fields
    at = {name: i for i, name in enumerate(names)}
    make = functools.partial(tuple.__new__, op.call)  # op.call._make takes three times as long
    # The dispatcher drops trailing arguments that equal their defaults.
    defaults = tuple(map(op.call._field_defaults.get, names))
    none_wanted = (False,) * len(names)
    plan = _Plan(op, saves)
    more = [(names.index(n), _Plan(op, (*saves, *also))) for n, also in (saves_for or {}).items()]
    asks = "needs" in inspect.signature(formula).parameters
    redispatch = op.overload.redispatch
    training = None if forward is None else forward.op.overload.redispatch
    below, functorch = _C._after_autograd_keyset, _C._are_functorch_transforms_active

    def run(ctx: Any, keyset: Any, *args: Any) -> Any:
        call = args + defaults[len(args) :]
        train = training is not None and (when is None or when(make(call)))
        with _C._AutoDispatchBelowAutograd():
            output = (training if train else redispatch)(keyset & below, *args)
        here = plan
        for i, larger in more:
            if i < len(args) and ctx.needs_input_grad[1 + i]:
                here = larger
        if train:
            output, *kept = output
            ctx.save_for_backward(*here.saved(call), *kept)
        else:
            ctx.save_for_backward(*here.saved(call))
        ctx.state = here, here.rest(call), len(args)
        return output

    def backward(ctx: Any, *gradients: Any) -> tuple[Tensor | None, ...]:
        if not twice and _C.is_grad_enabled():
            with torch.no_grad():
                return _refuse_second(op.name, backward(ctx, *gradients))
        here, rest, given = ctx.state
        held = ctx.saved_tensors  # activation checkpointing allows only one read
        if training is not None:
            gradients += held[here.count :]
            held = held[: here.count]
        call = make(here.order(held + rest))
        if asks:
            needs = make((*ctx.needs_input_grad[1:], *none_wanted[given:]))
            found = formula(call, *gradients, needs=needs)
        else:
            found = formula(call, *gradients)
        result: list[Tensor | None] = [None] * (1 + given)
        for name, gradient in found.items():
            i = at[name]
            if call[i] is not None:
                result[1 + i] = gradient
        return tuple(result)

    function = type(
        f"Backward_{op.name}",
        (torch.autograd.Function,),
        {"forward": staticmethod(run), "backward": staticmethod(backward)},
    )

    # ``Function.apply`` first searches all arguments for dead wrappers of functorch. Only functions
    # that are called outside the dispatcher need that: the wrappers never reach this dispatch key.
    apply = super(torch.autograd.Function, function).apply

    def autograd(keyset: Any, *args: Any) -> Any:
        if _C.is_grad_enabled() and _C._any_requires_grad(*args):
            return (function.apply if functorch() else apply)(keyset, *args)
        with _C._AutoDispatchBelowAutograd():
            return redispatch(keyset & below, *args)

    library.impl(op.name, autograd, "Autograd", with_keyset=True)


class _Plan:
    """Splits a call into tensors to save and the rest, and puts it together again."""

    def __init__(self, op: Op, saves: Sequence[str]) -> None:
        names = op.call._fields
        kept = [names.index(name) for name in saves]
        rest = [i for i in range(len(names)) if i not in kept]
        arguments = op.overload._schema.arguments
        self.count = len(kept)
        self.saved = _getter(kept)
        self._rest = self.rest = _getter(rest)
        tensors = [j for j, i in enumerate(rest) if "Tensor" in str(arguments[i].type)]
        if tensors:
            self._tensors, self.rest = tensors, self._without_tensors
        self.order = _getter([(kept + rest).index(i) for i in range(len(names))])

    def _without_tensors(self, call: tuple) -> tuple:
        rest = list(self._rest(call))
        for i in self._tensors:
            rest[i] = None if rest[i] is None else Unsaved(rest[i].shape)
        return tuple(rest)


def _getter(positions: Sequence[int]) -> Callable[[tuple], tuple]:
    if len(positions) > 1:
        return operator.itemgetter(*positions)
    return lambda values: tuple(values[i] for i in positions)


def refuse(library: torch.library.Library, op: Op, text: str) -> None:
    """Let an op raise ValueError where a gradient is wanted."""
    redispatch, below = op.overload.redispatch, _C._after_autograd_keyset

    def autograd(keyset: Any, *args: Any) -> Any:
        if _C.is_grad_enabled() and _C._any_requires_grad(*args):
            raise ValueError(text)
        with _C._AutoDispatchBelowAutograd():
            return redispatch(keyset & below, *args)

    library.impl(op.name, autograd, "Autograd", with_keyset=True)


def _refuse_second(name: str, gradients: tuple[Tensor | None, ...]) -> tuple:
    """The gradients, changed so that differentiating them raises an error."""
    text = f"lirank::{name}: a second derivative was wanted: this op is not differentiable twice"
    found = [g for g in gradients if g is not None]
    if not found or any(_C._functorch.is_functorch_wrapped_tensor(g) for g in found):
        return gradients
    leaves = [g.detach().requires_grad_() for g in found]
    refusing = torch._C._functions.DelayedError(text.encode(), len(leaves))(*leaves)
    refusing = iter(refusing if isinstance(refusing, (tuple, list)) else (refusing,))
    return tuple(None if g is None else next(refusing) for g in gradients)


def register_old(
    library: torch.library.Library,
    name: str,
    setup_context: Callable[..., None],
    backward: Callable[..., tuple],
) -> None:
    """Give ``lirank::<name>`` a backward.

    Args:
        library: the fragment of ``lirank`` that holds the registration.
        name: the op's name.
        setup_context: ``(ctx, inputs, output)``, inputs with defaults filled in.
        backward: ``(ctx, *gradients)`` to one gradient or None for each input.

    Raises:
        TypeError: the schema has keyword-only arguments or lists of tensors.
    """
    op = getattr(torch.ops.lirank, name).default
    for a in op._schema.arguments:
        if a.kwarg_only or "List[Tensor]" in str(a.type):
            raise TypeError(
                f"lirank::{name}: argument '{a.name}': wanted no list of tensors and nothing "
                f"keyword-only in an op with a backward, got {a.type}"
            )
    below = _C._after_autograd_keyset
    # Inputs that equal their defaults are dropped by the dispatcher.
    defaults = tuple(
        a.default_value if a.has_default_value() else None for a in op._schema.arguments
    )
    count = len(defaults)

    def forward(ctx: Any, *args: Any) -> Any:
        inputs, keyset = args[:count], args[count]
        with _C._AutoDispatchBelowAutograd():
            output = op.redispatch(keyset & below, *inputs)
        setup_context(ctx, inputs, output)
        return output

    def backward_with_keyset(ctx: Any, *gradients: Any) -> tuple:
        return (*backward(ctx, *gradients), None)

    function = type(
        f"Backward_{name}",
        (torch.autograd.Function,),
        {"forward": staticmethod(forward), "backward": staticmethod(backward_with_keyset)},
    )

    def autograd(keyset: Any, *args: Any) -> Any:
        if _C.is_grad_enabled() and _C._any_requires_grad(*args):
            return function.apply(*args, *defaults[len(args) :], keyset)
        with _C._AutoDispatchBelowAutograd():
            return op.redispatch(keyset & below, *args)

    library.impl(name, autograd, "Autograd", with_keyset=True)
