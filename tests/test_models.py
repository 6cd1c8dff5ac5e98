from __future__ import annotations

import copy
import dataclasses

import pytest
import torch
from rankers import PRESETS, make_features, small

import lirank_ext
from lirank_ext.models import (
    Categorical,
    ConfigError,
    LiRank,
    LiRankConfig,
    Schema,
    Table,
    Task,
    with_schema,
)
from lirank_ext.models._parse import override
from lirank_ext.training import Config


@pytest.fixture(autouse=True)
def _one_thread(threads):
    """These models are too small to share out."""
    threads(1)


@pytest.mark.parametrize("name", PRESETS)
def test_every_parameter_of_a_preset_learns(name):
    config = small(name)
    model = LiRank(config)
    features = make_features(config)
    logits = model(features)
    assert logits.shape == (8, len(config.schema.tasks))
    weights = torch.randn_like(logits)
    (logits * weights).sum().backward()
    idle = [n for n, p in model.named_parameters() if p.grad is None]
    assert idle == []


@pytest.mark.parametrize("name", PRESETS)
def test_training_lowers_the_loss(name):
    config = small(name)
    model = LiRank(config)
    features = make_features(config, 32)
    labels = (torch.rand(32, len(config.schema.tasks)) < 0.3).float()
    tables, rest = model.table_parameters(), model.dense_parameters()
    optimizers = [torch.optim.Adagrad(tables, lr=0.05), torch.optim.Adam(rest, lr=3e-3)]
    losses = []
    for _ in range(15):
        loss = torch.nn.functional.binary_cross_entropy_with_logits(model(features), labels)
        for optimizer in optimizers:
            optimizer.zero_grad()
        loss.backward()
        with torch.sparse.check_sparse_tensor_invariants(False):
            for optimizer in optimizers:
                optimizer.step()
        losses.append(loss.item())
    assert losses[-1] < 0.7 * losses[0]


@pytest.mark.parametrize("name", PRESETS)
def test_config_survives_yaml(name, tmp_path):
    config = LiRankConfig.preset(name)
    config.save(tmp_path / "c.yaml")
    assert LiRankConfig.load(tmp_path / "c.yaml") == config


def test_presets_are_those_of_the_paper():
    feed, jobs, ads = map(LiRankConfig.preset, PRESETS)
    assert len(feed.schema.categorical) == 6
    assert (feed.embedding.dim, feed.mlp.dims, feed.cross.num_layers) == (30, [100] * 4, 2)
    assert len(LiRank(feed).head.towers) == 2
    assert len(jobs.schema.categorical) == 40
    assert len(jobs.schema.tables()) == 5
    assert len(LiRank(jobs).head.interactions) == 2
    assert len(LiRank(ads).head.interactions) == 3


SWITCHES = (
    "embedding.enabled=false",
    "numeric.enabled=false",
    "numeric.batch_norm=false",
    "history.enabled=false",
    "cross.low_rank=false",
    "cross.attention=false",
    "cross.merge=concat",
    "mlp.enabled=false",
    "mlp.gate=null",
    "mlp.batch_norm=true",
    "head.kind=mmoe",
    "head.kind=ple",
    "head.interactions=per_tower",
    "calibration.enabled=false",
    "popularity.enabled=false",
    "explore.enabled=true",
    "embedding.dropout=0.5",
)


@pytest.mark.parametrize("switch", SWITCHES)
def test_every_block_can_be_switched(switch):
    data = small("feed").to_dict()
    override(data, *switch.split("="))
    config = LiRankConfig.from_dict(data)
    assert config != small("feed")
    torch.manual_seed(0)
    model, features = LiRank(config), make_features(config)
    torch.manual_seed(0)
    whole = LiRank(small("feed"))
    assert model(features).isfinite().all()
    here, there = (sorted(n for n, _ in m.named_modules()) for m in (model, whole))
    same_parts = ("merge", "dropout", "batch_norm=false")
    assert (here != there) or any(part in switch for part in same_parts)


def test_all_off_is_refused():
    config = small("feed")
    off = {"embedding": dataclasses.replace(config.embedding, enabled=False)}
    off["numeric"] = dataclasses.replace(config.numeric, enabled=False)
    with pytest.raises(ConfigError, match="no column to read"):
        LiRank(dataclasses.replace(config, **off))


