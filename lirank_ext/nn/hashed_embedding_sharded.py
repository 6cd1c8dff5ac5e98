"""Hashed tables whose rows are spread over processes, and look-ups in them."""

from __future__ import annotations

import sys
from typing import TYPE_CHECKING, Any

import torch
import torch.distributed as dist
from torch import Tensor, nn

from ..ops.bags import Bags, check_offsets
from ..ops.hashed_embedding_rule import TABLES, compute_dtype
from ._common import refuse

if TYPE_CHECKING:
    from torch.distributed.device_mesh import DeviceMesh
    from torch.distributed.tensor import DTensor

    from .hashed_embedding import HashedEmbeddingBag

OWNER = "HashedEmbeddingBag"


def shard_rows(module: nn.Module, mesh: DeviceMesh) -> nn.Module:
    """Spread the tables of every ``HashedEmbeddingBag`` over processes by their rows, in place.

    Each process keeps a part of the rows of each table, as a ``DTensor`` with the placement
    ``Shard(0)``. A look-up stays a plain call: every process gives its own ids and gets its own
    vectors. All processes of the mesh have to make the call, and to go backward through it, since
    they exchange ids and sums. A gradient is the mean over the processes, as with
    DistributedDataParallel and ``fully_shard``, and has a table's part of rows; optimizers work on
    the parts.

    All ids go to every process (8 bytes each), and every process sends each of the others its sums
    of a bag (D values). TorchRec sends an id to the processes that hold its rows alone; see
    :class:`lirank_ext.conversion.torchrec.HashedEmbeddingBagCollection` for large numbers of them.

    Args:
        module: a model, or one table. Tables on the meta device get random rows, so that no process
            ever holds a whole table. Others keep the values of the first process.
        mesh: of one dimension, from ``torch.distributed.device_mesh.init_device_mesh``.

    Returns:
        The module.

    Raises:
        ValueError: the mesh has more dimensions, a table is sharded already, gives sparse gradients
            always, or an optimizer is fused into its backward pass.
    """
    from .hashed_embedding import HashedEmbeddingBag

    if mesh.ndim != 1:
        refuse("shard_rows", "mesh", "one dimension", mesh.ndim)
    found = [m for m in module.modules() if isinstance(m, HashedEmbeddingBag)]
    for table in found:
        if table.sparse == "always":
            refuse("shard_rows", "module", "a table with sparse=True or False", "sparse='always'")
        if table._fused is not None:
            refuse("shard_rows", "module", "tables without a fused optimizer", "a fused one")
        if is_sharded(table):
            refuse("shard_rows", "module", "whole tables", "one that is sharded already")
    for table in found:
        for number, name in enumerate(TABLES):
            parameter = getattr(table, name)
            part = _random_part if parameter.is_meta else _part
            sharded = part(parameter.detach(), mesh, number)
            setattr(table, name, nn.Parameter(sharded, parameter.requires_grad))
    return module


def _part(table: Tensor, mesh: DeviceMesh, number: int) -> DTensor:
    from torch.distributed.tensor import Shard, distribute_tensor

    return distribute_tensor(table, mesh, [Shard(0)])


def _random_part(table: Tensor, mesh: DeviceMesh, number: int) -> DTensor:
    """This process's rows of a table that has no memory yet, drawn as the whole table would be."""
    from torch.distributed.tensor import DTensor, Shard, distribute_tensor

    like = distribute_tensor(table, mesh, [Shard(0)])
    shape = like.to_local().shape
    # The parts must differ, even where all processes were given the same seed.
    seed = torch.initial_seed() + 1_000_003 * number + 7919 * mesh.get_local_rank()
    generator = torch.Generator(mesh.device_type).manual_seed(seed % 2**63)
    rows = torch.empty(shape, dtype=table.dtype, device=mesh.device_type)
    rows.normal_(std=0.5 / table.shape[1] ** 0.5, generator=generator)
    return DTensor.from_local(
        rows, mesh, [Shard(0)], run_check=False, shape=table.shape, stride=table.stride()
    )


def is_sharded(module: HashedEmbeddingBag) -> bool:
    """Whether its tables are spread over processes.

    Raises:
        ValueError: they are, but not by rows over one dimension of a mesh.
    """
    loaded = sys.modules.get("torch.distributed.tensor")  # whoever has a DTensor has imported it
    tables = [getattr(module, name) for name in TABLES]
    if loaded is None or not any(isinstance(t, loaded.DTensor) for t in tables):
        return False
    for t in tables:
        placed = isinstance(t, loaded.DTensor) and (t.placements, t.device_mesh)
        if placed != ((loaded.Shard(0),), tables[0].device_mesh):
            wanted = "four tables with the placement Shard(0) on a mesh of one dimension"
            got = t.placements if placed else "a plain tensor beside a DTensor"
            refuse(OWNER, "tables", f"{wanted}, as nn.shard_rows makes them", got)
    return True


