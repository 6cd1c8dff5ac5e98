"""The study on synthetic data: it runs, resumes where it stopped, and tells noise from effects."""

from __future__ import annotations

import json
import math
from dataclasses import replace

import numpy as np
import pytest
from sklearn.metrics import log_loss, roc_auc_score

from lirank_ext.benchmarks.study import __main__ as study
from lirank_ext.benchmarks.study import bandit, data, judge, plan, runs, variants
from lirank_ext.benchmarks.study.records import Records
from lirank_ext.nn import IncrementalPenalty

TINY = plan.Plan(
    seeds=2,
    train_rows=300,
    valid_rows=80,
    test_rows=120,
    epochs=1,
    adult_epochs=1,
    batch_size=64,
    dim=4,
    lengths=(2, 4, 6),
    wide=20,
    increments=2,
    fisher_rows=4,
    draws=8,
    resamples=40,
)


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """A data folder with a small MovieLens and small Open Bandit logs; no Adult."""
    made = tmp_path_factory.mktemp("data")
    _make_movielens(made / "ml-1m")
    _make_bandit(made / "obd")
    return made


def _make_movielens(path, users=40, movies=30, per_user=25):
    path.mkdir()
    draw = np.random.default_rng(0)
    lines = [
        f"{u}::{'MF'[u % 2]}::{25 + u % 3}::{u % 5}::{10000 + u}\n" for u in range(1, users + 1)
    ]
    (path / "users.dat").write_text("".join(lines))
    kinds = ("Drama", "Comedy|Drama", "Horror")
    lines = [f"{m}::Film {m} ({1980 + m % 9})::{kinds[m % 3]}\n" for m in range(1, movies + 1)]
    (path / "movies.dat").write_text("".join(lines))
    lines = []
    for u in range(1, users + 1):
        for m in draw.choice(movies, per_user, replace=False) + 1:
            stars = int(np.clip(1 + (m % 3) * 2 + draw.integers(-1, 2), 1, 5))
            lines.append(f"{u}::{m}::{stars}::{draw.integers(1000, 1400)}\n")
    (path / "ratings.dat").write_text("".join(lines))


def _make_bandit(path, rows=400, items=6):
    draw = np.random.default_rng(1)
    users = ",".join(f"user_feature_{i}" for i in range(4))
    for policy in ("random", "bts"):
        (path / policy / "all").mkdir(parents=True)
        lines = [f",timestamp,item_id,position,click,propensity_score,{users}\n"]
        for i in range(rows):
            item = draw.integers(items)
            click = int(draw.random() < (0.5 if item == 3 else 0.05))
            lines.append(f"{i},2020-01-01 {i:05d},{item},1,{click},{1 / items},a,b,c,d\n")
        (path / policy / "all" / "all.csv").write_text("".join(lines))
        features = ",".join(f"item_feature_{i}" for i in range(4))
        lines = [f",item_id,{features}\n"] + [
            f"{i},{i},{i / 10},x{i % 2},y,z\n" for i in range(items)
        ]
        (path / policy / "all" / "item_context.csv").write_text("".join(lines))


@pytest.fixture(scope="module")
def finished(folder, tmp_path_factory):
    """A whole quick study of MovieLens and the bandit logs."""
    out = tmp_path_factory.mktemp("out")
    path = study.Study(folder, out, TINY, ["ml-1m", "obd"]).run()
    return out, path.read_text()


def test_every_row_is_run_with_every_seed(finished):
    out, text = finished
    content = json.loads((out / "study.json").read_text())
    done = {(r["name"], r["seed"]) for r in content["ml-1m"]["runs"]}
    names = ["base", "ids", "low-rank", "rdcn", "gating", "wide", "isotonic", "isotonic-item"]
    names += ["grouped", "mmoe", "ple", "int8", "int4", "qr-5", "qr-100"]
    names += ["history-2", "history-4", "history-6", "low-rank-all", "rdcn-all"]
    names += ["incremental", "unpenalised", "retrained", "stale"]
    assert done == {(n, s) for n in names for s in (0, 1)}
    assert "fewer than" not in text
    for picture in ("ml-1m.png", "ml-1m-history.png", "ml-1m-increments.png", "obd.png"):
        assert (out / picture).stat().st_size > 5000
        assert f"({picture})" in text


def test_report_states_signs_and_noise(finished):
    out, text = finished
    assert "at\nmost the larger of the two is called inside the noise" in text
    rows = json.loads((out / "study.json").read_text())["ml-1m"]["rows"]
    judged = [r for r in rows if r["differences"]]
    assert any("inside the noise" in r["verdict"] for r in judged)
    for row in judged:
        gap = row["differences"]["auc"]
        assert gap["mean"] == pytest.approx(np.mean(gap["each"]))
        assert (gap["sign"] == "0") == (abs(gap["mean"]) <= gap["bound"])
        assert row["verdict"] == judge.verdict(gap["sign"], row["sign"])


