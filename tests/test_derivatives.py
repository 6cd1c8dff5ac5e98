"""Derivatives beyond ``backward()``: twice, forward mode, torch.func, checkpoints and traces.

They are right or refused in a sentence; none is zero because nobody wrote it.
"""

from __future__ import annotations

import pytest
import torch
from torch import func
from torch.autograd import forward_ad
from torch.utils._pytree import tree_leaves
from torch.utils.checkpoint import checkpoint

from lirank_ext import (
    attention_cross,
    dequantize_rows,
    isotonic_calibration,
    low_rank_cross,
    nn,
    outer_attention,
    pack_rows,
    quantize_rows,
)
from lirank_ext.library.op import OPS
from lirank_ext.nn import reference_cross

pytestmark = pytest.mark.filterwarnings(
    "ignore:.*torch.jit:DeprecationWarning", "ignore:There is a performance drop"
)


def draw(*shape, seed=0, dtype=torch.float64):
    generator = torch.Generator().manual_seed(seed + sum(shape))
    return torch.randn(shape, generator=generator, dtype=torch.float64).to(dtype)


# Arguments that take a gradient, the op as a function of them, and the same in plain PyTorch.
ROWS, KERNEL = (3, 5), (2, 5)
LAYER = (draw(*ROWS), draw(*ROWS, seed=1), draw(*KERNEL), draw(5, 2), draw(5))
ATTENTION_LAYER = (*LAYER[:2], *(draw(4, 5, seed=i) for i in range(3)), draw(5, 4), draw(5))
CALIBRATION = (draw(6), draw(5), draw(1)[0])


def plain(name):
    return OPS[name].reference.__wrapped__


def calibrate(function):
    return lambda *args: function(*args[:3], -1.5, 0.7, *args[3:])


KINDS = {
    "low_rank_cross": (LAYER, low_rank_cross, plain("low_rank_cross")),
    "low_rank_cross, x is x0": (
        (LAYER[0], *LAYER[2:]),
        lambda x, *rest: low_rank_cross(x, x, *rest),
        lambda x, *rest: plain("low_rank_cross")(x, x, *rest),
    ),
    "low_rank_cross, no bias": (
        LAYER[:4],
        lambda *args: low_rank_cross(*args, None),
        lambda *args: plain("low_rank_cross")(*args, None),
    ),
    "outer_attention": (
        tuple(draw(2, 6, seed=i) for i in range(3)),
        lambda *args: outer_attention(*args, 0.7, 2),
        lambda *args: plain("outer_attention")(*args, 0.7, 2),
    ),
    "outer_attention, learned temperature": (
        (*(draw(2, 6, seed=i) for i in range(3)), torch.tensor(0.7, dtype=torch.float64)),
        outer_attention,
        lambda q, k, v, s: plain("outer_attention")(q / s, k, v),
    ),
    "attention_cross": (
        ATTENTION_LAYER,
        lambda *args: attention_cross(*args, 0.8, 2),
        lambda *args: plain("attention_cross")(*args, 0.8, 2),
    ),
    "attention_cross, no skip": (
        ATTENTION_LAYER,
        lambda *args: attention_cross(*args, skip=False),
        lambda *args: plain("attention_cross")(*args, skip=False),
    ),
    "isotonic_calibration": (
        CALIBRATION,
        calibrate(isotonic_calibration),
        calibrate(plain("isotonic_calibration")),
    ),
    "isotonic_calibration, embedding": (
        (*CALIBRATION, draw(6, 5)),
        calibrate(isotonic_calibration),
        calibrate(plain("isotonic_calibration")),
    ),
    "residual_cross_net": (
        (LAYER[0], *LAYER[2:], *ATTENTION_LAYER[2:]),
        lambda x, *layers: OPS["residual_cross_net"].overload(
            x, layers[:3], layers[3:], 0.9, [], 1, True, 2
        ),
        lambda x, *layers: torch.cat(
            [
                plain("low_rank_cross")(x, x, *layers[:3]),
                plain("attention_cross")(x, x, *layers[3:], 0.9),
            ],
            dim=-1,
        ),
    ),
}


@pytest.fixture(params=KINDS)
def kind(request):
    return KINDS[request.param]


def scalar(function):
    """Of all arguments, and curved, so that every second derivative counts."""
    return lambda *args: function(*args).sin().sum()


