"""Replaying models from CUDA graphs, with a stand-in for the graphs; on a GPU also with them."""

from __future__ import annotations

import pytest
import torch
from torch import nn

import lirank_ext
from lirank_ext.benchmarks.bench_request_sharing import make_model, model_inputs
from lirank_ext.conversion import capture as capturing

needs_gpu = pytest.mark.skipif(not torch.cuda.is_available(), reason="no GPU in this machine")


class Graph:
    """Replays by calling again, and writes where the captured call wrote."""

    def __init__(self, call) -> None:
        self.call, self.result = call, call()

    def pool(self) -> str:
        return "pool"

    def replay(self) -> None:
        with torch.no_grad():
            found = self.call()
        for name, t in self.result.items():
            t.copy_(found[name])


@pytest.fixture
def recorded(monkeypatch):
    pools = []

    def record(call, leaves, pool):
        pools.append(pool)
        graph = Graph(call)
        return graph, graph.result

    monkeypatch.setattr(capturing, "_record", record)
    monkeypatch.setattr(capturing, "_on_gpu", lambda t: True)
    return pools


class Model(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.net = lirank_ext.nn.LowRankCrossNet(6, 3, 2)

    def forward(self, batch, scale=1.0):
        return {"score": self.net(batch["x"]).sum(1) * scale}


def _batch(rows: int) -> dict:
    return {"x": torch.randn(rows, 6)}


def test_each_shape_is_captured_once_and_replayed(recorded):
    model = Model().eval()
    captured = lirank_ext.capture(model, _batch(4))
    assert captured.shapes == 1
    batches = [_batch(n) for n in (4, 4, 3, 4, 3)]
    results = [captured(b) for b in batches]
    assert captured.shapes == 2 and recorded == [None, "pool"]
    for batch, result in zip(batches, results, strict=True):  # a replay writes over no result
        assert torch.equal(result["score"], model(batch)["score"])
        assert not result["score"].requires_grad
    assert torch.equal(captured(batches[0], scale=2.0)["score"], 2 * results[0]["score"])
    assert captured.shapes == 3


def test_weights_that_change_in_place_are_seen(recorded):
    model = Model().eval()
    captured, batch = lirank_ext.capture(model), _batch(4)
    before = captured(batch)["score"]
    with torch.no_grad():
        model.net.layers[0].bias.add_(1.0)
    after = captured(batch)["score"]
    assert torch.equal(after, model(batch)["score"]) and not torch.equal(after, before)


def test_weights_that_move_are_refused(recorded):
    model = Model().eval()
    captured, batch = lirank_ext.capture(model), _batch(4)
    captured(batch)
    model.double()
    with pytest.raises(RuntimeError, match="capture the model again"):
        captured(batch)


def test_weights_that_are_replaced_are_refused(recorded):
    model = Model().eval()
    captured, batch = lirank_ext.capture(model), _batch(4)
    captured(batch)
    model.load_state_dict({k: t.clone() for k, t in model.state_dict().items()}, assign=True)
    with pytest.raises(RuntimeError, match="capture the model again"):
        captured(batch)


def test_a_model_that_trains_again_is_refused(recorded):
    model = Model().eval()
    captured, batch = lirank_ext.capture(model), _batch(4)
    captured(batch)
    model.train()
    with pytest.raises(RuntimeError, match="in training mode"):
        captured(batch)


def test_the_graph_not_used_for_longest_goes(recorded):
    captured = lirank_ext.capture(Model().eval(), most=2)
    for rows in (1, 2, 1, 3, 1):
        captured(_batch(rows))
    assert captured.shapes == 2 and len(recorded) == 3
    captured(_batch(2))
    assert len(recorded) == 4


def test_a_graph_belongs_to_its_precision(recorded, monkeypatch):
    captured, batch = lirank_ext.capture(Model().eval()), _batch(4)
    captured(batch)
    with monkeypatch.context() as m:
        m.setattr(torch, "is_autocast_enabled", lambda device: device == "cuda")
        captured(batch)
    before = torch.backends.cuda.matmul.allow_tf32
    torch.backends.cuda.matmul.allow_tf32 = not before
    try:
        captured(batch)
    finally:
        torch.backends.cuda.matmul.allow_tf32 = before
    assert captured.shapes == 3


@pytest.mark.parametrize(
    ("batch", "problem"),
    [
        ({}, "wanted an input of tensors on a GPU, got no tensor"),
        ({"x": torch.zeros(2, 6)}, "wanted an input of tensors on a GPU, got one on cpu"),
    ],
)
def test_inputs_elsewhere_are_refused(batch, problem):
    with pytest.raises(TypeError, match=problem):
        lirank_ext.capture(Model().eval(), batch)


def test_what_cannot_be_captured_is_refused(recorded):
    with pytest.raises(RuntimeError, match=r"in training mode: call model.eval\(\) first"):
        lirank_ext.capture(Model(), _batch(2))
    with pytest.raises(TypeError, match=r"wanted tensors, numbers and strings .* got set"):
        lirank_ext.capture(Model().eval(), {**_batch(2), "more": {1}})
    with pytest.raises(ValueError, match="argument 'most': wanted 1 or more, got 0"):
        lirank_ext.capture(Model().eval(), most=0)


@needs_gpu
def test_a_whole_ranker_is_replayed():
    model = make_model("feed", device="cuda")
    batches = [model_inputs(model, 1, rows, "cuda")[3] for rows in (64, 64, 7)]
    captured = lirank_ext.capture(model)
    for batch in batches:
        with torch.no_grad():
            wanted = model(batch)
        torch.testing.assert_close(captured(batch), wanted)
    assert captured.shapes == 2


@needs_gpu
def test_waiting_for_the_gpu_is_refused():
    with pytest.raises(RuntimeError, match="does something that a CUDA graph cannot hold"):
        lirank_ext.capture(lambda t: t * t.sum().item(), torch.ones(3, device="cuda"))