@pytest.mark.parametrize(
    ("data", "message"),
    [
        ({"cros": {}}, r"unknown key 'cros' \(did you mean 'cross'\?\)"),
        ({"cross": {"ranks": 3}}, r"unknown key 'cross.ranks' \(did you mean 'rank'\?\)"),
        ({"schema": {"tasks": [{"nmae": "x"}]}}, r"'schema.tasks\[0\].nmae' \(did you mean 'name'"),
        ({"cross": {"rank": "many"}}, "cross.rank: wanted a whole number, got 'many'"),
        ({"cross": {"rank": 0}}, "rank: wanted 1 or more, got 0"),
        ({"mlp": {"gate": "tan"}}, r"mlp.gate: .*did you mean 'tanh'"),
        ({"mlp": {"enabled": 1}}, "mlp.enabled: wanted true or false, got 1"),
        ({"mlp": {"dropout": 1.5}}, r"dropout: wanted a number in \[0, 1\)"),
        ({"schema": {"numeric": ["a", "a"]}}, "numeric: 'a' occurs more than once"),
        ({"schema": {"history": [{"name": "h"}]}}, r"missing key 'schema.history\[0\].candidate'"),
        ({"calibration": {"columns": ["x"]}}, "no categorical column 'x'"),
        ({"head": {"kind": "ple", "interactions": "per_tower"}}, "'per_tower' needs kind"),
        ({"head": {"groups": [["clik"]]}, "schema": {"tasks": ["click"]}}, "did you mean 'click'"),
        ({"embedding": {"tables": {"x": {}}}}, "no table 'x'"),
        ({"calibration": {"upper": float("inf")}}, "calibration.upper: wanted a finite number"),
        ({"calibration": {"step": ".nan"}}, "calibration.step: wanted a "),
        ({"mlp": {"dropout": "1e999"}}, "mlp.dropout: wanted a finite number, got inf"),
    ],
)
def test_bad_configs_name_the_key(data, message):
    with pytest.raises(ConfigError, match=message):
        LiRankConfig.from_dict(data)


def test_bad_yaml_names_file_and_line(tmp_path):
    path = tmp_path / "c.yaml"
    path.write_text("cross:\n  rank: [1\n")
    with pytest.raises(ConfigError, match=r"c\.yaml:3"):
        LiRankConfig.load(path)
    path.write_text("mlp:\n  gate: tanh\nmlp:\n  gate: none\n")
    with pytest.raises(ConfigError, match=r"c\.yaml:3: key 'mlp' occurs twice"):
        LiRankConfig.load(path)
    path.write_text("cros: {}\n")
    with pytest.raises(ConfigError, match=r"c\.yaml: unknown key 'cros'"):
        LiRankConfig.load(path)
    with pytest.raises(ConfigError, match=r"none\.yaml"):
        LiRankConfig.load(tmp_path / "none.yaml")


def test_yaml_numbers_without_a_dot_are_numbers():
    assert LiRankConfig.from_dict({"cross": {"temperature": "1e-1"}}).cross.temperature == 0.1


def test_bare_on_and_off_are_choices(tmp_path):
    path = tmp_path / "c.yaml"
    path.write_text("training:\n  tune: off\n  amp: on\n")
    training = Config.load(path).training
    assert (training.tune, training.amp) == ("off", "on")
    path.write_text("model:\n  mlp:\n    gate: off\n")
    with pytest.raises(ConfigError, match=r"mlp\.gate: wanted one of .*got 'off'"):
        Config.load(path)


def test_missing_features_are_named():
    config = small("ads")
    features = make_features(config)
    del features["ids/ad"]
    with pytest.raises(ValueError, match="'ids/ad'"):
        LiRank(config)(features)
    features = make_features(config)
    features["offsets/context"] = features["offsets/context"][:-1]
    with pytest.raises(ValueError, match="2 bags for every row"):
        LiRank(config)(features)


def test_columns_of_one_prefix_share_rows():
    schema = Schema(
        categorical=[Categorical("a", "t", "x"), Categorical("b", "t", "x")], tasks=[Task("y")]
    )
    model = LiRank(LiRankConfig(schema))
    ids = torch.tensor([5, 5])
    bags = model.bags({"ids/t": ids, "offsets/t": torch.arange(2)})["t"]
    assert torch.equal(bags[:, 0], bags[:, 1])