def assert_same(found, wanted):
    """In float64; third derivatives are sums of large terms."""
    found, wanted = tree_leaves(found), tree_leaves(wanted)
    for one, other in zip(found, wanted, strict=True):
        largest = max(1.0, float(other.abs().max()))
        torch.testing.assert_close(one, other, rtol=0, atol=1e-9 * largest)


# ---- twice -----------------------------------------------------------------------------


def test_second_derivatives_are_numerically_right(kind):
    inputs, function, _ = kind
    leaves = [t.clone().requires_grad_() for t in inputs]
    assert torch.autograd.gradcheck(function, leaves)
    assert torch.autograd.gradgradcheck(function, leaves)


def test_third_derivatives(kind):
    inputs, *functions = kind
    results = []
    for function in functions:
        leaves = [t.clone().requires_grad_() for t in inputs]
        first = torch.autograd.grad(scalar(function)(*leaves), leaves, create_graph=True)
        twice = sum(g.square().sum() for g in first)
        second = torch.autograd.grad(twice, leaves, create_graph=True)
        results.append(torch.autograd.grad(sum(g.sin().sum() for g in second), leaves))
    assert_same(*results)


def test_one_argument_alone_is_differentiated_twice(kind):
    inputs, function, reference = kind
    for i in range(len(inputs)):
        results = []
        for f in (function, reference):
            leaves = [t.clone().requires_grad_(j == i) for j, t in enumerate(inputs)]
            (g,) = torch.autograd.grad(scalar(f)(*leaves), leaves[i], create_graph=True)
            results.append(torch.autograd.grad(g.square().sum(), leaves[i]))
        assert_same(*results)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_a_gradient_penalty_in_half_precision(dtype):
    leaves = [t.to(dtype).requires_grad_() for t in LAYER]
    (g,) = torch.autograd.grad(scalar(low_rank_cross)(*leaves), leaves[1], create_graph=True)
    g.float().square().sum().backward()
    assert all(t.grad.dtype == dtype and t.grad.isfinite().all() for t in leaves)
    assert all(t.grad.any() for t in leaves)


@pytest.mark.parametrize("embedded", [False, True])
def test_at_knots_derivatives_are_those_of_the_bucket_at_the_right(embedded):
    """The reference, which serves second derivatives, picks the bucket that the kernels pick."""
    lower, step, k = -0.75, 0.25, 8  # binary fractions: the knots are exact
    logits = (lower + step * torch.arange(-1, k + 2, dtype=torch.float64)).requires_grad_()
    weight = draw(k).requires_grad_()
    embedding = draw(len(logits), k, seed=1).requires_grad_() if embedded else None
    leaves = [t for t in (logits, weight, embedding) if t is not None]
    bias = torch.zeros((), dtype=torch.float64)
    y = isotonic_calibration(logits, weight, bias, lower, step, embedding).sin().sum()
    first = torch.autograd.grad(y, leaves, retain_graph=True)
    again = torch.autograd.grad(y, leaves, create_graph=True)
    assert_same(again, first)
    rows = [torch.autograd.grad(g, weight, retain_graph=True)[0] for g in again[0]]
    columns = [torch.autograd.grad(g, logits, retain_graph=True)[0] for g in again[1]]
    assert_same(torch.stack(rows), torch.stack(columns, dim=1))
    assert torch.stack(rows).any()


# ---- forward mode, torch.func ------------------------------------------------------------


def test_forward_mode(kind):
    inputs, *functions = kind
    results = []
    for function in functions:
        with forward_ad.dual_level():
            duals = [forward_ad.make_dual(t, t.cos()) for t in inputs]
            results.append(forward_ad.unpack_dual(function(*duals)).tangent)
    assert results[1].any()
    assert_same(*results)


@pytest.mark.parametrize("name", [name for name in KINDS if "low_rank" in name])
def test_backward_through_forward_mode(name):
    """PyTorch itself cannot go backward through the forward mode of a softmax."""
    inputs, *functions = KINDS[name]
    results = []
    for function in functions:
        leaves = [t.clone().requires_grad_() for t in inputs]
        with forward_ad.dual_level():
            duals = [forward_ad.make_dual(t, t.detach().cos()) for t in leaves]
            tangent = forward_ad.unpack_dual(function(*duals)).tangent
            results.append(torch.autograd.grad(tangent.square().sum(), leaves))
    assert_same(*results)


