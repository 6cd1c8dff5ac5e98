"""Scores of the candidates of requests equal the forward on joined rows."""

from __future__ import annotations

import copy
import dataclasses

import pytest
import torch
from requests_joined import draw, join
from torch.nn.functional import linear

import lirank_ext
from lirank_ext.models import (
    Categorical,
    ConfigError,
    History,
    LiRank,
    LiRankConfig,
    Schema,
    Task,
)
from lirank_ext.models.blocks import CrossStack
from lirank_ext.models.config import MLP, Calibration, Cross, Embedding, Head, HistoryBlock
from lirank_ext.nn import (
    AttentionCross,
    GatedMLP,
    HistoryEncoder,
    LowRankCross,
    LowRankCrossNet,
    ResidualCrossNet,
)
from lirank_ext.nn.reference_cross import ReferenceResidualCrossNet

COUNTS = torch.tensor([3, 0, 1, 20, 7])
# Relative to the largest result; see test_float32_stays_within_its_bound for float32.
EXACT = 1e-12


@pytest.fixture(autouse=True)
def _one_thread(threads):
    """These inputs are too small to share out."""
    threads(1)


def error(got, wanted):
    assert got.shape == wanted.shape and got.dtype == wanted.dtype
    return float((got - wanted).abs().max() / wanted.abs().max()) if wanted.numel() else 0.0


def shaken(module, std=0.3):
    """The module with parameters that differ from each other and from 0."""
    with torch.no_grad():
        for parameter in module.parameters():
            parameter.normal_(std=std)
    return module.eval()


def inputs(width, request_width, counts=COUNTS, dtype=torch.float64):
    request = torch.randn(len(counts), request_width, dtype=dtype)
    items = torch.randn(int(counts.sum()), width - request_width, dtype=dtype)
    return request, items, torch.cat([request.repeat_interleave(counts, 0), items], 1)


# ---- nets -------------------------------------------------------------------------------------


@pytest.mark.parametrize("merge", ["sum", "mean", "concat"])
@pytest.mark.parametrize(
    "options",
    [
        {},
        {"num_layers": 1},
        {"num_layers": 4, "skip": False},
        {"attention_rank": 6, "token_dim": 2, "learn_temperature": True, "temperature": 0.5},
    ],
)
@pytest.mark.parametrize("outputs", [None, 5, 90])
@torch.no_grad()
def test_net_equals_forward_on_joined_rows(merge, options, outputs):
    net = shaken(ResidualCrossNet(40, 8, merge=merge, **options).double())
    request, items, rows = inputs(40, 25)
    weight = bias = None
    wanted = net(rows)
    if outputs:
        weight = torch.randn(outputs, net.out_dim, dtype=rows.dtype)
        bias = torch.randn(outputs, dtype=rows.dtype)
        wanted = linear(wanted, weight, bias)
    assert error(net.score(request, items, COUNTS, weight, bias), wanted) <= EXACT
    if outputs:
        got = net.score(request, items, COUNTS, weight)
        assert error(got, linear(net(rows), weight)) <= EXACT


STACKS = {
    "low rank net": lambda: LowRankCrossNet(40, 8, 3),
    "low rank": lambda: CrossStack([LowRankCross(40, 8) for _ in range(3)]),
    "attention": lambda: CrossStack([AttentionCross(40, 6, 2.0, True, 3) for _ in range(2)]),
}


@pytest.mark.parametrize("name", STACKS)
@torch.no_grad()
def test_one_stack_alone(name):
    net = shaken(STACKS[name]().double())
    request, items, rows = inputs(40, 25)
    weight, bias = torch.randn(7, 40, dtype=rows.dtype), torch.randn(7, dtype=rows.dtype)
    assert error(net.score(request, items, COUNTS), net(rows)) <= EXACT
    wanted = linear(net(rows), weight, bias)
    assert error(net.score(request, items, COUNTS, weight, bias), wanted) <= EXACT


