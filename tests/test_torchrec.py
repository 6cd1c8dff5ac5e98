"""Hashed tables in TorchRec: its collection, its planner, and its sharding over processes.

It needs benchmarks/requirements-peers.txt; ``make test-peers`` runs it.
"""

from __future__ import annotations

import logging
import os
import warnings

import pytest
import torch
import torch.distributed as dist
from conftest import REPOSITORY
from documents import blocks

from lirank_ext.nn import HashedEmbeddingBag

pytest.importorskip("torchrec", reason="benchmarks/requirements-peers.txt is not installed")
pytest.importorskip("fbgemm_gpu", reason="benchmarks/requirements-peers.txt is not installed")

TABLES = ("quotient_b", "remainder_b", "quotient_c", "remainder_c")
LR = 0.1


def hashed(**options):
    torch.manual_seed(0)
    plain = {"item": {"num_buckets": 997, "seed": 3}, "user": {"num_buckets": 64}}
    return {
        name: HashedEmbeddingBag(8, num_remainders=10, sparse=False, **{**own, **options})
        for name, own in plain.items()
    }


def jagged(rows=4, part=0, weighted=False):
    """Ids of two features in an order of its own, and one that no table takes."""
    from torchrec import KeyedJaggedTensor

    generator = torch.Generator().manual_seed(part)
    lengths = torch.randint(0, 4, (3 * rows,), generator=generator)
    count = int(lengths.sum())
    ids = torch.randint(-(2**62), 2**62, (count,), generator=generator)
    weights = torch.rand(count, generator=generator) if weighted else None
    return KeyedJaggedTensor(["user", "other", "item"], ids, weights, lengths)


def wanted(tables, features):
    found = features.to_dict()
    parts = []
    for name, table in tables.items():
        j = found[name]
        weights = j.weights() if j.weights_or_none() is not None else None
        parts.append(table(j.values(), j.offsets()[:-1], weights))
    return torch.cat(parts, 1)


def collection(tables, **options):
    from lirank_ext.conversion.torchrec import HashedEmbeddingBagCollection

    return HashedEmbeddingBagCollection(tables, **options)


@pytest.mark.parametrize("kind", ["sum", "mean", "weighted", "prehashed"])
def test_the_collection_gives_what_the_hashed_tables_give(kind):
    options = {"mean": {"mode": "mean"}, "prehashed": {"prehashed": True}}.get(kind, {})
    tables, weighted = hashed(**options), kind == "weighted"
    made, features = collection(tables, is_weighted=weighted), jagged(weighted=weighted)
    found = made(features)
    assert found.keys() == ["item", "user"] and found["user"].shape == (4, 8)
    torch.testing.assert_close(found.values(), wanted(tables, features))
    assert made.tables.embedding_bags["item_quotient_b"].weight is tables["item"].quotient_b
    found.values().square().sum().backward()
    gradients = [p.grad.clone() for p in made.parameters()]
    made.zero_grad()
    wanted(tables, features).square().sum().backward()
    for one, p in zip(gradients, made.parameters(), strict=True):
        torch.testing.assert_close(one, p.grad)


def test_weights_go_both_ways():
    first, second = collection(hashed()), collection(hashed())
    torch.manual_seed(1)
    for p in second.parameters():
        torch.nn.init.normal_(p)
    first.load_tables(second.hashed_tables())
    features = jagged()
    torch.testing.assert_close(first(features).values(), second(features).values())
    back = second.hashed_tables()
    torch.testing.assert_close(wanted(back, features), second(features).values())
    first.load_state_dict(second.state_dict())


@pytest.mark.parametrize(
    ("make", "words"),
    [
        (lambda: collection({}), "wanted at least one"),
        (lambda: collection({"a.b": hashed()["item"]}), "names without a dot"),
        (lambda: collection({"a": torch.nn.EmbeddingBag(3, 4)}), "wanted a HashedEmbeddingBag"),
        (lambda: collection(hashed(mode="mean"), is_weighted=True), "wanted mode 'sum'"),
        (lambda: collection(hashed(dtype=torch.bfloat16)), "float32 or float16"),
        (
            lambda: collection(hashed()).load_tables(hashed(seed=9)),
            r"wanted a table with \{'seed': 3\}, got \{'seed': 9\}",
        ),
        (lambda: collection(hashed()).load_tables({"x": None}), "names among"),
    ],
)
def test_what_does_not_fit_is_refused(make, words):
    with pytest.raises(ValueError, match=words):
        make()


def test_a_missing_feature_is_named():
    made = collection({"brand": hashed()["item"]})
    with pytest.raises(KeyError, match="wanted a key 'brand', got"):
        made(jagged())