def test_resume_skips_what_is_there(finished, folder, monkeypatch):
    out, text = finished
    monkeypatch.setattr(study, "run", lambda *a: pytest.fail("ran again"))
    monkeypatch.setattr(bandit, "evaluate", lambda *a: pytest.fail("ran again"))
    assert study.Study(folder, out, TINY, ["ml-1m", "obd"]).run().read_text() == text


def test_resume_runs_what_is_missing_alone(finished, folder, monkeypatch, tmp_path):
    out, _ = finished
    records, ran = Records(out), []
    before = records.path("ml-1m", "wide", 1).read_text()
    records.path("ml-1m", "wide", 1).unlink()
    monkeypatch.setattr(study, "run", lambda name, *a: ran.append(name))
    text = study.Study(folder, out, TINY, ["ml-1m"]).run().read_text()
    records.path("ml-1m", "wide", 1).write_text(before)
    assert ran == ["wide"]
    assert "- MovieLens-1M: fewer than 2 seeds were run of wide (1)\n" in text


def test_records_of_other_settings_are_refused(finished, folder):
    out, _ = finished
    other = study.Study(folder, out, replace(TINY, dim=8), ["ml-1m"])
    with pytest.raises(
        plan.StudyError, match=r"base-0\.json: a record of other settings \(dim was 4"
    ):
        other.run()


