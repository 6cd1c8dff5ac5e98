"""``score`` through torch.compile, torch.export and AOTInductor, for any numbers of rows."""

from __future__ import annotations

import pytest
import torch
from requests_joined import draw
from test_request_sharing import HEADS, REQUESTS, error, make_model, shaken

import lirank_ext
from lirank_ext.models import Cross
from lirank_ext.models.blocks import CrossStack
from lirank_ext.nn import AttentionCross, GatedMLP, LowRankCrossNet, ResidualCrossNet

ANY = {0: torch.export.Dim.DYNAMIC}
COUNTS = torch.tensor([3, 0, 4, 20, 7])
OTHERS = ([3, 0, 4, 20, 7], [5, 2], [9], [1], [30] * 4)


@pytest.fixture(autouse=True)
def _one_thread(threads):
    threads(1)


class Score(torch.nn.Module):
    """``module.score`` as a forward."""

    def __init__(self, module, weight=None):
        super().__init__()
        self.module, self.weight = module, weight

    def forward(self, request, items, counts):
        if self.weight is None:
            return self.module.score(request, items, counts)
        return self.module.score(request, items, counts, self.weight)


def rows(counts, seed=0):
    generator = torch.Generator().manual_seed(seed)
    request = torch.randn(len(counts), 25, generator=generator)
    return request, torch.randn(int(sum(counts)), 15, generator=generator), torch.tensor(counts)


def modules():
    net = shaken(ResidualCrossNet(40, 8), 0.2)
    return {
        "net": Score(net),
        "net and weight": Score(net, net_weight()),
        "mlp": Score(shaken(GatedMLP([40, 6, 2]))),
        "low rank": Score(shaken(LowRankCrossNet(40, 8), 0.2)),
        "low rank and weight": Score(shaken(LowRankCrossNet(40, 8), 0.2), net_weight()),
        "attention": Score(shaken(attention(learn_temperature=True), 0.2)),
        "attention and weight": Score(shaken(attention(), 0.2), net_weight()),
    }


def net_weight():
    return torch.nn.Parameter(torch.randn(3, 40))


def attention(**options):
    """A stack of attention layers alone, as a model without the low-rank block has it."""
    return CrossStack([AttentionCross(40, 8, token_dim=2, **options) for _ in range(2)])


class All(torch.nn.Module):
    """Every module's score side by side, so that one compilation tries them all."""

    def __init__(self, parts):
        super().__init__()
        self.parts = torch.nn.ModuleList(parts)

    def forward(self, request, items, counts):
        return torch.cat([part(request, items, counts) for part in self.parts], dim=1)


@pytest.mark.parametrize("name", modules())
@torch.no_grad()
def test_modules_compile_and_export_for_any_sizes(name):
    torch.compiler.reset()  # one code object for all modules: its recompilations are limited
    module = modules()[name]
    given = rows(COUNTS.tolist())
    shapes = (ANY, ANY, ANY)
    exported = torch.export.export(module, given, dynamic_shapes=shapes).module()
    compiled = torch.compile(module, fullgraph=True, dynamic=True, backend="aot_eager")
    for i, counts in enumerate(OTHERS):
        other = rows(counts, i)
        wanted = module(*other)
        assert error(exported(*other), wanted) <= 1e-6
        assert error(compiled(*other), wanted) <= 1e-6
    request, items, counts = rows(COUNTS.tolist())
    with pytest.raises((RuntimeError, ValueError)):
        exported(request, items, counts + 1)


@torch.no_grad()
def test_scores_through_aotinductor(tmp_path):
    module = All(modules().values())
    given = rows(COUNTS.tolist())
    program = torch.export.export(module, given, dynamic_shapes=(ANY, ANY, ANY))
    path = str(tmp_path / "score.pt2")
    torch._inductor.aoti_compile_and_package(program, package_path=path)
    loaded = torch._inductor.aoti_load_package(path)
    for i, counts in enumerate(OTHERS):
        other = rows(counts, i)
        assert error(loaded(*other), module(*other)) <= 1e-6


@pytest.mark.filterwarnings("ignore")
@torch.no_grad()
def test_a_quantized_model_scores_through_aotinductor(tmp_path):
    model = make_model(REQUESTS["mixed"], HEADS["hard"], Cross(rank=6, attention=False)).float()
    lirank_ext.quantize(model)
    request, items = draw(model.config.schema, COUNTS)
    shapes = (dict.fromkeys(request, ANY), dict.fromkeys(items, ANY), ANY)
    program = torch.export.export(Score(model), (request, items, COUNTS), dynamic_shapes=shapes)
    path = str(tmp_path / "model.pt2")
    torch._inductor.aoti_compile_and_package(program, package_path=path)
    loaded = torch._inductor.aoti_load_package(path)
    for counts in OTHERS:
        counts = torch.tensor(counts)
        request, items = draw(model.config.schema, counts, seed=3)
        assert error(loaded(request, items, counts), model.score(request, items, counts)) <= 1e-5


@torch.no_grad()
def test_model_exports_for_any_sizes():
    model = make_model(REQUESTS["mixed"], HEADS["grouped"]).float()
    request, items = draw(model.config.schema, COUNTS)
    shapes = (dict.fromkeys(request, ANY), dict.fromkeys(items, ANY), ANY)
    given = (request, items, COUNTS)
    exported = torch.export.export(Score(model), given, dynamic_shapes=shapes).module()
    for counts in OTHERS:
        counts = torch.tensor(counts)
        request, items = draw(model.config.schema, counts, seed=3)
        assert error(exported(request, items, counts), model.score(request, items, counts)) <= 1e-5