@pytest.mark.parametrize("request_width", [1, 7, 39])
@pytest.mark.parametrize(
    "counts", [[], [0], [0, 0], [1], [1] * 30, [200], [90, 1, 0, 64, 2], [13] * 11]
)
@torch.no_grad()
def test_numbers_of_requests_and_candidates(counts, request_width):
    counts = torch.tensor(counts, dtype=torch.int64)
    net = shaken(ResidualCrossNet(40, 8, 3).double())
    weight = torch.randn(3, 40, dtype=torch.float64)
    request, items, rows = inputs(40, request_width, counts)
    got = net.score(request, items, counts, weight)
    assert error(got, linear(net(rows), weight)) <= EXACT
    mlp = shaken(GatedMLP([40, 16, 3]).double())
    assert error(mlp.score(request, items, counts), mlp(rows)) <= EXACT


@pytest.mark.parametrize("scale", [1e-6, 1.0, 1e3])
@pytest.mark.parametrize("outputs", [None, 4])
@torch.no_grad()
def test_float32_stays_within_its_bound(scale, outputs):
    """The bound: the error of the forward itself in float32, times 4, plus 64 roundings."""
    counts = torch.tensor([120, 5, 1])
    net = shaken(ResidualCrossNet(96, 16, 2), 0.1)
    wide = copy.deepcopy(net).double()
    request, items, _ = inputs(96, 60, counts, torch.float32)
    request, items = request * scale, items * scale
    rows = torch.cat([request.repeat_interleave(counts, 0), items], 1)
    weight = None if outputs is None else torch.randn(outputs, 96)
    plain, exact = net(rows), wide(rows.double())
    if weight is not None:
        plain, exact = linear(plain, weight), linear(exact, weight.double())
    own = error(plain.double(), exact)
    got = net.score(request, items, counts, weight)
    assert error(got.double(), exact) <= 4 * own + 64 * 2**-24


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
@torch.no_grad()
def test_half_precision(dtype):
    net = shaken(ResidualCrossNet(40, 8), 0.1).to(dtype)
    request, items, rows = inputs(40, 25, dtype=dtype)
    weight = torch.randn(5, 40, dtype=dtype)
    got = net.score(request, items, COUNTS, weight)
    wanted = linear(copy.deepcopy(net).double()(rows.double()), weight.double())
    assert got.dtype == dtype
    assert error(got.double(), wanted) <= 16 * torch.finfo(dtype).eps


@torch.no_grad()
def test_a_weight_without_outputs_gives_none():
    net = shaken(ResidualCrossNet(40, 8))
    request, items, rows = inputs(40, 25, dtype=torch.float32)
    assert net.score(request, items, COUNTS, torch.empty(0, 40)).shape == (len(rows), 0)


@torch.no_grad()
def test_more_layers_than_the_kernels_hold_take_joined_rows():
    net = shaken(LowRankCrossNet(20, 2, 65).double(), 0.01)
    request, items, rows = inputs(20, 12, torch.tensor([40]))
    assert error(net.score(request, items, torch.tensor([40])), net(rows)) <= EXACT


def test_strided_inputs_and_weights():
    net = shaken(ResidualCrossNet(40, 8).double())
    request, items, rows = inputs(40, 25)
    weight = torch.randn(40, 5, dtype=rows.dtype).t()
    with torch.no_grad():
        got = net.score(request.t().contiguous().t(), items.repeat(1, 2)[:, :15], COUNTS, weight)
        assert error(got, linear(net(rows), weight)) <= EXACT


def test_gradients_are_those_of_the_joined_rows():
    net = shaken(ResidualCrossNet(12, 4, learn_temperature=True).double())
    mlp = shaken(GatedMLP([12, 5, 2]).double())
    counts = torch.tensor([2, 0, 3])
    request, items, _ = inputs(12, 7, counts)
    leaves = [request.requires_grad_(), items.requires_grad_()]
    leaves += [*net.parameters(), *mlp.parameters()]

    def gradients(score):
        return torch.autograd.grad(score.square().sum(), leaves)

    weight = torch.randn(3, 12, dtype=request.dtype)
    rows = torch.cat([request.repeat_interleave(counts, 0), items], 1)
    wanted = gradients(torch.cat([linear(net(rows), weight), mlp(rows)], 1))
    score = net.score(request, items, counts, weight)
    for a, b in zip(
        gradients(torch.cat([score, mlp.score(request, items, counts)], 1)), wanted, strict=True
    ):
        torch.testing.assert_close(a, b, rtol=1e-9, atol=1e-9)


