"""Cross layers in bfloat16, with bfloat16 products where the processor has them.

Everything here holds on every processor. Those without bfloat16 products widen to float first. The
last test repeats the file with the products that this processor has but does not use by default.
"""

from __future__ import annotations

import os
import subprocess
import sys

import pytest
import torch
from conftest import REPOSITORY, needs_library

import lirank_ext
from lirank_ext import attention_cross, low_rank_cross, nn
from lirank_ext.library.op import OPS
from lirank_ext.nn import reference_cross

pytestmark = needs_library

low_rank_cross_reference = OPS["low_rank_cross"].reference
attention_cross_reference = OPS["attention_cross"].reference

ROUNDING = 2.0**-8  # to the nearest bfloat16


def layer(batch, d, r, projections=1, seed=0):
    """x0, x, the projections, u and bias of one layer in bfloat16."""
    random = torch.Generator().manual_seed(seed)
    shapes = [(batch, d), (batch, d), *[(r, d)] * projections, (d, r), (d,)]
    scales = [1, 1, *[d**-0.5] * projections, r**-0.5, 1]
    drawn = (torch.randn(*shape, generator=random) for shape in shapes)
    return [(t * scale).bfloat16() for t, scale in zip(drawn, scales, strict=True)]


def wide(tensors):
    return [t.double() for t in tensors]


def assert_rounded_once(got, want, more=0.0):
    """got is want rounded to bfloat16, where got may differ from want by 2^-16 of its largest."""
    assert got.dtype == torch.bfloat16 and got.shape == want.shape
    if got.numel() == 0:
        return
    allowed = ROUNDING * want.abs() + (2.0**-16 + more) * (1 + want.abs().max())
    assert ((got.double() - want).abs() / allowed).max() <= 1


# Widths around whole blocks of 32; batches around 16, 24 and 32 samples, and around r.
@pytest.mark.parametrize("d, r", [(1, 1), (31, 16), (32, 32), (33, 17), (64, 32), (100, 33)])
def test_every_size_around_the_switches(d, r, threads):
    for batch in (0, 1, 2, 15, 16, 17, 24, 25, 31, 32, 33, 34, 47, 64, 65, 130):
        low, high = layer(batch, d, r), layer(batch, d, r, projections=3)
        for count in (1, 2):
            threads(count)
            assert_rounded_once(low_rank_cross(*low), low_rank_cross_reference(*wide(low)))
            assert_rounded_once(
                attention_cross(*high), attention_cross_reference(*wide(high)), more=2.0**-15
            )


@pytest.mark.parametrize("batch", [1, 20, 40, 300])
@pytest.mark.parametrize("d, r", [(512, 64), (300, 48), (96, 128), (1100, 40)])
def test_widths_of_several_chunks(d, r, batch):
    args = layer(batch, d, r)
    assert_rounded_once(low_rank_cross(*args), low_rank_cross_reference(*wide(args)))
    no_bias = [*args[:-1], None]
    want = low_rank_cross_reference(*wide(no_bias[:-1]), None)
    assert_rounded_once(low_rank_cross(*no_bias), want)
    same = [args[0], *args[:1], *args[2:]]  # x is x0
    assert_rounded_once(low_rank_cross(*same), low_rank_cross_reference(*wide(same)))
    spread = [torch.stack([t, t], -1)[..., 0] for t in args]  # not contiguous
    assert torch.equal(low_rank_cross(*spread), low_rank_cross(*args))


@pytest.mark.parametrize("batch", [3, 40, 200])
@pytest.mark.parametrize("token_dim, skip", [(1, False), (2, True), (16, False)])
def test_tokens_and_skip(batch, token_dim, skip):
    args = layer(batch, 64, 32, projections=3)
    stated = {"temperature": 0.7, "token_dim": token_dim, "skip": skip}
    want = attention_cross_reference(*wide(args), **stated)
    assert_rounded_once(attention_cross(*args, **stated), want, more=2.0**-15)


@pytest.mark.parametrize("batch", [1, 16, 33, 200])
@pytest.mark.parametrize("d, r, s", [(64, 32, 64), (70, 34, 21), (512, 64, 64)])
@pytest.mark.parametrize("merge", ["sum", "mean", "concat"])
def test_nets(batch, d, r, s, merge, threads):
    net = nn.ResidualCrossNet(d, r, 3, attention_rank=s, merge=merge, learn_temperature=True)
    net = net.bfloat16().eval()
    slow = reference_cross.ReferenceResidualCrossNet(
        d, r, 3, attention_rank=s, merge=merge, learn_temperature=True
    ).double()
    slow.load_state_dict(net.state_dict())
    x = torch.randn(batch, d).bfloat16()
    found = []
    with torch.inference_mode():
        want = slow(x.double())
        for count in (1, 2):
            threads(count)
            found.append(net(x))
    assert torch.equal(*found)
    # A whole net, not one layer: states between layers are not rounded to bfloat16.
    assert_rounded_once(found[0], want, more=2.0**-13)


