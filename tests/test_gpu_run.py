"""What a machine with a GPU is asked to run, as far as a machine without one can tell."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys

import pytest
import torch
from conftest import REPOSITORY, needs_library

from lirank_ext.benchmarks import gpu_run, harness

needs_no_gpu = pytest.mark.skipif(torch.cuda.is_available(), reason="there is a CUDA device")
needs_bash = pytest.mark.skipif(shutil.which("bash") is None, reason="no bash on PATH")


def _modules(monkeypatch, *families: tuple[str, ...]) -> None:
    """Families of tiny workloads, each with a compiled provider that must not be called."""

    def fail():
        raise AssertionError("compiled")

    def of(labels):
        def workloads(device, peers, quick):
            one = torch.ones(1 << 12)
            for label in labels:
                providers = {
                    "lirank": lambda: one * 2,
                    "eager": lambda: one + one,
                    "compile it": fail,
                }
                yield harness.Workload("op", label, providers, lambda: one * 2, bytes=1 << 15)

        return type("Module", (), {"workloads": staticmethod(workloads)})

    monkeypatch.setattr(harness, "modules", lambda: [of(f) for f in families])


@needs_library
def test_families_take_turns_beside_floors_without_compiled_providers(monkeypatch, tmp_path):
    _modules(monkeypatch, ("a1", "a2"), ("b1",))
    file = tmp_path / "b.json"
    report, whole = gpu_run.run(gpu_run.Options("cpu", 60, False, str(file)))
    assert whole and [m.label for m in report.measured] == ["a1", "b1", "a2"]
    assert not report.failed
    assert len(json.loads(file.read_text())["measured"]) == 3
    row = gpu_run.cells(report.measured[0], None)
    assert row[:2] == ["op, forward", "a1"] and row[3] and row[4].endswith("%")
    assert row[5] == "copy" and row[6].startswith("eager")


@needs_library
def test_time_that_is_over_ends_it_after_a_first_figure(monkeypatch):
    _modules(monkeypatch, ("a1", "a2"))
    report, whole = gpu_run.run(gpu_run.Options("cpu", -1, False, None))
    assert not whole and [m.label for m in report.measured] == ["a1"]


@needs_bash
@needs_no_gpu
def test_script_without_a_gpu_is_one_sentence(tmp_path):
    script = ["bash", REPOSITORY / "benchmarks/gpu.sh", tmp_path / "out"]
    environment = {"PYTHON": sys.executable, "PATH": "/usr/bin:/bin"}
    done = subprocess.run(script, capture_output=True, text=True, env=environment)
    assert done.returncode == 2 and not (tmp_path / "out").exists()
    assert len(done.stderr.splitlines()) == 1 and "no CUDA device" in done.stderr
