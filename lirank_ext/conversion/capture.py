"""A model replayed from CUDA graphs: one launch a call, whatever the number of its ops."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils._pytree import TreeSpec, tree_flatten, tree_unflatten

WARM_UPS = 3  # calls before a capture: kernels are compiled and chosen in them


@dataclass
class _Graph:
    """One captured call."""

    graph: Any
    inputs: list[Tensor]  # the memory that the graph reads
    outputs: list[Any]
    structure: TreeSpec


class Captured:
    """What :func:`capture` returns. Call it as the model."""

    def __init__(self, model: Callable[..., Any], most: int) -> None:
        self.model, self.most = model, most
        self._graphs: OrderedDict[tuple[Any, ...], _Graph] = OrderedDict()
        self._pool: Any = None
        self._places = _places(model)
        self._weights = [t.data_ptr() for t in self._tensors()]

    def _tensors(self) -> list[Tensor]:
        """The weights and buffers as the modules hold them now."""
        return [held[name] for held, name in self._places if held.get(name) is not None]

    @property
    def shapes(self) -> int:
        """The number of graphs that are held, one for each shape of input."""
        return len(self._graphs)

    @torch.no_grad()
    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        """The model's result, in memory of its own.

        Raises:
            TypeError: no argument is a tensor, one is not on a GPU, or one is no tensor, number or
                string.
            RuntimeError: a weight lies elsewhere than when the graphs were captured, the model is
                in training mode, or it does something that a CUDA graph cannot hold.
        """
        leaves, structure = tree_flatten((args, kwargs))
        key = _signature(leaves, structure)
        if isinstance(self.model, nn.Module) and self.model.training:
            raise RuntimeError(
                "lirank_ext.capture: the model is in training mode: call model.eval() first"
            )
        if [t.data_ptr() for t in self._tensors()] != self._weights:
            raise RuntimeError(
                "lirank_ext.capture: a weight of the model lies elsewhere than when it was "
                "captured, and the graphs would read the old one: capture the model again"
            )
        held = self._graphs.get(key)
        if held is None:
            held = self._capture(leaves, structure)
            if len(self._graphs) >= self.most:
                self._graphs.popitem(last=False)
            self._graphs[key] = held
        self._graphs.move_to_end(key)
        for place, given in zip(held.inputs, filter(torch.is_tensor, leaves), strict=True):
            place.copy_(given, non_blocking=True)
        held.graph.replay()
        outputs = [t.clone() if torch.is_tensor(t) else t for t in held.outputs]
        return tree_unflatten(outputs, held.structure)

    def _capture(self, leaves: list[Any], structure: TreeSpec) -> _Graph:
        _check(leaves)
        own = [t.clone() if torch.is_tensor(t) else t for t in leaves]
        args, kwargs = tree_unflatten(own, structure)
        graph, result = _record(lambda: self.model(*args, **kwargs), own, self._pool)
        self._pool = graph.pool()
        outputs, shape = tree_flatten(result)
        return _Graph(graph, [t for t in own if torch.is_tensor(t)], outputs, shape)


def _record(call: Callable[[], Any], leaves: list[Any], pool: Any) -> tuple[Any, Any]:
    """A graph of the call, and the result that each replay writes."""
    with torch.cuda.device(next(t.device for t in leaves if torch.is_tensor(t))):
        side = torch.cuda.Stream()
        side.wait_stream(torch.cuda.current_stream())
        with torch.cuda.stream(side):
            for _ in range(WARM_UPS):
                call()
        torch.cuda.current_stream().wait_stream(side)
        torch.cuda.synchronize()
        graph = torch.cuda.CUDAGraph()
        try:
            with torch.cuda.graph(graph, pool=pool):
                result = call()
        except RuntimeError as error:
            raise RuntimeError(
                "lirank_ext.capture: the model does something that a CUDA graph cannot hold, such "
                "as waiting for the GPU (.item(), .tolist(), boolean indexing, counts of "
                f"candidates): {error}"
            ) from error
        return graph, result


def capture(
    model: nn.Module | Callable[..., Any],
    *examples: tuple[Any, ...] | dict[str, Any] | Tensor,
    most: int = 32,
) -> Captured:
    """Replay a model's forward from CUDA graphs, so that a call costs the host one launch.

    Every shape of input has a graph, made at its first call from as many calls of the model as it
    takes to compile and choose kernels (seconds for the first). Batches whose ids vary in number
    have as many shapes; pad them to a few sizes.

    Inputs are copied into the memory that a graph reads, and results out of what it writes. All
    graphs share one pool of memory, so one thread may call at a time. Findings on the device, such
    as an index out of range, are raised by :func:`check_errors`, as without a graph.

    Args:
        model: a module in evaluation mode on a GPU, or a function of tensors that lie there. Its
            weights may change in place afterwards, and must not move.
        *examples: batches to capture now: a tuple of arguments, or the one argument itself.
        most: graphs to hold. Beyond that the one not used for longest goes.

    Returns:
        Takes what the model takes: nested tuples, lists and dicts of CUDA tensors, and numbers,
        which are part of the shape. No gradients.

    Raises:
        ValueError: ``most`` is less than 1.
        TypeError, RuntimeError: as a call, for an example.
    """
    if most < 1:
        raise ValueError(f"lirank_ext.capture: argument 'most': wanted 1 or more, got {most}")
    captured = Captured(model, most)
    for example in examples:
        captured(*(example if isinstance(example, tuple) else (example,)))
    return captured


def _check(leaves: list[Any]) -> None:
    tensors = [t for t in leaves if torch.is_tensor(t)]
    elsewhere = next((t for t in tensors if not _on_gpu(t)), None)
    if not tensors or elsewhere is not None:
        got = "no tensor" if elsewhere is None else f"one on {elsewhere.device}"
        raise TypeError(f"lirank_ext.capture: wanted an input of tensors on a GPU, got {got}")
    odd = next(
        (x for x in leaves if not isinstance(x, (Tensor, str, float, int, type(None)))), None
    )
    if odd is not None:
        wanted = "wanted tensors, numbers and strings in the input"
        raise TypeError(f"lirank_ext.capture: {wanted}, got {type(odd).__name__}")


def _on_gpu(t: Tensor) -> bool:
    return t.is_cuda


def _signature(leaves: list[Any], structure: TreeSpec) -> tuple[Any, ...]:
    """All that a graph depends on beside the numbers in the tensors."""
    kinds = [
        (x.shape, x.dtype, x.device) if torch.is_tensor(x) else (type(x), repr(x)) for x in leaves
    ]
    lower = torch.is_autocast_enabled("cuda") and torch.get_autocast_dtype("cuda")
    return structure, lower, torch.backends.cuda.matmul.allow_tf32, *kinds


def _places(model: Any) -> list[tuple[dict[str, Any], str]]:
    """Where the modules hold weights and buffers, found once: a call must not walk all modules."""
    if not isinstance(model, nn.Module):
        return []
    held = [d for m in model.modules() for d in (m._parameters, m._buffers)]
    return [(d, name) for d in held for name in d]
