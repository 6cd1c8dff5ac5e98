"""Stacks of cross layers (DCN-V2, arXiv 2008.13535): low rank, full rank, mixture of experts."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn
from torch.nn.functional import linear

from ..ops.cross import low_rank_cross
from ._common import check_positive
from .cross import LowRankCross, score_net

if TYPE_CHECKING:
    from typing import Self


class _Net(nn.Module):
    """A net with parameters of its own, or with those of another module under their names."""

    held: Callable[[nn.Module], Any] | None = None

    @classmethod
    def on(cls, source: nn.Module, held: Callable[[nn.Module], Any], **attributes: Any) -> Self:
        """A net on the parameters of ``source``: same objects, names and order.

        Args:
            source: the module whose children and parameters the net takes over.
            held: a function of a module that finds the net's tensors among them.
            attributes: further attributes of the net.
        """
        made = cls.__new__(cls)
        nn.Module.__init__(made)
        made.training = source.training
        made._parameters.update(source._parameters)
        made._buffers.update(source._buffers)
        made._modules.update(source._modules)
        made._non_persistent_buffers_set |= source._non_persistent_buffers_set
        made.held = held
        for name, value in attributes.items():
            setattr(made, name, value)
        return made


class LowRankCrossNet(_Net):
    """A stack of :class:`LowRankCross` layers on one input, like TorchRec's module of this name.

    Args:
        dim: width d.
        rank: width r between the two kernels of a layer.
        num_layers: how many layers.

    Raises:
        ValueError: a size is not positive.
    """

    def __init__(self, dim: int, rank: int, num_layers: int = 2) -> None:
        super().__init__()
        check_positive(type(self).__name__, num_layers=num_layers)
        self.layers = nn.ModuleList(LowRankCross(dim, rank) for _ in range(num_layers))

    def forward(self, x: Tensor) -> Tensor:
        """(..., dim) -> (..., dim)."""
        x0 = x.reshape(-1, x.shape[-1])
        y = x0
        if self.held is None:
            for layer in self.layers:
                y = layer(x0, y)
            return y.view(x.shape)
        for v, u, bias in self.held(self):
            y = low_rank_cross(x0, y, v, u, bias)
        return y.view(x.shape)

    def score(
        self,
        request: Tensor,
        items: Tensor,
        counts: Tensor,
        weight: Tensor | None = None,
        bias: Tensor | None = None,
    ) -> Tensor:
        """Candidates of requests, as :meth:`ResidualCrossNet.score` takes them."""
        return score_net(self, request, items, counts, weight, bias)


class FullRankCrossNet(_Net):
    """A stack of cross layers with whole matrices, ``x0 * (x @ kernel.T + bias) + x``.

    Each layer costs one matrix product and one pass over the result. Implementations that write
    ``kernel @ x[:, :, None]`` compute a matrix-vector product for every row instead.

    Args:
        dim: width d.
        num_layers: how many layers.

    Raises:
        ValueError: a size is not positive.
    """

    def __init__(self, dim: int, num_layers: int = 2) -> None:
        super().__init__()
        check_positive(type(self).__name__, dim=dim, num_layers=num_layers)
        kernels = [torch.empty(dim, dim) for _ in range(num_layers)]
        self.kernels = nn.ParameterList(map(nn.init.xavier_normal_, kernels))
        self.bias = nn.ParameterList(torch.zeros(dim) for _ in range(num_layers))

    def forward(self, x: Tensor) -> Tensor:
        """(..., dim) -> (..., dim)."""
        y = x
        for kernel, bias in self._layers():
            # The bias of another module may be a column.
            y = torch.addcmul(y, x, linear(y, kernel, bias.flatten()).to(y.dtype))
        return y

    def _layers(self) -> list[tuple[Tensor, Tensor]]:
        return self.held(self) if self.held else list(zip(self.kernels, self.bias, strict=True))

    def extra_repr(self) -> str:
        layers = self._layers()
        return f"dim={layers[0][0].shape[-1]}, num_layers={len(layers)}"


class MixtureCrossNet(_Net):
    """A stack of cross layers, each a gated mixture of low-rank experts (DCN-V2, section 3.3).

    With gates ``g = softmax(x @ gate.T)``, each layer computes::

        result = x0 * (sum_e g_e * u_e @ act(c_e @ act(v_e @ x)) + bias) + x

    Each layer takes three products, which compute all of its experts at once. One set of gates
    serves all layers, as in TorchRec, FuxiCTR and DeepCTR-Torch. A single expert has no gate.

    Args:
        dim: width d.
        rank: width r of an expert.
        num_layers: how many layers.
        num_experts: how many experts in each layer.
        activation: an elementwise function.

    Raises:
        ValueError: a size is not positive.
    """

    def __init__(
        self,
        dim: int,
        rank: int,
        num_layers: int = 2,
        num_experts: int = 4,
        activation: Callable[[Tensor], Tensor] = torch.tanh,
    ) -> None:
        super().__init__()
        sizes = {"dim": dim, "rank": rank, "num_layers": num_layers, "num_experts": num_experts}
        check_positive(type(self).__name__, **sizes)

        def kernels(rows: int, columns: int) -> nn.ParameterList:
            made = (torch.empty(num_experts, rows, columns) for _ in range(num_layers))
            return nn.ParameterList(map(nn.init.xavier_normal_, made))

        self.v, self.c, self.u = kernels(rank, dim), kernels(rank, rank), kernels(dim, rank)
        self.bias = nn.ParameterList(torch.zeros(dim) for _ in range(num_layers))
        self.gates = nn.ModuleList()
        if num_experts > 1:
            self.gates.extend(nn.Linear(dim, 1, bias=False) for _ in range(num_experts))
        self.activation = activation
        # FuxiCTR and DeepCTR-Torch store v as (experts, dim, rank).
        self.v_is_transposed = False

    def forward(self, x: Tensor) -> Tensor:
        """(B, dim) -> (B, dim)."""
        y, gate = x, None
        layers, gates = self.held(self) if self.held else self._own()
        if len(gates):
            gate = torch.cat([g.weight for g in gates])
        for v, c, u, bias in layers:
            v = v if self.v_is_transposed else v.transpose(1, 2)
            hidden = self.activation(torch.matmul(y, v))  # (experts, B, rank)
            hidden = self.activation(torch.bmm(hidden, c.transpose(1, 2)))
            if gate is not None:
                hidden = hidden * torch.softmax(linear(y, gate), 1).T.unsqueeze(2)
            # The gates of a row sum to 1, so the bias can be added without a gate.
            mixed = torch.einsum("ebr,edr->bd", hidden, u) + bias.flatten()
            y = torch.addcmul(y, x, mixed.to(y.dtype))
        return y

    def _own(self) -> tuple[list[tuple[Tensor, ...]], nn.ModuleList]:
        return list(zip(self.v, self.c, self.u, self.bias, strict=True)), self.gates
