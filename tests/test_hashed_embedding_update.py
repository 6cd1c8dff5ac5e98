"""Rows of hashed tables that move during the backward pass: the op, and optimizers fused in."""

from __future__ import annotations

import copy
import pickle

import pytest
import torch
import torch.utils.checkpoint
from torch.nn import functional as F

from lirank_ext.nn import HashedEmbeddingBag, clip_grad_norm_, fused_update
from lirank_ext.ops.hashed_embedding_rule import rows_of
from lirank_ext.ops.hashed_embedding_update import hashed_embedding_bag_update
from lirank_ext.training import RowwiseAdagrad, TableSGD

NAMES = ("quotient_b", "remainder_b", "quotient_c", "remainder_c")
BUCKETS, REMAINDERS = 1009, 100


def random_tables(dim, dtype=torch.float32):
    return [torch.randn(n, dim).to(dtype) for n in (-(-BUCKETS // REMAINDERS), REMAINDERS) * 2]


def by_hand(grads, rows, tables, sums, lr, l2):
    """Row by row in float64; ``grads`` are those of every id."""
    for table, total, row in zip(tables, sums, rows, strict=True):
        for r in row.unique().tolist():
            g = sum(grads[i] for i in (row == r).nonzero().flatten().tolist())
            if not g.any():
                continue
            g = g + l2 * table[r]
            step = lr
            if total is not None:
                total[r] += g.square().mean()
                step = lr / (total[r].sqrt() + 1e-8)
            table[r] -= step * g


@pytest.mark.parametrize("dim", [1, 7, 30, 64, 131])
@pytest.mark.parametrize("adagrad", [True, False])
def test_rows_move_by_the_formula(dim, adagrad):
    lr, l2, bags = 0.1, 0.3, [0, 3, 3, 20, 40]
    ids, weights = torch.randint(-(2**62), 2**62, (40,)), torch.randn(40)
    ids[::4] = 7
    grad = torch.randn(4, dim)
    grad[2] = 0  # the ids of this bag move nothing, unless others have their rows
    tables = random_tables(dim)
    sums = [torch.full((len(t),), 0.2) if adagrad else None for t in tables]
    wide = [t.double() for t in tables], [None if s is None else s.double() for s in sums]
    each = torch.repeat_interleave(grad, torch.tensor(bags).diff(), 0) * weights[:, None]
    rows = rows_of(ids, BUCKETS, REMAINDERS, 5, False)
    by_hand(each.double(), rows, *wide, lr, l2)
    hashed_embedding_bag_update(
        grad, ids, torch.tensor(bags), weights, *tables, *sums, torch.tensor(lr), BUCKETS, 5, False,
        True, False, l2, 1e-8,
    )  # fmt: skip
    for got, wanted in zip((*tables, *sums), (*wide[0], *wide[1]), strict=True):
        if wanted is not None:
            torch.testing.assert_close(got.double(), wanted, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_half_rows_move_in_float32_and_are_rounded_once(dtype):
    tables, ids = random_tables(24, dtype), torch.randint(0, 50, (200,))
    grad = torch.randn(200, 24).to(dtype)
    wide = [t.float() for t in tables]
    sums = [[torch.zeros(len(t)) for t in tables] for _ in range(2)]
    rest = (torch.tensor(0.1), BUCKETS, 0, False, False, False, 0.1, 1e-8)
    hashed_embedding_bag_update(grad, ids, None, None, *tables, *sums[0], *rest)
    hashed_embedding_bag_update(grad.float(), ids, None, None, *wide, *sums[1], *rest)
    for half, whole in zip(tables, wide, strict=True):
        assert torch.equal(half, whole.to(dtype))
    assert all(map(torch.equal, *sums))


def test_bit_equal_for_any_number_of_threads(threads):
    ids = torch.randint(-(2**62), 2**62, (60_000,))
    ids[:30_000:2] = 9  # one row crosses tasks
    start, grad = random_tables(24), torch.randn(60_000 // 4, 24)
    results = []
    for count in (1, 2, 3):
        threads(count)
        tables = [t.clone() for t in start]
        sums = [torch.zeros(len(t)) for t in start]
        hashed_embedding_bag_update(
            grad, ids.view(-1, 4), None, None, *tables, *sums, torch.tensor(0.1), BUCKETS, 0, True,
            False, False, 0.1, 1e-8,
        )  # fmt: skip
        results.append((*tables, *sums))
    for other in results[1:]:
        assert all(map(torch.equal, results[0], other))


# ---- fused into the backward pass --------------------------------------------------------


def fused(optimizer=RowwiseAdagrad, dim=8, **options):
    """A module with an optimizer fused in."""
    module = HashedEmbeddingBag(dim, BUCKETS, REMAINDERS, **options)
    made = optimizer(module.parameters(), 0.1, 0.05)
    made.fuse(module)
    return module, made


def tables_of(module):
    return [getattr(module, name).detach().clone() for name in NAMES]


@pytest.mark.parametrize("optimizer", [RowwiseAdagrad, TableSGD])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("mode", ["sum", "mean"])
def test_the_weights_are_those_of_the_own_steps(optimizer, dtype, mode):
    options = {"mode": mode, "seed": 3, "include_last_offset": True, "dtype": dtype}
    module, inside = fused(optimizer, **options)
    plain = copy.deepcopy(module)
    outside = optimizer(plain.parameters(), 0.1, 0.05)
    ids = torch.randint(0, 400, (200,))
    offsets = torch.arange(0, 201, 5)
    weights = torch.randn(200, dtype=dtype) if mode == "sum" else None
    target = torch.randn(40, 8, dtype=dtype)
    for step in range(6):
        found = []
        for m, o in ((module, inside), (plain, outside)):
            o.param_groups[0]["lr"] = 0.1 / (1 + step)
            o.zero_grad()
            given = None if weights is None else weights.clone().requires_grad_()
            loss = (m(ids, offsets, given) - target).square().mean()
            loss.backward()
            o.step()
            found.append((loss.detach(), None if given is None else given.grad))
        torch.testing.assert_close(*found)
    assert all(p.grad is None for p in module.parameters())
    assert all(p.grad is not None for p in plain.parameters())
    for a, b in zip(module.parameters(), plain.parameters(), strict=True):
        torch.testing.assert_close(a, b)
        if optimizer is RowwiseAdagrad:
            torch.testing.assert_close(inside.state[a]["sum"], outside.state[b]["sum"])


def test_nothing_moves_without_a_backward_pass_or_where_tables_are_frozen():
    module, _ = fused()
    ids, before = torch.arange(20), tables_of(module)
    module(ids)
    with torch.no_grad():
        assert not module(ids).requires_grad
    module.requires_grad_(False)
    assert not module(ids).requires_grad
    assert all(map(torch.equal, before, tables_of(module)))
    module.quotient_b.requires_grad_(True)
    with pytest.raises(ValueError, match="freeze all of them or none"):
        module(ids)


def test_a_rate_that_is_a_tensor_is_read_at_each_step():
    module = HashedEmbeddingBag(8, BUCKETS, REMAINDERS)
    rate = torch.tensor(0.0)
    optimizer = TableSGD(module.parameters(), rate)
    optimizer.fuse(module)
    ids, before = torch.arange(20), tables_of(module)
    module(ids).sum().backward()
    assert all(map(torch.equal, before, tables_of(module)))
    rate.fill_(0.5)
    module(ids).sum().backward()
    assert not torch.equal(before[0], module.quotient_b)
    with pytest.raises(ValueError, match="'lr': wanted 0 or more, got -1"):
        TableSGD(module.parameters(), torch.tensor(-1.0))


def test_a_module_goes_backward_once_for_each_forward():
    module, _ = fused()
    ids = torch.arange(20)
    with pytest.raises(RuntimeError, match="its tables changed between the forward and the back"):
        (module(ids) + module(ids)).sum().backward()
    out = module(ids).sum()
    out.backward(retain_graph=True)
    with pytest.raises(RuntimeError, match="every backward pass is a step"):
        out.backward()
    with pytest.raises(RuntimeError, match="a second derivative was wanted"):
        torch.autograd.grad(module(ids).sum(), module.quotient_b, create_graph=True)
    out = module(ids).sum()
    with torch.no_grad():
        module.remainder_c.zero_()
    with pytest.raises(RuntimeError, match="its tables changed"):
        out.backward()


def test_two_backward_passes_are_two_steps():
    module, _ = fused(TableSGD)
    ids, seen = torch.arange(20), [tables_of(module)[0]]
    for _ in range(2):
        module(ids).sum().backward()
        seen.append(tables_of(module)[0])
    assert not torch.equal(seen[0], seen[1]) and not torch.equal(seen[1], seen[2])


@pytest.mark.parametrize("reentrant", [False, True])
def test_activation_checkpointing_moves_the_same(reentrant):
    module, _ = fused()
    again = copy.deepcopy(module)
    RowwiseAdagrad(again.parameters(), 0.1, 0.05).fuse(again)
    ids, scale = torch.arange(20), torch.ones(8, requires_grad=True)
    (module(ids) * scale).square().sum().backward()
    run = torch.utils.checkpoint.checkpoint
    out = run(lambda s: again(ids) * s, scale, use_reentrant=reentrant)
    out.square().sum().backward()
    assert all(map(torch.equal, tables_of(module), tables_of(again)))


def test_taken_out_again_the_tables_get_gradients():
    module, optimizer = fused()
    ids = torch.arange(20)
    out = module(ids).sum()
    optimizer.unfuse(module)
    with pytest.raises(RuntimeError, match="was taken out between"):
        out.backward()
    before = tables_of(module)
    module(ids).sum().backward()
    assert all(p.grad is not None for p in module.parameters())
    assert all(map(torch.equal, before, tables_of(module)))
    clip_grad_norm_(module.parameters(), 1.0)
    optimizer.step()
    assert not torch.equal(before[0], module.quotient_b)


def test_what_would_need_gradients_is_refused():
    module, optimizer = fused()
    module(torch.arange(20)).sum().backward()
    with pytest.raises(ValueError, match="a table that its backward pass has moved already"):
        clip_grad_norm_(module.parameters(), 1.0)
    scaler = torch.amp.GradScaler("cpu")
    scaler.scale(module(torch.arange(20)).sum()).backward()
    with pytest.raises(RuntimeError, match="moved tables by the gradients of a scaled loss"):
        scaler.step(optimizer)


def test_several_processes_are_refused(monkeypatch):
    module, _ = fused()
    monkeypatch.setattr(fused_update, "processes", lambda: 2)
    with pytest.raises(RuntimeError, match="the gradients of one process"):
        module(torch.arange(20))
    with torch.no_grad():
        module(torch.arange(20))


def test_only_modules_of_the_optimizer_are_fused():
    module = HashedEmbeddingBag(8, BUCKETS, REMAINDERS)
    optimizer = RowwiseAdagrad([module.quotient_b])
    with pytest.raises(ValueError, match="whose tables are in one parameter group"):
        optimizer.fuse(module)
    with pytest.raises(ValueError, match="wanted a HashedEmbeddingBag"):
        optimizer.fuse(torch.nn.Linear(2, 2))
    model = torch.nn.ModuleDict({"a": module, "b": HashedEmbeddingBag(4, 50, 5)})
    RowwiseAdagrad(model.parameters()).fuse(model)
    model["a"](torch.arange(3)).sum().backward()
    model["b"](torch.arange(3)).sum().backward()
    assert all(p.grad is None for p in model.parameters())


def test_copies_and_pickles_are_not_fused():
    module, _ = fused()
    for other in (copy.deepcopy(module), pickle.loads(pickle.dumps(module))):
        before = tables_of(other)
        other(torch.arange(20)).sum().backward()
        assert all(p.grad is not None for p in other.parameters())
        assert all(map(torch.equal, before, tables_of(other)))
        clip_grad_norm_(other.parameters(), 1.0)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_a_resumed_training_goes_on_bit_by_bit(dtype, tmp_path):
    ids = torch.randint(0, 400, (100,))

    def step(module):
        module(ids).float().square().sum().backward()

    module, optimizer = fused(dtype=dtype)
    for _ in range(3):
        step(module)
    torch.save((module.state_dict(), optimizer.state_dict()), tmp_path / "kept.pt")
    other, resumed = fused(dtype=dtype)
    held = resumed.state[other.quotient_b]["sum"]
    weights, state = torch.load(tmp_path / "kept.pt")
    other.load_state_dict(weights)
    resumed.load_state_dict(state)
    assert resumed.state[other.quotient_b]["sum"] is held and held.dtype == torch.float32
    for m in (module, other):
        step(m)
    assert all(map(torch.equal, tables_of(module), tables_of(other)))
    for a, b in zip(module.parameters(), other.parameters(), strict=True):
        assert torch.equal(optimizer.state[a]["sum"], resumed.state[b]["sum"])


def test_compiled_around_it_the_tables_move():
    torch.compiler.reset()
    module, _ = fused()
    other = copy.deepcopy(module)
    RowwiseAdagrad(other.parameters(), 0.1, 0.05).fuse(other)
    ids = torch.arange(20)

    def loss(m):
        return lambda i: F.silu(m(i)).square().sum()

    loss(module)(ids).backward()
    torch.compile(loss(other), backend="aot_eager")(ids).backward()
    for a, b in zip(tables_of(module), tables_of(other), strict=True):
        torch.testing.assert_close(a, b)
    assert all(p.grad is None for p in other.parameters())


def test_a_fused_module_is_exported_as_a_look_up():
    module, _ = fused()
    ids = torch.arange(20)
    exported = torch.export.export(module, (ids,)).module()
    assert torch.equal(exported(ids), module(ids))
