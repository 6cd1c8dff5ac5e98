"""Backward formulas of ops, with as little Python per call as PyTorch allows.

What ``torch.library.register_autograd`` adds to a call, with or without gradients, is as much as a
whole call of ours takes on a few samples. This registers the same for ops like ours: tensors and
numbers in, no keyword-only arguments, no lists that need gradients, no ``out``.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch

_C = torch._C


def register(
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
