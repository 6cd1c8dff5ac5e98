"""Optimizers that move the rows of embedding tables that a batch touches, and no others."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from ..nn._common import check_number
from ..nn.fused_update import Step, any_moves, look_up_and_move, mark
from ..nn.hashed_embedding import HashedEmbeddingBag
from ..ops.hashed_embedding_rule import compute_dtype


def evaluated(closure: Callable[[], Any] | None) -> Any:
    """What an optimizer's step gives: the result of its closure, computed with gradients."""
    if closure is None:
        return None
    with torch.enable_grad():
        return closure()


class RowwiseOptimizer(torch.optim.Optimizer):
    """What :class:`RowwiseAdagrad` and :class:`TableSGD` share.

    :meth:`fuse` lets the backward pass of a ``HashedEmbeddingBag`` take the steps of its tables.
    """

    def __init__(self, params: Iterable[Tensor], defaults: dict[str, Any]) -> None:
        owner = type(self).__name__
        lr = defaults["lr"]
        rate = float(lr) if isinstance(lr, Tensor) and lr.dim() == 0 else lr
        check_number(owner, "lr", rate, "0 or more", 0, float("inf"), "[)")
        check_number(owner, "l2", defaults["l2"], "0 or more", 0, float("inf"), "[)")
        super().__init__(params, defaults)
        for group in self.param_groups:
            for p in group["params"]:
                if p.dim() != 2:
                    raise ValueError(f"{owner}: wanted tables (N, D), got {tuple(p.shape)}")

    def fuse(self, module: nn.Module) -> None:
        """Let the backward pass move the tables of every ``HashedEmbeddingBag`` in a module.

        Each backward pass is then a step of these tables, with the learning rate of that moment.
        Their ``grad`` stays None, no gradient of them is made, and :meth:`step` leaves them alone.
        The steps are those that :meth:`step` would have taken, up to rounding.

        Nothing that works on gradients sees those of these tables: clipping, a ``GradScaler``,
        several backward passes that add up, or the other processes of a distributed training. A
        module is called once per backward pass. Where this can be seen, it is refused. Copies and
        pickles of a fused module are not fused. ``torch.compile`` runs its look-up outside the
        compiled graph.

        Args:
            module: its tables are parameters of this optimizer.

        Raises:
            ValueError: there is no such module in it, or a table is none of this optimizer's.
        """
        bags = [m for m in module.modules() if isinstance(m, HashedEmbeddingBag)]
        owner = type(self).__name__
        if not bags:
            raise ValueError(f"{owner}.fuse: wanted a HashedEmbeddingBag, got {type(module)}")
        groups = [{id(p) for p in group["params"]} for group in self.param_groups]
        for bag in bags:
            tables = {id(p) for p in bag.parameters()}
            if not any(tables <= group for group in groups):
                raise ValueError(
                    f"{owner}.fuse: wanted modules whose tables are in one parameter group of this "
                    "optimizer, got one with others"
                )
        for bag in bags:
            bag._fused, bag._look_up = self, torch.compiler.disable(look_up_and_move)
            mark(bag.parameters(), True)

    def unfuse(self, module: nn.Module) -> None:
        """Take back :meth:`fuse`: the tables get gradients again, and :meth:`step` moves them."""
        for bag in module.modules():
            if isinstance(bag, HashedEmbeddingBag) and bag._fused is self:
                bag._fused = bag._look_up = None
                mark(bag.parameters(), False)

    @property
    def _step_supports_amp_scaling(self) -> bool:
        """``GradScaler.step`` then tells :meth:`step` that gradients are scaled."""
        return any_moves(p for group in self.param_groups for p in group["params"])

    @torch.no_grad()
    def step(self, closure: Callable[[], Any] | None = None) -> Any:
        """Move every row that has a gradient.

        Raises:
            RuntimeError: a ``GradScaler`` calls it, and tables move in the backward pass.
        """
        if getattr(self, "found_inf", None) is not None:
            raise RuntimeError(
                f"{type(self).__name__}: the backward pass has moved tables by the gradients of a "
                "scaled loss: train in bfloat16, which needs no GradScaler, or call unfuse(module)"
            )
        loss = evaluated(closure)
        for group in self.param_groups:
            for p in group["params"]:
                if p.grad is not None:
                    rows, grad = _touched(p.grad)
                    if len(rows):
                        self._move(p, rows, grad, group)
        return loss

    def _move(self, p: Tensor, rows: Tensor, grad: Tensor, group: dict[str, Any]) -> None:
        raise NotImplementedError

    def next_step(self, tables: Sequence[Tensor]) -> Step:
        """The step that a backward pass takes: see :class:`lirank_ext.nn.fused_update.Step`."""
        group = next(g for g in self.param_groups if any(p is tables[0] for p in g["params"]))
        lr = group["lr"]
        if not isinstance(lr, Tensor):
            lr = torch.tensor(float(lr), dtype=torch.float64)
        sums = [self.state[p].get("sum") for p in tables]
        return Step(sums, lr, group["l2"], group.get("eps", 0.0))


