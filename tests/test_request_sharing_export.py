"""``score`` through torch.compile, torch.export and AOTInductor, for any numbers of rows."""

from __future__ import annotations

import pytest
import torch
from requests_joined import draw
from test_request_sharing import HEADS, REQUESTS, error, make_model, shaken

from lirank_ext.nn import GatedMLP, ResidualCrossNet

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
        "net and weight": Score(net, torch.nn.Parameter(torch.randn(3, 40))),
        "mlp": Score(shaken(GatedMLP([40, 6, 2]))),
    }


@pytest.mark.parametrize("name", ["net", "net and weight", "mlp"])
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
def test_net_through_aotinductor(tmp_path):
    module = modules()["net and weight"]
    given = rows(COUNTS.tolist())
    program = torch.export.export(module, given, dynamic_shapes=(ANY, ANY, ANY))
    path = str(tmp_path / "score.pt2")
    torch._inductor.aoti_compile_and_package(program, package_path=path)
    loaded = torch._inductor.aoti_load_package(path)
    for i, counts in enumerate(OTHERS):
        other = rows(counts, i)
        assert error(loaded(*other), module(*other)) <= 1e-6


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
