"""Gradients added up over several processes, so that each of them takes the same step."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
from torch import Tensor

Exchange = Callable[[Tensor], Tensor]

DENSE, NONE = -1, -2  # in place of the number of rows of a sparse gradient


@torch.no_grad()
def sum_gradients(
    parameters: Sequence[Tensor], loss: Tensor, flag: int, gather: Exchange, add: Exchange
) -> tuple[Tensor, int]:
    """Put the sum over all processes in place of each gradient.

    Dense ones travel in one piece. Of sparse ones the rows of all processes are put one after the
    other, by rank, and then each row once: the order is the same in every process, and so is the
    sum to the last bit.

    Args:
        parameters: with this process's gradients, dense or sparse.
        loss: this process's share.
        flag: a number of 0 or more.
        gather: (...) -> (processes, ...), the tensors of all.
        add: the sum of the tensors of all.

    Returns:
        The sum of the losses, and the largest flag.
    """
    # On the CPU even of a GPU's training: sizes are needed there, and the GPU is not waited for.
    sizes = gather(torch.tensor([flag, *map(_size, parameters)]))
    flags, sizes = sizes[:, 0], sizes[:, 1:]
    most = sizes.max(0).values.tolist()
    sparse = [i for i, n in enumerate(most) if n >= 0]
    _sum_sparse([parameters[i] for i in sparse], sizes[:, sparse], gather)
    dense = [p for p, n in zip(parameters, most, strict=True) if n == DENSE]
    parts = [(torch.zeros_like(p) if p.grad is None else p.grad).reshape(-1) for p in dense]
    flat = add(torch.cat([loss.detach().float().reshape(1), *parts]))
    pieces = flat[1:].split([p.numel() for p in dense])
    for p, piece in zip(dense, pieces, strict=True):
        p.grad = piece.view_as(p).to(p.dtype)
    return flat[0], int(flags.max())


def _sum_sparse(tables: Sequence[Tensor], sizes: Tensor, gather: Exchange) -> None:
    """Add up sparse gradients; sizes: (processes, tables), the rows of each."""
    if not tables:
        return
    sizes = sizes.clamp(min=0)
    counts = sizes * torch.tensor([p.shape[1] for p in tables])
    own = [_coalesced(p) for p in tables]
    rows = _gather_uneven([g.indices()[0] for g in own], sizes, gather)
    values = _gather_uneven([g.values().reshape(-1) for g in own], counts, gather)
    for p, r, v in zip(tables, rows, values, strict=True):
        p.grad = torch.sparse_coo_tensor(r[None], v.view(-1, p.shape[1]), p.shape).coalesce()


def _gather_uneven(parts: Sequence[Tensor], sizes: Tensor, gather: Exchange) -> list[Tensor]:
    """For each of some tensors (n,), those of all processes one after the other."""
    own = torch.cat([*parts])
    longest = int(sizes.sum(1).max())
    if not longest:
        return [*parts]
    padded = own.new_zeros(longest)
    padded[: len(own)] = own
    pieces = [
        row[: sum(lengths)].split(lengths)
        for row, lengths in zip(gather(padded), sizes.tolist(), strict=True)
    ]
    return [torch.cat(of_one) for of_one in zip(*pieces, strict=True)]


def _size(p: Tensor) -> int:
    """The number of rows of a sparse gradient, each counted once; DENSE or NONE."""
    if p.grad is None:
        return NONE
    if not p.grad.is_sparse:
        return DENSE
    p.grad = p.grad.coalesce()
    return p.grad._nnz()


def _coalesced(p: Tensor) -> Tensor:
    """The sparse gradient of a table; without rows where it has none."""
    if p.grad is not None:
        return p.grad.coalesce()
    rows = torch.zeros(1, 0, dtype=torch.int64, device=p.device)
    return torch.sparse_coo_tensor(rows, p.new_zeros(0, p.shape[1]), p.shape).coalesce()