def test_the_block_of_the_page_runs():
    page = (REPOSITORY / "docs/guides/many-gpus.md").read_text(encoding="utf-8")
    (block,) = blocks(page, "py")
    names = {}
    exec(compile(block, "many-gpus.md", "exec"), names)
    assert names["pooled"].keys() == ["item", "user"] and names["pooled"]["user"].shape == (2, 64)


# ---- in several processes ------------------------------------------------------------------------


def sharder():
    from fbgemm_gpu.split_embedding_configs import EmbOptimType
    from torchrec.distributed.embeddingbag import EmbeddingBagCollectionSharder

    class Rows(EmbeddingBagCollectionSharder):
        """TorchRec offers row-wise sharding on CUDA alone; on gloo it works as well."""

        def sharding_types(self, compute_device_type):
            return [*super().sharding_types(compute_device_type), "row_wise"]

    return Rows({"optimizer": EmbOptimType.EXACT_SGD, "learning_rate": LR})


def distributed(made, kinds, world):
    """The model as DistributedModelParallel plans and shards it."""
    from torchrec.distributed.model_parallel import DistributedModelParallel
    from torchrec.distributed.planner import (
        EmbeddingShardingPlanner,
        ParameterConstraints,
        Topology,
    )
    from torchrec.distributed.types import ShardingEnv

    constraints = {
        name: ParameterConstraints(sharding_types=[kind], compute_kernels=["fused"])
        for name, kind in kinds.items()
    }
    group, sharders = dist.group.WORLD, [sharder()]
    planner = EmbeddingShardingPlanner(
        topology=Topology(world_size=world, compute_device="cpu"), constraints=constraints
    )
    plan = planner.collective_plan(made, sharders, group)
    found = {
        name: parameter.sharding_type
        for module in plan.plan.values()
        for name, parameter in module.items()
    }
    assert found == kinds
    return DistributedModelParallel(
        made,
        env=ShardingEnv.from_process_group(group),
        device=torch.device("cpu"),
        plan=plan,
        sharders=sharders,
    )


class Ranker(torch.nn.Module):
    def __init__(self, tables):
        super().__init__()
        self.bags = collection(tables)
        torch.manual_seed(5)
        self.last = torch.nn.Linear(16, 1)

    def forward(self, features):
        return self.last(self.bags(features).values()).squeeze(1)


def in_one_process(rank, world, path, failures):
    warnings.simplefilter("ignore")
    logging.disable(logging.WARNING)
    torch.set_num_threads(1)
    os.environ.update(RANK=str(rank), WORLD_SIZE=str(world), LOCAL_RANK=str(rank))
    os.environ["LOCAL_WORLD_SIZE"] = str(world)
    dist.init_process_group("gloo", init_method=f"file://{path}", rank=rank, world_size=world)
    try:
        trains_as_one(rank, world)
    except BaseException as error:
        failures.put(f"{rank}: {type(error).__name__}: {error}")
        raise
    finally:
        dist.destroy_process_group()


def trains_as_one(rank, world):
    kinds = {
        f"{name}_{part}": "row_wise" if part.startswith("quotient") else "table_wise"
        for name in hashed()
        for part in TABLES
    }
    with torch.device("meta"):
        nothing = hashed()
    model, tables = Ranker(nothing), hashed()
    model = distributed(model, kinds, world)
    bags = model.module.module.bags if hasattr(model.module, "module") else model.module.bags
    bags.load_tables(tables)

    alone = Ranker(tables)
    dense = [p for n, p in model.named_parameters() if "last" in n]
    optimizers = [
        torch.optim.SGD(alone.parameters(), lr=LR),
        torch.optim.SGD(dense, lr=LR),
    ]
    batches = [jagged(part=part) for part in range(world)]
    for _ in range(2):
        torch.testing.assert_close(model(batches[rank]), alone(batches[rank]))
        for optimizer in optimizers:
            optimizer.zero_grad()
        losses = [alone(features).square().mean() for features in batches]
        (sum(losses) / world).backward()
        model(batches[rank]).square().mean().backward()  # moves the tables
        for optimizer in optimizers:
            optimizer.step()
    torch.testing.assert_close(model(batches[rank]), alone(batches[rank]))
    back = bags.hashed_tables()
    for name, table in hashed().items():
        for part in TABLES:
            found = getattr(back[name], part)
            torch.testing.assert_close(found, getattr(alone.bags.hashed_tables()[name], part))
            assert not torch.equal(found, getattr(table, part))


@pytest.mark.parametrize("world", [2, 4])
def test_processes_train_the_tables_of_one(world, tmp_path):
    context = torch.multiprocessing.get_context("spawn")
    failures = context.SimpleQueue()
    try:
        torch.multiprocessing.spawn(
            in_one_process, (world, str(tmp_path / "store"), failures), world, start_method="spawn"
        )
    except torch.multiprocessing.ProcessException as error:
        text = "" if failures.empty() else failures.get()
        raise AssertionError(text or str(error)) from error
