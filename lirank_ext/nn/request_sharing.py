"""Requests and their candidates: what a module computes once per request.

A row of the input is ``[request_r; item_i]``. ``counts`` (R,) says how many candidates each request
has; the candidates stand in one tensor, request by request.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from functools import lru_cache

import torch
from torch import Tensor, nn
from torch.nn.functional import linear

from ..ops.cross_score import fault_of, residual_cross_score
from ._common import check_shape, refuse

# Ranges [start, stop) of columns, in the order in which a tensor has them.
Runs = Sequence[tuple[int, int]]


def check_counts(owner: str, counts: Tensor, requests: int, items: int) -> list[int] | None:
    """Refuse counts that do not fit ``requests`` requests and ``items`` candidates.

    Returns:
        The counts as a list. None while a graph is being recorded, whose ops check the counts.

    Raises:
        ValueError: the shape is wrong, a count is negative, or the counts do not add up.
        TypeError: the dtype is not int64.
    """
    check_shape(owner, "counts", counts, requests)
    if counts.dtype != torch.int64:
        refuse(owner, "counts", "dtype torch.int64", counts.dtype, TypeError)
    if torch.compiler.is_compiling() or counts.is_meta or torch.jit.is_tracing():
        return None
    numbers = counts.tolist()
    if fault := fault_of(numbers, items):
        refuse(owner, "counts", *fault)
    return numbers


def check_widths(owner: str, request: Tensor, items: Tensor, width: int) -> None:
    """Refuse unless request (R, d_u) and items (N, width - d_u) make rows of ``width``."""
    for name, t in (("request", request), ("items", items)):
        if t.ndim != 2 or t.shape[1] < 1:
            refuse(owner, name, "shape (rows, columns) with at least one column", tuple(t.shape))
    if items.dtype != request.dtype:
        refuse(owner, "items", f"dtype {request.dtype}", items.dtype, TypeError)
    if items.shape[1] + request.shape[1] != width:
        check_shape(owner, "items", items, "N", width - request.shape[1])


class Rows:
    """Repeats rows of requests for their candidates.

    Args:
        counts: (R,) int64.
        items: how many candidates there are.
        numbers: the counts as a list, or None while a graph is being recorded.
    """

    def __init__(self, counts: Tensor, items: int, numbers: list[int] | None) -> None:
        self.counts, self.items, self.numbers = counts, items, numbers
        self._index: Tensor | None = None

    @property
    def index(self) -> Tensor:
        """The request of every candidate, (items,)."""
        if self._index is None:
            requests = torch.arange(self.counts.shape[0], device=self.counts.device)
            self._index = torch.repeat_interleave(requests, self.counts, output_size=self.items)
        return self._index

    def spread(self, t: Tensor) -> Tensor:
        """(R, ...) -> (items, ...), for reading."""
        if self.numbers is not None and len(self.numbers) == 1:
            return t.expand(self.items, *t.shape[1:])
        return t.index_select(0, self.index)

    def add(self, to_items: Tensor, to_requests: Tensor) -> Tensor:
        """(items, n) + (R, n), every candidate with its request. May overwrite ``to_items``."""
        spread = self.spread(to_requests)
        if torch.is_grad_enabled():
            return to_items + spread
        return to_items.add_(spread)

    def join(self, request: Tensor, items: Tensor) -> Tensor:
        """The rows ``[request_r; item_i]``."""
        return torch.cat([self.spread(request), items], dim=1)


def arrange(t: Tensor, runs: Runs | None, dim: int) -> Tensor:
    """The columns of ``runs`` along ``dim``, one range behind the other. None takes all as is."""
    if runs is None:
        return t
    if len(runs) > 2 and not torch.compiler.is_compiling():
        return t.index_select(dim, _index(tuple(runs), t.device))
    parts = [t.narrow(dim, start, stop - start) for start, stop in runs]
    return parts[0] if len(parts) == 1 else torch.cat(parts, dim)


@lru_cache(maxsize=64)
def _index(runs: tuple[tuple[int, int], ...], device: torch.device) -> Tensor:
    """The columns of the ranges: one gather is faster than many narrow copies of each row."""
    with torch.inference_mode(False):
        return torch.cat([torch.arange(start, stop, device=device) for start, stop in runs])


def inverse(runs: Runs) -> list[tuple[int, int]]:
    """The ranges that bring columns back which ``arrange`` has moved by ``runs``."""
    place, moved = 0, []
    for start, stop in runs:
        moved.append((start, place, place + stop - start))
        place += stop - start
    return [(start, stop) for _, start, stop in sorted(moved)]


def split_linear(
    request: Tensor, items: Tensor, rows: Rows, weight: Tensor, bias: Tensor | None
) -> Tensor:
    """``linear([request_r; item_i], weight, bias)``: the request's part once per request."""
    width = request.shape[1]
    return rows.add(linear(items, weight[:, width:]), linear(request, weight[:, :width], bias))


