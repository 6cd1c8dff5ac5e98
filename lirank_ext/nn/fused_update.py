"""Look-ups in hashed tables whose rows move during the backward pass, without gradients."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import TYPE_CHECKING, Any, NamedTuple, Protocol

import torch
from torch import Tensor
from torch.utils.weak import WeakIdKeyDictionary

from ..ops.hashed_embedding import hashed_embedding_bag
from ..ops.hashed_embedding_backward import hashed_embedding_bag_backward_weights
from ..ops.hashed_embedding_update import hashed_embedding_bag_update

if TYPE_CHECKING:
    from .hashed_embedding import HashedEmbeddingBag


class Step(NamedTuple):
    """How the rows of four tables move: see ``hashed_embedding_bag_update``.

    Attributes:
        sums: those of row-wise AdaGrad, one tensor for each table, or None four times.
        lr: the learning rate, a tensor without dimensions.
        l2: strength of the penalty of the rows that move.
        eps: added to the root.
    """

    sums: Sequence[Tensor | None]
    lr: Tensor
    l2: float
    eps: float


class FusedOptimizer(Protocol):
    """An optimizer whose step the backward pass of a module can take."""

    def next_step(self, tables: Sequence[Tensor]) -> Step:
        """What the next step is, with the learning rate of now."""
        ...


# Tables that move in a backward pass. No attribute of the tables says so, because it would go with
# copies and pickles, which do not move.
_MOVING = WeakIdKeyDictionary()


def mark(tables: Iterable[Tensor], moving: bool) -> None:
    """Note that these tables move in the backward pass, or that they no longer do."""
    for table in tables:
        if moving:
            _MOVING[table] = True
        else:
            _MOVING.pop(table, None)


def any_moves(parameters: Iterable[Tensor]) -> bool:
    """Whether one of them is a table that moves in the backward pass."""
    return any(p in _MOVING for p in parameters)


def moves_in_backward(module: HashedEmbeddingBag) -> bool:
    """Whether the tables of a fused module move in the backward pass of a look-up made now.

    Raises:
        ValueError: some tables are frozen and others are not.
        RuntimeError: there are several processes.
    """
    if not torch.is_grad_enabled() or torch.compiler.is_exporting():
        return False
    trained = [p.requires_grad for p in module.parameters()]
    if not any(trained):
        return False
    if not all(trained):
        raise ValueError(
            f"{type(module).__name__}: an optimizer is fused into its backward pass, which moves "
            "all four tables, and some of them are frozen: freeze all of them or none"
        )
    if processes() > 1:
        raise RuntimeError(
            f"{type(module).__name__}: an optimizer is fused into its backward pass, which moves "
            "the tables by the gradients of one process; with several processes let the optimizer "
            "take its own steps: optimizer.unfuse(module)"
        )
    return True


def in_a_group() -> bool:
    """Whether this process has joined others, of whom it may be the only one."""
    return torch.distributed.is_available() and torch.distributed.is_initialized()


def processes() -> int:
    """How many processes train together."""
    return torch.distributed.get_world_size() if in_a_group() else 1


def look_up_and_move(
    module: HashedEmbeddingBag, ids: Tensor, offsets: Tensor | None, weights: Tensor | None
) -> Tensor:
    """The look-up of a module whose backward pass moves its tables.

    It runs outside compiled graphs, which cannot hold a backward pass that changes its inputs:
    callers wrap it by ``torch.compiler.disable``. That imports the compiler, so this file does not.
    """
    tables = (module.quotient_b, module.remainder_b, module.quotient_c, module.remainder_c)
    return _LookUpAndMove.apply(module, ids, offsets, weights, *tables)


class _LookUpAndMove(torch.autograd.Function):
    """``hashed_embedding_bag``; the gradients of its tables are applied and not returned."""

    @staticmethod
    def forward(
        ctx: Any,
        module: HashedEmbeddingBag,
        ids: Tensor,
        offsets: Tensor | None,
        weights: Tensor | None,
        *tables: Tensor,
    ) -> Tensor:
        last = module.include_last_offset and offsets is not None
        rule = (module.num_buckets, module.seed, module.mode)
        ctx.save_for_backward(ids, offsets, weights)
        ctx.tables, ctx.versions = tables, [t._version for t in tables]
        ctx.module, ctx.last = module, last
        return hashed_embedding_bag(ids, offsets, *tables, *rule, weights, last, module.prehashed)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        module, tables = ctx.module, ctx.tables
        owner, fused = type(module).__name__, module._fused
        if torch.is_grad_enabled():
            raise RuntimeError(
                f"{owner}: a second derivative was wanted, but an optimizer is fused into the "
                "backward pass, which moves the tables: call optimizer.unfuse(module) first"
            )
        if fused is None:
            raise RuntimeError(
                f"{owner}: the optimizer that was fused into the backward pass was taken out "
                "between the forward and the backward pass"
            )
        if [t._version for t in tables] != ctx.versions:
            raise RuntimeError(
                f"{owner}: its tables changed between the forward and the backward pass. With an "
                "optimizer fused in, every backward pass is a step. A module that is called twice "
                "before it, or a graph that goes backward twice, would move its tables by "
                "gradients of older tables: call optimizer.unfuse(module) for such a module"
            )
        ids, offsets, weights = ctx.saved_tensors
        rule = (module.num_buckets, module.seed)
        grad_weights = None
        if ctx.needs_input_grad[3]:  # before the tables move
            grad_weights = hashed_embedding_bag_backward_weights(
                grad, ids, offsets, *tables, *rule, ctx.last, module.prehashed
            )
        sums, lr, l2, eps = fused.next_step(tables)
        hashed_embedding_bag_update(
            grad, ids, offsets, weights, *tables, *sums, lr, *rule, module.mode == "mean",
            ctx.last, module.prehashed, l2, eps,
        )  # fmt: skip
        # The op changed them behind autograd's back.
        torch.autograd.graph.increment_version(tables)
        return None, None, None, grad_weights, None, None, None, None
