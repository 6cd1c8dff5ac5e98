from __future__ import annotations

import math
import os
import subprocess
import sys

import pytest
import torch
import torch.nn.utils.prune
from conftest import REPOSITORY, needs_library

import lirank_ext
from lirank_ext import attention_cross, low_rank_cross, nn, outer_attention
from lirank_ext.nn import reference_cross


def attention_by_hand(q, k, v, temperature, token_dim):
    """One sample, one pair of tokens at a time, in Python floats."""
    tokens = [
        [row[i : i + token_dim] for i in range(0, len(row), token_dim)]
        for row in (q.tolist(), k.tolist(), v.tolist())
    ]
    out = []
    for query in tokens[0]:
        scores = [
            sum(a * b for a, b in zip(query, key, strict=True))
            / (temperature * math.sqrt(token_dim))
            for key in tokens[1]
        ]
        weights = [math.exp(s - max(scores)) for s in scores]
        for c in range(token_dim):
            total = sum(w * value[c] for w, value in zip(weights, tokens[2], strict=True))
            out.append(total / sum(weights))
    return out


def cross_inputs(batch, dim, rank, kernels=1, dtype=torch.float32):
    sizes = [(batch, dim)] * 2 + [(rank, dim)] * kernels + [(dim, rank), (dim,)]
    return [
        torch.randn(s, dtype=dtype) / (s[-1] ** 0.5 if i > 1 else 1) for i, s in enumerate(sizes)
    ]


# ---- the formulas ----------------------------------------------------------------------


@pytest.mark.parametrize(("rank", "token_dim"), [(1, 1), (7, 1), (40, 1), (12, 4), (6, 6)])
def test_outer_attention_follows_its_formula(rank, token_dim):
    q, k, v = torch.randn(3, 3, rank)
    got = outer_attention(q, k, v, 0.6, token_dim)
    want = [attention_by_hand(*rows, 0.6, token_dim) for rows in zip(q, k, v, strict=True)]
    torch.testing.assert_close(got, torch.tensor(want), rtol=1e-5, atol=1e-5)


def test_low_rank_cross_follows_its_formula():
    x0, x, v, u, bias = (t.tolist() for t in cross_inputs(3, 5, 2))
    got = low_rank_cross(*map(torch.tensor, (x0, x, v, u, bias)))
    for b in range(3):
        h = [sum(v[i][j] * x[b][j] for j in range(5)) for i in range(2)]
        for j in range(5):
            t = sum(u[j][i] * h[i] for i in range(2)) + bias[j]
            assert got[b, j] == pytest.approx(x0[b][j] * t + x[b][j], rel=1e-5, abs=1e-5)


@pytest.mark.parametrize("skip", [True, False])
def test_attention_cross_is_attention_between_the_two_maps(skip):
    x0, x, q, k, v, u, bias = cross_inputs(20, 24, 8, kernels=3)
    hidden = outer_attention(x @ q.T, x @ k.T, x @ v.T, 0.5, 2)
    hidden = hidden + x @ v.T if skip else hidden
    want = x0 * (hidden @ u.T + bias) + x
    got = attention_cross(x0, x, q, k, v, u, bias, 0.5, 2, skip)
    torch.testing.assert_close(got, want, rtol=1e-5, atol=1e-5)


