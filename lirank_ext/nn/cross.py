"""Cross layers of LiRank's Residual DCN (arXiv 2402.06859, section 3.3)."""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn

from ..ops.cross import low_rank_cross
from ..ops.cross_attention import attention_cross
from ..ops.cross_net import residual_cross_net
from ._common import keep_axis
from .request_sharing import (
    Rows,
    Runs,
    arrange,
    check_counts,
    check_widths,
    explicit_temperatures,
    inverse,
    score_stacks,
)
from .request_sharing import tensors_of as _tensors

MERGES = ("sum", "mean", "concat")


def _positive(owner: str, **sizes: int) -> None:
    for name, size in sizes.items():
        if not size > 0:
            raise ValueError(f"{owner}: argument '{name}': wanted a positive number, got {size}")


class LowRankParameters(nn.Module):
    """The parameters v (rank, dim), u (dim, rank) and bias (dim,).

    v and u start Xavier normal, the bias starts at zero.
    """

    def __init__(self, dim: int, rank: int) -> None:
        super().__init__()
        _positive(type(self).__name__, dim=dim, rank=rank)
        self.dim, self.rank = dim, rank
        self.v = nn.Parameter(torch.empty(rank, dim))
        self.u = nn.Parameter(torch.empty(dim, rank))
        self.bias = nn.Parameter(torch.empty(dim))
        self.reset_parameters()

    def reset_parameters(self) -> None:
        nn.init.xavier_normal_(self.v)
        nn.init.xavier_normal_(self.u)
        nn.init.zeros_(self.bias)

    def extra_repr(self) -> str:
        return f"dim={self.dim}, rank={self.rank}"


class AttentionParameters(nn.Module):
    """The parameters q, k, v (rank, dim), u (dim, rank) and bias (dim,).

    The kernels start Xavier normal, the bias starts at zero. A learned temperature is stored as its
    logarithm (1,), so that it stays positive.
    """

    def __init__(
        self,
        dim: int,
        rank: int,
        temperature: float = 1.0,
        learn_temperature: bool = False,
        token_dim: int = 1,
        skip: bool = True,
    ) -> None:
        super().__init__()
        owner = type(self).__name__
        _positive(owner, dim=dim, rank=rank, temperature=temperature, token_dim=token_dim)
        if rank % token_dim:
            text = f"wanted a divisor of the rank {rank}, got {token_dim}"
            raise ValueError(f"{owner}: argument 'token_dim': {text}")
        self.dim, self.rank, self.token_dim, self.skip = dim, rank, token_dim, skip
        self.initial_temperature, self.learn_temperature = float(temperature), learn_temperature
        for name in ("q", "k", "v"):
            self.register_parameter(name, nn.Parameter(torch.empty(rank, dim)))
        self.u = nn.Parameter(torch.empty(dim, rank))
        self.bias = nn.Parameter(torch.empty(dim))
        self.log_temperature = nn.Parameter(torch.empty(1)) if learn_temperature else None
        self.reset_parameters()

    def reset_parameters(self) -> None:
        for kernel in (self.q, self.k, self.v, self.u):
            nn.init.xavier_normal_(kernel)
        nn.init.zeros_(self.bias)
        if self.log_temperature is not None:
            nn.init.constant_(self.log_temperature, math.log(self.initial_temperature))

    def _load_from_state_dict(self, state_dict, prefix, *rest) -> None:
        keep_axis(self, "log_temperature", state_dict, prefix)
        super()._load_from_state_dict(state_dict, prefix, *rest)

    @property
    def temperature(self) -> float | Tensor:
        """The fixed temperature, or the learned one as a 0-d tensor."""
        if self.log_temperature is None:
            return self.initial_temperature
        return self.log_temperature.exp().reshape(())

    def extra_repr(self) -> str:
        text = f"dim={self.dim}, rank={self.rank}, temperature={self.initial_temperature:g}"
        text += f", learn_temperature={self.learn_temperature}, token_dim={self.token_dim}"
        return f"{text}, skip={self.skip}"


