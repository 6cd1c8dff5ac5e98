"""The logic of the benchmark harness, on tiny workloads. Speed is not tested."""

from __future__ import annotations

import json
import math
import time

import pytest
import torch
from conftest import REPOSITORY, needs_library

from lirank_ext.benchmarks import harness, memory
from lirank_ext.benchmarks.ceilings import Ceilings
from lirank_ext.benchmarks.report import Measured, Report, Timing
from lirank_ext.cli import main
from lirank_ext.library import load

ONE = torch.ones(8)


def workload(**options):
    given = {"op": "op", "label": "tiny", "providers": {"lirank": lambda: ONE + 1}}
    given["expect"] = lambda: torch.full((8,), 2.0, dtype=torch.float64)
    return harness.Workload(**{**given, **options})


def measure(w, seconds=0.02):
    return harness.measure(w, "cpu", Ceilings("cpu", 0.02), seconds)


@pytest.mark.parametrize(
    ("options", "wanted"),
    [
        ({"providers": {"eager": lambda: ONE}}, "'lirank'"),
        ({"expect": None}, "'expect'"),
        ({"ceiling": "sky"}, "'sky'"),
        ({"direction": "sideways"}, "'sideways'"),
    ],
)
def test_workload_refuses_what_cannot_be_measured(options, wanted):
    with pytest.raises(ValueError, match=wanted):
        workload(**options)


@pytest.mark.parametrize(
    ("got", "problem"),
    [
        (torch.tensor([1.0, 2.0]), ""),
        (torch.tensor([1.0, 2.0 + 1e-6]), ""),
        (torch.tensor([1.0, 2.1]), "error 1.00e-01"),
        (torch.tensor([1.0, math.nan]), "error nan"),
        (torch.tensor([[1.0, 2.0]]), "shape"),
        ([torch.tensor([1.0, 2.0])] * 2, "2 results, wanted 1"),
        (torch.tensor([0.0, 1.0, 1.0, 2.0]).to_sparse().to_dense()[2:], ""),
    ],
)
def test_disagreement(got, problem):
    wanted = torch.tensor([1.0, 2.0], dtype=torch.float64)
    found = harness.disagreement(got, wanted, 1e-5)
    assert found.startswith(problem) and bool(found) == bool(problem)


def test_integers_must_be_equal():
    a = torch.tensor([3, 1 << 60])
    assert harness.disagreement(a, a.clone(), 0.1) == ""
    assert harness.disagreement(a + torch.tensor([0, 1]), a, 0.1) == "1 of 2 integers differ"


def test_a_provider_that_disagrees_is_not_timed():
    calls = []

    def wrong():
        calls.append(1)
        return ONE * 3

    def broken():
        raise KeyError("no such shape")

    found = measure(workload(providers={"lirank": lambda: ONE + 1, "a": wrong, "b": broken}))
    assert [t.provider for t in found.timings] == ["lirank"]
    assert set(found.refused) == {"a", "b"} and "KeyError" in found.refused["b"]
    assert len(calls) == 1


def test_nothing_is_timed_where_ours_disagrees():
    found = measure(workload(providers={"lirank": lambda: ONE, "eager": lambda: ONE + 1}))
    assert not found.timings and set(found.refused) == {"lirank"}


def test_the_reference_provider_stands_in_for_expect():
    providers = {"lirank": lambda: ONE + 1, "reference": lambda: ONE + 1, "off": lambda: ONE}
    found = measure(workload(providers=providers, expect=None))
    assert set(found.refused) == {"off"}


def test_forward_runs_in_inference_mode_and_backward_does_not():
    seen = []

    def call():
        seen.append(torch.is_inference_mode_enabled())
        return ONE + 1

    measure(workload(providers={"lirank": call}))
    assert all(seen)
    seen.clear()
    measure(workload(providers={"lirank": call}, direction="backward"))
    assert seen and not any(seen)


def test_repeats_are_interleaved_and_the_order_rotates():
    log = []
    providers = {n: lambda n=n: (log.append(n), time.sleep(2e-3)) for n in ("lirank", "eager")}
    samples = harness.interleaved(providers, "cpu", 0.01)
    assert len(samples["lirank"]) == len(samples["eager"]) >= harness.LEAST
    last = log[-4:]
    assert sorted(last[:2]) == sorted(last[2:]) == ["eager", "lirank"]
    assert last in (["lirank", "eager", "eager", "lirank"], ["eager", "lirank", "lirank", "eager"])


def test_a_slow_provider_gets_fewer_repeats(monkeypatch):
    monkeypatch.setattr(harness, "PATIENCE", 1)
    samples = harness.interleaved({"lirank": lambda: time.sleep(0.02)}, "cpu", 0.01)
    assert len(samples["lirank"]) == 2


