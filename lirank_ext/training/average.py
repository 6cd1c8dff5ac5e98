"""A moving average of weights, which is evaluated and kept in their place."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Mapping

import torch
from torch import Tensor


class WeightAverage:
    """The exponential moving average of some parameters.

    Args:
        parameters: by name.
        decay: share of the average that stays in each step; 0 averages nothing.

    Attributes:
        values: the average by name; empty before the first step and with a decay of 0.
    """

    def __init__(self, parameters: Mapping[str, Tensor], decay: float) -> None:
        self.parameters, self.decay = dict(parameters), decay
        self.values: dict[str, Tensor] = {}

    @torch.no_grad()
    def update(self, step: int) -> None:
        """Move the average towards the weights that ``step`` (from 0 on) has made."""
        if not self.decay:
            return
        if not self.values:
            self.values = {name: p.detach().clone() for name, p in self.parameters.items()}
            return
        # The first steps count less: an average of few steps would hold the random start.
        decay = min(self.decay, (1 + step) / (10 + step))
        torch._foreach_lerp_([*self.values.values()], self._current(), 1 - decay)

    @contextlib.contextmanager
    def applied(self) -> Iterator[None]:
        """The averages stand in the parameters; afterwards the weights are back."""
        kept = [p.detach().clone() for p in self._current()]
        self.keep()
        try:
            yield
        finally:
            with torch.no_grad():
                for p, value in zip(self._current(), kept, strict=True):
                    p.copy_(value)

    @torch.no_grad()
    def keep(self) -> None:
        """Put the averages into the parameters."""
        for name, value in self.values.items():
            self.parameters[name].copy_(value)

    def restart(self) -> None:
        """Average from the present weights on."""
        self.values = {name: self.parameters[name].detach().clone() for name in self.values}

    def _current(self) -> list[Tensor]:
        """The parameters that have an average."""
        return [self.parameters[name] for name in self.values]
