"""Diagonal of the empirical Fisher information, from per-sample gradients."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from typing import Any

import torch
from torch import Tensor, nn
from torch.func import functional_call, grad, vmap
from torch.nn import functional as F
from torch.overrides import TorchFunctionMode
from torch.utils._pytree import tree_map

from ..library.op import OPS
from ._common import check_choice, check_positive, refuse

METHODS = ("vmap", "loop", "batch")


def log_loss(outputs: Tensor, targets: Tensor) -> Tensor:
    """Summed negative log-likelihood of independent binary tasks, from their logits."""
    return F.binary_cross_entropy_with_logits(outputs, targets, reduction="sum")


def fisher_diagonal(
    model: nn.Module,
    parameters: dict[str, nn.Parameter],
    batches: Iterable[tuple[Any, Tensor]],
    negative_log_likelihood: Callable[[Tensor, Tensor], Tensor] = log_loss,
    method: str = "vmap",
    chunk_size: int = 64,
) -> tuple[dict[str, Tensor], int]:
    """Mean over samples of the squared gradient of -log p(y | x), in evaluation mode.

    Args:
        model: the model, which is called with the inputs of a batch.
        parameters: the parameters to differentiate by, with the names that
            ``model.named_parameters`` gives them.
        batches: pairs (inputs, targets). The inputs are a tensor or a tuple of tensors, with the
            samples along dimension 0. They are the arguments of the model.
        negative_log_likelihood: (outputs, targets) -> its sum over the samples, 0-d.
        method: ``"vmap"`` computes the per-sample gradients of a chunk at once (``torch.func``)
            and runs this package's ops by their references. ``"loop"`` takes one sample at a time,
            for models that ``torch.func`` cannot run. ``"batch"`` squares the gradient of each
            batch's mean. That is exact for batches of one sample, which is how to handle ragged
            inputs. For larger batches it is the usual shortcut, and the result is smaller by about
            a factor of the batch size.
        chunk_size: number of samples whose gradients ``"vmap"`` holds at a time.

    Returns:
        The diagonal by parameter name, and the number of samples.

    Raises:
        ValueError: an argument is out of range, or there is no sample.
        RuntimeError: ``torch.func`` cannot run the model.
    """
    check_choice("fisher_diagonal", "method", method, METHODS)
    check_positive("fisher_diagonal", chunk_size=chunk_size)
    count, total = 0, {name: torch.zeros_like(p) for name, p in parameters.items()}
    squares = _squares_of_each if method == "vmap" else _square_of_mean
    modes = {module: module.training for module in model.modules()}
    model.eval()
    try:
        step = {"vmap": chunk_size, "loop": 1, "batch": None}[method]
        for inputs, targets in _pieces(batches, step):
            found = squares(model, parameters, negative_log_likelihood, inputs, targets)
            for name, square in found.items():
                total[name] += square
            count += len(targets)
    finally:
        for module, mode in modes.items():
            module.training = mode
    if not count:
        refuse("fisher_diagonal", "batches", "at least one sample", "none")
    return {name: square / count for name, square in total.items()}, count


def _pieces(batches: Iterable, step: int | None) -> Iterator[tuple[tuple, Tensor]]:
    """The batches, cut into pieces of ``step`` samples unless it is None."""
    for inputs, targets in batches:
        inputs = tuple(inputs) if isinstance(inputs, (tuple, list)) else (inputs,)
        if step is None:
            yield inputs, targets
            continue
        for at in range(0, len(targets), step):
            rows = slice(at, at + step)
            yield tuple(t[rows] for t in inputs), targets[rows]


def _square_of_mean(model, parameters, loss, inputs, targets) -> dict[str, Tensor]:
    """The squared gradient of the piece's mean loss, times the number of samples."""
    value = loss(model(*inputs), targets) / len(targets)
    found = torch.autograd.grad(value, list(parameters.values()), allow_unused=True)
    pairs = zip(parameters, found, strict=True)
    return {name: len(targets) * g.square() for name, g in pairs if g is not None}


class _References(TorchFunctionMode):
    """Runs this package's ops by their references.

    ``torch.func`` does not support the backwards of custom ops.
    """

    def __torch_function__(self, function, types, args=(), kwargs=None):
        if getattr(function, "namespace", None) == "lirank":
            function = OPS[function._opname].reference
        return function(*args, **(kwargs or {}))


def _squares_of_each(model, parameters, loss, inputs, targets) -> dict[str, Tensor]:
    """The sum of the samples' squared gradients."""

    def one(weights: dict[str, Tensor], inputs: tuple, target: Tensor) -> Tensor:
        inputs = tree_map(lambda t: t.unsqueeze(0), inputs)
        return loss(functional_call(model, weights, inputs), target.unsqueeze(0))

    weights = {name: p.detach() for name, p in parameters.items()}
    try:
        with torch.no_grad(), _References():
            found = vmap(grad(one), (None, 0, 0))(weights, inputs, targets)
    except RuntimeError as e:
        text = "fisher_diagonal: torch.func cannot run this model; method='loop' can"
        raise RuntimeError(f"{text} ({str(e).splitlines()[0]})") from e
    return {name: g.square().sum(0) for name, g in found.items()}
