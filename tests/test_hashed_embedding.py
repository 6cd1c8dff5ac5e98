from __future__ import annotations

from itertools import pairwise

import mmh3
import numpy as np
import pytest
import torch
from conftest import needs_library

from lirank_ext import (
    hash_strings,
    hashed_embedding_bag,
    pack_rows,
    quantize_rows,
    quantized_hashed_embedding_bag,
)
from lirank_ext.nn import HashedEmbeddingBag, QuantizedHashedEmbeddingBag, clip_grad_norm_
from lirank_ext.nn.reference_hashed_embedding import ReferenceHashedEmbeddingBag

NAMES = ("quotient_b", "remainder_b", "quotient_c", "remainder_c")
TAKES = {"sum": sum, "mean": lambda x: sum(x) / len(x)}


def hash_by_hand(i, seed):
    return mmh3.hash64(i.to_bytes(8, "little", signed=True), seed, signed=False)[0]


def rows_by_hand(h, n, m):
    """Python's own integers."""
    b, c = h % 2**32 % n, h // 2**32 % n
    return b // m, b % m, c // m, c % m


def embed_by_hand(i, tables, n, seed):
    rows = rows_by_hand(hash_by_hand(i, seed), n, tables[1].shape[0])
    return sum(t[row].double() for t, row in zip(tables, rows, strict=True))


def random_ids(*shape):
    return torch.randint(-(2**63), 2**63 - 1, shape)


