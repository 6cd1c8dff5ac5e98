from __future__ import annotations

import numpy as np
import pytest
import torch

from lirank_ext.nn import LongDwellLabels


def rows(n=3000, seed=0, columns=2):
    generator = torch.Generator().manual_seed(seed)
    clusters = torch.randint(0, 3, (n, columns), generator=generator) * 1000 - 7
    scale = 1 + clusters.sum(1).abs().float()
    return scale * torch.rand(n, generator=generator).exp(), clusters


def by_hand(dwell, clusters, q, min_count):
    """Thresholds from NumPy's percentile, cluster by cluster."""
    groups: dict[tuple, list] = {}
    for time, key in zip(dwell.tolist(), map(tuple, clusters.tolist()), strict=True):
        groups.setdefault(key, []).append(time)
    everything = np.percentile(dwell.double().numpy(), 100 * q)
    big = {k: np.percentile(v, 100 * q) for k, v in groups.items() if len(v) >= min_count}
    return big, everything


@pytest.mark.parametrize("q", [0.5, 0.9, 0.987])
@pytest.mark.parametrize("min_count", [1, 340])
def test_thresholds_and_labels(q, min_count):
    dwell, clusters = rows()
    model = LongDwellLabels(q, num_columns=2, min_count=min_count)
    model.update(dwell, clusters)
    own, everything = by_hand(dwell, clusters, q, min_count)
    assert len(model) == len(own) and (len(own) == 9) == (min_count == 1)
    want = [own.get(tuple(key), everything) for key in clusters.tolist()]
    got = model.thresholds_of(clusters)
    torch.testing.assert_close(got, torch.tensor(want, dtype=torch.float64), rtol=1e-12, atol=0)
    labels = model.label(dwell, clusters)
    assert labels.dtype == torch.float32
    assert labels.tolist() == [float(t > w) for t, w in zip(dwell.tolist(), want, strict=True)]
    if min_count == 1:
        assert labels.mean().item() == pytest.approx(1 - q, abs=0.01)


def test_unseen_clusters_use_all_rows():
    dwell, clusters = rows()
    model = LongDwellLabels(num_columns=2, min_count=1)
    model.update(dwell, clusters)
    # A value never seen, one beyond both ends, and a combination that is new though its values
    # are known.
    dwell, clusters = dwell[1:], clusters.clone()[1:]
    asked = torch.tensor([[500, -7], [-(2**60), -7], [993, 2**60]])
    everything = model.threshold.item()
    assert model.thresholds_of(asked).tolist() == [everything] * 3
    known = ~((clusters[:, 0] == 993) & (clusters[:, 1] == 1993))
    model.fit(dwell[known], clusters[known])
    assert model.thresholds_of(torch.tensor([[993, 1993]])).item() == model.threshold.item()
    assert model.thresholds_of(torch.tensor([[993, 993]])).item() != model.threshold.item()


def test_label_is_above_and_not_at_the_threshold():
    model = LongDwellLabels(0.5, min_count=1)
    model.update(torch.tensor([1.0, 2.0, 3.0]), torch.zeros(3, dtype=torch.int64))
    times = torch.tensor([1.9, 2.0, 2.1])
    assert model(times, torch.zeros(3, dtype=torch.int64)).tolist() == [0.0, 0.0, 1.0]


@pytest.mark.parametrize("window", [1, 3])
def test_window(window):
    days = [rows(500 + 100 * d, seed=d) for d in range(5)]
    model = LongDwellLabels(0.9, 2, window, min_count=5)
    for d, day in enumerate(days):
        model.update(*day)
        recent = days[max(0, d - window + 1) : d + 1]
        one = LongDwellLabels(0.9, 2, min_count=5)
        one.fit(torch.cat([t for t, _ in recent]), torch.cat([c for _, c in recent]))
        clusters = days[4][1]
        assert torch.equal(model.thresholds_of(clusters), one.thresholds_of(clusters))
    model.fit(*days[0])
    one.fit(*days[0])
    assert torch.equal(model.thresholds_of(clusters), one.thresholds_of(clusters))
    assert window > 1 or model.kept_dwell.numel() == 0


def test_saved_state_goes_on_as_if_nothing_happened():
    days = [rows(400, seed=d) for d in range(4)]
    model, other = (LongDwellLabels(0.9, 2, window=2, min_count=3) for _ in range(2))
    for day in days[:3]:
        model.update(*day)
    other.load_state_dict(model.state_dict())
    for m in (model, other):
        m.float()  # a cast does not round the thresholds
        m.update(*days[3])
    for name, t in model.state_dict().items():
        assert torch.equal(t, other.state_dict()[name]), name


def test_one_column_may_be_flat():
    dwell, clusters = rows(columns=1)
    flat, column = LongDwellLabels(min_count=2), LongDwellLabels(min_count=2)
    flat.update(dwell, clusters[:, 0])
    column.update(dwell, clusters)
    assert torch.equal(flat.label(dwell, clusters[:, 0].int()), column.label(dwell, clusters))
    assert flat.label(dwell[:0], clusters[:0]).shape == (0,)


def test_bad_rows_change_nothing():
    dwell, clusters = rows()
    model = LongDwellLabels(num_columns=2, window=2)
    with pytest.raises(RuntimeError, match="LongDwellLabels: no thresholds yet"):
        model.label(dwell, clusters)
    model.update(dwell, clusters)
    before = {k: v.clone() for k, v in model.state_dict().items()}
    for bad in (-1.0, float("nan"), float("inf")):
        broken = dwell.clone()
        broken[17] = bad
        with pytest.raises(ValueError, match=f"'dwell': .* got {bad} at row 17"):
            model.update(broken, clusters)
    with pytest.raises(ValueError, match="'dwell': wanted at least one row, got none"):
        model.update(dwell[:0], clusters[:0])
    with pytest.raises(ValueError, match=r"'columns': wanted shape \(3000, 2\), got \(3000, 1\)"):
        model.update(dwell, clusters[:, :1])
    with pytest.raises(TypeError, match=r"'columns': wanted whole numbers, got torch\.float32"):
        model.update(dwell, clusters.float())
    assert all(torch.equal(v, before[k]) for k, v in model.state_dict().items())


def test_refusals():
    for quantile in (0, 1, 90, -0.1, "a"):
        with pytest.raises(ValueError, match=r"'quantile': wanted a number in \(0, 1\)"):
            LongDwellLabels(quantile)
    for name in ("num_columns", "window", "min_count"):
        with pytest.raises(ValueError, match=f"LongDwellLabels: argument '{name}'"):
            LongDwellLabels(**{name: 0})