def test_missing_data_sets_are_named(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(study, "QUICK", TINY)
    arguments = ["--data", str(tmp_path), "--out", str(tmp_path / "out"), "--quick"]
    assert study.main([*arguments, "--seeds", "1"]) == 0
    text = (tmp_path / "out" / "study.md").read_text()
    assert "- MovieLens-1M: left out, as the data folder has no ml-1m" in text
    assert "- Open Bandit: left out, as the data folder has no obd" in text
    assert "UCI Adult" in text and "one seed: not judged" in text
    assert "left out" in capsys.readouterr().err


def test_broken_data_is_one_sentence(tmp_path, capsys):
    (tmp_path / "ml-1m").mkdir()
    arguments = ["--data", str(tmp_path), "--out", str(tmp_path / "out"), "--only", "ml-1m"]
    assert study.main(arguments) == 2
    assert "users.dat" in capsys.readouterr().err


# ---- parts --------------------------------------------------------------------------------------


def test_history_holds_earlier_ratings_alone(folder):
    made = data.movielens(folder / "ml-1m", TINY)
    lines = [map(int, t.split("::")) for t in (folder / "ml-1m/ratings.dat").read_text().split()]
    ratings = sorted(((*r,) for r in lines), key=lambda r: r[3])
    parts = np.split(np.arange(1000), [800, 900])
    chosen = [data._draw(p, n, 1) for p, n in zip(parts, (300, 80, 120), strict=True)]
    items, lengths = made.rows.bags["history/rated/items"]
    starts = lengths.cumsum() - lengths
    for i, number in enumerate(np.concatenate(chosen)):
        user, _, _, time = ratings[number]
        before = [r for r in ratings if r[0] == user and r[3] < time]
        known = set(data.hashes("movie", [r[1] for r in before[-9:]]).tolist()) if before else set()
        mine = items[starts[i] : starts[i] + lengths[i]]
        assert lengths[i] == min(6, len(before))
        assert set(mine.tolist()) <= known or len({r[3] for r in before}) < len(before)
        times = {data.hashes("movie", [r[1]])[0]: r[3] for r in before}
        assert [times[m] for m in mine] == sorted((r[3] for r in before), reverse=True)[: len(mine)]


def _made_scores(rows=400):
    draw = np.random.default_rng(0)
    labels = draw.integers(0, 2, (rows, 2)).astype(float)
    scores = [np.round(draw.normal(labels, spread), 1) for spread in (1, 2)]
    return scores, labels, draw.integers(0, 80, rows)


def test_metrics_are_those_of_scikit_learn():
    scores, labels, _ = _made_scores()
    found = judge.measured(scores[0][None], labels)
    chances = 1 / (1 + np.exp(-scores[0]))
    pairs = [(labels[:, t], chances[:, t]) for t in (0, 1)]
    assert found["auc"].value == pytest.approx(np.mean([roc_auc_score(*p) for p in pairs]))
    assert found["log_loss"].value == pytest.approx(np.mean([log_loss(*p) for p in pairs]))
    ratios = [abs(math.log(y.sum() / p.sum())) for y, p in pairs]
    assert found["miscalibration"].value == pytest.approx(np.mean(ratios))


@pytest.mark.parametrize("metric", judge.METRICS)
def test_standard_error_is_that_of_a_bootstrap_by_cluster(metric):
    scores, labels, clusters = _made_scores()
    one, two = (judge.measured(s[None], labels)[metric] for s in scores)
    found = judge.standard_error(one.influence - two.influence, clusters)
    draw, members = np.random.default_rng(1), [np.flatnonzero(clusters == c) for c in range(80)]
    gaps = []
    for _ in range(600):
        rows = np.concatenate([members[c] for c in draw.integers(0, 80, 80)])
        a, b = (judge.measured(s[None][:, rows], labels[rows])[metric].value for s in scores)
        gaps.append(a - b)
    assert found == pytest.approx(np.std(gaps), rel=0.15)


def test_difference_is_noise_by_the_seeds_or_by_the_rows():
    clear = judge.difference([0.010, 0.011, 0.012], [0.001] * 3)
    assert clear.sign == "+" and clear.bound == pytest.approx(
        4.3027 * 0.001 / math.sqrt(3), rel=1e-3
    )
    assert judge.difference([0.010, 0.011, 0.012], [0.006] * 3).sign == "0"
    assert judge.difference([-0.01, 0.03, 0.01], [0.001] * 3).sign == "0"
    assert judge.difference([0.010], [0.001]).sign == "?"
    assert judge.verdict("-", "+") == "opposite sign: not reproduced"
    assert judge.verdict("0", "+") == "inside the noise"


@pytest.mark.parametrize(("ids", "factor"), [(3883, 5), (3883, 100), (2999, 5), (2999, 100)])
def test_compressed_tables_have_so_many_times_fewer_rows(ids, factor):
    size = variants.table_size(ids, factor)
    rows = 2 * (-(-size.num_buckets // size.num_remainders) + size.num_remainders)
    assert rows == pytest.approx(ids / factor, abs=2)
    assert size.num_buckets > rows / 2


def test_off_policy_value_by_hand():
    logs = bandit.Logs(np.zeros(4, int), np.array([1.0, 0, 1, 0]), np.full(4, 0.5), None, None)
    found = bandit.off_policy(np.array([1.0, 0.5, 0.0, 0.5]), logs, 200)
    assert found["ips"] == pytest.approx((1 / 0.5) / 4)
    assert found["snips"] == pytest.approx((1 / 0.5) / (2 + 1 + 0 + 1))
    assert found["ips_interval"][0] <= found["ips"] <= found["ips_interval"][1]
    assert found["effective_rows"] == pytest.approx(16 / 6)


def test_a_policy_without_a_logged_click_is_not_known_to_be_bad():
    logs = bandit.Logs(np.zeros(69, int), np.zeros(69), np.full(69, 0.5), None, None)
    found = bandit.off_policy(np.ones(69), logs, 50)
    assert found["snips"] == 0 and found["snips_interval"] is None
    assert bandit.cautious(found) == pytest.approx([0, 1 - 0.025 ** (1 / 69)])


def test_thompson_finds_the_better_item(folder):
    logs = bandit.read(folder / "obd", "random")
    train, test = bandit.half(logs, False), bandit.half(logs, True)
    model, posterior = bandit.learn(train, replace(TINY, dense_lr=0.02), 0)
    shown = bandit.policies(model, posterior, test, 50, 0)["thompson"]
    assert shown[test.item == 3].mean() > 2 * shown[test.item != 3].mean()


def test_penalty_holds_the_weights_back(folder, monkeypatch):
    made = data.movielens(folder / "ml-1m", TINY)
    bench = runs.Bench(made, replace(TINY, fisher_rows=60), 0)
    start = bench.trainer(variants.configuration("ids", made, TINY), made.train[:200])
    start.fit()
    seen = []
    monkeypatch.setattr(bench, "scores", lambda model: seen.append(model) or np.zeros((1, 1, 1)))
    for forgetting in (0.0, 300.0):
        runs._updated(bench, start, made.train[:200], [made.train[200:]], forgetting)
    ruler = IncrementalPenalty(start.model, 1.0, skip=["tables"])
    ruler.record(start.model, runs._samples(bench, start, made.train[:200]), method="batch")
    free, held = (ruler(model).item() for model in seen)
    assert 0 < held < free / 2


def test_an_update_goes_on_with_the_tables_learning_rates(folder):
    made = data.movielens(folder / "ml-1m", TINY)
    bench = runs.Bench(made, TINY, 0)
    config = variants.configuration("ids", made, TINY)
    before, after = (bench.trainer(config, made.train) for _ in range(2))
    before.fit()
    runs._continue(before, after)
    for old, new in zip(
        before.model.state_dict().values(), after.model.state_dict().values(), strict=True
    ):
        assert old.equal(new)
    sums = [[s["sum"] for s in t.optimizers[1].state.values()] for t in (before, after)]
    assert all(a.equal(b) and a.any() for a, b in zip(*sums, strict=True))