def random_tables(dim, n, m, dtype=torch.float32):
    return [torch.randn(rows, dim).to(dtype) for rows in (-(-n // m), m) * 2]


@pytest.mark.parametrize("mode", ["sum", "mean"])
@pytest.mark.parametrize(("n", "m"), [(10_007, 100), (2**32, 2**18), (5, 9), (4096, 64), (7, 1)])
def test_follows_the_formula(n, m, mode):
    ids, offsets, seed = random_ids(40), [0, 3, 3, 20, 40], 11
    tables = random_tables(5, n, m)
    got = hashed_embedding_bag(ids, torch.tensor(offsets), *tables, n, seed, mode, None, True)
    assert got.shape == (4, 5)
    for row, (begin, end) in enumerate(pairwise(offsets)):
        each = [embed_by_hand(int(i), tables, n, seed) for i in ids[begin:end]]
        want = TAKES[mode](each) if each else torch.zeros(5).double()
        torch.testing.assert_close(got[row].double(), want, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("n", [2**32, 2**32 - 1, 4_000_000_007, 1_000_003, 64, 1])
@pytest.mark.parametrize("m", [1000, 999, 1024, 3])
def test_rows_are_exact_where_floats_are_not(n, m):
    """Every row of the tables holds its own number: sums of whole numbers show the row read."""
    m = max(m, n // 100_000)  # a table of 100,000 rows at most
    halves = torch.cat([torch.arange(0, 50), 2**32 - 1 - torch.arange(50), torch.arange(20) * m])
    halves = torch.cat([halves, torch.randint(0, 2**32, (2000,))])
    quotients = -(-n // m)
    low = (halves + 2**31) % 2**32 - 2**31
    for shift, scale in ((0, (1.0, 0.0)), (32, (0.0, 1.0))):
        hashes = halves << 32 if shift else low & 0xFFFFFFFF
        tables = []
        for part in scale:
            tables += [torch.arange(rows).double()[:, None] * part for rows in (quotients, m)]
            tables[-1] = tables[-1] * 2.0**24
        got = hashed_embedding_bag(hashes, None, *tables, n, prehashed=True)
        want = [(h % n) // m + ((h % n) % m) * 2.0**24 for h in halves.tolist()]
        assert got[:, 0].tolist() == want


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_half_tables_are_summed_in_float32(dtype):
    tables = random_tables(19, 1000, 10, dtype)
    ids, offsets = random_ids(500), torch.tensor([0, 250])
    got = hashed_embedding_bag(ids, offsets, *tables, 1000)
    wide = hashed_embedding_bag(ids, offsets, *(t.float() for t in tables), 1000)
    torch.testing.assert_close(got, wide.to(dtype), rtol=0, atol=0)


def test_ways_to_say_the_same():
    tables = random_tables(9, 1000, 10)
    ids, weights = random_ids(6, 4), torch.randn(6, 4)
    want = hashed_embedding_bag(ids, None, *tables, 1000, 0, "sum", weights)
    flat = (ids.reshape(-1), torch.arange(0, 24, 4, dtype=torch.int32))
    options = (1000, 0, "sum", weights.reshape(-1))
    assert torch.equal(hashed_embedding_bag(*flat, *tables, *options), want)
    ends = torch.arange(0, 28, 4)
    assert torch.equal(hashed_embedding_bag(flat[0], ends, *tables, *options, True), want)
    single = hashed_embedding_bag(flat[0], None, *tables, 1000) * weights.reshape(-1, 1)
    torch.testing.assert_close(single.view(6, 4, 9).sum(1), want)


def test_strings_through_their_hashes():
    module = HashedEmbeddingBag(6, 1000, 10, seed=3, prehashed=True)
    names = ["member:1234", "member:1235", "Zürich"]
    got = module(hash_strings(names))
    tables = [getattr(module, name) for name in NAMES]
    for row, text in zip(got, names, strict=True):
        h = mmh3.hash64(text.encode(), signed=False)[0]
        parts = zip(tables, rows_by_hand(h, 1000, 10), strict=True)
        torch.testing.assert_close(row, sum(t[r] for t, r in parts))


def gradients(function, ids, offsets, tables, weights, dtype):
    leaves = [t.detach().to(dtype).requires_grad_() for t in (*tables, weights)]
    out = function(ids, offsets, *leaves[:4], leaves[4])
    up = torch.linspace(-1, 1, out.numel(), dtype=torch.float64).view(out.shape).to(dtype)
    return torch.autograd.grad(out, leaves, up)


@pytest.mark.parametrize("sparse", [False, True])
@pytest.mark.parametrize("dim", [1, 7, 30, 64, 131])
def test_gradients_against_float64_autograd(sparse, dim):
    n, m, ids, offsets = 1009, 100, random_ids(300), torch.tensor([0, 10, 10, 211])
    ids[::4] = 77  # a row hit often
    tables, weights = random_tables(dim, n, m), torch.randn(300)
    rows = torch.tensor([rows_by_hand(hash_by_hand(int(i), 5), n, m) for i in ids])

    def ours(ids, offsets, *args):
        *tables, weights = args
        return hashed_embedding_bag(
            ids, offsets, *tables, n, 5, "sum", weights, False, False, sparse
        )

    def plain(ids, offsets, *args):
        *tables, weights = args
        each = sum(t[rows[:, k]] for k, t in enumerate(tables)) * weights[:, None]
        return torch.stack([p.sum(0) for p in each.tensor_split([10, 10, 211])])

    got = gradients(ours, ids, offsets, tables, weights, torch.float32)
    want = gradients(plain, ids, offsets, tables, weights, torch.float64)
    assert [g.is_sparse for g in got] == [sparse, False, sparse, False, False]
    for g, w in zip(got, want, strict=True):
        if g.is_sparse:
            assert g.is_coalesced() and (g.indices()[0].diff() > 0).all()
            g = g.to_dense()
        torch.testing.assert_close(g.double(), w, rtol=1e-4, atol=1e-4)


def test_gradcheck():
    ids, offsets = random_ids(12), torch.tensor([0, 2, 2, 7])
    tables = [t.requires_grad_() for t in random_tables(3, 10, 4, torch.float64)]
    weights = torch.randn(12, dtype=torch.float64, requires_grad=True)
    for mode, w in (("sum", weights), ("mean", None)):
        inputs = (*tables, weights)
        assert torch.autograd.gradcheck(
            lambda *a, mode=mode, w=w: hashed_embedding_bag(
                ids, offsets, *a[:4], 10, 0, mode, None if w is None else a[4]
            ),
            inputs if w is not None else inputs[:4],
        )


def test_bit_equal_for_any_number_of_threads(threads):
    module = HashedEmbeddingBag(24, 100_000, 50)
    packed = module.quantize()
    ids = random_ids(60_000)
    ids[:30_000:2] = 9  # one row crosses tasks
    offsets = torch.arange(0, 60_000, 7)
    weights = torch.randn(60_000, requires_grad=True)
    results = []
    for count in (1, 2, 3):
        threads(count)
        out = module(ids, offsets, weights)
        grads = torch.autograd.grad(out.sin().sum(), [*module.parameters(), weights])
        results.append((out, packed(ids, offsets), *(g.to_dense() for g in grads)))
    for other in results[1:]:
        assert all(torch.equal(a, b) for a, b in zip(results[0], other, strict=True))


def optimizers(module):
    quotients = [module.quotient_b, module.quotient_c]
    remainders = [module.remainder_b, module.remainder_c]
    return {
        "SGD": [torch.optim.SGD(module.parameters(), lr=0.1)],
        "Adagrad": [torch.optim.Adagrad(module.parameters(), lr=0.1)],
        "SparseAdam": [torch.optim.SparseAdam(quotients, lr=0.1), torch.optim.Adam(remainders)],
    }


@pytest.mark.parametrize("name", ["SGD", "Adagrad", "SparseAdam"])
def test_training_steps_equal_those_of_the_eager_module(name):
    fast = HashedEmbeddingBag(8, 5000, 50)
    plain = ReferenceHashedEmbeddingBag(8, 5000, 50)
    plain.load_state_dict(fast.state_dict())
    before = fast.quotient_b.detach().clone()
    target = torch.randn(20, 8)
    steppers = [(m, optimizers(m)[name]) for m in (fast, plain)]
    losses = []
    ids, offsets = random_ids(100), torch.arange(0, 100, 5)
    for _ in range(5):
        for module, stepping in steppers:
            module.zero_grad()
            loss = (module(ids, offsets) - target).square().mean()
            loss.backward()
            for optimizer in stepping:
                optimizer.step()
            losses.append(float(loss.detach()))
    assert losses[-2] < losses[0]
    assert not torch.equal(before, fast.quotient_b)
    for a, b in zip(fast.parameters(), plain.parameters(), strict=True):
        torch.testing.assert_close(a, b, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("backend", ["aot_eager", "inductor"])
def test_compiled_training_is_dense_and_equal(backend):
    torch.compiler.reset()
    module = HashedEmbeddingBag(8, 500, 10)
    ids, offsets = random_ids(30), torch.tensor([0, 4, 20])
    weights = torch.randn(30, requires_grad=True)

    def step(ids, offsets, weights):
        return (module(ids, offsets, weights * 2) ** 2).sum()

    inputs = [*module.parameters(), weights]
    want = torch.autograd.grad(step(ids, offsets, weights), inputs)
    loss = torch.compile(step, fullgraph=True, backend=backend)(ids, offsets, weights)
    got = torch.autograd.grad(loss, inputs)
    assert want[0].is_sparse and not got[0].is_sparse
    for a, b in zip(want, got, strict=True):
        torch.testing.assert_close(a.to_dense(), b, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("mode", ["sum", "mean"])
def test_eager_module_is_the_same(mode):
    options = dict(mode=mode, seed=5, include_last_offset=True)
    fast = HashedEmbeddingBag(12, 5000, 50, **options)
    plain = ReferenceHashedEmbeddingBag(12, 5000, 50, **options)
    plain.load_state_dict(fast.state_dict())
    ids = random_ids(40)
    for args in ((ids, torch.tensor([0, 8, 8, 40])), (ids,), (ids.view(8, 5),)):
        torch.testing.assert_close(fast(*args), plain(*args))
    assert repr(fast)[len("HashedEmbeddingBag") :] in repr(plain)


@pytest.mark.parametrize("bits", [8, 4])
@pytest.mark.parametrize("dim", [1, 16, 30, 64, 131])
def test_quantized_twin_reads_the_dequantized_tables(bits, dim):
    module = HashedEmbeddingBag(dim, 5000, 50, mode="mean", seed=2)
    packed = module.quantize(bits)
    assert isinstance(packed, QuantizedHashedEmbeddingBag)
    ids, offsets = random_ids(90), torch.tensor([0, 8, 8, 80])
    torch.testing.assert_close(packed(ids, offsets), packed.dequantize()(ids, offsets))
    error = (packed(ids, offsets) - module(ids, offsets)).detach().abs().max()
    span = max(float(p.detach().max() - p.detach().min()) for p in module.parameters())
    assert float(error) <= 4 * span / (2**bits - 1)
    again = HashedEmbeddingBag(dim, 5000, 50, mode="mean", seed=2).quantize(bits)
    again.load_state_dict(packed.state_dict())
    assert torch.equal(again(ids, offsets), packed(ids, offsets))
    with pytest.raises(ValueError, match="cannot be trained"):
        packed.requires_grad_()


def test_default_size_without_allocating_it():
    module = HashedEmbeddingBag(64, device="meta")
    assert module.quotient_b.shape == module.quotient_c.shape == (4_294_968, 64)
    assert module.remainder_b.shape == (1000, 64)


def test_start_values():
    module = HashedEmbeddingBag(100, 2_000_000, 1000)
    for table in module.parameters():
        assert abs(float(table.detach().std()) - 0.05) < 0.001
    norms = module(random_ids(2000)).norm(dim=1)
    assert abs(float(norms.mean()) - 1) < 0.05


def untouched_zeros(shape, dtype):
    """Gigabytes of which only the pages that are read or written take memory."""
    return torch.from_numpy(np.zeros(shape, dtype))


@needs_library
@pytest.mark.parametrize("bits", [8, 4])
def test_packed_table_beyond_two_billion_bytes(bits):
    """Rows whose byte offset needs more than 32 bits."""
    dim, n = 1024, 2**32
    row_bytes = pack_rows(*quantize_rows(torch.randn(1, dim), bits), bits).shape[1]
    m = n // (2**31 // row_bytes + 70_000)
    quotients, marked = -(-n // m), torch.randn(1, dim)
    last = quotients - 1
    assert quotients * row_bytes > 2**31
    table = untouched_zeros((quotients, row_bytes), np.uint8)
    # codes of the last row and its pair lie apart, the pairs behind all codes
    one = pack_rows(*quantize_rows(marked, bits), bits).reshape(-1)
    flat, codes = table.view(-1), row_bytes - 8
    flat[last * codes : (last + 1) * codes] = one[:codes]
    flat[-8:] = one[codes:]
    empty = torch.zeros(m, row_bytes, dtype=torch.uint8)
    ids = torch.tensor([2**32 - 1, 0, 1])  # low half: the last bucket
    got = quantized_hashed_embedding_bag(
        ids, None, table, empty, table, empty, n, dim, bits, prehashed=True
    )
    assert (got[1:] == 0).all()  # scale and mid are 0 there
    step = float((marked.max() - marked.min()) / (2**bits - 1))
    torch.testing.assert_close(got[:1], marked, rtol=0, atol=0.51 * step)


@needs_library
def test_float_table_beyond_two_billion_elements():
    """Rows whose element number needs more than 32 bits."""
    dim, n, m = 2048, 2**32, 4000
    quotients = -(-n // m)
    table = untouched_zeros((quotients, dim), np.float16)
    assert table.numel() > 2**31
    table[-1] = 3
    empty = torch.zeros(m, dim, dtype=torch.float16)
    got = hashed_embedding_bag(
        torch.tensor([2**32 - 1, 5]), None, table, empty, table, empty, n, prehashed=True
    )
    assert (got[0] == 3).all() and (got[1] == 0).all()


@pytest.mark.parametrize(
    ("options", "named"),
    [
        (dict(num_buckets=2**32 + 1), "num_buckets"),
        (dict(num_buckets=0), "num_buckets"),
        (dict(num_remainders=0), "num_remainders"),
        (dict(mode="max"), "mode"),
        (dict(seed=-1), "seed"),
        (dict(seed=2**32), "seed"),
        (dict(dim=0), "dim"),
    ],
)
def test_module_refuses(options, named):
    with pytest.raises(ValueError, match=f"'{named}'"):
        HashedEmbeddingBag(**{"dim": 4, "num_buckets": 100, "device": "meta", **options})


def test_quantize_refuses_other_bits():
    with pytest.raises(ValueError, match="'bits'"):
        HashedEmbeddingBag(4, 100, 10).quantize(5)


def test_inputs_are_refused_before_anything_is_read():
    tables = random_tables(4, 100, 10)
    with pytest.raises((ValueError, RuntimeError), match="'quotient_c': wanted 10 rows"):
        hashed_embedding_bag(random_ids(3), None, *tables[:2], tables[2][:9], tables[3], 100)
    with pytest.raises(
        (TypeError, RuntimeError), match=r"'ids': wanted torch\.int32 or torch\.int64"
    ):
        hashed_embedding_bag(torch.tensor([1.0]), None, *tables, 100)


@pytest.mark.parametrize("quantized", [False, True])
def test_strings_given_for_ids_are_told_the_way(quantized):
    module = HashedEmbeddingBag(8, 100, 10)
    module = module.quantize() if quantized else module
    with pytest.raises(TypeError, match=r"got list; for strings .* prehashed=True .*hash_strings"):
        module(["a", "b"])


# ---- optimizers and clipping -----------------------------------------------------------------


def trained(sparse, optimizer, clip=None):
    torch.manual_seed(0)
    made = HashedEmbeddingBag(8, 1000, 10, sparse=sparse)
    update = optimizer(made.parameters())
    norms = []
    for step in range(3):
        update.zero_grad()
        ids = torch.arange(20) * (step + 1) // 2  # some rows get several gradients
        made(ids, torch.arange(0, 20, 4)).square().sum().backward()
        if clip is not None:
            norms.append(clip_grad_norm_(made.parameters(), *clip))
        update.step()
    return made, norms


@pytest.mark.parametrize("momentum", [0.0, 0.9])
@pytest.mark.parametrize("clip", [None, (0.5,), (0.5, float("inf")), (0.5, 1.0), (1e6,)])
def test_sparse_gradients_are_clipped_and_applied_as_dense_ones(clip, momentum):
    def sgd(parameters):
        return torch.optim.SGD(parameters, lr=0.1, momentum=momentum)

    (one, norms), (other, wanted) = trained(True, sgd, clip), trained(False, sgd, clip)
    torch.testing.assert_close(norms, wanted)
    for a, b in zip(one.parameters(), other.parameters(), strict=True):
        torch.testing.assert_close(a, b)


def test_clipping_equals_that_of_torch_and_names_what_is_not_finite():
    norms = []
    for clip in (torch.nn.utils.clip_grad_norm_, clip_grad_norm_):
        torch.manual_seed(0)
        layer = torch.nn.Linear(4, 3)
        layer(torch.ones(2, 4)).square().sum().backward()
        norms.append((clip(layer.parameters(), 0.1), layer.weight.grad))
    torch.testing.assert_close(*norms)
    layer.weight.grad[0, 0] = torch.nan
    with pytest.raises(RuntimeError, match="non-finite"):
        clip_grad_norm_(layer.parameters(), 0.1, error_if_nonfinite=True)


def test_adamw_names_the_way_out():
    with pytest.raises(RuntimeError, match="consider SparseAdam"):
        trained(True, torch.optim.AdamW)
    made, _ = trained(False, torch.optim.AdamW)
    assert made.quotient_b.grad is not None