class ResidualCrossParameters(nn.Module):
    """The layers of both stacks: ``low_rank[i]`` and ``attention[i]``.

    Attributes:
        out_dim: width of the output: ``dim``, or ``2 * dim`` for ``merge="concat"``.
    """

    low_rank_type: type[nn.Module]
    attention_type: type[nn.Module]

    def __init__(
        self,
        dim: int,
        rank: int,
        num_layers: int = 2,
        attention_rank: int | None = None,
        temperature: float = 1.0,
        learn_temperature: bool = False,
        token_dim: int = 1,
        skip: bool = True,
        merge: str = "sum",
    ) -> None:
        super().__init__()
        owner = type(self).__name__
        attention_rank = rank if attention_rank is None else attention_rank
        _positive(owner, dim=dim, rank=rank, num_layers=num_layers, attention_rank=attention_rank)
        if merge not in MERGES:
            raise ValueError(f"{owner}: argument 'merge': wanted one of {MERGES}, got {merge!r}")
        self.dim, self.merge = dim, merge
        self.out_dim = 2 * dim if merge == "concat" else dim
        options = (temperature, learn_temperature, token_dim, skip)
        self.low_rank = nn.ModuleList(self.low_rank_type(dim, rank) for _ in range(num_layers))
        self.attention = nn.ModuleList(
            self.attention_type(dim, attention_rank, *options) for _ in range(num_layers)
        )

    def forward(self, x: Tensor) -> Tensor:
        """(B, dim) -> (B, out_dim)."""
        low, high = x, x
        for layer in self.low_rank:
            low = layer(x, low)
        for layer in self.attention:
            high = layer(x, high)
        if self.merge == "concat":
            return torch.cat([low, high], dim=-1)
        return low + high if self.merge == "sum" else (low + high) / 2

    def extra_repr(self) -> str:
        return f"merge={self.merge!r}, out_dim={self.out_dim}"


class LowRankCross(LowRankParameters):
    """Low-rank cross layer, ``x0 * (x @ v.T @ u.T + bias) + x``.

    The kernels start Xavier normal and the bias starts at zero, as in other implementations of this
    layer.

    Args:
        dim: width d.
        rank: width r between the two kernels. Below d / 2 it saves work over a full matrix.

    Raises:
        ValueError: ``dim`` or ``rank`` is not positive.

    Examples:
        >>> layer, x = lirank_ext.nn.LowRankCross(dim=64, rank=16), torch.randn(8, 64)
        >>> layer(x, x).shape
        torch.Size([8, 64])
    """

    def forward(self, x0: Tensor, x: Tensor) -> Tensor:
        """x0: (B, dim) input of the stack; x: (B, dim) input of the layer -> (B, dim)."""
        return low_rank_cross(x0, x, self.v, self.u, self.bias)


class AttentionCross(AttentionParameters):
    """Cross layer with attention between its low-rank maps; see ``attention_cross``.

    The kernels start Xavier normal and the bias starts at zero. A learned temperature is stored as
    its logarithm.

    Args:
        dim: width d.
        rank: width r of queries, keys and values.
        temperature: divides the scores. If it is learned, this is its initial value.
        learn_temperature: make ``log_temperature`` a parameter.
        token_dim: components per token; divides ``rank``.
        skip: add the values to the attention's result.

    Raises:
        ValueError: a size or the temperature is not positive, or ``token_dim`` does not
            divide ``rank``.
    """

    def forward(self, x0: Tensor, x: Tensor) -> Tensor:
        """x0: (B, dim) input of the stack; x: (B, dim) input of the layer -> (B, dim)."""
        kernels = (self.q, self.k, self.v, self.u, self.bias)
        return attention_cross(x0, x, *kernels, self.temperature, self.token_dim, self.skip)


