"""Every preset on real data: trained, swapped, quantized, saved, served."""

from __future__ import annotations

import copy

import pytest
import torch

for name in ("pyarrow", "yaml", "safetensors", "sklearn", "tqdm"):
    pytest.importorskip(name)

from pyarrow import parquet  # noqa: E402

import lirank_ext  # noqa: E402
from lirank_ext.data import ADULT  # noqa: E402
from lirank_ext.data.broken import BadRows  # noqa: E402
from lirank_ext.models import Categorical, LiRankConfig, Schema, Task, with_schema  # noqa: E402
from lirank_ext.training.metrics import evaluate  # noqa: E402
from lirank_ext.training.session import (  # noqa: E402
    load_model,
    open_loader,
    open_trainer,
    save_model,
)
from lirank_ext.training.settings import Config, Settings  # noqa: E402

RICH = Task("rich", "income", ">50K")
SINGLE = Task("single", "marital-status", "Never-married")
NUMERIC = ["age", "educational-num", "capital-gain", "capital-loss", "hours-per-week"]
AMOUNTS = ["capital-gain", "capital-loss"]


def feed() -> LiRankConfig:
    """Two groups of tasks, columns that share tables, random effects by country."""
    actor = [Categorical(name, "actor") for name in ("occupation", "workclass")]
    other = [Categorical(name, "hashtag") for name in ("education", "gender", "race")]
    tasks = [RICH, SINGLE]
    schema = Schema(NUMERIC, AMOUNTS, actor + other, tasks=tasks, popularity="native-country")
    config = with_schema(LiRankConfig.preset("feed"), schema)
    assert config.head.kind == "grouped"
    return config


def jobs() -> LiRankConfig:
    """A cross net for each of two tasks over the five matrices."""
    columns = {"occupation": "title", "education": "skill", "workclass": "company"}
    columns |= {"gender": "industry", "native-country": "seniority"}
    categorical = [Categorical(name, table) for name, table in columns.items()]
    categorical.append(Categorical("age", "seniority", edges=[25.0, 35.0, 45.0, 55.0]))
    return LiRankConfig.preset("jobs", Schema(categorical=categorical, tasks=[RICH, SINGLE]))


def ads() -> LiRankConfig:
    """A head for each task, calibrated by a column."""
    ids = {"occupation": "advertiser", "education": "campaign", "workclass": "ad"}
    categorical = [Categorical(name, table) for name, table in ids.items()]
    categorical += [Categorical(name, "context") for name in ("gender", "race")]
    schema = Schema(NUMERIC, AMOUNTS, categorical, tasks=[RICH, SINGLE])
    data = LiRankConfig.preset("ads", schema).to_dict()
    data["calibration"]["columns"] = ["gender"]
    return LiRankConfig.from_dict(data)


# AUC of both tasks after three passes over 6,000 rows, less about 0.015; jobs reads no numbers.
LEAST = {"feed": (0.84, 0.85), "jobs": (0.81, 0.84), "ads": (0.84, 0.85)}


@pytest.fixture(autouse=True)
def _one_thread(threads):
    threads(1)


@pytest.fixture(scope="module")
def adult(tmp_path_factory):
    """6,000 rows to train on and 3,000 others."""
    folder, table = tmp_path_factory.mktemp("adult"), parquet.read_table(ADULT)
    parquet.write_table(table.slice(0, 6000), folder / "train.parquet")
    parquet.write_table(table.slice(6000, 3000), folder / "test.parquet")
    return folder / "train.parquet", folder / "test.parquet"


@pytest.mark.parametrize("preset", [feed, jobs, ads])
def test_preset_trains_swaps_quantizes_and_serves(preset, adult, tmp_path):
    train, test = adult
    data = preset().to_dict()
    data["embedding"].update(num_buckets=2000, num_remainders=5, init_norm=0.03, tables={})
    settings = Settings(batch_size=128, epochs=3, lr=3e-3, warmup=0.2, prefetch=0)
    config = Config(LiRankConfig.from_dict(data), settings)
    trainer = open_trainer(config, [train])
    trainer.fit()
    rows = open_loader(config, [test], BadRows())
    trained = evaluate(trainer.model, rows)
    for task, least in zip(("rich", "single"), LEAST[preset.__name__], strict=True):
        assert trained[task].auc > least

    save_model(tmp_path, trainer.model, config)
    model, _ = load_model(tmp_path)
    assert evaluate(model, rows) == trained

    features = next(iter(rows)).features
    swapped = copy.deepcopy(model)
    lirank_ext.swap(swapped)
    with torch.inference_mode():
        before = model.predict(features)
        torch.testing.assert_close(swapped.predict(features), before)

    report = lirank_ext.quantize(swapped)
    assert report.bytes_after < report.bytes_before
    quantized = evaluate(swapped, rows)
    for task in ("rich", "single"):
        assert abs(quantized[task].auc - trained[task].auc) < 0.002
    with torch.inference_mode():
        after = swapped.predict(features)
        assert not torch.equal(after, before)

    program = torch.export.export(swapped, (features,)).module()
    with torch.inference_mode():
        torch.testing.assert_close(program(features).sigmoid(), after)