def test_a_level_of_forward_mode_without_tangents_changes_nothing(kind):
    inputs, function, _ = kind
    leaves = [t.clone().requires_grad_() for t in inputs]
    wanted = torch.autograd.grad(scalar(function)(*leaves), leaves)
    with forward_ad.dual_level():
        assert torch.equal(function(*inputs), function(*leaves))
        found = torch.autograd.grad(scalar(function)(*leaves), leaves)
    assert all(map(torch.equal, found, wanted))


TRANSFORMS = {
    "grad": lambda f, every: func.grad(scalar(f), every),
    "jvp": lambda f, every: lambda *a: func.jvp(f, a, tuple(t.cos() for t in a)),
    "vjp": lambda f, every: lambda *a: func.vjp(f, *a)[1](f(*a).cos()),
    "jacrev": lambda f, every: func.jacrev(f, every),
    "jacfwd": lambda f, every: func.jacfwd(f, every),
    "hessian": lambda f, every: func.hessian(scalar(f), every),
    "jacrev of jacrev": lambda f, every: func.jacrev(func.jacrev(scalar(f), every), every),
}


@pytest.mark.parametrize("name", TRANSFORMS)
def test_function_transforms(kind, name):
    inputs, *functions = kind
    every = tuple(range(len(inputs)))
    found, wanted = (TRANSFORMS[name](f, every)(*inputs) for f in functions)
    assert_same(found, wanted)


PER_SAMPLE = [k for k in KINDS if k != "residual_cross_net"]


@pytest.mark.parametrize("name", PER_SAMPLE)
def test_vmap_and_gradients_for_each_sample(name):
    inputs, *functions = KINDS[name]
    batched = tuple(torch.stack([t, t.sin()]) for t in inputs)
    every = tuple(range(len(inputs)))
    for transform in (
        lambda f: func.vmap(f),
        lambda f: func.vmap(func.grad(scalar(f), every)),
        lambda f: func.grad(scalar(func.vmap(f)), every),
    ):
        found, wanted = (transform(f)(*batched) for f in functions)
        assert_same(found, wanted)


# ---- checkpoints and traces ------------------------------------------------------------

NETS = {
    "low rank": lambda: nn.LowRankCross(12, 5),
    "attention": lambda: nn.AttentionCross(12, 4, learn_temperature=True),
    "net": lambda: nn.ResidualCrossNet(12, 5, attention_rank=4, learn_temperature=True),
}


def inputs_of(net, batch=4):
    x = draw(batch, 12, dtype=torch.float32)
    return (x,) if isinstance(net, nn.ResidualCrossNet) else (x, x.sin())


@pytest.mark.parametrize("name", NETS)
@pytest.mark.parametrize("reentrant", [False, True])
def test_checkpointed_layers_have_the_same_gradients(name, reentrant):
    """Without reentry a saved tensor may be asked for once only."""
    net = NETS[name]()
    inputs = [t.requires_grad_() for t in inputs_of(net)]
    leaves = [*inputs, *net.parameters()]
    wanted = torch.autograd.grad(net(*inputs).square().sum(), leaves)
    checkpoint(net, *inputs, use_reentrant=reentrant).square().sum().backward()
    for leaf, gradient in zip(leaves, wanted, strict=True):
        assert torch.equal(leaf.grad, gradient)


def test_checkpointed_calibration_has_the_same_gradients():
    leaves = [t.clone().requires_grad_() for t in CALIBRATION]
    function = calibrate(isotonic_calibration)
    wanted = torch.autograd.grad(scalar(function)(*leaves), leaves)
    y = checkpoint(scalar(function), *leaves, use_reentrant=False)
    assert all(map(torch.equal, torch.autograd.grad(y, leaves), wanted))


@pytest.mark.parametrize("name", NETS)
@pytest.mark.parametrize("training", [False, True])
def test_traced_with_gradients_and_checked_without(name, training):
    """torch.jit.trace compares a graph recorded with gradients to one recorded without."""
    net = NETS[name]().train(training)
    traced = torch.jit.trace(net, inputs_of(net))
    others = inputs_of(net, batch=9)
    with torch.no_grad():
        torch.testing.assert_close(traced(*others), net(*others))
    wanted = torch.autograd.grad(net(*others).square().sum(), list(net.parameters()))
    found = torch.autograd.grad(traced(*others).square().sum(), list(traced.parameters()))
    torch.testing.assert_close(found, wanted)