def test_ratio_is_the_median_of_paired_ratios(monkeypatch):
    """A slow phase that affects both providers of a repeat does not change the ratio."""
    samples = {"lirank": [1.0, 10.0, 1.0, 1.0, 4.0], "eager": [3.0, 30.0, 3.0, 3.0, 40.0]}
    monkeypatch.setattr(harness, "interleaved", lambda *a: samples)
    providers = dict.fromkeys(samples, lambda: ONE + 1)
    found = measure(workload(providers=providers, items=10, bytes=8_000))
    ours, eager = found.timings
    assert (ours.median, ours.p20, ours.p80) == (1.0, 1.0, 4.0)
    assert eager.ratio == 3.0 and ours.ratio == 1.0
    cells = found.cells()
    assert "3.00x" in cells[1] and "100000000.00 /row" in cells[0]


def test_fraction_is_the_stated_amount_over_the_ceiling():
    class Fixed:
        copy = staticmethod(lambda moved: 100.0)
        gather = staticmethod(lambda row, table: row * 2.0)
        fma = staticmethod(lambda: 50.0)
        exp = staticmethod(lambda: None)

    def fraction(**options):
        w = workload(**options)
        measured = Measured("op", "", "forward", 1, "row", w.bytes, w.ceiling, w.amount, w.gather)
        measured.timings = [Timing("lirank", 2.0, 2.0, 2.0, 5, 1.0, None)]
        harness.set_fractions(measured, Fixed)
        return measured.timings[0].fraction

    assert fraction(bytes=100) == 0.5
    assert fraction(bytes=64, ceiling="gather", gather=(64, 1 << 20)) == 0.25
    assert fraction(flops=25, ceiling="fma") == 0.25
    assert fraction(exps=9, ceiling="exp") is None
    assert fraction(bytes=0) is None


@needs_library
def test_ceilings_are_positive():
    ceilings = Ceilings("cpu", 0.02)
    rates = [ceilings.copy(1 << 20), ceilings.gather(64, 1 << 20), ceilings.fma(), ceilings.exp()]
    assert all(rate > 1e6 for rate in rates)
    assert ceilings.copy((1 << 20) - 5) >= rates[0] and len(ceilings.measured) == 4


@needs_library
def test_a_ceiling_is_the_best_of_three_readings():
    readings = iter([2.0, 5.0, 3.0])
    ceilings = Ceilings("cpu")
    found = [ceilings._keep("x", lambda: next(readings)) for _ in range(5)]
    assert found == [2.0, 5.0, 5.0, 5.0, 5.0]


def test_without_the_library_there_are_no_ceilings(monkeypatch):
    monkeypatch.setattr(load, "extension", None)
    assert Ceilings("cpu").fma() is None and Ceilings("cpu").copy(1000) is None


def test_peak_memory_sees_what_is_freed_again():
    def call():
        scratch = torch.ones(4 << 20)  # 16 MiB, gone at the end
        return scratch[:8].clone()

    call()
    extra = memory.peak_extra_bytes(call, "cpu")
    if extra is None:
        pytest.skip("this system does not tell a process its own high-water mark")
    assert 15 << 20 < extra < 40 << 20
    assert memory.peak_extra_bytes(lambda: None, "cpu") < 4 << 20


def example():
    timings = [
        Timing("lirank", 1e-3, 1e-3, 2e-3, 9, 1.0, 1024, 0.5),
        Timing("eager", 4e-3, 4e-3, 5e-3, 9, 4.0, None, None),
    ]
    small = [Timing("lirank", 1e-6, 1e-6, 1e-6, 9, 1.0, 0), Timing("eager", 1, 1, 1, 9, 1.0, 0)]
    report = Report("cpu", Ceilings("cpu"))
    stated = ("forward", 1000, "row", 10**6, "copy", 10**6, (64, 1 << 20))
    report.measured = [
        Measured("op", "big", *stated, timings),
        Measured("op", "small", *stated, small),
    ]
    return report


def test_summary_has_geometric_mean_and_worst_shape():
    assert example().summary()[0] == ["op", "eager", "2", "2.00x", "1.00x", "small", "0"]


def test_summary_names_the_fastest_of_the_others():
    """At each shape, by kind of label, without what is partly ours."""
    report = example()
    for m, ratio, label in zip(
        report.measured, (3.0, 5.0), ("int8 big", "int8 small"), strict=True
    ):
        m.label = label
        m.timings.append(Timing("peer", 1, 1, 1, 9, ratio, 0))
        m.timings.append(Timing("peer, huge pages", 1, 1, 1, 9, 0.1, 0))
        m.timings.append(Timing("lirank fp32", 1, 1, 1, 9, 0.1, 0))
    report.measured[1].timings[1].ratio = 0.5
    wanted = ["op int8", "the fastest of the others", "2", "1.22x", "0.50x", "int8 small", "1"]
    assert report.summary()[-1] == wanted
    assert [row[0] for row in report.summary()] == ["op"] * 4 + ["op int8"]


