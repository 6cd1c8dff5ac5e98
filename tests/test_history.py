from __future__ import annotations

import math

import pytest
import torch

from lirank_ext.nn import HistoryEncoder

ITEM, ACTION, CANDIDATE = 4, 2, 2


def encoder(**options):
    model = HistoryEncoder(ITEM, ACTION, CANDIDATE, **options)
    for p in model.parameters():
        if p.dim() == 1:
            torch.nn.init.normal_(p, std=0.3)
    return model.double().eval()


def batch(b=5, t=9):
    items, actions = torch.randn(b, t, ITEM), torch.randn(b, t, ACTION)
    return items.double(), actions.double(), torch.randn(b, CANDIDATE).double()


def normed(x, norm):
    centred = x - x.mean()
    return centred / (centred.square().mean() + 1e-5).sqrt() * norm.weight + norm.bias


def by_hand(model, steps):
    """Encodes one sample, head by head. ``steps`` (n, width) are valid steps, newest first."""
    if not len(steps):
        return torch.zeros(model.out_dim, dtype=torch.float64)
    x = steps
    for layer in model.layers:
        wq, wk, wv = layer.qkv.weight.chunk(3)
        bq, bk, bv = layer.qkv.bias.chunk(3)
        q, k, v = x @ wq.T + bq, x @ wk.T + bk, x @ wv.T + bv
        size, mixed = x.shape[1] // layer.num_heads, torch.zeros_like(x)
        for start in range(0, x.shape[1], size):
            for i in range(len(x)):
                score = [
                    sum(q[i, start + c] * k[j, start + c] for c in range(size)) / math.sqrt(size)
                    for j in range(len(x))
                ]
                share = torch.stack(score).exp()
                share = share / share.sum()
                mixed[i, start : start + size] = share @ v[:, start : start + size]
        out = mixed @ layer.out.weight.T + layer.out.bias
        x = torch.stack([normed(row, layer.norm1) for row in x + out])
        hidden = (x @ layer.up.weight.T + layer.up.bias).clamp(min=0)
        out = hidden @ layer.down.weight.T + layer.down.bias
        x = torch.stack([normed(row, layer.norm2) for row in x + out])
    newest = torch.zeros(model.last, x.shape[1], dtype=torch.float64)
    newest[: min(len(x), model.last)] = x[: model.last]
    return torch.cat([x.max(0).values, newest.reshape(-1)])


def fused(items, actions, candidate):
    return torch.cat([items, actions, candidate.expand(len(items), -1)], dim=1)


@pytest.mark.parametrize("heads", [1, 2, 4])
def test_formula(heads):
    model = encoder(num_heads=heads)
    items, actions, candidate = batch()
    lengths = torch.tensor([9, 1, 0, 4, 6])
    got = model(items, actions, candidate, lengths)
    for b, n in enumerate(lengths.tolist()):
        steps = fused(items[b, :n], actions[b, :n], candidate[b])
        torch.testing.assert_close(got[b], by_hand(model, steps), rtol=1e-9, atol=1e-9)
    assert got.shape == (5, model.out_dim) == (5, 6 * 8)
    assert (got[2] == 0).all()


def test_equal_to_the_encoder_of_pytorch():
    model = encoder(feed_forward=3)
    layers = []
    for ours in model.layers:
        theirs = torch.nn.TransformerEncoderLayer(8, 2, 3, batch_first=True).double().eval()
        with torch.no_grad():
            theirs.self_attn.in_proj_weight.copy_(ours.qkv.weight)
            theirs.self_attn.in_proj_bias.copy_(ours.qkv.bias)
        theirs.self_attn.out_proj.load_state_dict(ours.out.state_dict())
        for a, b in (("linear1", "up"), ("linear2", "down"), ("norm1",) * 2, ("norm2",) * 2):
            getattr(theirs, a).load_state_dict(getattr(ours, b).state_dict())
        layers.append(theirs)
    items, actions, candidate = batch(3, 6)
    x = torch.stack([fused(*steps) for steps in zip(items, actions, candidate, strict=True)])
    for layer in layers:
        x = layer(x)
    want = torch.cat([x.amax(1), x[:, :5].flatten(1)], 1)
    torch.testing.assert_close(model(items, actions, candidate), want, rtol=1e-9, atol=1e-9)


def test_widths_are_the_papers():
    model = HistoryEncoder(32, 32, 32)
    assert model.width == 96 and len(model.layers) == 2
    assert model.layers[0].up.out_features == 48
    assert model.out_dim == 96 + 5 * 96


@pytest.mark.parametrize("poison", [1e30, float("nan"), float("inf")])
def test_what_padding_holds_has_no_effect(poison):
    model = encoder()
    items, actions, candidate = batch()
    lengths = torch.tensor([3, 0, 9, 1, 5])
    want = model(items, actions, candidate, lengths)
    padded = torch.arange(9) >= lengths.unsqueeze(1)
    items[padded], actions[padded] = poison, poison
    leaves = [t.requires_grad_() for t in (items, actions, candidate)]
    got = model(*leaves, lengths)
    assert torch.equal(got, want)
    got.sum().backward()
    assert all(t.grad.isfinite().all() for t in leaves)
    assert (items.grad[padded] == 0).all() and (items.grad[~padded] != 0).any()


def test_mask_with_holes_is_the_shorter_history():
    model = encoder()
    items, actions, candidate = batch(3, 7)
    mask = torch.tensor([[1, 0, 1, 1, 0, 0, 1], [0, 0, 0, 0, 0, 0, 1], [0] * 7], dtype=torch.bool)
    got = model(items, actions, candidate, mask=mask)
    for b in range(3):
        alone = (items[b, mask[b]], actions[b, mask[b]], candidate[b])
        torch.testing.assert_close(got[b], by_hand(model, fused(*alone)), rtol=1e-9, atol=1e-9)
    both = model(items, actions, candidate, lengths=torch.tensor([3, 7, 7]), mask=mask)
    assert not torch.equal(both[0], got[0]) and torch.equal(both[1:], got[1:])


