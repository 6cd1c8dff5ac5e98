"""Member history: a Transformer over past actions, each fused with the candidate."""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from ._common import check_number, check_positive, check_shape, refuse
from .history_score import score_histories


class EncoderLayer(nn.Module):
    """Post-norm Transformer layer: self-attention through SDPA, then a ReLU feed-forward."""

    def __init__(self, width: int, num_heads: int, feed_forward: int, dropout: float) -> None:
        super().__init__()
        self.num_heads, self.p = num_heads, dropout
        self.qkv = nn.Linear(width, 3 * width)
        self.out = nn.Linear(width, width)
        self.norm1 = nn.LayerNorm(width)
        self.up = nn.Linear(width, feed_forward)
        self.down = nn.Linear(feed_forward, width)
        self.norm2 = nn.LayerNorm(width)
        nn.init.xavier_uniform_(self.qkv.weight)
        nn.init.zeros_(self.qkv.bias)
        nn.init.zeros_(self.out.bias)

    def forward(self, x: Tensor, seen: Tensor) -> Tensor:
        """x: (B, T, width); seen: (B, 1, 1, T), True where a step may be attended to.

        Returns the encoded steps (B, T, width).
        """
        p = self.p if self.training else 0.0
        heads = self.qkv(x).unflatten(-1, (3, self.num_heads, -1)).permute(2, 0, 3, 1, 4)
        q, k, v = heads.unbind(0)
        attended = F.scaled_dot_product_attention(q, k, v, attn_mask=seen, dropout_p=p)
        return self.after_attention(x, self.out(attended.transpose(1, 2).flatten(2)))

    def after_attention(self, x: Tensor, attended: Tensor) -> Tensor:
        """The rest of the layer, from the result of the attention's output map on."""
        p = self.p if self.training else 0.0
        x = self.norm1(x + F.dropout(attended, p))
        hidden = self.down(F.dropout(self.up(x).relu(), p))
        return self.norm2(x + F.dropout(hidden, p))


