"""Tries every op with parameters in two processes, by DistributedDataParallel and fully_shard."""

from __future__ import annotations

import tempfile
from collections.abc import Callable
from pathlib import Path

import torch
import torch.distributed as dist
from torch import Tensor, nn

from .matrix import NOTHING, TRACED, Cells, equal, outcome
from .samples import Sample, samples

WORLD = 2


def processes() -> Cells:
    """The columns of several processes."""
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "cells.pt"
        torch.multiprocessing.spawn(_one, (folder, str(path)), WORLD, start_method="spawn")
        return torch.load(path)


def _one(rank: int, folder: str, path: str) -> None:
    torch.set_num_threads(1)
    dist.init_process_group("gloo", init_method=f"file://{folder}/store", rank=rank, world_size=2)
    cells: Cells = {}
    for name in samples():
        cells[name] = {}
        for column, wrap in (("DDP", data_parallel), ("FSDP2", sharded)):
            cells[name][column] = outcome(_trained(wrap, rank), samples()[name])
    if rank == 0:
        torch.save(cells, path)
    dist.destroy_process_group()


def data_parallel(sample: Sample) -> nn.Module:
    return nn.parallel.DistributedDataParallel(sample)


def sharded(sample: Sample) -> nn.Module:
    from torch.distributed.device_mesh import init_device_mesh
    from torch.distributed.fsdp import fully_shard

    return fully_shard(sample, mesh=init_device_mesh("cpu", (WORLD,)))


def _trained(wrap: Callable[[Sample], nn.Module], rank: int) -> Callable[[Sample], str]:
    def attempt(sample: Sample) -> str:
        if not list(sample.parameters()):
            return NOTHING
        alone, inputs = samples()[sample.name], [sample.inputs(TRACED, r) for r in range(WORLD)]
        wrapped = wrap(sample)
        _loss(wrapped(*inputs[rank])).backward()
        (sum(_loss(alone(*each)) for each in inputs) / WORLD).backward()
        found = [_whole(p.grad) for p in wrapped.parameters()]
        equal(found, [p.grad for p in alone.parameters()])
        return "yes"

    return attempt


def _loss(found: tuple[Tensor, ...]) -> Tensor:
    return sum(t.sin().sum() for t in found)


def _whole(gradient: Tensor) -> Tensor:
    return gradient.full_tensor() if hasattr(gradient, "full_tensor") else gradient
