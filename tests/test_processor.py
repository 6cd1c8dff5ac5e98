"""The benchmark reads how much of the processor others use, and says so beside its figures."""

from __future__ import annotations

import json
import multiprocessing
import os
from dataclasses import asdict

import pytest

from lirank_ext.benchmarks import harness
from lirank_ext.benchmarks.report import Measured, Report, Timing
from lirank_ext.library import processor as disturbance
from lirank_ext.library.processor import Disturbance, Watch

needs_stat = pytest.mark.skipif(not disturbance.STAT.exists(), reason="Linux tells, others do not")


def _spin(started, stop) -> None:
    started.set()
    while not stop.is_set():
        sum(range(10_000))


@needs_stat
def test_a_busy_process_beside_this_one_is_seen():
    context = multiprocessing.get_context("spawn")
    started, stop = context.Event(), context.Event()
    process = context.Process(target=_spin, args=(started, stop), daemon=True)
    process.start()
    started.wait()
    try:
        _, seen = disturbance.free_threads(1.0)
    finally:
        stop.set()
        process.join()
    assert seen.others > 0.4  # at least most of a core, on a machine that has others to serve too


@pytest.fixture
def clock(monkeypatch):
    """Two readings: seconds, busy seconds of the cores, own seconds, preemptions."""
    readings = []
    monkeypatch.setattr(disturbance, "_now", lambda: readings.pop(0))
    monkeypatch.setattr(disturbance, "_cores", lambda: {0, 1})
    return readings


def test_own_time_is_not_that_of_others(clock):
    clock += [(10.0, 100.0, 5.0, 7), (12.0, 103.5, 8.0, 27)]  # 3.5 s busy, 3 s of them its own
    assert Watch().read() == Disturbance(0.25, 10.0)
    clock += [(10.0, 100.0, 5.0, 0), (11.0, 101.9, 7.0, 0)]  # the clocks tick at different times
    assert Watch().read().others == 0.0
    clock += [(10.0, None, 5.0, 0), (11.0, None, 7.0, 4)]
    assert Watch().read() == Disturbance(None, 4.0)


@pytest.mark.parametrize(
    ("others", "threads", "disturbed"),
    [(0.1, 2, False), (0.2, 2, True), (1.1, 1, False), (1.2, 1, True), (None, 2, False)],
)
def test_threads_are_disturbed_where_they_share_cores(clock, others, threads, disturbed):
    assert Disturbance(others, 0.0).disturbs(threads) is disturbed


@needs_stat
def test_only_cores_of_this_process_count(monkeypatch, tmp_path):
    stat = tmp_path / "stat"
    stat.write_text("cpu  9 9 9 9 9 9 9 9\ncpu0 1 2 4 1000 1000 8 16 32 64\n"
                    "cpu1 500 0 0 0 0 0 0 0\nintr 5\n")  # fmt: skip
    monkeypatch.setattr(disturbance, "STAT", stat)
    monkeypatch.setattr(disturbance, "_cores", lambda: {0})
    assert disturbance._busy() == 63 / os.sysconf("SC_CLK_TCK")


def test_free_threads_leaves_others_their_cores(clock, monkeypatch):
    monkeypatch.setattr(disturbance.time, "sleep", lambda seconds: None)
    monkeypatch.setattr(disturbance, "_cores", lambda: set(range(8)))
    for others, free in ((0.2, 8), (2.7, 5), (9.0, 1)):
        clock += [(0.0, 0.0, 0.0, 0), (1.0, others, 0.0, 0)]
        assert disturbance.free_threads()[0] == free


def _report(*others: float) -> Report:
    report = Report("cpu", None)
    for amount in others:
        measured = Measured("murmur_hash", "a shape", "forward", 1, "id", 8, "copy", 8, (0, 0))
        measured.timings = [Timing(n, 1e-3, 1e-3, 1e-3, 9, 2.0, None) for n in ("lirank", "eager")]
        measured.saw(Disturbance(amount, 0.0), 2)
        report.measured.append(measured)
    return report


def test_a_disturbed_shape_is_marked_and_said(clock):
    report = _report(0.0, 1.4)
    assert [m.disturbed for m in report.measured] == [False, True]
    assert [m.cells()[1][5] for m in report.measured] == ["2.00x", "2.00x?"]
    line = report.disturbance()
    assert "used up to 1.4 cores while 1 of 2 shapes were timed" in line
    assert json.loads(json.dumps(asdict(report.measured[1])))["disturbed"] is True
    assert _report(0.0, 0.1).disturbance() == ""


def test_without_threads_the_run_takes_those_that_are_free(monkeypatch, capsys):
    taken = []
    monkeypatch.setattr(harness, "free_threads", lambda: (1, Disturbance(1.3, 0.0)))
    monkeypatch.setattr(harness.torch, "get_num_threads", lambda: 2)
    monkeypatch.setattr(harness.torch, "set_num_threads", taken.append)
    monkeypatch.setattr(harness, "modules", lambda name: [])
    monkeypatch.setattr(harness, "Ceilings", lambda device, seconds: None)
    harness.run("cross")
    said = capsys.readouterr().err
    assert "other processes use 1.3 cores, so it takes 1 of 2 threads" in said
    harness.run("cross", threads=2)
    assert taken == [1, 2] and "other processes" not in capsys.readouterr().err
