"""Hashed tables whose rows are spread over processes look up and train as in one process."""

from __future__ import annotations

import copy
import sys

import pytest
import torch
import torch.distributed as dist
from conftest import REPOSITORY

from lirank_ext import hashed_rows, murmur_hash, nn
from lirank_ext.nn.reference_cross import ReferenceLowRankCross

pytestmark = [
    pytest.mark.skipif(not dist.is_available(), reason="this PyTorch has no torch.distributed"),
    pytest.mark.skipif(sys.platform == "win32", reason="gloo is tried on Linux and macOS"),
]

TABLES = ("quotient_b", "remainder_b", "quotient_c", "remainder_c")


def test_the_rows_of_an_id_are_those_that_the_look_up_adds():
    for prehashed in (False, True):
        bag = nn.HashedEmbeddingBag(8, 995, 10, seed=3, prehashed=prehashed)
        ids = torch.randint(-(2**62), 2**62, (40,))
        rows = bag.row_ids(ids)
        assert all(map(torch.equal, rows, hashed_rows(ids, 995, 10, 3, prehashed)))
        total = sum(getattr(bag, name)[row] for name, row in zip(TABLES, rows, strict=True))
        torch.testing.assert_close(total, bag(ids))
    half = murmur_hash(ids, 3) & 0xFFFFFFFF
    assert torch.equal(hashed_rows(ids, 995, 10, 3)[0], half % 995 // 10)
    assert torch.equal(hashed_rows(ids.int())[1], hashed_rows(ids.int().long())[1])


@pytest.mark.parametrize(
    ("rest", "error", "words"),
    [
        ((0,), ValueError, "'num_buckets': wanted 1 to 2\\^32, got 0"),
        ((10, 0), ValueError, "'num_remainders': wanted"),
        ((10, 10, -1), ValueError, "'seed': wanted"),
        ((10, 10, 0, True), TypeError, "'ids': wanted torch.int64, got torch.int32"),
    ],
)
def test_what_is_no_rule_is_refused(rest, error, words):
    with pytest.raises(error, match=f"argument {words}"):
        hashed_rows(torch.arange(3, dtype=torch.int32), *rest)


# ---- in several processes ------------------------------------------------------------------------


def table(mode="sum", **options):
    torch.manual_seed(0)
    # 5 remainders: of four processes the last has none of their rows.
    return nn.HashedEmbeddingBag(6, 97, 5, mode=mode, sparse=False, **options)


def bags(part, weighted):
    """Of one process: no ids at all in the second, an empty bag everywhere."""
    generator = torch.Generator().manual_seed(part)
    count = 0 if part == 1 else 5 + part
    ids = torch.randint(0, 10**9, (count,), generator=generator)
    offsets = torch.tensor([0, min(2, count), min(2, count), min(4, count)][: 3 + part % 2])
    return ids, offsets, torch.rand(count, generator=generator) if weighted else None


KINDS = {
    "bags": (table, False),
    "weights": (table, True),
    "means": (lambda: table("mean"), False),
}


def train(model, optimizer, batches):
    optimizer.zero_grad()
    losses = [(model(*batch) + 1).square().sum() for batch in batches]
    (sum(losses) / len(losses)).backward()
    optimizer.step()


def in_one_process(rank, processes, path, failures):
    torch.set_num_threads(1)
    dist.init_process_group("gloo", init_method=f"file://{path}", rank=rank, world_size=processes)
    try:
        from torch.distributed.device_mesh import init_device_mesh

        mesh = init_device_mesh("cpu", (processes,))
        for kind in KINDS:
            trains_as_one(kind, rank, mesh)
        starts_without_a_whole_table(mesh)
        shapes(rank, mesh)
        refusals(mesh)
    except BaseException as error:
        failures.put(f"{rank}: {type(error).__name__}: {error}")
        raise
    finally:
        dist.destroy_process_group()


def trains_as_one(kind, rank, mesh):
    make, weighted = KINDS[kind]
    alone, model = make(), nn.shard_rows(torch.nn.Sequential(make()), mesh)[0]
    batches = [bags(part, weighted) for part in range(mesh.size())]
    optimizers = [torch.optim.Adagrad(m.parameters(), lr=0.1) for m in (alone, model)]
    for _ in range(2):
        torch.testing.assert_close(model(*batches[rank]), alone(*batches[rank]))
        train(alone, optimizers[0], batches)
        train(model, optimizers[1], batches[rank : rank + 1])
    for name in TABLES:
        found = getattr(model, name)
        assert len(found.to_local()) <= -(-found.shape[0] // mesh.size())
        torch.testing.assert_close(found.full_tensor(), getattr(alone, name))
        assert not torch.equal(getattr(alone, name), getattr(make(), name))


def starts_without_a_whole_table(mesh):
    with torch.device("meta"):
        model = nn.HashedEmbeddingBag(64, 10**5, 100)
    nn.shard_rows(model, mesh)
    tables = [getattr(model, name).full_tensor() for name in TABLES]
    rows = torch.cat([*tables])
    assert len(rows.unique(dim=0)) == len(rows)
    torch.testing.assert_close(tables[0].std().item(), 0.5 / 8, rtol=0.02, atol=0)
    assert model(torch.arange(4)).shape == (4, 64)


def shapes(rank, mesh):
    alone, model = (
        table(include_last_offset=True),
        nn.shard_rows(table(include_last_offset=True), mesh),
    )
    ids = torch.arange(12) + rank
    for args in (
        (ids,),
        (ids.view(3, 4),),
        (ids.int(), torch.tensor([0, 2, 7], dtype=torch.int32)),
    ):
        torch.testing.assert_close(model(*args), alone(*args))


def refusals(mesh):
    sharded = nn.shard_rows(table(), mesh)
    cases = [
        (lambda: nn.shard_rows(sharded, mesh), "wanted whole tables"),
        (
            lambda: nn.shard_rows(nn.HashedEmbeddingBag(6, 97, 5, sparse="always"), mesh),
            "got sparse='always'",
        ),
        (
            lambda: sharded(torch.arange(3), None, torch.rand(3, requires_grad=True)),
            "wanted no gradient with sharded tables",
        ),
        (lambda: mixed(mesh)(torch.arange(3)), "as nn.shard_rows makes them"),
    ]
    for call, words in cases:
        with pytest.raises(ValueError, match=words):
            call()
    layers_name_the_way(mesh)


def mixed(mesh):
    made = nn.shard_rows(table(), mesh)
    made.remainder_b = torch.nn.Parameter(table().remainder_b.detach())
    return made


def layers_name_the_way(mesh):
    from torch.distributed.tensor import Shard, distribute_module, distribute_tensor

    x = distribute_tensor(torch.ones(8, 6), mesh, [Shard(0)])
    layer = distribute_module(nn.LowRankCross(6, 2), mesh)
    plain = nn.LowRankCross(6, 2)
    for call in (lambda: layer(x, x), lambda: layer(torch.ones(8, 6), torch.ones(8, 6))):
        with pytest.raises(TypeError, match=r"got a DTensor: give it .* to_local\(\)"):
            call()
    assert plain(x.to_local(), x.to_local()).shape[0] == 8 // mesh.size()
    slow = distribute_module(ReferenceLowRankCross(6, 2), mesh)
    assert slow(x, x).shape == (8, 6)


@pytest.mark.parametrize("processes", [2, 4])
def test_processes_hold_parts_and_train_the_tables_of_one(processes, tmp_path):
    context = torch.multiprocessing.get_context("spawn")
    failures = context.SimpleQueue()
    try:
        torch.multiprocessing.spawn(
            in_one_process,
            (processes, str(tmp_path / "store"), failures),
            processes,
            start_method="spawn",
        )
    except torch.multiprocessing.ProcessException as error:
        text = "" if failures.empty() else failures.get()
        raise AssertionError(text or str(error)) from error


def test_the_page_shows_what_the_command_computes():
    from lirank_ext.benchmarks.sharded_tables import Load, hashed_whole, lines

    page = (REPOSITORY / "docs/guides/many-gpus.md").read_text(encoding="utf-8")
    assert "\n".join(lines(Load())) in page
    small = Load(dim=1, batch=2, bag=3, buckets=100, remainders=10)
    # 10 rows of 8 bytes; 4 times 2 x 3 row numbers, and 4 tables' 2 vectors forward and backward.
    assert hashed_whole(small, 2) == (80, (4 * 2 * 3 * 8 + 8 * 2 * 4) / 2)


def test_a_copy_of_a_whole_table_is_whole():
    made = table()
    assert torch.equal(copy.deepcopy(made)(torch.arange(5)), made(torch.arange(5)))