class HistoryEncoder(nn.Module):
    """Encodes a member's past actions together with a candidate: (B, width + last * width).

    Each step is item ‖ action ‖ candidate (early fusion). Its width is the sum of the three widths,
    or ``width`` after a linear map. ``num_layers`` post-norm Transformer layers follow. The output
    is the maximum over the valid steps, followed by the ``last`` newest steps, newest first.
    Missing steps are zeros, and an empty history gives only zeros. The contents of padded steps
    have no effect, even if they are NaN.

    LiRank specifies two layers, a feed-forward of half the width, the maximum and the last five
    steps. Two heads, post-norm, dropout 0.1 and no positions are free choices that follow
    TransAct's public code.

    Args:
        item_dim, action_dim, candidate_dim: widths of the three embeddings.
        num_layers, num_heads: size of the encoder. ``num_heads`` must divide the width.
        last: number of newest steps that are part of the output, 0 or more.
        max_len: of a longer history only the newest ``max_len`` steps are used.
        width: project the steps linearly to this width. None keeps the sum.
        feed_forward: hidden width of the feed-forward. None is half the width.
        dropout: dropout probability in training, in [0, 1).
        positions: add a learned position, counted from the newest step. It starts at zero.
        newest_first: order of the steps given to ``forward``.
        time_window: in training, hide the steps of each sample that are younger than a random age
            between 0 and this, as if actions reached the ranker late. It needs ``ages``. 0 hides
            none.

    Attributes:
        width: width d of a step.
        out_dim: ``width * (1 + last)``.

    Raises:
        ValueError: an argument is out of range, or the heads do not divide the width. ``forward``
            raises it if shapes do not fit, or if ``ages`` is missing although ``time_window`` is
            set.

    Source: LiRank (arXiv 2402.06859), on member history; TransAct (arXiv 2306.00248).
    """

    def __init__(
        self,
        item_dim: int,
        action_dim: int,
        candidate_dim: int,
        num_layers: int = 2,
        num_heads: int = 2,
        last: int = 5,
        max_len: int = 100,
        *,
        width: int | None = None,
        feed_forward: int | None = None,
        dropout: float = 0.1,
        positions: bool = False,
        newest_first: bool = True,
        time_window: float = 0.0,
    ) -> None:
        super().__init__()
        owner = "HistoryEncoder"
        sizes = {"item_dim": item_dim, "action_dim": action_dim, "candidate_dim": candidate_dim}
        fused = sum(sizes.values())
        self.width = d = fused if width is None else width
        hidden = max(1, d // 2) if feed_forward is None else feed_forward
        sizes.update(num_layers=num_layers, num_heads=num_heads, max_len=max_len, width=d)
        check_positive(owner, **sizes, feed_forward=hidden)
        check_number(owner, "last", last, "0 or more", 0, float("inf"), "[)")
        check_number(owner, "dropout", dropout, "a number in [0, 1)", 0, 1, "[)")
        check_number(owner, "time_window", time_window, "0 or more", 0, float("inf"), "[)")
        if d % num_heads:
            better = -(-d // num_heads) * num_heads
            wanted = f"a divisor of the width {d} (width={better} projects the steps to {better})"
            refuse(owner, "num_heads", wanted, num_heads)
        self.dims = (item_dim, action_dim, candidate_dim)
        self.last, self.max_len = int(last), max_len
        self.newest_first, self.time_window = newest_first, float(time_window)
        self.out_dim = d * (1 + self.last)
        self.project = None if width is None else nn.Linear(fused, d)
        self.position = nn.Parameter(torch.zeros(max_len, d)) if positions else None
        self.layers = nn.ModuleList(
            EncoderLayer(d, num_heads, hidden, dropout) for _ in range(num_layers)
        )

    def forward(
        self,
        items: Tensor,
        actions: Tensor,
        candidate: Tensor,
        lengths: Tensor | None = None,
        mask: Tensor | None = None,
        ages: Tensor | None = None,
    ) -> Tensor:
        """Encode a batch of histories.

        Args:
            items: (B, T, item_dim).
            actions: (B, T, action_dim).
            candidate: (B, candidate_dim).
            lengths: (B,) whole numbers. The first ``lengths[b]`` of the T steps are valid. A
                length above T means all T.
            mask: (B, T) bool, True where a step is valid. Gaps are allowed. If ``lengths`` is given
                too, a step must be valid by both.
            ages: (B, T), time from the action to the request, in the unit of ``time_window``.
                A step with a negative age happened after the request and is never used.

        Returns:
            (B, width + last * width).
        """
        valid = self._valid(items, actions, candidate, lengths, mask, ages)
        items, actions, valid = self._newest(items, actions, valid)
        seen = valid.unsqueeze(-1)
        fused = candidate.unsqueeze(1).expand(-1, items.shape[1], -1)
        x = torch.cat([items, actions, fused], dim=-1).masked_fill(~seen, 0)
        x = x if self.project is None else self.project(x)
        x = x if self.position is None else x + self.position[: x.shape[1]]
        # Attention over no step would be 0 / 0, so an empty history attends to its first step,
        # which is zeroed.
        first = torch.arange(x.shape[1], device=x.device) == 0
        keys = (valid | first).unsqueeze(1).unsqueeze(1)
        for layer in self.layers:
            x = layer(x, keys)
        return self._pooled(x, valid)

    def _pooled(self, x: Tensor, valid: Tensor) -> Tensor:
        """Encoded steps (B, T, width) and which of them are valid (B, T) -> (B, out_dim)."""
        seen = valid.unsqueeze(-1)
        pooled = x.masked_fill(~seen, float("-inf")).amax(1)
        pooled = pooled.masked_fill(~valid.any(1, keepdim=True), 0)
        newest = x.masked_fill(~seen, 0)
        if torch.compiler.is_compiling():
            # Padded first: a program for fewer steps than ``last`` has to take more of them too.
            newest = F.pad(newest, (0, 0, 0, self.last))[:, : self.last]
        else:
            newest = newest[:, : self.last]
            newest = F.pad(newest, (0, 0, 0, self.last - newest.shape[1]))
        return torch.cat([pooled, newest.flatten(1)], dim=1)

    def score(
        self, items: Tensor, actions: Tensor, candidate: Tensor, counts: Tensor, lengths: Tensor
    ) -> Tensor:
        """Encode histories of requests for all their candidates, exact to rounding.

        The input map and the queries, keys and values of the first layer are sums of a part of the
        step and a part of the candidate. The step's part is computed once per request. A
        candidate's part of the keys adds the same number to all scores of a query, which the
        softmax takes out again, and its part of the values adds itself to every mean of values.
        So keys and values are never made per candidate. From there on all is per candidate.

        Args:
            items: (R, T, item_dim).
            actions: (R, T, action_dim).
            candidate: (N, candidate_dim), request by request.
            counts: (R,) int64, candidates of each request.
            lengths: (R,) whole numbers, as in :meth:`forward`.

        Returns:
            (N, width + last * width).

        Raises:
            ValueError: shapes do not fit, or the counts do not add up to N.
            RuntimeError: the module is in training.
        """
        if self.training:
            raise RuntimeError("HistoryEncoder.score: the module is in training; call eval() first")
        return score_histories(self, items, actions, candidate, counts, lengths)

    def _valid(self, items, actions, candidate, lengths, mask, ages) -> Tensor:
        """Check all shapes and return the steps that this call may use, (B, T) bool."""
        owner, (item_dim, action_dim, candidate_dim) = "HistoryEncoder", self.dims
        check_shape(owner, "items", items, "B", "T", item_dim)
        b, t = items.shape[:2]
        check_shape(owner, "actions", actions, b, t, action_dim)
        check_shape(owner, "candidate", candidate, b, candidate_dim)
        valid = torch.ones(b, t, dtype=torch.bool, device=items.device)
        if lengths is not None:
            check_shape(owner, "lengths", lengths, b)
            valid = torch.arange(t, device=items.device) < lengths.unsqueeze(1)
        if mask is not None:
            check_shape(owner, "mask", mask, b, t)
            if mask.dtype != torch.bool:
                refuse(owner, "mask", "dtype torch.bool", mask.dtype, TypeError)
            valid = valid & mask
        if ages is not None:
            check_shape(owner, "ages", ages, b, t)
            valid = valid & (ages >= 0)
        if self.training and self.time_window > 0:
            if ages is None:
                refuse(owner, "ages", "a tensor, as time_window is on in training", None)
            hidden = self.time_window * torch.rand(b, 1, device=items.device)
            valid = valid & (ages >= hidden)
        return valid

    def _newest(self, items: Tensor, actions: Tensor, valid: Tensor) -> tuple[Tensor, ...]:
        """The newest ``max_len`` valid steps, newest first, then padding; at least one step."""
        if not self.newest_first:
            items, actions, valid = items.flip(1), actions.flip(1), valid.flip(1)
        if items.shape[1] == 0:
            return tuple(t.new_zeros(len(t), 1, *t.shape[2:]) for t in (items, actions, valid))
        order = (~valid).byte().argsort(dim=1, stable=True)[:, : self.max_len]
        steps = order.unsqueeze(-1)
        items = items.gather(1, steps.expand(-1, -1, items.shape[2]))
        actions = actions.gather(1, steps.expand(-1, -1, actions.shape[2]))
        return items, actions, valid.gather(1, order)
