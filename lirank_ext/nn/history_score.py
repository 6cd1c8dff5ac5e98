"""Histories of requests, encoded for all candidates: the step's part once per request."""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch
from torch import Tensor
from torch.nn import functional as F
from torch.nn.functional import linear

from ._common import check_shape
from .request_sharing import Rows, check_counts

if TYPE_CHECKING:
    from .history import HistoryEncoder

# Numbers of one (candidates, steps, width) tensor of a block. A few such tensors then stay in L2,
# and no tensor of the size of all candidates times all steps is made.
BLOCK = 1 << 17


def score_histories(
    encoder: HistoryEncoder,
    items: Tensor,
    actions: Tensor,
    candidate: Tensor,
    counts: Tensor,
    lengths: Tensor,
) -> Tensor:
    """See :meth:`lirank_ext.nn.HistoryEncoder.score`."""
    owner, width = "HistoryEncoder", encoder.dims[2]
    check_shape(owner, "candidate", candidate, "N", width)
    numbers = check_counts(owner, counts, items.shape[0], candidate.shape[0])
    nobody = candidate.new_zeros(items.shape[0], width)
    valid = encoder._valid(items, actions, nobody, lengths, None, None)
    items, actions, valid = encoder._newest(items, actions, valid)
    # A step's columns stand before the candidate's.
    steps = torch.cat([items, actions], dim=-1).masked_fill(~valid.unsqueeze(-1), 0)
    split = steps.shape[-1]
    if encoder.project is None:
        steps, candidate = F.pad(steps, (0, width)), F.pad(candidate, (split, 0))
    else:
        weight = encoder.project.weight
        steps = linear(steps, weight[:, :split], encoder.project.bias)
        candidate = linear(candidate, weight[:, split:])
    if encoder.position is not None:
        steps = steps + encoder.position[: steps.shape[1]]
    first = encoder.layers[0]
    of_steps = first.qkv(steps)
    # A candidate has a part in the queries and in the values.
    of_items = linear(candidate, first.qkv.weight)
    if numbers is None:
        rows = Rows(counts, candidate.shape[0], None)
        spread = (rows.spread(t) for t in (steps, of_steps, valid))
        return _encode(encoder, *spread, candidate, of_items, False)
    done = []
    begin = 0
    # Valid steps stand first; the others are no keys. An empty history keeps one.
    steps_kept = valid.sum(1).clamp(min=1).tolist()
    for request, number in enumerate(numbers):
        kept = steps_kept[request]
        one = [t[request : request + 1, :kept] for t in (steps, of_steps, valid)]
        block = max(1, BLOCK // (kept * encoder.width))
        for start in range(begin, begin + number, block):
            part = slice(start, min(start + block, begin + number))
            done.append(_encode(encoder, *one, candidate[part], of_items[part], True))
        begin += number
    return torch.cat(done) if done else candidate.new_zeros(0, encoder.out_dim)


def _encode(
    encoder: HistoryEncoder,
    steps: Tensor,
    of_steps: Tensor,
    valid: Tensor,
    candidate: Tensor,
    of_items: Tensor,
    shared: bool,
) -> Tensor:
    """Candidates (n, width) with the steps of each, or with the ``shared`` steps (1, T, width).


    ``of_steps`` and ``of_items`` are their queries, keys and values in the first layer.
    """
    first, width = encoder.layers[0], encoder.width
    n, t, heads = candidate.shape[0], steps.shape[1], first.num_heads
    query, key, value = of_steps.split(width, dim=-1)
    to_query, _, to_value = of_items.split(width, dim=-1)
    query = query + to_query.unsqueeze(1)
    if shared:  # all queries of all candidates read the same keys
        query = query.reshape(1, n * t, width)
    query, key, value = (
        part.unflatten(-1, (heads, -1)).transpose(1, 2) for part in (query, key, value)
    )
    # An empty history attends to its first step, as in ``forward``.
    keys = (valid | (torch.arange(t, device=valid.device) == 0)).unsqueeze(1).unsqueeze(1)
    attended = F.scaled_dot_product_attention(query, key, value, attn_mask=keys)
    attended = attended.transpose(1, 2).reshape(n, t, width) + to_value.unsqueeze(1)
    x = first.after_attention(steps + candidate.unsqueeze(1), first.out(attended))
    for layer in list(encoder.layers)[1:]:
        x = layer(x, keys)
    return encoder._pooled(x, valid.expand(n, t))