class RowwiseAdagrad(RowwiseOptimizer):
    """AdaGrad with one accumulator a row, for embedding tables.

    For a row w with gradient g (and the penalty's share, ``l2 * w``)::

        g = g + l2 * w;    s = s + mean(g^2);    w = w - lr * g / (sqrt(s) + eps)

    Rows without a gradient stay as they are, the penalty included, so sparse and dense gradients
    give the same weights. State is 4 bytes a row instead of 4 a weight. :meth:`fuse` lets the
    backward pass of a ``HashedEmbeddingBag`` take the steps, without making gradients.

    Args:
        params: tables (N, D), with sparse or dense gradients.
        lr: learning rate, a number or a tensor without dimensions. In a CUDA graph a number is a
            constant, and a tensor on the GPU is read at each replay.
        l2: strength of the penalty ``l2 / 2 * |w|^2`` of the rows a batch touches.
        eps: added to the root.
        initial: where the accumulators start.

    Raises:
        ValueError: an option is out of range, or a parameter has not two dimensions.

    Source: AdaGrad for sparse features, LiRank (arXiv 2402.06859); one accumulator a row as in
    DLRM's open code.
    """

    def __init__(
        self,
        params: Iterable[Tensor],
        lr: float | Tensor = 0.02,
        l2: float = 0.0,
        eps: float = 1e-8,
        initial: float = 0.0,
    ) -> None:
        owner, inf = "RowwiseAdagrad", float("inf")
        check_number(owner, "eps", eps, "a positive number", 0, inf)
        check_number(owner, "initial", initial, "0 or more", 0, inf, "[)")
        super().__init__(params, {"lr": lr, "l2": l2, "eps": eps, "initial": initial})
        for group in self.param_groups:
            for p in group["params"]:
                dtype = compute_dtype(p.dtype)
                self.state[p]["sum"] = torch.full((len(p),), initial, dtype=dtype, device=p.device)

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Load the sums into the tensors that hold them, in their own dtype.

        PyTorch would round them to the dtype of the tables and put others in their place, which a
        captured CUDA graph would not see.
        """
        tables = [p for group in self.param_groups for p in group["params"]]
        kept = [self.state[p]["sum"] for p in tables]
        super().load_state_dict(state_dict)
        numbers = [i for group in state_dict["param_groups"] for i in group["params"]]
        for p, sums, number in zip(tables, kept, numbers, strict=True):
            self.state[p]["sum"] = sums.copy_(state_dict["state"][number]["sum"])

    def _move(self, p: Tensor, rows: Tensor, grad: Tensor, group: dict[str, Any]) -> None:
        sums = self.state[p]["sum"]
        grad = grad.to(sums.dtype)
        if group["l2"]:
            grad = grad.add(p[rows], alpha=group["l2"])
        total = sums[rows] + grad.square().mean(1)
        sums[rows] = total
        scale = -group["lr"] / (total.sqrt() + group["eps"])
        p.index_add_(0, rows, (grad * scale.unsqueeze(1)).to(p.dtype))


class TableSGD(RowwiseOptimizer):
    """SGD for embedding tables, whose penalty moves only the rows that a batch touches.

    For a row w with gradient g: ``w = w - lr * (g + l2 * w)``. :meth:`fuse` lets the backward pass
    of a ``HashedEmbeddingBag`` take the steps, without making gradients.

    Args:
        params: tables (N, D), with sparse or dense gradients.
        lr: learning rate, a number or a tensor without dimensions; see :class:`RowwiseAdagrad`.
        l2: strength of the penalty ``l2 / 2 * |w|^2`` of the rows a batch touches.

    Raises:
        ValueError: an option is out of range, or a parameter has not two dimensions.
    """

    def __init__(self, params: Iterable[Tensor], lr: float | Tensor, l2: float = 0.0) -> None:
        super().__init__(params, {"lr": lr, "l2": l2})

    def _move(self, p: Tensor, rows: Tensor, grad: Tensor, group: dict[str, Any]) -> None:
        grad = grad.to(compute_dtype(p.dtype))
        if group["l2"]:
            grad = grad.add(p[rows], alpha=group["l2"])
        p.index_add_(0, rows, (grad * -group["lr"]).to(p.dtype))


def _touched(grad: Tensor) -> tuple[Tensor, Tensor]:
    """Rows with a gradient, each once, and their gradients."""
    if grad.is_sparse:
        grad = grad.coalesce()
        rows, values = grad.indices()[0], grad.values()
        there = values.ne(0).any(1)
    else:
        rows, values = torch.arange(len(grad), device=grad.device), grad
        there = grad.ne(0).any(1)
    return rows[there], values[there]