def test_popularity_corrects_the_logits():
    config = small("feed")
    model = LiRank(config).eval()
    features = make_features(config, 40)
    features["popularity"] = torch.arange(40) % 2
    labels = (torch.arange(40) % 2).float().unsqueeze(1).expand(40, 3)
    with torch.no_grad():
        before, logits = model(features), model.logits(features)
        model.fit_popularity(logits, features["popularity"], labels)
        after = model(features)
    up = features["popularity"] == 1
    assert (after[up] > before[up]).all()
    assert (after[~up] < before[~up]).all()


def test_exploration_centres_on_the_regression():
    data = small("ads").to_dict()
    data["explore"]["enabled"] = True
    config = LiRankConfig.from_dict(data)
    model = LiRank(config).eval()
    features, labels = make_features(config, 200), torch.rand(200, 3)
    model.update_posteriors(features, labels)
    draws = torch.stack([model.explore(features) for _ in range(50)])
    z = model.representations(features)
    means = [p(h)[:, 0] for p, h in zip(model.posteriors, z, strict=True)]
    wanted = torch.stack(means, 1)
    assert (draws.mean(0) - wanted).abs().mean() < 0.5 * draws.std(0).mean()
    assert model.representations(features)[0].shape == (200, 65)


def test_presets_take_other_columns():
    schema = Schema(["age"], categorical=[Categorical("city")], tasks=[Task("y")])
    for name in PRESETS:
        config = LiRankConfig.preset(name, schema)
        assert LiRank(config)(make_features(config)).shape == (8, 1)
    jobs = LiRankConfig.preset("jobs")
    assert with_schema(jobs, jobs.schema) == jobs
    assert jobs.embedding.tables["title"] == Table(100_000, 5)


@pytest.mark.parametrize("name", PRESETS)
def test_swap_changes_nothing(name):
    if not hasattr(lirank_ext, "swap"):
        pytest.skip("this build has no swap")
    config = small(name)
    model, features = LiRank(config).eval(), make_features(config)
    swapped = copy.deepcopy(model)
    lirank_ext.swap(swapped)
    with torch.inference_mode():
        torch.testing.assert_close(swapped(features), model(features))


@pytest.mark.parametrize("name", PRESETS)
def test_quantized_model_serves(name):
    if not hasattr(lirank_ext, "quantize"):
        pytest.skip("this build has no quantize")
    config = small(name)
    model, features = LiRank(config).eval(), make_features(config)
    with torch.inference_mode():
        before = model.predict(features)
        lirank_ext.quantize(model)
        after = model.predict(features)
    assert not torch.equal(before, after)
    torch.testing.assert_close(after, before, atol=0.01, rtol=0)


@pytest.mark.parametrize("name", PRESETS)
def test_model_exports(name):
    config = small(name)
    model, features = LiRank(config).eval(), make_features(config)
    program = torch.export.export(model, (features,))
    with torch.inference_mode():
        torch.testing.assert_close(program.module()(features), model(features))


def test_model_with_fitted_popularity_exports():
    """Known and unknown ids get their effects from the exported program too."""
    config = small("feed")
    model, features = LiRank(config).eval(), make_features(config, 40)
    features["popularity"] = torch.arange(40) % 2
    labels = (torch.arange(40) % 2).float().unsqueeze(1).expand(40, 3)
    with torch.no_grad():
        model.fit_popularity(model.logits(features), features["popularity"], labels)
    program = torch.export.export(model, (features,)).module()
    other = {**features, "popularity": torch.arange(40) % 3}
    with torch.inference_mode():
        torch.testing.assert_close(program(features), model(features))
        torch.testing.assert_close(program(other), model(other))
        assert not torch.equal(program(features), program(other))


def test_start_of_the_tables_has_the_norm_asked_for():
    norms = []
    for norm in (1.0, 0.03):
        config = small("jobs")
        embedding = dataclasses.replace(config.embedding, dim=32, init_norm=norm)
        config = dataclasses.replace(config, embedding=embedding)
        bags = LiRank(config).bags(make_features(config, 40))
        found = torch.cat([b.flatten(0, 1) for b in bags.values()]).norm(dim=1)
        norms.append(found[found > 0].mean().item())
    assert norms[0] == pytest.approx(0.8, abs=0.2)  # below 1: cells of several ids are averaged
    assert norms[1] == pytest.approx(0.03 * norms[0], rel=0.1)