def test_the_op_of_a_whole_net_has_gradients():
    """It keeps nothing for a backward: the layers run one by one where one is wanted."""
    net = nn.ResidualCrossNet(12, 5, attention_rank=4, learn_temperature=True).double()
    slow = reference_cross.ReferenceResidualCrossNet(
        12, 5, attention_rank=4, learn_temperature=True
    )
    slow.double().load_state_dict(net.state_dict())
    low = [t for layer in net.low_rank for t in (layer.v, layer.u, layer.bias)]
    high = [t for a in net.attention for t in (a.q, a.k, a.v, a.u, a.bias)]
    logs = [layer.log_temperature.reshape(()) for layer in net.attention]
    x = draw(3, 12)
    y = OPS["residual_cross_net"].overload(x, low, high, 1.0, logs)
    found = torch.autograd.grad(y.square().sum(), list(net.parameters()))
    wanted = torch.autograd.grad(slow(x).square().sum(), list(slow.parameters()))
    assert_same(found, wanted)


# ---- what has first derivatives alone, or none ------------------------------------------

IDS, OFFSETS = torch.arange(7), torch.tensor([0, 3, 3, 5])


def bags_of(kind):
    """A function of the weights of 7 ids."""
    plain = torch.nn.EmbeddingBag(50, 8, mode="sum")
    hashed = nn.HashedEmbeddingBag(8, 1000, 10, sparse=False)
    if kind == "bags":
        both = nn.QuantizedEmbeddingBagCollection.from_float({"a": plain, "b": plain})
        return lambda w: both(IDS, torch.tensor([0, 3, 3, 5, 7]), w)
    kinds = {
        "hashed": hashed,
        "hashed, int8": hashed.quantize(),
        "int8": nn.QuantizedEmbeddingBag.from_float(plain),
    }
    return lambda w: kinds[kind](IDS, OFFSETS, w)


BAGS = ("hashed", "hashed, int8", "int8", "bags")


@pytest.mark.parametrize("kind", BAGS)
def test_weights_of_bags_have_first_derivatives_and_no_zeros_beyond(kind):
    bags, w = bags_of(kind), torch.rand(7)
    leaf = w.clone().requires_grad_()
    (g,) = torch.autograd.grad(bags(leaf).square().sum(), leaf, create_graph=True)
    assert g.any()
    with pytest.raises(RuntimeError, match="a second derivative was wanted"):
        g.square().sum().backward()
    refused = "wanted in forward mode or by torch.func"
    for transform in (
        lambda: func.jvp(bags, (w,), (w,)),
        lambda: func.grad(lambda w: bags(w).sum())(w),
        lambda: func.vjp(bags, w),
        lambda: func.jacfwd(bags)(w),
    ):
        with pytest.raises(RuntimeError, match=refused):
            transform()
    with forward_ad.dual_level(), pytest.raises(RuntimeError, match=refused):
        bags(forward_ad.make_dual(w, w))


def test_tables_refuse_what_is_beyond_first_derivatives():
    bag = nn.HashedEmbeddingBag(8, 1000, 10, sparse=False)
    held = dict(bag.named_parameters())

    def loss(tables):
        return func.functional_call(bag, tables, (IDS, OFFSETS)).square().sum()

    with pytest.raises(RuntimeError, match=r"by torch\.func"):
        func.grad(loss)(held)
    with pytest.raises(RuntimeError, match="forward mode"):
        func.jvp(loss, (held,), (held,))


def test_quantizing_is_no_derivative_of_zero():
    weight = draw(4, 8, dtype=torch.float32)
    assert not quantize_rows(weight.clone().requires_grad_())[1].requires_grad
    for transform in (
        lambda: func.jvp(lambda w: quantize_rows(w)[1], (weight,), (weight,)),
        lambda: func.grad(lambda w: quantize_rows(w)[1].sum())(weight),
    ):
        with pytest.raises(ValueError, match="codes have none; detach"):
            transform()
    codes, scale, mid = quantize_rows(weight)
    with pytest.raises(ValueError, match="a quantized table cannot be trained"):
        func.jvp(lambda s: pack_rows(codes, s, mid), (scale,), (scale,))
    _, tangent = func.jvp(lambda s: dequantize_rows(codes, s, mid), (scale,), (scale,))
    torch.testing.assert_close(tangent, codes * scale.unsqueeze(1))