def test_keeps_the_newest():
    items, actions, candidate = batch(4, 12)
    model = encoder(max_len=5)
    want = model(items[:, :5], actions[:, :5], candidate)
    assert torch.equal(model(items, actions, candidate), want)
    other = encoder(max_len=5, newest_first=False)
    other.load_state_dict(model.state_dict())
    assert torch.equal(other(items.flip(1), actions.flip(1), candidate), want)
    # Oldest first and padded at the end: the newest valid steps are found wherever they are.
    lengths = torch.tensor([12, 7, 2, 0])
    got = other(items, actions, candidate, lengths)
    for b, n in enumerate(lengths.tolist()):
        newest = slice(max(0, n - 5), n)
        steps = fused(items[b, newest].flip(0), actions[b, newest].flip(0), candidate[b])
        torch.testing.assert_close(got[b], by_hand(other, steps), rtol=1e-9, atol=1e-9)


def test_time_window():
    model = encoder(time_window=10.0, dropout=0.0)
    items, actions, candidate = batch(6, 4)
    ages = torch.tensor([[-1.0, 0.0, 5.0, 20.0]]).expand(6, 4)
    # Evaluation: only the action of the future is hidden.
    want = model(items, actions, candidate, mask=ages >= 0)
    assert torch.equal(model(items, actions, candidate, ages=ages), want)
    model.train()
    torch.manual_seed(1)
    hidden = 10 * torch.rand(6, 1)
    torch.manual_seed(1)
    got = model(items, actions, candidate, ages=ages)
    model.eval()
    want = model(items, actions, candidate, mask=ages >= hidden)
    torch.testing.assert_close(got, want, rtol=1e-12, atol=1e-12)
    assert 0 < (hidden > 5).sum() < 6  # both cases occurred
    with pytest.raises(ValueError, match="'ages': wanted a tensor, as time_window is on"):
        model.train()(items, actions, candidate)


def test_projection_and_positions():
    with pytest.raises(ValueError, match=r"'num_heads': wanted a divisor of the width 8 \(width=9"):
        HistoryEncoder(ITEM, ACTION, CANDIDATE, num_heads=3)
    items, actions, candidate = batch()
    model = encoder(num_heads=3, width=9)
    assert model(items, actions, candidate).shape == (5, 9 * 6)
    one = fused(items[0], actions[0], candidate[0]) @ model.project.weight.T + model.project.bias
    torch.testing.assert_close(
        model(items, actions, candidate)[0], by_hand(model, one), rtol=1e-9, atol=1e-9
    )
    model = encoder(positions=True)
    torch.nn.init.normal_(model.position)
    steps = fused(items[0], actions[0], candidate[0]) + model.position[:9]
    torch.testing.assert_close(
        model(items, actions, candidate)[0], by_hand(model, steps), rtol=1e-9, atol=1e-9
    )


@pytest.mark.parametrize(("b", "t"), [(0, 4), (3, 0), (1, 1), (2, 3)])
def test_odd_sizes(b, t):
    model = encoder()
    got = model(*batch(b, t))
    assert got.shape == (b, 48) and got.isfinite().all()
    assert t or (got == 0).all()
    assert encoder(last=0)(*batch(b, t)).shape == (b, 8)


def test_gradcheck():
    model = encoder(num_layers=1)
    inputs = [t.requires_grad_() for t in batch(2, 3)]
    lengths = torch.tensor([3, 2])
    assert torch.autograd.gradcheck(lambda *a: model(*a, lengths), inputs, atol=1e-6)


def test_dropout_only_in_training():
    model = encoder(dropout=0.5)
    inputs = batch()
    assert torch.equal(model(*inputs), model(*inputs))
    model.train()
    assert not torch.equal(model(*inputs), model(*inputs))


def test_compiles_in_one_graph():
    model = encoder()
    compiled = torch.compile(model, fullgraph=True, backend="aot_eager")
    items, actions, candidate = batch()
    lengths = torch.tensor([3, 0, 9, 1, 5])
    torch.testing.assert_close(
        compiled(items, actions, candidate, lengths), model(items, actions, candidate, lengths)
    )
    compiled(items, actions, candidate, lengths).sum().backward()
    assert all(p.grad.isfinite().all() for p in model.parameters())


def test_refusals():
    items, actions, candidate = batch()
    model = encoder()
    for bad in ({"last": -1}, {"max_len": 0}, {"num_layers": 0}, {"dropout": 1.0}):
        with pytest.raises(ValueError, match=f"HistoryEncoder: argument '{next(iter(bad))}'"):
            HistoryEncoder(ITEM, ACTION, CANDIDATE, **bad)
    with pytest.raises(ValueError, match=r"'actions': wanted shape \(5, 9, 2\), got \(5, 8, 2\)"):
        model(items, actions[:, :8], candidate)
    with pytest.raises(ValueError, match=r"'candidate': wanted shape \(5, 2\), got \(4, 2\)"):
        model(items, actions, candidate[:4])
    with pytest.raises(ValueError, match=r"'lengths': wanted shape \(5,\), got \(5, 1\)"):
        model(items, actions, candidate, torch.ones(5, 1))
    with pytest.raises(TypeError, match=r"'mask': wanted dtype torch.bool, got torch.int64"):
        model(items, actions, candidate, mask=torch.ones(5, 9, dtype=torch.int64))
