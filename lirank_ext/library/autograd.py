"""Registers backward formulas of ops, with as little Python per call as PyTorch allows.

``torch.library.register_autograd`` adds as much time per call as one of our ops needs on a small
batch, even when no gradient is wanted. This module does the same for ops whose arguments are
tensors and numbers, without keyword-only arguments, lists of tensors or ``out``.

A formula calls kernels, so it gives first derivatives in reverse mode only. Second derivatives,
forward mode and the transforms of ``torch.func`` differentiate the op's reference where PyTorch can
do that, and raise an error where it cannot. None of them is silently zero.
"""

from __future__ import annotations

import functools
import inspect
import operator
from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING, Any, NamedTuple, NoReturn

import torch
from torch import Tensor
from torch.autograd import forward_ad

if TYPE_CHECKING:
    from .op import Op

_C = torch._C
# Names of this module, for every look-up of an attribute counts.
_grad_enabled, _any_requires_grad = _C.is_grad_enabled, _C._any_requires_grad
_functorch_active = _C._are_functorch_transforms_active
_BelowAutograd, _BELOW = _C._AutoDispatchBelowAutograd, _C._after_autograd_keyset


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
    by_reference: bool = False,
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
        by_reference: PyTorch may differentiate the reference wherever the formula does not serve:
            for second derivatives, in forward mode and in ``torch.func``. Otherwise these are
            refused. It needs all tensors saved.

    Raises:
        TypeError: the schema has keyword-only arguments or lists of tensors, or ``by_reference``
            lacks a tensor among ``saves``.
    """
    for a in op.overload._schema.arguments:
        if a.kwarg_only or "List[Tensor]" in str(a.type):
            raise TypeError(
                f"lirank::{op.name}: argument '{a.name}': wanted no list of tensors and nothing "
                f"keyword-only in an op with a backward, got {a.type}"
            )
        if by_reference and "Tensor" in str(a.type) and a.name not in saves:
            raise TypeError(f"lirank::{op.name}: argument '{a.name}': wanted among those saved")
    names = op.call._fields
    at = {name: i for i, name in enumerate(names)}
    make = functools.partial(tuple.__new__, op.call)  # op.call._make takes three times as long
    # The dispatcher drops trailing arguments that equal their defaults.
    defaults = tuple(map(op.call._field_defaults.get, names))
    none_wanted = (False,) * len(names)
    plan = _Plan(op, saves)
    more = [(names.index(n), _Plan(op, (*saves, *also))) for n, also in (saves_for or {}).items()]
    asks = "needs" in inspect.signature(formula).parameters
    redispatch = _redispatch(op)
    training = None if forward is None else _redispatch(forward.op)

    def run(ctx: Any, keyset: Any, *args: Any) -> Any:
        call = args + defaults[len(args) :]
        train = training is not None and (when is None or when(make(call)))
        with _BelowAutograd():
            output = (training if train else redispatch)(keyset & _BELOW, *args)
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
        # Saved tensors are read once: activation checkpointing allows no more.
        if _grad_enabled():
            return again(ctx, *gradients)
        return tuple(first(ctx, ctx.saved_tensors, gradients))

    def first(ctx: Any, held: tuple, gradients: tuple) -> list[Tensor | None]:
        here, rest, given = ctx.state
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
        return result

    def again(ctx: Any, *gradients: Any) -> tuple[Tensor | None, ...]:
        """The gradients where they may be differentiated once more."""
        here, rest, given = ctx.state
        held = ctx.saved_tensors
        if not by_reference:
            with torch.no_grad():
                found = first(ctx, held, gradients)
            return _refuse_second(op.name, found, (*gradients, *held))
        call = [*here.order(held[: here.count] + rest)]
        wanted = [i for i, needed in enumerate(ctx.needs_input_grad[1:]) if needed]
        for i in wanted:  # one tensor may serve as two arguments
            call[i] = call[i].view_as(call[i])
        inputs = [call[i] for i in wanted]
        output = op.reference(*call)
        found = torch.autograd.grad(output, inputs, gradients, create_graph=True, allow_unused=True)
        result: list[Tensor | None] = [None] * (1 + given)
        for i, gradient in zip(wanted, found, strict=True):
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
        if forward_ad._current_level >= 0:
            return transformed(keyset, *args)
        if _grad_enabled() and _any_requires_grad(*args):
            return (transformed if _functorch_active() else apply)(keyset, *args)
        with _BelowAutograd():
            return redispatch(keyset & _BELOW, *args)

    def transformed(keyset: Any, *args: Any) -> Any:
        """A call inside forward mode or ``torch.func``."""
        backwards = _grad_enabled() and _any_requires_grad(*args)
        if (backwards and _functorch_active()) or any(map(_has_tangent, args)):
            if by_reference:
                return op.reference(*args)
            raise RuntimeError(
                f"lirank::{op.name}: a derivative was wanted in forward mode or by torch.func: "
                "this op has first derivatives by torch.autograd alone"
            )
        if backwards:
            return apply(keyset, *args)
        with _BelowAutograd():
            return redispatch(keyset & _BELOW, *args)

    library.impl(op.name, autograd, "Autograd", with_keyset=True)


def register_in_parts(
    library: torch.library.Library, op: Op, function: Callable[[Any], Any]
) -> None:
    """Where a derivative is wanted, run ``function(a)``, made of differentiable ops, in its place.

    For ops that save launches and keep nothing for a backward; lists of tensors may go in.
    """
    redispatch = _redispatch(op)

    def autograd(keyset: Any, *args: Any) -> Any:
        wanted = _grad_enabled() and _any_requires_grad(*args)
        if wanted or _functorch_active() or forward_ad._current_level >= 0:
            return function(op.bind(*args))
        with _BelowAutograd():
            return redispatch(keyset & _BELOW, *args)

    library.impl(op.name, autograd, "Autograd", with_keyset=True)


def _redispatch(op: Op) -> Callable[..., Any]:
    """``op.overload.redispatch`` without a Python function around it."""
    return op.overload._handle.redispatch_boxed


def _has_tangent(value: Any) -> bool:
    return isinstance(value, Tensor) and forward_ad.unpack_dual(value).tangent is not None


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


def refuse(library: torch.library.Library, op: Op, text: str, only_transforms: bool) -> None:
    """Let an op raise ValueError where a derivative is wanted.

    With ``only_transforms`` that is in forward mode and in ``torch.func``, which would take the
    result for a constant; elsewhere ``requires_grad`` of the result says that there is none.
    """
    redispatch = _redispatch(op)

    def autograd(keyset: Any, *args: Any) -> Any:
        backwards = _grad_enabled() and _any_requires_grad(*args)
        if only_transforms:
            backwards = backwards and _functorch_active()
        if backwards or (forward_ad._current_level >= 0 and any(map(_has_tangent, args))):
            raise ValueError(text)
        with _BelowAutograd():
            return redispatch(keyset & _BELOW, *args)

    library.impl(op.name, autograd, "Autograd", with_keyset=True)


def _refuse_second(
    name: str, gradients: list[Tensor | None], sources: tuple[Tensor | None, ...]
) -> tuple[Tensor | None, ...]:
    """The gradients, changed so that differentiating them by ``sources`` raises an error."""
    text = f"lirank::{name}: a second derivative was wanted: this op is not differentiable twice"
    if any(t is not None and _is_batched(t) for t in sources):  # records no function of Python
        raise RuntimeError(text)
    there = [i for i, g in enumerate(gradients) if g is not None]
    needed = [t for t in sources if t is not None and t.requires_grad]
    refusing = _Refuse.apply(text, len(there), *(gradients[i] for i in there), *needed)
    for i, gradient in zip(there, refusing, strict=True):
        gradients[i] = gradient
    return tuple(gradients)


def _is_batched(t: Tensor) -> bool:
    kinds = torch._C._functorch
    return kinds.is_legacy_batchedtensor(t) or kinds.is_functorch_wrapped_tensor(t)


class _Refuse(torch.autograd.Function):
    """Returns the first ``count`` tensors, and makes them depend on all tensors.

    Whoever differentiates them by any of these tensors gets ``text`` as an error, never a zero.
    """

    @staticmethod
    def forward(ctx: Any, text: str, count: int, *tensors: Tensor) -> tuple[Tensor, ...]:
        ctx.text = text
        return tuple(t.detach() if t.is_sparse else t.view_as(t) for t in tensors[:count])

    @staticmethod
    def backward(ctx: Any, *gradients: Any) -> NoReturn:
        raise RuntimeError(ctx.text)
