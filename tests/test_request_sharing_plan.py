"""The cost rule of the CPU kernel, ``csrc/cross_score_plan.h``: what of a request it folds."""

from __future__ import annotations

import shutil
import subprocess

import pytest
import torch
from conftest import REPOSITORY
from torch.nn.functional import linear

from lirank_ext.nn import LowRankCrossNet, ResidualCrossNet

PROGRAM = r"""
#include "cross_score_plan.h"
#include <cstdio>
#include <cstdlib>
// low layers, attention layers, rank, d, d_u, m, lanes, candidates...
int main(int argc, char** argv) {
  lirank::ScoreShape s;
  const auto number = [&](int i) { return std::atoll(argv[i]); };
  s.stacks[0] = {number(1), number(3), 1};
  s.stacks[1] = {number(2), number(3), 3};
  s.d = number(4);
  s.d_u = number(5);
  s.m = number(6);
  s.lanes = number(7);
  for (int i = 8; i < argc; ++i) {
    const lirank::Plan p = lirank::plan_of(s, number(i));
    std::printf("%d%d%d%d\n", p.joined, p.inner[0], p.inner[1], p.outer);
  }
}
"""
JOINED = "1110"


@pytest.fixture(scope="module")
def plans(tmp_path_factory):
    """Plans of a shape for some numbers of candidates: joined, inner (two stacks), outer."""
    if shutil.which("g++") is None:
        pytest.skip("no C++ compiler")
    folder = tmp_path_factory.mktemp("plan")
    (folder / "plan.cpp").write_text(PROGRAM)
    include = f"-I{REPOSITORY / 'csrc'}"
    command = ["g++", "-std=c++17", include, folder / "plan.cpp", "-o", folder / "plan"]
    subprocess.run(command, check=True)

    def ask(shape, counts):
        call = [folder / "plan", *map(str, (*shape, *counts))]
        return subprocess.run(call, check=True, capture_output=True, text=True).stdout.split()

    return ask


def switches(plans, shape, most=400):
    """``(count, plan)`` at which the plan changes, from 1 candidate on."""
    found = []
    for count, plan in enumerate(plans(shape, range(1, most)), 1):
        if not found or found[-1][1] != plan:
            found.append((count, plan))
    return found


# Low-rank layers, attention layers, rank, d, d_u, outputs, lanes.
SHAPE = (2, 2, 64, 1024, 614, 1, 16)
SMALL = (2, 2, 16, 128, 77, 1, 8)


def test_one_candidate_is_joined_and_many_fold_everything(plans):
    for shape in (SHAPE, SMALL, (3, 0, 32, 512, 200, 0, 16), (0, 2, 256, 3456, 2764, 64, 16)):
        assert plans(shape, [0, 1]) == [JOINED, JOINED]
        many = plans(shape, [100_000])[0]
        assert many == ("0111" if shape[5] else "0110")


def test_first_products_alone_come_between(plans):
    """A fold of r * r * d_u is paid off by r / 2 candidates, or with attention by 0.75 r."""
    found = switches(plans, SHAPE)
    assert found[0] == (1, JOINED)
    # First products with the one row of the weight, as soon as they pay for the tables of a fold.
    assert 2 < found[1][0] < 6 and found[1][1] == "0001"
    assert JOINED not in [plan for _, plan in found[1:]]
    low = next(count for count, plan in found if plan[1] == "1" and plan != JOINED)
    high = next(count for count, plan in found if plan[2] == "1" and plan != JOINED)
    assert 25 <= low <= 40 and 38 <= high <= 60


def test_a_wide_weight_is_folded_later_than_a_narrow_one(plans):
    def first(m):
        shape = (*SHAPE[:5], m, SHAPE[6])
        return next(n for n, p in switches(plans, shape, 2000) if p[3] == "1" and p != JOINED)

    assert first(1) <= first(16) <= first(64) < first(128)


@pytest.mark.parametrize("single", [False, True])
@torch.no_grad()
def test_results_on_both_sides_of_every_switch(plans, single, threads):
    threads(1)
    shape = (2, 0, *SMALL[2:]) if single else SMALL
    counts = {n for count, _ in switches(plans, shape, 120) for n in (count - 1, count)}
    counts |= {24, 25, 119}
    assert len(counts) >= 6
    d, d_u = shape[3:5]
    net = LowRankCrossNet(d, shape[2]) if single else ResidualCrossNet(d, shape[2])
    net = net.double()
    weight = torch.randn(1, d, dtype=torch.float64)
    for parameter in net.parameters():
        parameter.normal_(std=0.1)
    for count in sorted(counts):
        number = torch.tensor([count])
        request, items = torch.randn(1, d_u).double(), torch.randn(count, d - d_u).double()
        rows = torch.cat([request.expand(count, -1), items], 1)
        got, wanted = net.score(request, items, number, weight), linear(net(rows), weight)
        torch.testing.assert_close(
            got, wanted, rtol=0, atol=1e-12 * float(wanted.abs().max() if count else 0)
        )