def is_watched(module: nn.Module) -> bool:
    """Whether a hook is to see the calls of the module or of a part of it."""
    return any(m._forward_hooks or m._forward_pre_hooks for m in module.modules())


def tensors_of(layer: nn.Module, names: Iterable[str]) -> list[Tensor]:
    """The layer's tensors by name.

    Reading ``_parameters`` saves 0.4 us per tensor: ``nn.Module.__getattr__`` is slow.
    """
    held = layer._parameters
    try:
        return [held[name] for name in names]
    except KeyError:  # pruned or parametrized
        return [getattr(layer, name) for name in names]


def explicit_temperatures(attention: list[Tensor], temperature: float) -> list[Tensor]:
    """Logarithms of temperatures for layers whose temperature is fixed.

    AOTInductor hands an empty list of tensors to an op as None. The temperature goes into the
    queries' kernels in ``attention``, (q, k, v, u, bias) per layer, as its logarithm in half
    precision would be another number.
    """
    if temperature != 1:
        attention[::5] = [q / temperature for q in attention[::5]]
    return [attention[0].new_zeros(())] * (len(attention) // 5)


def vanishing(tensors: int, request: Tensor, items: Tensor) -> list[Tensor]:
    """The tensors of a layer whose result is exactly 0: ``x0 * (0 + -1) + x0``.

    AOTInductor hands an empty list of tensors to an op as None. So an exported net of one stack
    gets a second one of this layer, of rank 1, and the two are added.
    """
    width = request.shape[1] + items.shape[1]
    down, up = request.new_zeros(1, width), request.new_zeros(width, 1)
    return [*[down] * (tensors - 2), up, request.new_full((width,), -1.0)]


def _arranged(tensors: list[Tensor], runs: Runs | None) -> list[Tensor]:
    """A layer's projections, its u and its bias, as :func:`arrange` moves their columns or rows."""
    if runs is None:
        return tensors
    *kernels, u, b = tensors
    return [*(arrange(k, runs, 1) for k in kernels), arrange(u, runs, 0), arrange(b, runs, 0)]


def score_stacks(
    low_rank: Iterable[nn.Module],
    attention: Iterable[nn.Module],
    merge: int,
    request: Tensor,
    items: Tensor,
    counts: Tensor,
    weight: Tensor | None,
    bias: Tensor | None,
    runs: Runs | None = None,
) -> Tensor:
    """Stacks of this package's cross layers on candidates, by one op.

    Args:
        low_rank, attention: the layers of both stacks; one of them may be empty.
        merge: 0 sum, 1 mean, 2 concatenation.
        request, items, counts, weight, bias: as :meth:`lirank_ext.nn.ResidualCrossNet.score`.
        runs: the columns of the net that are the request's and the items', in that order. None if
            they come in this order already. ``weight`` keeps the net's own order.
    """
    low, high, learned = [], [], []
    for layer in low_rank:
        low += _arranged(tensors_of(layer, ("v", "u", "bias")), runs)
    options = (1.0, 1, True)
    for layer in attention:
        high += _arranged(tensors_of(layer, ("q", "k", "v", "u", "bias")), runs)
        options = (layer.initial_temperature, layer.token_dim, layer.skip)
        if layer.learn_temperature:
            learned.append(layer.log_temperature.reshape(()))
    if torch.compiler.is_exporting() and not (low and high):
        merge = 0
        low, high = low or vanishing(3, request, items), high or vanishing(5, request, items)
    if weight is not None and runs is not None:
        halves = weight.chunk(2, 1) if merge == 2 and low and high else [weight]
        weight = torch.cat([arrange(half, runs, 1) for half in halves], dim=1)
    temperature, token_dim, skip = options
    if high and not learned and torch.compiler.is_compiling():
        learned = explicit_temperatures(high, temperature)
    return residual_cross_score(
        request, items, counts, low, high, temperature, learned, token_dim, skip, merge, weight,
        bias,
    )  # fmt: skip
