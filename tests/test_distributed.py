"""DistributedDataParallel and fully_shard on two processes give the weights of one."""

from __future__ import annotations

import copy
import sys

import pytest
import torch
import torch.distributed as dist
from rankers import make_features, small

from lirank_ext import nn
from lirank_ext.models import LiRank

PROCESSES, ROWS, STEPS = 2, 4, 3

pytestmark = [
    pytest.mark.skipif(not dist.is_available(), reason="this PyTorch has no torch.distributed"),
    pytest.mark.skipif(sys.platform == "win32", reason="gloo is tried on Linux and macOS"),
]


def ranker():
    torch.manual_seed(0)
    return LiRank(small("feed")).eval()  # no dropout, and batch norm by its running statistics


def table():
    torch.manual_seed(0)
    return nn.HashedEmbeddingBag(8, 1000, 10)


def calibration():
    return nn.IsotonicCalibration(-4, 4, 0.5)


def attention():
    torch.manual_seed(0)
    return nn.AttentionCross(12, 4, learn_temperature=True)


def inputs(kind, part):
    generator = torch.Generator().manual_seed(part)
    if kind is ranker:
        return (make_features(small("feed"), ROWS, seed=part),)
    if kind is table:
        return torch.randint(0, 10**9, (3 * ROWS,), generator=generator), torch.arange(ROWS) * 3
    if kind is calibration:
        return (torch.randn(ROWS, generator=generator),)
    x = torch.randn(ROWS, 12, generator=generator)
    return x, x


def step(model, optimizer, batches):
    """One step on the mean of the batches' losses."""
    optimizer.zero_grad()
    losses = [model(*batch).square().mean() for batch in batches]
    (sum(losses) / len(losses)).backward()
    optimizer.step()


def trained_alone(kind):
    model = kind()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    for s in range(STEPS):
        step(model, optimizer, [inputs(kind, PROCESSES * s + r) for r in range(PROCESSES)])
    return model


def in_one_process(rank, path, failures):
    torch.set_num_threads(1)
    dist.init_process_group("gloo", init_method=f"file://{path}", rank=rank, world_size=PROCESSES)
    try:
        for kind in (ranker, table, calibration, attention):
            for wrap in (data_parallel, sharded):
                check(kind, wrap, rank)
        by_hand(rank)
    except BaseException as error:
        failures.put(f"{rank}: {type(error).__name__}: {error}")
        raise
    finally:
        dist.destroy_process_group()


def data_parallel(model):
    return torch.nn.parallel.DistributedDataParallel(model)


def sharded(model):
    from torch.distributed.device_mesh import init_device_mesh
    from torch.distributed.fsdp import fully_shard

    fully_shard(model, mesh=init_device_mesh("cpu", (PROCESSES,)))
    return model


def whole(p):
    return p.full_tensor() if hasattr(p, "full_tensor") else p


def check(kind, wrap, rank):
    model = wrap(kind())
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    for s in range(STEPS):
        step(model, optimizer, [inputs(kind, PROCESSES * s + rank)])
    name = f"{kind.__name__}, {wrap.__name__}"
    first = dict(kind().named_parameters())
    for (key, wanted), found in zip(
        trained_alone(kind).named_parameters(), model.parameters(), strict=True
    ):
        text = f"{name}: {key}"
        torch.testing.assert_close(whole(found), wanted, msg=lambda m, t=text: f"{t}: {m}")
        assert kind is ranker or not torch.equal(wanted, first[key]), f"{text} did not move"


def by_hand(rank):
    """Code of one's own may add up sparse gradients."""
    made = nn.HashedEmbeddingBag(8, 1000, 10, sparse="always")
    made(*inputs(table, rank)).sum().backward()
    assert made.quotient_b.grad.is_sparse
    summed = made.quotient_b.grad.clone()
    dist.all_reduce(summed)
    alone = copy.deepcopy(made)
    alone.zero_grad()
    for part in range(PROCESSES):
        alone(*inputs(table, part)).sum().backward()
    torch.testing.assert_close(summed.to_dense(), alone.quotient_b.grad.to_dense())


def test_processes_train_the_model_of_one(tmp_path):
    context = torch.multiprocessing.get_context("spawn")
    failures = context.SimpleQueue()
    try:
        torch.multiprocessing.spawn(
            in_one_process, (str(tmp_path / "store"), failures), PROCESSES, start_method="spawn"
        )
    except torch.multiprocessing.ProcessException as error:
        text = "" if failures.empty() else failures.get()
        raise AssertionError(text or str(error)) from error


def test_gradients_are_sparse_in_a_single_process():
    for sparse, wanted in ((True, True), ("always", True), (False, False)):
        made = nn.HashedEmbeddingBag(8, 1000, 10, sparse=sparse)
        made(*inputs(table, 0)).sum().backward()
        assert made.quotient_b.grad.is_sparse == wanted
    with pytest.raises(ValueError, match="argument 'sparse'"):
        nn.HashedEmbeddingBag(8, 1000, 10, sparse="never")


@pytest.mark.parametrize("kind", [calibration, attention])
def test_state_dicts_from_before_parameters_had_an_axis_load(kind):
    model, other = kind(), kind()
    state = {k: v[0] if v.shape == (1,) else v for k, v in model.state_dict().items()}
    assert any(v.dim() == 0 for v in state.values())
    other.load_state_dict(state)
    assert all(map(torch.equal, model.parameters(), other.parameters()))