class ResidualCrossNet(ResidualCrossParameters):
    """LiRank's Residual DCN: a low-rank cross net and an attention cross net in parallel.

    Both stacks read the same input. The paper does not say how their outputs are merged. ``"sum"``
    and ``"mean"`` keep the width, ``"concat"`` doubles it (``out_dim``).

    Args:
        dim: width d of the input.
        rank: rank of the low-rank stack.
        num_layers: layers of each stack; two suffice (LiRank, section 3.3).
        attention_rank: rank of the attention stack; ``rank`` if None.
        temperature, learn_temperature, token_dim, skip: as :class:`AttentionCross`.
        merge: ``"sum"``, ``"mean"`` or ``"concat"``.

    Raises:
        ValueError: a size is not positive, ``token_dim`` does not divide the attention's
            rank, or ``merge`` is unknown.

    Examples:
        >>> net = lirank_ext.nn.ResidualCrossNet(dim=64, rank=16, merge="concat")
        >>> net(torch.randn(8, 64)).shape, net.out_dim
        (torch.Size([8, 128]), 128)
    """

    low_rank_type = LowRankCross
    attention_type = AttentionCross

    def forward(self, x: Tensor) -> Tensor:
        """(B, dim) -> (B, out_dim). If no gradient is wanted, one op computes all layers."""
        low_rank = self._modules["low_rank"]._modules.values()
        attention = self._modules["attention"]._modules.values()
        plain = all(map(_is_plain, low_rank)) and all(map(_is_plain, attention))
        # The op itself runs layer by layer where a gradient is wanted, so it serves programs that
        # are recorded with gradients and run without: torch.jit.trace, torch.export.
        recording = torch.jit.is_tracing() or torch.compiler.is_exporting()
        if not plain or (torch.is_grad_enabled() and not recording):
            return super().forward(x)
        first, second, learned = [], [], []
        for layer in low_rank:
            first += _tensors(layer, ("v", "u", "bias"))
        for layer in attention:
            second += _tensors(layer, ("q", "k", "v", "u", "bias"))
            if layer.learn_temperature:
                learned.append(layer.log_temperature.reshape(()))
        merge = MERGES.index(self.merge)
        if not learned and torch.compiler.is_compiling():
            learned = explicit_temperatures(second, layer.initial_temperature)
        options = (layer.initial_temperature, learned, layer.token_dim, layer.skip, merge)
        return residual_cross_net(x, first, second, *options)

    def score(
        self,
        request: Tensor,
        items: Tensor,
        counts: Tensor,
        weight: Tensor | None = None,
        bias: Tensor | None = None,
    ) -> Tensor:
        """``F.linear(net([request_r; item_i]), weight, bias)`` for the candidates of requests.

        Exact to rounding. What depends on the request alone is computed once per request, in all
        layers. How much of it pays is decided by its cost, request by request. Where a gradient is
        wanted, or a hook watches a layer, the rows are joined instead.

        Args:
            request: (R, d_u), the first columns of the input.
            items: (N, dim - d_u), the other columns of all candidates, request by request.
            counts: (R,) int64, candidates of each request; 0 is allowed.
            weight: (m, out_dim), or None for the result of the net itself.
            bias: (m,), or None.

        Returns:
            (N, m), or (N, out_dim) without ``weight``, in the order of ``items``.

        Raises:
            ValueError: shapes do not fit, a count is negative, or the counts do not add up to N.
            TypeError: a dtype does not fit.

        Source: a rearrangement of DCN-V2 (arXiv 2008.13535), equation 2, and of LiRank's attention
        (arXiv 2402.06859), section 3.3.
        """
        return score_net(self, request, items, counts, weight, bias)


def _is_plain(layer: nn.Module) -> bool:
    """Whether the layer is one of ours and has no hooks, so that its op can be called instead."""
    watched = layer._forward_hooks or layer._forward_pre_hooks
    return type(layer) in (LowRankCross, AttentionCross) and not watched


def score_net(
    net: nn.Module,
    request: Tensor,
    items: Tensor,
    counts: Tensor,
    weight: Tensor | None = None,
    bias: Tensor | None = None,
    runs: Runs | None = None,
) -> Tensor:
    """The score of a net of cross layers; for ``runs`` see :func:`score_stacks`.

    ``net`` is a :class:`ResidualCrossParameters`, or a module with one stack, ``layers``. Any
    other net, and one of other layers than this package's, gets the joined rows.
    """
    stacks, merge = stacks_of(net)
    layers = [*stacks[0], *stacks[1]]
    # The op takes a bias of every layer; a layer that swap made of two linear ones may have none.
    if layers and all(_is_plain(x) and x._parameters.get("bias") is not None for x in layers):
        check_widths(type(net).__name__, request, items, layers[0].dim)
        return score_stacks(*stacks, merge, request, items, counts, weight, bias, runs)
    out = net(joined(type(net).__name__, request, items, counts, runs))
    return out if weight is None else nn.functional.linear(out, weight, bias)


def stacks_of(net: nn.Module) -> tuple[tuple[list[nn.Module], list[nn.Module]], int]:
    """The low-rank layers and the attention layers of a net, and how they merge."""
    if isinstance(net, ResidualCrossParameters):
        # Reading _modules saves 1 us per list: nn.Module.__getattr__ and ModuleList are slow.
        low_rank = list(net._modules["low_rank"]._modules.values())
        attention = list(net._modules["attention"]._modules.values())
        return (low_rank, attention), MERGES.index(net.merge)
    layers = list(getattr(net, "layers", ()))
    if layers and isinstance(layers[0], AttentionParameters):
        return ([], layers), 0
    return (layers, []), 0


def joined(owner: str, request: Tensor, items: Tensor, counts: Tensor, runs: Runs | None) -> Tensor:
    """The rows of the candidates, with their columns in the net's own order."""
    numbers = check_counts(owner, counts, request.shape[0], items.shape[0])
    rows = Rows(counts, items.shape[0], numbers).join(request, items)
    return arrange(rows, None if runs is None else inverse(runs), 1)