def look_up_sharded(
    module: HashedEmbeddingBag, ids: Tensor, offsets: Tensor | None, weights: Tensor | None
) -> Tensor:
    """``module(ids, offsets, weights)`` where its tables are sharded."""
    if weights is not None and weights.requires_grad:
        got = "a tensor that requires a gradient"
        refuse(OWNER, "per_sample_weights", "no gradient with sharded tables", got)
    ids, sizes, weights = _own_bags(module, ids, offsets, weights)
    group = module.quotient_b.device_mesh.get_group()
    own = torch.tensor([len(sizes), len(ids), weights is not None], device=ids.device)
    bags, of_ids, weighted = torch.stack(_gathered(own, None, group)).T.tolist()
    if len(set(weighted)) > 1:
        refuse(OWNER, "per_sample_weights", "weights from all processes or none", "both")
    every = [torch.cat(_gathered(t, n, group)) for t, n in ((sizes, bags), (ids, of_ids))]
    if weights is not None:
        weights = torch.cat(_gathered(weights, of_ids, group))
    partial = _partial_sums(module, every[1], every[0], weights)
    pooled = _Exchange.apply(partial, bags, group)
    if module.mode == "mean":
        pooled = pooled / sizes.clamp(min=1).unsqueeze(1)
    return pooled.to(module.quotient_b.dtype)


def _own_bags(
    module: HashedEmbeddingBag, ids: Tensor, offsets: Tensor | None, weights: Tensor | None
) -> tuple[Tensor, Tensor, Tensor | None]:
    """The ids of the bags, one after the other, how many each bag has, and the weights."""
    bags = Bags(ids, offsets, module.include_last_offset and offsets is not None)
    check_offsets("hashed_embedding_bag", bags, "ids")
    bag = bags.of_each_id()
    sizes = torch.bincount(bag[bag >= 0], minlength=bags.count())
    keep = slice(0, int(sizes.sum()))
    ids = ids.reshape(-1)[keep].long()
    if weights is not None:
        weights = weights.reshape(-1)[keep].to(compute_dtype(module.quotient_b.dtype))
    return ids, sizes, weights


def _partial_sums(
    module: HashedEmbeddingBag, ids: Tensor, sizes: Tensor, weights: Tensor | None
) -> Tensor:
    """Of the bags of all processes, what the rows of this process add to them: (bags, D)."""
    bag = torch.arange(len(sizes), device=ids.device).repeat_interleave(sizes)
    dtype = compute_dtype(module.quotient_b.dtype)
    out = torch.zeros(len(sizes), module.dim, dtype=dtype, device=ids.device)
    for name, rows in zip(TABLES, module.row_ids(ids), strict=True):
        table = getattr(module, name)
        held, mesh = table.to_local(), table.device_mesh
        # Shard(0) cuts as torch.chunk does: all parts but the last ones are of one size.
        first = mesh.get_local_rank() * -(-table.shape[0] // mesh.size())
        mine = ((rows >= first) & (rows < first + len(held))).nonzero().squeeze(1)
        found = held.index_select(0, rows[mine] - first).to(dtype)
        if weights is not None:
            found = found * weights[mine].unsqueeze(1)
        out = out.index_add(0, bag[mine], found)
    return out


def _gathered(t: Tensor, sizes: list[int] | None, group: Any) -> list[Tensor]:
    """The tensors of all processes, whose first axes have these sizes, or that of this one."""
    processes = dist.get_world_size(group)
    most = len(t) if sizes is None else max(1, *sizes)
    padded = t.new_zeros(most, *t.shape[1:])
    padded[: len(t)] = t
    parts = [torch.empty_like(padded) for _ in range(processes)]
    dist.all_gather(parts, padded, group)
    return parts if sizes is None else [part[:n] for part, n in zip(parts, sizes, strict=True)]


class _Exchange(torch.autograd.Function):
    """Sends every process the sums of its bags, and adds them in the order of the processes."""

    @staticmethod
    def forward(ctx: Any, partial: Tensor, bags: list[int], group: Any) -> Tensor:
        ctx.bags, ctx.group = bags, group
        own, processes = bags[dist.get_rank(group)], len(bags)
        received = partial.new_empty(processes * own, partial.shape[1])
        dist.all_to_all_single(received, partial.contiguous(), [own] * processes, bags, group)
        return received.view(processes, own, -1).sum(0)

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, None, None]:
        every = torch.cat(_gathered(grad.contiguous(), ctx.bags, ctx.group))
        return every / len(ctx.bags), None, None
