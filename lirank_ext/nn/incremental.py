"""Incremental training: a penalty that keeps new weights near those learned from older data."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from ._common import check_finite, check_number, did_you_mean, refuse
from .incremental_fisher import fisher_diagonal, log_loss


class IncrementalPenalty(nn.Module):
    """Penalty of incremental training, with its two anchors and their Fisher information.

    (w_0, H_0) is recorded after the cold start and (w_p, H_p) after the previous increment. The
    penalty is::

        forgetting / 2 * [ cold_weight * sum H_0 (w - w_0)^2
                         + (1 - cold_weight) * sum H_p (w - w_p)^2 ]

    An increment starts from ``cold_weight * w_0 + (1 - cold_weight) * w_p``. H is the diagonal of
    the empirical Fisher information: the mean over samples of the squared gradient of
    -log p(y | x). LiRank publishes neither factor, so the defaults 1 and 0 (the paper's equation 2)
    are free choices.

    In each round, call :meth:`start`, train on ``loss + penalty(model)`` and call :meth:`record`.
    Buffers of the model, such as batch norm's statistics, are not part of the penalty.

    Args:
        model: its trainable parameters are the w. The model itself is not stored.
        forgetting: the paper's lambda_f, 0 or more.
        cold_weight: the paper's alpha, in [0, 1].
        skip: parameters without a penalty, by name or by the name of a module that holds them.
            Embedding tables belong here: with a dense penalty each step would touch every row.

    Raises:
        ValueError: an argument is out of range, or a name in ``skip`` matches nothing.
        RuntimeError: ``start`` or the penalty is called before ``record``, or the model or the
            state dict has other parameters than the model given here.

    Source: LiRank (arXiv 2402.06859), on incremental training, equations 2 and 3.
    """

    def __init__(
        self,
        model: nn.Module,
        forgetting: float = 1.0,
        cold_weight: float = 0.0,
        skip: Sequence[str] = (),
    ) -> None:
        super().__init__()
        owner = "IncrementalPenalty"
        check_number(owner, "forgetting", forgetting, "0 or more", 0, float("inf"), "[)")
        check_number(owner, "cold_weight", cold_weight, "a number in [0, 1]", 0, 1, "[]")
        self.forgetting, self.cold_weight, self.skip = forgetting, cold_weight, tuple(skip)
        known = [name for name, p in model.named_parameters() if p.requires_grad]
        known += [name for name, _ in model.named_modules()]
        for name in self.skip:
            if not any(k == name or k.startswith(name + ".") for k in known):
                hint = did_you_mean(name, known)
                refuse(owner, "skip", "names of parameters or modules", f"{name!r}{hint}")
        kept = self._parameters_of(model)
        if not kept:
            refuse(owner, "model", "a trainable parameter that is not skipped", "none")
        self.shapes = {name: p.shape for name, p in kept.items()}
        one = next(iter(kept.values()))
        empty = torch.zeros(sum(p.numel() for p in kept.values()), dtype=one.dtype).to(one.device)
        for name in ("cold_weights", "cold_fisher", "last_weights", "last_fisher"):
            self.register_buffer(name, empty.clone())
        self._ready = False  # a copy of ``recorded`` that needs no read from the device
        self.register_buffer("recorded", torch.zeros((), dtype=torch.bool))
        self.register_buffer("signature", self._sign())

    def _sign(self) -> Tensor:
        text = repr([(name, tuple(shape)) for name, shape in self.shapes.items()])
        digest = hashlib.sha256(text.encode()).digest()[:8]
        return torch.tensor(int.from_bytes(digest, "little", signed=True))

    def _load_from_state_dict(self, state_dict, prefix, *rest) -> None:
        given = state_dict.get(prefix + "signature")
        if given is not None and int(given) != int(self._sign()):
            raise RuntimeError("IncrementalPenalty: the state dict is of a model with other names")
        if prefix + "recorded" in state_dict:
            self._ready = bool(state_dict[prefix + "recorded"])
        super()._load_from_state_dict(state_dict, prefix, *rest)

    def _parameters_of(self, model: nn.Module) -> dict[str, nn.Parameter]:
        left_out = tuple(name + "." for name in self.skip)
        return {
            name: p
            for name, p in model.named_parameters()
            if p.requires_grad and not (name + ".").startswith(left_out)
        }

    def _checked(self, model: nn.Module) -> dict[str, nn.Parameter]:
        """The model's parameters, after checking that they match those given at first."""
        found = self._parameters_of(model)
        if {n: p.shape for n, p in found.items()} != self.shapes:
            odd = sorted(set(found) ^ set(self.shapes)) or [
                n for n, p in found.items() if p.shape != self.shapes[n]
            ]
            raise RuntimeError(f"IncrementalPenalty: the model differs at parameter {odd[0]!r}")
        return found

    def _pieces(self, model: nn.Module) -> Iterator[tuple[nn.Parameter, list[Tensor]]]:
        """Each parameter with its part of the four buffers: cold weights, cold Fisher, last
        weights, last Fisher."""
        if not self._ready:
            raise RuntimeError("IncrementalPenalty: nothing is recorded yet: call record first")
        found = self._checked(model)
        vectors = (self.cold_weights, self.cold_fisher, self.last_weights, self.last_fisher)
        sizes = [shape.numel() for shape in self.shapes.values()]
        for p, *parts in zip(found.values(), *(v.split(sizes) for v in vectors), strict=True):
            yield p, [part.view_as(p) for part in parts]

    def forward(self, model: nn.Module) -> Tensor:
        """The penalty at the model's weights, a 0-d tensor to add to the loss."""
        a, terms = self.cold_weight, []
        for w, (w_0, h_0, w_p, h_p) in self._pieces(model):
            term = (1 - a) * (h_p * (w - w_p).square()).sum()
            # With a cold weight of 0 the first anchor is not even computed.
            terms.append(term + a * (h_0 * (w - w_0).square()).sum() if a else term)
        return self.forgetting / 2 * torch.stack(terms).sum()

    @torch.no_grad()
    def start(self, model: nn.Module) -> None:
        """Set the model's weights to ``cold_weight * w_0 + (1 - cold_weight) * w_p``.

        Skipped parameters are left unchanged.
        """
        for w, (w_0, _, w_p, _) in self._pieces(model):
            w.copy_(self.cold_weight * w_0 + (1 - self.cold_weight) * w_p)

    def record(
        self,
        model: nn.Module,
        batches: Iterable[tuple[Any, Tensor]],
        cold: bool = False,
        negative_log_likelihood: Callable[[Tensor, Tensor], Tensor] = log_loss,
        method: str = "vmap",
        chunk_size: int = 64,
    ) -> int:
        """Record the model's weights as an anchor, with the Fisher information of ``batches``.

        A few thousand samples are usually enough.

        Args:
            model: the trained model.
            batches: pairs (inputs, targets). The inputs are a tensor or a tuple of tensors, with
                the samples along dimension 0. They are the arguments of the model.
            cold: record w_0 as well. The first call always does.
            negative_log_likelihood, method, chunk_size: as in :func:`fisher_diagonal`.

        Returns:
            The number of samples.
        """
        kept = self._checked(model)
        fisher, count = fisher_diagonal(
            model, kept, batches, negative_log_likelihood, method, chunk_size
        )
        for name, t in fisher.items():
            check_finite("IncrementalPenalty", f"model (squared gradient of {name})", t)
        anchors = ("cold", "last") if cold or not self._ready else ("last",)
        for anchor in anchors:
            getattr(self, f"{anchor}_weights").copy_(_flat(kept.values()))
            getattr(self, f"{anchor}_fisher").copy_(_flat(fisher.values()))
        self.recorded.fill_(True)
        self._ready = True
        return count


def _flat(tensors: Iterable[Tensor]) -> Tensor:
    return torch.cat([t.detach().reshape(-1) for t in tensors])
