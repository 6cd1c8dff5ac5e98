"""Benchmarks of requests with many candidates: a cross net, and the Feed and Jobs models.

The joined providers get the rows ``[request_r; item_i]`` ready made. In a server these rows have to
be written first.
"""

from __future__ import annotations

import copy
import dataclasses
import itertools
from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.functional import linear

from lirank_ext import attention_cross, low_rank_cross, outer_attention
from lirank_ext.benchmarks.harness import Workload
from lirank_ext.models import LiRank, LiRankConfig, Schema
from lirank_ext.models.config import Table
from lirank_ext.nn import ResidualCrossNet
from lirank_ext.nn.reference_cross import ReferenceResidualCrossNet

REQUESTS = (1, 8, 64)
CANDIDATES = (1, 2, 5, 10, 20, 100, 500, 1000)
DIMS = (512, 1024, 3456)
SHARES = (0.4, 0.6, 0.8)  # of the input's columns that belong to the request
RANKS = (32, 64, 256)
OUTPUTS = 64  # of the layer after the net
MOST_NUMBERS = 1 << 26  # in the joined rows: 256 MB
QUICK = ((1, 1), (1, 2), (1, 5), (1, 10), (1, 20), (1, 100), (1, 500), (8, 100))
STEPS = 20  # of a history


def _draw(*shape: int, scale: float = 1.0) -> Tensor:
    generator = torch.Generator().manual_seed(sum(shape))
    return torch.randn(shape, generator=generator) * scale


def _first_products(
    net: ResidualCrossNet, request: Tensor, items: Tensor, x0: Tensor, rows: Tensor
):
    """The net with its first products computed once per request, and nothing else."""
    width = request.shape[1]

    def shared(kernel: Tensor) -> Tensor:
        once = linear(request, kernel[:, :width])
        return linear(items, kernel[:, width:]) + once[rows]

    first, *rest = net.low_rank
    low = torch.addcmul(x0, x0, linear(shared(first.v), first.u, first.bias))
    for layer in rest:
        low = low_rank_cross(x0, low, layer.v, layer.u, layer.bias)
    first, *rest = net.attention
    q, k, v = (shared(kernel) for kernel in (first.q, first.k, first.v))
    high = torch.addcmul(x0, x0, linear(outer_attention(q, k, v) + v, first.u, first.bias))
    for layer in rest:
        high = attention_cross(x0, high, layer.q, layer.k, layer.v, layer.u, layer.bias)
    return low + high


def _net(requests: int, candidates: int, d: int, share: float, rank: int, device: str) -> Workload:
    torch.manual_seed(0)
    net = ResidualCrossNet(d, rank).to(device)
    eager = ReferenceResidualCrossNet(d, rank).to(device)
    eager.load_state_dict(net.state_dict())
    wide = copy.deepcopy(eager).double()
    compiled = torch.compile(eager)
    d_u, count = int(share * d), requests * candidates
    request, items = _draw(requests, d_u).to(device), _draw(count, d - d_u).to(device)
    weight = _draw(OUTPUTS, d, scale=d**-0.5).to(device)
    counts = torch.full((requests,), candidates, device=device)
    rows = torch.arange(requests, device=device).repeat_interleave(counts)
    x0 = torch.cat([request[rows], items], dim=1)
    providers = {
        "lirank": lambda: net.score(request, items, counts, weight),
        "lirank forward": lambda: linear(net(x0), weight),
        "first products": lambda: linear(_first_products(net, request, items, x0, rows), weight),
        "eager": lambda: linear(eager(x0), weight),
        "compile": lambda: linear(compiled(x0), weight),
    }
    return Workload(
        "residual_cross_score",
        f"net R={requests} N={candidates} d={d} s={share} r={rank}",
        providers,
        expect=lambda: linear(wide(x0.double()), weight.double()),
        tolerance=1e-4,
        items=count,
        unit="candidate",
        flops=2 * count * d * (12 * rank + OUTPUTS),
        ceiling="fma",
    )


# ---- whole models -------------------------------------------------------------------------------


def _features(schema: Schema, names: set[str], rows: int, device: str) -> dict[str, Tensor]:
    """One id a bag, and histories of ``STEPS`` steps, for the columns ``names``."""
    generator = torch.Generator().manual_seed(rows)

    def hashes(*shape: int) -> Tensor:
        return torch.randint(-(2**40), 2**40, shape, generator=generator).to(device)

    numeric = sum(name in names for name in schema.numeric)
    found = {"numeric": _draw(rows, numeric).to(device)} if numeric else {}
    for table, columns in schema.tables().items():
        bags = rows * sum(c.name in names for c in columns)
        if bags:
            found[f"ids/{table}"] = hashes(bags)
            found[f"offsets/{table}"] = torch.arange(bags, device=device)
    for history in schema.history:
        if history.name in names:
            key = f"history/{history.name}"
            found[f"{key}/items"] = hashes(rows, STEPS)
            found[f"{key}/lengths"] = torch.full((rows,), STEPS, device=device)
            if history.actions:
                found[f"{key}/actions"] = hashes(rows, STEPS)
    if schema.popularity in names:
        found["popularity"] = hashes(rows)
    return found