def test_a_single_token_makes_attention_the_plain_cross_layer():
    x0, x, q, k, v, u, bias = cross_inputs(9, 30, 6, kernels=3)
    got = attention_cross(x0, x, q, k, v, u, bias, token_dim=6, skip=False)
    torch.testing.assert_close(got, low_rank_cross(x0, x, v, u, bias), rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("magnitude", [1e2, 1e4, 1e6, 1e9, 1e15])
def test_extreme_scores_pick_the_largest_key(magnitude):
    q = torch.tensor([[1.0, -1.0, 2.0, -0.5]]) * magnitude
    k, v = torch.tensor([[0.3, 4.0, -3.0, 1.0]]), torch.tensor([[10.0, 20.0, 30.0, 40.0]])
    assert outer_attention(q, k, v).tolist() == [[20.0, 30.0, 20.0, 30.0]]


# ---- batch sizes around every switch ---------------------------------------------------

# 24 is the last small batch, 96 the first that takes packed weights; 16, 32, 48 and 64 are the
# tile widths of AVX-512 (8, 16: less)
BATCHES = [1, 2, 3, 4, 5, 8, 9, 15, 16, 17, 23, 24, 25, 31, 32, 33, 48, 49, 63, 64, 65, 95, 96]
BATCHES += [97, 101, 103, 107, 130]  # from 96 on 12, 6, 4, 2 and 1 samples at a time


@pytest.mark.parametrize("batch", BATCHES)
def test_every_batch_size_agrees_with_float64(threads, batch):
    low, high = cross_inputs(batch, 70, 34), cross_inputs(batch, 70, 34, kernels=3)
    net = nn.ResidualCrossNet(70, 34, 2, attention_rank=21, token_dim=3).requires_grad_(False)
    wide = nn.ResidualCrossNet(70, 34, 2, attention_rank=21, token_dim=3).double()
    wide.load_state_dict(net.state_dict())
    for count in (1, 2):
        threads(count)
        with torch.inference_mode():
            pairs = [
                (low_rank_cross(*low), low_rank_cross(*(t.double() for t in low))),
                (attention_cross(*high), attention_cross(*(t.double() for t in high))),
                (
                    net(low[0]),
                    reference_cross.ReferenceResidualCrossNet.forward(wide, low[0].double()),
                ),
            ]
        for got, want in pairs:
            assert (got - want).abs().max() <= 64 * 2.0**-23 * want.abs().max()


@needs_library
@pytest.mark.parametrize("d, r", [(512, 256), (520, 257), (1100, 130), (400, 333)])
def test_tiles_beside_heavy_weights(threads, d, r):
    """Around 1 MB of weights, 192 samples a thread and 24 rows of the width in cache."""
    for batch in (191, 192, 384, 389):
        args = cross_inputs(batch, d, r)
        wide = [t.double().requires_grad_() for t in args]
        want = low_rank_cross(*wide)
        exact = torch.autograd.grad(want.square().mean(), wide)
        found = []
        for count in (1, 2):
            threads(count)
            leaves = [t.clone().requires_grad_() for t in args]
            y = low_rank_cross(*leaves)
            found.append([y, *torch.autograd.grad(y.square().mean(), leaves)])
            assert torch.equal(low_rank_cross(*args), y)
        for one, other, right in zip(*found, [want, *exact], strict=True):
            assert torch.equal(one, other)
            assert (one - right).abs().max() <= 2.0**-16 * right.abs().max()


def _multiplies_bfloat16(batch: int) -> bool:
    """Whether bfloat16 is not widened to float first (see csrc/simd/cross_bf16_products.h)."""
    isa = lirank_ext.build_info()["cpu"]
    return isa == "amx" or (isa == "avx512_bf16" and batch > 24)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
@pytest.mark.parametrize("batch", [1, 24, 25, 95, 96, 97, 300])
@pytest.mark.parametrize("d, r", [(70, 34), (5, 3), (64, 16)])
def test_short_floats_are_the_float_result_rounded_once(threads, d, r, batch, dtype):
    inputs = [t.to(dtype) for t in cross_inputs(batch, d, r)]
    attention = [t.to(dtype) for t in cross_inputs(batch, d, r, kernels=3)]
    inputs[0][0, 0], inputs[1][-1, -1] = torch.nan, 2.0**-24  # not a number, and a tiny one
    for op, args in ((low_rank_cross, inputs), (attention_cross, attention)):
        same = [args[0], *args[:1], *args[2:]]  # x is x0
        spread = [torch.stack([t, t], -1)[..., 0] for t in args]  # not contiguous
        for given in (args, same, spread):
            want = op(*(t.float() for t in given)).to(dtype)
            for count in (1, 2):
                threads(count)
                got = op(*given)
                assert got.dtype == dtype
                exact = dtype == torch.float16 or not _multiplies_bfloat16(batch)
                # bfloat16 products add up in another order: the next bfloat16 at most
                off = {"rtol": 0, "atol": 0} if exact else {"rtol": 2.0**-7, "atol": 2.0**-16}
                torch.testing.assert_close(got, want, **off, equal_nan=True)


# ---- gradients -------------------------------------------------------------------------


@pytest.mark.parametrize("token_dim", [1, 3])
def test_gradcheck_attention(token_dim):
    leaves = [torch.randn(2, 6, dtype=torch.float64, requires_grad=True) for _ in range(3)]
    temperature = torch.tensor(0.7, dtype=torch.float64, requires_grad=True)
    assert torch.autograd.gradcheck(
        lambda q, k, v, s: outer_attention(q, k, v, s, token_dim), (*leaves, temperature)
    )


@pytest.mark.parametrize("skip", [True, False])
def test_gradcheck_cross(skip):
    inputs = [t.requires_grad_() for t in cross_inputs(3, 5, 4, 3, torch.float64)]
    temperature = torch.tensor(0.7, dtype=torch.float64, requires_grad=True)
    x0, x, _, _, v, u, bias = inputs
    assert torch.autograd.gradcheck(low_rank_cross, (x0, x, v, u, bias))
    assert torch.autograd.gradcheck(
        lambda x, v, u, b: low_rank_cross(x, x, v, u, b), (x, v, u, bias)
    )
    assert torch.autograd.gradcheck(
        lambda *a: attention_cross(*a, token_dim=2, skip=skip), (*inputs, temperature)
    )


def test_no_bias_gets_no_gradient():
    x0, x, v, u, _ = (t.requires_grad_() for t in cross_inputs(4, 6, 2))
    low_rank_cross(x0, x, v, u, None).sum().backward()
    assert all(t.grad is not None for t in (x0, x, v, u))


def saved_bytes(run):
    """Bytes kept for the backward, parameters and inputs not counted, each storage once."""
    kept = {}

    def pack(t):
        kept[t.untyped_storage().data_ptr()] = t.untyped_storage().nbytes()
        return t

    with torch.autograd.graph.saved_tensors_hooks(pack, lambda t: t):
        out = run()
    del out
    return kept


def stack(layers, x):
    y = x
    for layer in layers:
        y = layer(x, y)
    return y


@pytest.mark.parametrize("rank", [40, 80, 100, 160])
def test_training_keeps_at_most_55_percent_of_eager(rank):
    x = torch.randn(256, 400, requires_grad=True)
    fast, slow = (
        nn.ResidualCrossNet(400, rank),
        reference_cross.ReferenceResidualCrossNet(400, rank),
    )
    for run in (lambda m: m(x), lambda m: stack(m.low_rank, x)):
        sizes = []
        for model in (fast, slow):
            kept = saved_bytes(lambda model=model, run=run: run(model))
            for p in model.parameters():
                kept.pop(p.untyped_storage().data_ptr(), None)
            sizes.append(sum(kept.values()))
        assert sizes[0] <= 0.55 * sizes[1]


# ---- temperature -----------------------------------------------------------------------


def test_temperature_as_a_tensor_equals_the_number():
    q, k, v = torch.randn(3, 5, 8)
    number = outer_attention(q, k, v, 0.4)
    torch.testing.assert_close(outer_attention(q, k, v, torch.tensor(0.4)), number)


@pytest.mark.parametrize("bad", [0.0, -1.0, 1e-31, float("nan"), torch.tensor(0.0), torch.ones(2)])
def test_bad_temperature_is_refused(bad):
    q = torch.randn(2, 4)
    with pytest.raises((ValueError, RuntimeError), match="argument 'temperature'"):
        outer_attention(q, q, q, bad)
    inputs = cross_inputs(2, 4, 2, kernels=3)
    with pytest.raises((ValueError, RuntimeError), match="argument 'temperature'"):
        attention_cross(*inputs, bad)


# ---- threads, instruction sets, memory -------------------------------------------------


@needs_library
@pytest.mark.parametrize("batch", [1, 7, 40, 333])
def test_bit_equal_for_any_number_of_threads(threads, batch):
    low = [t.requires_grad_() for t in cross_inputs(batch, 150, 40)]
    high = [t.requires_grad_() for t in cross_inputs(batch, 150, 40, kernels=3)]
    net = nn.ResidualCrossNet(150, 40)
    results = []
    for count in (1, 2, 3):
        threads(count)
        with torch.inference_mode():
            found = [net(low[0])]
        for function, leaves in ((low_rank_cross, low), (attention_cross, high)):
            y = function(*leaves)
            found += [y, *torch.autograd.grad(y.sin().sum(), leaves)]
        results.append(found)
    for other in results[1:]:
        assert all(torch.equal(a, b) for a, b in zip(results[0], other, strict=True))


@needs_library
@pytest.mark.parametrize("isa", ["plain", "avx2", "avx512", "avx512_bf16", "amx"])
def test_every_instruction_set_verifies(isa):
    """Runs a weaker processor's code on this one. A level above this processor's is clamped."""
    code = (
        "from lirank_ext.verify import verify\n"
        "for op in ('low_rank_cross', 'outer_attention', 'attention_cross'):\n"
        "    rows = [row for row in verify(op) if not row.absent]\n"
        "    assert {'reference', 'cpu'} <= {row.backend for row in rows}\n"
        "    for row in rows:\n"
        "        assert row.passed, (row.op, row.backend, row.worst)\n"
    )
    environment = {**os.environ, "LIRANK_ISA": isa}
    run = subprocess.run(
        [sys.executable, "-c", code],
        env=environment,
        cwd=REPOSITORY,
        capture_output=True,
        text=True,
    )
    assert run.returncode == 0, run.stderr


@needs_library
def test_attention_never_holds_the_scores():
    """B = 4096, r = 256: the scores would be 1 GiB; q, k, v and their gradients are 28 MiB."""
    code = (
        "import resource, torch, lirank_ext\n"
        "peak = lambda: resource.getrusage(resource.RUSAGE_SELF).ru_maxrss >> 10\n"
        "small = torch.randn(3, 8, 256, requires_grad=True)\n"
        "lirank_ext.outer_attention(*small).sum().backward()\n"
        "before = peak()\n"
        "leaves = [t.requires_grad_() for t in torch.randn(3, 4096, 256).unbind()]\n"
        "lirank_ext.outer_attention(*leaves).sum().backward()\n"
        "assert peak() - before < 100, (before, peak())\n"
    )
    run = subprocess.run(
        [sys.executable, "-c", code], cwd=REPOSITORY, capture_output=True, text=True
    )
    assert run.returncode == 0, run.stderr


# ---- modules ---------------------------------------------------------------------------


@pytest.mark.parametrize("merge", ["sum", "mean", "concat"])
@pytest.mark.parametrize("learned", [True, False])
def test_net_equals_its_reference(merge, learned):
    options = dict(
        attention_rank=12, temperature=0.5, learn_temperature=learned, token_dim=2, merge=merge
    )
    fast = nn.ResidualCrossNet(40, 9, 3, **options).double()
    slow = reference_cross.ReferenceResidualCrossNet(40, 9, 3, **options).double()
    slow.load_state_dict(fast.state_dict())
    x = torch.randn(50, 40, dtype=torch.float64)
    got, want = fast(x), slow(x)
    assert got.shape == (50, fast.out_dim)
    torch.testing.assert_close(got, want, rtol=1e-12, atol=1e-12)
    with torch.inference_mode():
        torch.testing.assert_close(fast(x), want, rtol=1e-12, atol=1e-12)
        single = fast.float()(x.float())
        torch.testing.assert_close(single, want.float(), rtol=1e-5, atol=1e-4)
    fast.double()
    g = torch.randn_like(got)
    got.backward(g)
    want.backward(g)
    for (name, a), b in zip(fast.named_parameters(), slow.parameters(), strict=True):
        scale = float(b.grad.abs().max())
        torch.testing.assert_close(a.grad / scale, b.grad / scale, rtol=0, atol=1e-12, msg=name)


def test_hooks_and_exchanged_layers_are_honored():
    net, x = nn.ResidualCrossNet(20, 4), torch.randn(6, 20)
    with torch.no_grad():
        plain = net(x)
        seen = []
        handle = net.attention[0].register_forward_hook(lambda *a: seen.append(a[0]))
        torch.testing.assert_close(net(x), plain)
        assert seen == [net.attention[0]]
        handle.remove()
        net.low_rank[1] = reference_cross.ReferenceLowRankCross(20, 4)
        assert not torch.allclose(net(x), plain)
        torch.nn.utils.prune.l1_unstructured(net.attention[1], "q", 0.5)
        with torch.enable_grad():
            want = net(x)
        torch.testing.assert_close(net(x), want)


def test_a_pruned_kernel_is_used():
    net, x = nn.ResidualCrossNet(20, 4), torch.randn(6, 20)
    torch.nn.utils.prune.l1_unstructured(net.attention[1], "q", 0.9)
    torch.nn.utils.prune.l1_unstructured(net.low_rank[0], "u", 0.9)
    for handle in (net.attention[1]._forward_pre_hooks, net.low_rank[0]._forward_pre_hooks):
        handle.clear()  # the hooks that compute the pruned kernels have run
    with torch.no_grad():
        torch.testing.assert_close(net(x), nn.cross.ResidualCrossParameters.forward(net, x))


def test_state_dict_names():
    net = nn.ResidualCrossNet(8, 2, 1, learn_temperature=True)
    assert set(net.state_dict()) == {
        *(f"low_rank.0.{n}" for n in ("v", "u", "bias")),
        *(f"attention.0.{n}" for n in ("q", "k", "v", "u", "bias", "log_temperature")),
    }


def test_initialisation_is_xavier_normal_with_zero_bias():
    layer = nn.AttentionCross(400, 100)
    wanted = math.sqrt(2 / 500)
    for kernel in (layer.q, layer.k, layer.v, layer.u):
        assert float(kernel.detach().std()) == pytest.approx(wanted, rel=0.03)
    assert not layer.bias.any()
    low = nn.LowRankCross(400, 100)
    assert float(low.v.detach().std()) == pytest.approx(wanted, rel=0.03) and not low.bias.any()


@pytest.mark.parametrize(
    ("build", "argument"),
    [
        (lambda: nn.LowRankCross(0, 4), "dim"),
        (lambda: nn.LowRankCross(4, 0), "rank"),
        (lambda: nn.AttentionCross(4, -1), "rank"),
        (lambda: nn.AttentionCross(8, 6, token_dim=4), "token_dim"),
        (lambda: nn.AttentionCross(8, 6, token_dim=0), "token_dim"),
        (lambda: nn.AttentionCross(8, 6, temperature=0.0), "temperature"),
        (lambda: nn.ResidualCrossNet(8, 4, num_layers=0), "num_layers"),
        (lambda: nn.ResidualCrossNet(8, 4, attention_rank=0), "attention_rank"),
        (lambda: nn.ResidualCrossNet(8, 4, merge="product"), "merge"),
    ],
)
def test_constructors_refuse_bad_sizes(build, argument):
    with pytest.raises(ValueError, match=f"argument '{argument}'"):
        build()


@pytest.mark.parametrize("train", [True, False])
def test_net_compiles_in_one_graph(train):
    net = nn.ResidualCrossNet(24, 6, learn_temperature=True).requires_grad_(train)
    x = torch.randn(10, 24)
    compiled = torch.compile(net, fullgraph=True, backend="aot_eager")
    torch.testing.assert_close(compiled(x), net(x))