@torch.no_grad()
def test_a_hook_sees_the_joined_rows():
    net, mlp = shaken(ResidualCrossNet(40, 8).double()), shaken(GatedMLP([40, 6, 2]).double())
    request, items, rows = inputs(40, 25)
    seen = []
    net.low_rank[1].register_forward_hook(lambda m, a, out: seen.append(out) or 2 * out)
    mlp.layers[0].register_forward_hook(lambda m, a, out: seen.append(out) or 2 * out)
    assert error(net.score(request, items, COUNTS), net(rows)) <= EXACT
    assert error(mlp.score(request, items, COUNTS), mlp(rows)) <= EXACT
    assert len(seen) == 4 and len(seen[0]) == len(rows)


BAD = {
    "do not add up": (torch.tensor([3, 0, 1, 21, 7]), "counts"),
    "negative": (torch.tensor([-1, 4, 1, 20, 7]), "counts"),
    "floats": (COUNTS.double(), "counts"),
    "int32": (COUNTS.int(), "counts"),
    "one too many": (torch.tensor([3, 0, 1, 20, 7, 0]), "counts"),
    "matrix": (COUNTS[None], "counts"),
}


@pytest.mark.parametrize("why", BAD)
def test_bad_counts_are_refused_by_name(why):
    counts, name = BAD[why]
    net, mlp = ResidualCrossNet(40, 8), GatedMLP([40, 6, 2])
    request, items, _ = inputs(40, 25, dtype=torch.float32)
    for module in (net, mlp):
        with pytest.raises((ValueError, TypeError), match=f"argument '{name}': wanted "):
            module.score(request, items, counts)
        with torch.no_grad(), pytest.raises((ValueError, TypeError), match=f"'{name}': wanted "):
            module.score(request, items, counts)


@torch.no_grad()
def test_other_bad_inputs_are_refused_by_name():
    net, mlp = ResidualCrossNet(40, 8), GatedMLP([40, 6, 2])
    request, items, _ = inputs(40, 25, dtype=torch.float32)
    for module in (net, mlp):
        with pytest.raises(ValueError, match="argument 'items': wanted "):
            module.score(request, items[:, :-1], COUNTS)
        with pytest.raises(ValueError, match="argument 'request': wanted "):
            module.score(request[0], items, COUNTS)
        with pytest.raises(TypeError, match="argument 'items': wanted dtype "):
            module.score(request, items.double(), COUNTS)
    for weight, bias, name in (
        (torch.randn(5, 39), None, "weight"),
        (torch.randn(5, 40).double(), None, "weight"),
        (torch.randn(5, 40), torch.randn(4), "bias"),
        (None, torch.randn(5), "bias"),
    ):
        with pytest.raises((ValueError, TypeError), match=f"argument '{name}': wanted "):
            net.score(request, items, COUNTS, weight, bias)


# ---- histories ----------------------------------------------------------------------------------


@pytest.mark.parametrize("width", [None, 20])
@pytest.mark.parametrize("positions", [False, True])
@torch.no_grad()
def test_histories_equal_the_forward_on_repeated_histories(width, positions, monkeypatch):
    monkeypatch.setattr("lirank_ext.nn.history_score.BLOCK", 500)  # several blocks a request
    encoder = HistoryEncoder(8, 4, 6, 3, last=3, max_len=9, width=width, positions=positions)
    encoder = shaken(encoder.double())
    lengths = torch.tensor([5, 3, 0, 12, 2])
    items, actions = (torch.randn(5, 12, n, dtype=torch.float64) for n in (8, 4))
    items[0, 5:] = float("nan")
    candidate = torch.randn(int(COUNTS.sum()), 6, dtype=torch.float64)
    repeated = (t.repeat_interleave(COUNTS, 0) for t in (items, actions, lengths))
    wanted = (lambda i, a, n: encoder(i, a, candidate, n))(*repeated)
    assert error(encoder.score(items, actions, candidate, COUNTS, lengths), wanted) <= EXACT