def join(
    schema: Schema, request: dict[str, Tensor], items: dict[str, Tensor], counts: Tensor
) -> dict[str, Tensor]:
    """The features of the joined rows; every bag has one id."""
    own = set(schema.request)
    rows = torch.arange(len(counts), device=counts.device).repeat_interleave(counts)

    def merged(names: list[str], ours: Tensor | None, theirs: Tensor | None) -> Tensor:
        left = iter(() if ours is None else ours[rows].unbind(1))
        right = iter(() if theirs is None else theirs.unbind(1))
        return torch.stack([next(left if name in own else right) for name in names], dim=1)

    found = {}
    if schema.numeric:
        found["numeric"] = merged(schema.numeric, request.get("numeric"), items.get("numeric"))
    for table, columns in schema.tables().items():
        names, key = [c.name for c in columns], f"ids/{table}"
        sides = (request.get(key), items.get(key))
        sizes = (len(counts), len(rows))
        sides = (None if t is None else t.view(n, -1) for t, n in zip(sides, sizes, strict=True))
        found[key] = merged(names, *sides).flatten()
        found[f"offsets/{table}"] = torch.arange(len(found[key]), device=counts.device)
    for key in (*request, *items):
        if key.startswith("history/") or key == "popularity":
            found[key] = items[key] if key in items else request[key][rows]
    return found


REQUEST_COLUMNS = {
    "feed": ("dense_0", "dense_1", "dense_2", "dense_3", "dense_4", "viewer_historical_actors",
             "viewer_hashtags", "past_actors"),
    "jobs": tuple(
        f"member_{name}_{i}"
        for name in ("title", "skill", "company", "industry", "seniority")
        for i in range(4)
    ),
}  # fmt: skip


def make_model(name: str, history: bool = True, device: str = "cpu") -> LiRank:
    """A preset with tables of 100,000 buckets and its member's columns as the request's."""
    config = LiRankConfig.preset(name)
    request = list(REQUEST_COLUMNS[name])
    schema = config.schema
    if not history:
        request = [column for column in request if column != "past_actors"]
        schema = dataclasses.replace(schema, history=[])
    tables = {table: Table(100_000, 100) for table in schema.tables()}
    config = dataclasses.replace(
        config,
        schema=dataclasses.replace(schema, request=request),
        embedding=dataclasses.replace(config.embedding, tables=tables),
    )
    torch.manual_seed(0)
    return LiRank(config).to(device).eval()


def plain(model: LiRank) -> LiRank:
    """The same model with the cross layers in eager PyTorch."""
    made = copy.deepcopy(model)
    heads = made.head.interactions
    for inner in heads if isinstance(heads, nn.ModuleList) else [heads]:
        if isinstance(inner.cross, ResidualCrossNet):
            old = inner.cross
            inner.cross = ReferenceResidualCrossNet(
                old.dim, old.low_rank[0].rank, len(old.low_rank)
            ).to(old.low_rank[0].v)
            inner.cross.load_state_dict(old.state_dict())
    return made.eval()


def model_inputs(model: LiRank, requests: int, candidates: int, device: str = "cpu") -> tuple:
    """Features of the requests and of their candidates, the counts, and the joined features."""
    schema = model.config.schema
    own = set(schema.request)
    names = {*schema.numeric, *(c.name for c in schema.categorical), schema.popularity or ""}
    names |= {h.name for h in schema.history}
    counts = torch.full((requests,), candidates, device=device)
    request = _features(schema, own, requests, device)
    items = _features(schema, names - own, requests * candidates, device)
    return request, items, counts, join(schema, request, items, counts)


def _model(name: str, history: bool, requests: int, candidates: int, device: str) -> Workload:
    model = make_model(name, history, device)
    eager = plain(model)
    compiled = torch.compile(eager)
    request, items, counts, joined = model_inputs(model, requests, candidates, device)
    wide = copy.deepcopy(eager).double()
    doubled = {k: v.double() if v.is_floating_point() else v for k, v in joined.items()}
    providers: dict[str, Any] = {
        "lirank": lambda: model.score(request, items, counts),
        "lirank forward": lambda: model(joined),
        "eager": lambda: eager(joined),
        "compile": lambda: compiled(joined),
    }
    without = "" if history or name != "feed" else " without history"
    return Workload(
        "residual_cross_score",
        f"{name} model{without} R={requests} N={candidates}",
        providers,
        expect=lambda: wide(doubled),
        tolerance=1e-3,
        items=requests * candidates,
        unit="candidate",
    )


def workloads(device: str, peers: bool, quick: bool) -> Iterator[Workload]:
    """The net alone over the whole grid, then the models."""
    if quick:
        shapes: Any = [(r, n, 1024, 0.6, 64) for r, n in QUICK]
    else:
        shapes = itertools.product(REQUESTS, CANDIDATES, DIMS, SHARES, RANKS)
    for requests, candidates, d, share, rank in shapes:
        if requests * candidates * d <= MOST_NUMBERS:
            yield _net(requests, candidates, d, share, rank, device)
    sizes = ((1, 500),) if quick else tuple(itertools.product(REQUESTS, (1, 20, 100, 500)))
    for requests, candidates in sizes:
        if requests * candidates > 8000:
            continue
        yield _model("feed", True, requests, candidates, device)
        yield _model("feed", False, requests, candidates, device)
        yield _model("jobs", True, requests, candidates, device)
