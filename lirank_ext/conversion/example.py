"""Compares modules on an example, and recognizes cross layers by what they compute on it."""

from __future__ import annotations

import inspect
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils._pytree import tree_leaves, tree_map

from ..nn.cross import LowRankCross
from ..nn.cross_net import LowRankCrossNet
from .surgery import Leave

# Largest difference that counts as rounding, as a share of the largest value.
ROUNDING = {torch.float64: 1e-9, torch.float32: 1e-4, torch.bfloat16: 4e-2, torch.float16: 4e-3}


@dataclass
class Call:
    """What a module got in its first call, and what it returned."""

    args: tuple[Any, ...]
    kwargs: dict[str, Any]
    output: Any


@contextmanager
def serving(model: nn.Module) -> Iterator[None]:
    """Evaluation mode without gradients; afterwards every module is in its own mode again."""
    modes = [(module, module.training) for module in model.modules()]
    try:
        model.eval()
        with torch.no_grad():
            yield
    finally:
        for module, mode in modes:
            module.training = mode


def run(model: nn.Module, example: Any) -> Any:
    """The model on the example: a tuple holds its arguments, anything else is its only one."""
    with serving(model):
        return _copied(model(*example) if isinstance(example, tuple) else model(example))


def record(model: nn.Module, example: Any, modules: Iterable[nn.Module]) -> tuple[Any, dict]:
    """The model's output on the example, and the first :class:`Call` of each of the modules."""
    calls: dict[nn.Module, Call] = {}

    def keep(module: nn.Module, args: tuple, kwargs: dict, output: Any) -> None:
        if module not in calls:
            calls[module] = Call(*_copied((args, kwargs, output)))

    handles = [m.register_forward_hook(keep, with_kwargs=True) for m in dict.fromkeys(modules)]
    try:
        return run(model, example), calls
    finally:
        for handle in handles:
            handle.remove()


def difference(module: nn.Module, call: Call) -> str:
    """How a module's result differs from that of the recorded call; empty if by rounding alone."""
    try:
        with serving(module):
            found = module(*call.args, **call.kwargs)
    except Exception as error:
        return f"{type(error).__name__}: {error}"
    return differ(found, call.output)


def differ(found: Any, wanted: Any) -> str:
    """How two results differ; empty if by rounding alone."""
    pairs = tree_leaves(found), tree_leaves(wanted)
    if len(pairs[0]) != len(pairs[1]):
        return f"{len(pairs[0])} results instead of {len(pairs[1])}"
    for one, other in zip(*pairs, strict=True):
        if not isinstance(other, Tensor) or not isinstance(one, Tensor):
            if type(one) is not type(other):
                return f"{type(one).__name__} instead of {type(other).__name__}"
            continue
        if (one.shape, one.dtype) != (other.shape, other.dtype):
            kinds = (f"{t.dtype} of shape {tuple(t.shape)}" for t in (one, other))
            return " instead of ".join(kinds)
        if not one.numel():
            continue
        same = (one == other) | (one.isnan() & other.isnan())
        gap = (one.double() - other.double()).masked_fill(same, 0).abs().max().item()
        size = other.double().abs().nan_to_num(0, 0, 0).max().item()
        if not gap <= ROUNDING.get(other.dtype, 0.0) * max(size, 1.0):
            return f"values off by up to {gap:.2g}, where the largest is {size:.2g}"
    return ""


def _copied(value: Any) -> Any:
    return tree_map(lambda v: v.detach().clone() if isinstance(v, Tensor) else v, value)


# ---- cross layers written by hand ------------------------------------------------------------


def cross_form(module: nn.Module, call: Call) -> str:
    """Which cross layer a module computed, in words; empty if none.

    The module has two linear layers (d to r, r to d) or one (d to d), and its inputs are the input
    of the stack and that of the layer, in either order, or one tensor that is both.
    """
    layers = linear_layers(module)
    tensors = [a for a in (*call.args, *call.kwargs.values()) if isinstance(a, Tensor)]
    if not layers or len(tensors) not in (1, 2) or not isinstance(call.output, Tensor):
        return ""
    for x0, x in dict.fromkeys(((tensors[0], tensors[-1]), (tensors[-1], tensors[0]))):
        if x0.shape != x.shape or x.shape != call.output.shape or not x.is_floating_point():
            return ""
        if x.shape[-1] != layers[0].in_features or not x.numel():
            return ""
        y = x
        for layer in layers:
            y = layer(y)
        if not differ(x0 * y + x, call.output):
            kind = "low-rank" if len(layers) == 2 else "full-rank"
            order = "" if len(tensors) == 1 or x0 is tensors[0] else ", with its input first"
            return f"it computes a {kind} cross layer{order}"
    return ""


def linear_layers(module: nn.Module) -> list[nn.Linear]:
    """The two linear layers of a low-rank cross layer, or the one of a full-rank one."""
    inner = [m for m in module.modules() if m is not module and m._parameters]
    if not inner or module._parameters or any(type(m) is not nn.Linear for m in inner):
        return []
    if len(inner) == 1:
        return inner if inner[0].in_features == inner[0].out_features else []
    if len(inner) != 2:
        return []
    down, up = sorted(inner, key=lambda m: m.in_features, reverse=True)
    chained = (up.in_features, up.out_features) == (down.out_features, down.in_features)
    return [down, up] if chained and down.bias is None else []


def offers(calls: Mapping[nn.Module, Call]) -> dict[nn.Module, str]:
    """The modules that computed a cross layer, and what to do about each."""
    found = {}
    for module, call in calls.items():
        with torch.no_grad():
            form = cross_form(module, call)
        if not form:
            continue
        name = type(module).__qualname__
        if "full-rank" in form:
            found[module] = f"{form}: one matrix product, and nothing here is faster"
        elif "input first" in form:
            found[module] = f"{form}: swap.register({name}, convert) with a module of that order"
        else:
            found[module] = f"{form}: swap.register({name}, swap.low_rank) replaces it"
    return found


def low_rank(module: nn.Module) -> nn.Module:
    """A ``convert`` for a cross layer of two ``nn.Linear``: d to r without a bias, then r to d."""
    layers = linear_layers(module)
    if len(layers) != 2:
        raise Leave("it does not consist of two linear layers, d to r without bias and r to d")
    down, up = layers
    if _takes_one(module):
        return LowRankCrossNet.on(module, _of_linears)
    with torch.device("meta"):
        made = LowRankCross(down.in_features, down.out_features)
    made.v, made.u, made.bias = down.weight, up.weight, up.bias
    return made


def _of_linears(module: nn.Module) -> list[tuple[Tensor | None, ...]]:
    down, up = linear_layers(module)
    return [(down.weight, up.weight, up.bias)]


def _takes_one(module: nn.Module) -> bool:
    parameters = inspect.signature(module.forward).parameters.values()
    return sum(p.default is p.empty for p in parameters) == 1