@pytest.mark.parametrize("batch", [17, 64, 65, 400])
def test_a_sample_does_not_depend_on_its_neighbors_nor_on_threads(batch, threads):
    """A batch of 64 reads the weights in place, and a batch of 65 packs them."""
    low, high = layer(batch, 96, 64), layer(batch, 96, 64, projections=3)
    for op, args in ((low_rank_cross, low), (attention_cross, high)):
        threads(1)
        whole = op(*args)
        threads(2)
        assert torch.equal(op(*args), whole)
        order = torch.randperm(batch)
        mixed = op(*(t[order].contiguous() for t in args[:2]), *args[2:])
        assert torch.equal(mixed, whole[order])


@pytest.mark.parametrize("batch", [8, 40, 100])
@pytest.mark.parametrize("d, r", [(64, 32), (50, 20)])
def test_what_is_not_finite_stays_in_its_sample(batch, d, r):
    args = layer(batch, d, r)
    clean = low_rank_cross(*args)
    args[1][1, 3], args[0][2, 0], args[1][5, 7] = torch.nan, torch.inf, -torch.inf
    got = low_rank_cross(*args)
    want = low_rank_cross_reference(*wide(args))
    others = [b for b in range(batch) if b not in (1, 2, 5)]
    assert torch.equal(got[others], clean[others])
    assert torch.equal(got.isnan(), want.isnan()) and torch.equal(got.isinf(), want.isinf())
    # An overflowing projection is infinite, not the difference of two infinities.
    large = layer(batch, d, r)
    large[2] = torch.full_like(large[2], 3e38)
    large[1] = torch.ones_like(large[1])
    large[3], large[0] = torch.ones_like(large[3]), torch.ones_like(large[0])
    assert low_rank_cross(*large).isposinf().all()


def test_hidden_values_are_not_rounded_to_bfloat16():
    """x0 (u v x) with u and v such that products of a rounded h would be off by 2^-9 of 256."""
    d = r = 64
    x = torch.zeros(40, d)
    x[:, 0], x[:, 1] = 256, 1  # h = 257, which bfloat16 lacks
    v, u = torch.zeros(r, d), torch.zeros(d, r)
    v[0, 0] = v[0, 1] = 1
    v[1, 0] = 1
    u[:, 0], u[:, 1] = 1, -1  # 257 - 256
    ones, none = torch.ones(40, d), torch.zeros(d)
    for batch in (1, 30, 40):
        args = [t.bfloat16() for t in (ones[:batch], x[:batch], v, u, none)]
        found = (low_rank_cross(*args) - args[1])[:, 1:]  # 257 is rounded in column 0
        assert torch.equal(found, torch.ones_like(found))


@pytest.mark.parametrize("batch", [1, 40, 100])
@pytest.mark.parametrize("d, r", [(64, 32), (70, 34), (20, 60)])
def test_training_keeps_what_the_backward_needs(batch, d, r):
    """Gradients in bfloat16 beside those of float64, with all or part of the projections kept."""
    for op, slow, args in (
        (low_rank_cross, low_rank_cross_reference, layer(batch, d, r)),
        (attention_cross, attention_cross_reference, layer(batch, d, r, projections=3)),
    ):
        leaves = [t.requires_grad_() for t in args]
        exact = [t.detach().double().requires_grad_() for t in args]
        gradient = torch.randn(batch, d).bfloat16()
        got = torch.autograd.grad(op(*leaves), leaves, gradient)
        want = torch.autograd.grad(slow(*exact), exact, gradient.double())
        for one, other in zip(got, want, strict=True):
            # What is kept is rounded to bfloat16: 2^-8 of each term.
            assert (one.double() - other).abs().max() <= 2.0**-6 * (1 + other.abs().max())


def test_the_levels_are_named():
    assert lirank_ext.build_info()["cpu"] in ("plain", "avx2", "avx512", "avx512_bf16", "amx")


@pytest.mark.parametrize("isa", ["avx2", "avx512", "avx512_bf16"])
def test_lower_levels_pass_this_file_too(isa):
    if os.environ.get("LIRANK_ISA"):
        pytest.skip("runs itself once for each level, not again inside")
    run = subprocess.run(
        [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", __file__],
        env={**os.environ, "LIRANK_ISA": isa},
        cwd=REPOSITORY,
        capture_output=True,
        text=True,
    )
    assert run.returncode == 0, run.stdout[-3000:]