def test_histories_in_training_are_refused():
    encoder = HistoryEncoder(8, 4, 6)
    items, actions = torch.randn(1, 3, 8), torch.randn(1, 3, 4)
    counts = torch.tensor([2])
    with pytest.raises(RuntimeError, match="is in training; call eval"):
        encoder.score(items, actions, torch.randn(2, 6), counts, counts)


# ---- whole models -------------------------------------------------------------------------------

TASKS = ("x", "y", "z")
HEADS = {
    "hard": Head("hard"),
    "linear towers": Head("hard", tower_dims=[]),
    "grouped": Head("grouped", groups=[["x", "z"], ["y"]], shared_dims=[10]),
    "per tower": Head("grouped", "per_tower", groups=[["x", "z"], ["y"]], gate="tanh"),
    "mmoe": Head("mmoe", expert_dims=[9], num_experts=2, tower_dims=[]),
    "ple": Head("ple", expert_dims=[9, 8], tower_dims=[7]),
    "cgc": Head("ple", num_layers=1, expert_dims=[9]),
}
CROSSES = (
    Cross(rank=6),
    Cross(rank=6, low_rank=False),
    Cross(rank=6, attention=False),
    Cross(rank=6, merge="concat", token_dim=2, learn_temperature=True),
    Cross(rank=6, merge="mean", skip=False),
    Cross(low_rank=False, attention=False),
)
MLPS = (MLP(dims=[12, 8]), MLP(enabled=False), MLP(dims=[7], batch_norm=True))
REQUESTS = {
    "mixed": ["n0", "n2", "a", "c", "h"],
    "all but candidates' ids": ["n0", "n1", "n2", "n3", "e", "c", "f", "h", "g"],
    "no numbers": ["a", "b", "h", "g", "c"],
    "one id": ["d"],
    "a history alone": ["h"],
    "a number": ["n3"],
    "a history with its candidate": ["g", "b"],
    "a candidate without its history": ["a"],
    "popularity": ["pop", "n1"],
}


def make_model(request, head, cross=CROSSES[0], mlp=MLPS[0], **blocks):
    tables = {"a": "one", "b": "one", "c": "two", "d": "one", "e": "three", "f": "two"}
    tables["pop"] = "two"
    schema = Schema(
        numeric=["n0", "n1", "n2", "n3"],
        log=["n1"],
        categorical=[Categorical(name, table) for name, table in tables.items()],
        history=[History("h", "a", actions="ha"), History("g", "b")],
        tasks=[Task(name) for name in TASKS],
        popularity="pop",
        request=request,
    )
    config = LiRankConfig(
        schema,
        embedding=Embedding(dim=5, num_buckets=1000, num_remainders=10),
        cross=cross,
        mlp=mlp,
        head=head,
        **blocks,
    )
    model = LiRank(config).double()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(torch.randn_like(parameter), alpha=0.1)
    ids = torch.arange(200) % 50
    labels = torch.randint(0, 2, (200, 3)).double()
    model.fit_popularity(torch.zeros(200, 3, dtype=torch.float64), ids, labels)
    return model.eval()


def double(features):
    return {k: v.double() if v.is_floating_point() else v for k, v in features.items()}


def both(model, counts=COUNTS, seed=0):
    """The score, and the forward on joined rows."""
    schema = model.config.schema
    request, items = draw(schema, counts, seed)
    dtype = next(model.parameters()).dtype
    if dtype == torch.float64:
        request, items = double(request), double(items)
    return model.score(request, items, counts), model(join(schema, request, items, counts))


# Every head and every set of columns three times, each time with another partner.
PAIRS = [(h, r) for i, h in enumerate(HEADS) for j, r in enumerate(REQUESTS) if (i + j) % 3 == 0]