def test_report_as_json_and_as_a_table(capsys):
    report = example()
    assert not report.failed
    found = json.loads(json.dumps(report.as_json()))
    assert found["measured"][0]["timings"][1]["ratio"] == 4.0
    assert {"cpu", "cores", "threads", "isa", "torch", "date"} <= set(found["machine"])
    report.measured[0].refused["peer"] = "error 1.0"
    report.absent = ["fbgemm"]
    report.show()
    printed = capsys.readouterr().out
    for text in ("1 ms", "4.00x", "50% copy", "1 KiB", "NOT TIMED: error 1.0", "fbgemm"):
        assert text in printed, text
    assert report.failed


def test_a_run_without_measurements_failed():
    assert Report("cpu", Ceilings("cpu")).failed


def test_every_family_benchmark_states_workloads():
    assert {"cross", "isotonic"} <= set(harness.stems())
    for stem in harness.stems():
        assert (REPOSITORY / "benchmarks" / f"bench_{stem}.py").is_file()
    for module in harness.modules():
        assert callable(module.workloads), module.__name__


def test_names_are_families_and_public_ops():
    assert {"cross", "isotonic", "low_rank_cross", "isotonic_calibration"} <= set(harness.names())
    assert [m.__name__ for m in harness.modules("low_rank_cross")] == [
        "lirank_ext.benchmarks.bench_cross"
    ]


def test_run_refuses_an_unknown_name():
    with pytest.raises(ValueError, match="nothing is called 'x'; there are: "):
        harness.run("x")


@pytest.mark.parametrize(
    ("stem", "op"),
    [
        ("isotonic", "isotonic_calibration"),
        ("cross", "low_rank_cross"),
        ("cross", "outer_attention"),
    ],
)
def test_first_workload_agrees_with_its_reference(stem, op):
    """The statement itself: shapes, inputs and expected result fit each other."""
    (module,) = harness.modules(stem)
    found = next(w for w in module.workloads("cpu", False, True) if w.op == op)
    providers = {n: c for n, c in found.providers.items() if "compile" not in n}
    found.providers = providers
    with torch.inference_mode():
        assert harness.refusals(found) == {}


def test_the_time_left_is_guessed_from_the_families_before(monkeypatch, capsys):
    now = [0.0]
    monkeypatch.setattr("lirank_ext.benchmarks.harness.time.monotonic", lambda: now[0])
    for _ in harness.Clock(["a", "b", "c"], 0.4):
        now[0] += 10
    said = capsys.readouterr().err.splitlines()
    assert "3 families of ops, 0.4 s of repeats" in said[0]
    assert said[1:] == [
        "bench: 1 of 3 families, 10 s; about 20 s left",
        "bench: 2 of 3 families, 20 s; about 10 s left",
    ]


def test_an_earlier_run_is_shown_and_drawn_again(tmp_path, capsys):
    pytest.importorskip("matplotlib")
    file = REPOSITORY / "benchmarks" / "results" / "cpu-amx-xeon-2026-11-26.json"
    content = json.loads(file.read_text())
    again, picture = tmp_path / "again.json", tmp_path / "chart.svg"
    options = ["--json", str(again), "--plot", str(picture), "--fastest"]
    assert main(["bench", "--from", str(file), *options]) == 0
    printed = capsys.readouterr().out
    assert content["machine"]["device"] in printed and "vocabulary_lookup" in printed
    new = json.loads(again.read_text())
    assert new["machine"] == content["machine"] and new["ceilings"] == content["ceilings"]
    for before, after in zip(content["measured"], new["measured"], strict=True):
        assert before["timings"] == after["timings"] and before.items() <= after.items()
    drawn = picture.read_text()
    assert drawn.lstrip().startswith("<?xml") and content["machine"]["date"] in drawn


def test_what_is_no_earlier_run_is_refused(tmp_path, capsys):
    (tmp_path / "x.json").write_text("[1]")
    assert main(["bench", "--from", str(tmp_path / "x.json")]) == 2
    assert "wanted JSON that bench --json wrote" in capsys.readouterr().err
    assert main(["bench", "--from", str(tmp_path / "y.json")]) == 2
    assert "cannot read" in capsys.readouterr().err
    assert main(["bench", "--fastest"]) == 2
    assert "give --plot" in capsys.readouterr().err
