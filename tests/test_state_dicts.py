"""What a state dict carries: models from meta tensors, and tables that do not fit."""

from __future__ import annotations

import copy

import pytest
import torch
from rankers import PRESETS, make_features, small

from lirank_ext import nn
from lirank_ext.models import LiRank


@pytest.fixture(autouse=True)
def _one_thread(threads):
    threads(1)


# ---- models that are built without memory ----------------------------------------------------


@pytest.mark.parametrize("assign", [False, True])
@pytest.mark.parametrize("name", PRESETS)
def test_a_model_from_meta_is_that_of_its_state_dict(name, assign):
    config = small(name)
    model = LiRank(config).eval()
    with torch.device("meta"):
        other = LiRank(config).eval()
    if not assign:
        other.to_empty(device="cpu")
        for buffer in other.buffers():  # memory that is not zero by chance
            buffer.view(torch.uint8).fill_(77)
    other.load_state_dict(model.state_dict(), assign=assign)
    features = make_features(config)
    with torch.no_grad():
        assert torch.equal(other(features), model(features))


def test_constants_are_there_as_soon_as_a_module_has_memory():
    with torch.device("meta"):
        head = nn.GroupedTowers(4, [[2], [0, 1]], tower_dims=())
        norm = nn.NumericBatchNorm(3, log=[1])
    head.to_empty(device="cpu")
    norm.to_empty(device="cpu")
    assert head.column.tolist() == [1, 2, 0]
    assert norm.log.tolist() == [False, True, False]
    assert copy.deepcopy(norm).half().log.dtype == torch.bool


def test_a_state_dict_from_before_a_name_changed_loads():
    config = small("feed")
    model, other = LiRank(config), LiRank(config)
    old = {k.replace("normalize.", "normalise."): v for k, v in model.state_dict().items()}
    assert old.keys() != model.state_dict().keys()
    other.load_state_dict(old)
    assert all(map(torch.equal, other.state_dict().values(), model.state_dict().values()))