@pytest.mark.parametrize(("head", "request_columns"), PAIRS)
@torch.no_grad()
def test_model_equals_forward_on_joined_rows(head, request_columns):
    i = list(HEADS).index(head) + 3 * list(REQUESTS).index(request_columns)
    blocks = {
        "calibration": Calibration(columns=["a", "d"] if i % 2 else []),
        "history": HistoryBlock(width=14 if i % 2 else None, positions=i % 3 == 0),
    }
    model = make_model(
        REQUESTS[request_columns], HEADS[head], CROSSES[i % 6], MLPS[i % 3], **blocks
    )
    assert error(*both(model)) <= EXACT
    assert error(*both(model, torch.tensor([1, 1, 0]))) <= EXACT
    assert error(*both(model, torch.tensor([0]))) <= EXACT


@torch.no_grad()
def test_quantized_model():
    model = make_model(REQUESTS["mixed"], HEADS["grouped"]).float()
    lirank_ext.quantize(model)
    assert error(*both(model)) <= 1e-5


@torch.no_grad()
def test_model_before_and_after_swap():
    model = make_model(REQUESTS["mixed"], HEADS["hard"]).float()
    cross = ReferenceResidualCrossNet(model.input_dim, 6).eval()
    cross.load_state_dict(model.head.interactions.cross.state_dict())
    model.head.interactions.cross = cross
    before = both(model)
    assert error(*before) <= 1e-5
    lirank_ext.swap(model)
    assert type(model.head.interactions.cross) is ResidualCrossNet
    after = both(model)
    assert error(*after) <= 1e-5
    assert error(after[0], before[0]) <= 1e-5


def test_model_in_training_and_with_hooks():
    blocks = {"history": HistoryBlock(dropout=0.0)}
    model = make_model(REQUESTS["mixed"], HEADS["hard"], mlp=MLPS[2], **blocks).train()
    for normalize in (m for m in model.modules() if hasattr(m, "running_mean")):
        normalize.momentum = 1.0
    score, forward = both(model)
    assert error(score.detach(), forward.detach()) <= 1e-9
    model.eval()
    seen = []
    model.head.interactions.mlp.register_forward_hook(lambda *a: seen.append(a) or 2 * a[2])
    score, forward = both(model)
    assert len(seen) == 2
    assert error(score.detach(), forward.detach()) <= EXACT


def test_model_has_the_gradients_of_the_joined_rows():
    model = make_model(REQUESTS["mixed"], HEADS["hard"])
    found = []
    for result in both(model):
        model.zero_grad()
        result.square().sum().backward()
        found.append([p.grad.to_dense() for p in model.parameters() if p.grad is not None])
    for a, b in zip(*found, strict=True):
        torch.testing.assert_close(a, b, rtol=1e-9, atol=1e-9)


def test_a_request_column_that_the_schema_lacks_is_refused_by_name():
    wanted = "request: no numeric, categorical or history column 'age'"
    with pytest.raises(ConfigError, match=wanted):
        Schema(numeric=["ages"], request=["age"])
    with pytest.raises(ConfigError, match="request: 'age' occurs more than once"):
        Schema(numeric=["age"], request=["age", "age"])


@torch.no_grad()
def test_bad_features_are_refused_by_name():
    model = make_model(REQUESTS["mixed"], HEADS["hard"])
    request, items = map(double, draw(model.config.schema, COUNTS))

    def refused(argument, request=request, items=items, counts=COUNTS):
        with pytest.raises((ValueError, TypeError), match=rf"argument '{argument}'"):
            model.score(request, items, counts)

    refused("counts", counts=COUNTS + 1)
    refused("counts", counts=COUNTS.double())
    refused("counts", counts=COUNTS[:-1])
    refused(r"request\['numeric'\]", {**request, "numeric": request["numeric"][:, :1]})
    refused(r"items\['numeric'\]", items={k: v for k, v in items.items() if k != "numeric"})
    refused("offsets/one", {**request, "offsets/one": request["offsets/one"][:-1]})
    model.config.schema.request = []
    refused("Schema.request")


def test_the_columns_of_the_request_are_saved_with_the_configuration(tmp_path):
    config = make_model(REQUESTS["mixed"], HEADS["hard"]).config
    config.save(tmp_path / "model.yaml")
    assert LiRankConfig.load(tmp_path / "model.yaml").schema.request == REQUESTS["mixed"]
    assert dataclasses.asdict(config)["schema"]["request"] == REQUESTS["mixed"]
