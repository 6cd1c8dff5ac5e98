"""The script for machines with a GPU, as far as it can be tested without one."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys

import pytest
import torch
from conftest import REPOSITORY, needs_library

from lirank_ext.benchmarks.gpu import drive, worker
from lirank_ext.benchmarks.gpu.target import Place, Target

needs_no_gpu = pytest.mark.skipif(torch.cuda.is_available(), reason="there is a CUDA device")
needs_bash = pytest.mark.skipif(shutil.which("bash") is None, reason="no bash on PATH")
SMALL = Place("cpu", 512)


def _worker(tmp_path, check_only=True):
    return worker.Worker("test", SMALL, str(tmp_path / "r.jsonl"), None, check_only)


def _lines(tmp_path):
    return [json.loads(line) for line in (tmp_path / "r.jsonl").read_text().splitlines()]


@needs_library
@pytest.mark.parametrize("subject", worker.SUBJECTS)
def test_every_target_agrees_with_float64_and_states_a_floor(subject, tmp_path):
    with torch.no_grad():
        for target in worker.SUBJECTS[subject](SMALL):
            assert target.bytes > 0 and len(target.sets) >= 2
            assert worker.measure(_worker(tmp_path), target), _lines(tmp_path)


def _target(ours, **more):
    sets = [(torch.ones(64),), (torch.ones(64),)]
    return Target("op", "64", sets, ours, lambda t: t.double() * 2, bytes=512, **more)


def test_a_wrong_result_is_not_timed(tmp_path):
    assert not worker.measure(_worker(tmp_path, False), _target(lambda t: t * 3))
    assert [line["problem"] for line in _lines(tmp_path)] == ["error 1.00e+00, allowed 2.00e-04"]


def test_an_unwritten_result_is_found(tmp_path):
    worker.measure(_worker(tmp_path), _target(lambda t: torch.full_like(t, float("nan"))))
    assert "nan" in _lines(tmp_path)[0]["problem"]


def test_peers_are_compared_and_floors_are_not(tmp_path):
    peers = {"right": lambda t: t + t, "wrong": lambda t: t}
    target = _target(lambda t: t * 2, peers=peers, floors={"copy": lambda t: t.clone()})
    assert worker.measure(_worker(tmp_path, False), target)
    by = {}
    for line in _lines(tmp_path):
        by[line["provider"]] = by.get(line["provider"], {}) | line
    assert by["wrong"]["problem"] and "us" not in by["wrong"]
    assert all(by[name]["us"] > 0 for name in ("lirank", "right", "copy"))


def test_the_table_names_the_larger_floor_and_what_is_wrong():
    rates = {"copy": 1e9, "bfloat16 product": 1e12}
    ours = {"op": "a", "label": "s", "provider": "lirank", "us": 20.0, "host_us": 3.0}
    lines = [
        ours | {"bytes": 10_000, "flops": 1_000_000, "exps": 0},
        {"op": "a", "label": "s", "provider": "eager", "us": 40.0},
        {"op": "b", "label": "s", "provider": "lirank", "problem": "error 1"},
    ]
    first, second = drive.table(lines, rates)
    assert first == ["a", "s", "20.0", "10.0", "50%", "bytes", "3", "eager 40.0"]
    assert second[2] == "WRONG" and second[5] == "error 1"


@needs_library
def test_a_whole_run_leaves_its_files(tmp_path):
    command = [sys.executable, "-m", "lirank_ext.benchmarks.gpu.drive", "--out", str(tmp_path)]
    command += ["--device", "cpu", "--scale", "512", "--seconds", "100", "--skip", "verify"]
    done = subprocess.run([*command, "--subjects", "isotonic"], capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr
    wanted = {"env.json", "results.jsonl", "run.log", "summary.json"}
    assert {f.name for f in tmp_path.iterdir()} == wanted
    summary = json.loads((tmp_path / "summary.json").read_text())
    assert summary["failed"] == [] and len(summary["readings"]) > 2
    assert "isotonic_calibration" in done.stdout


@needs_library
def test_time_that_is_over_is_a_failure(tmp_path):
    command = [sys.executable, "-m", "lirank_ext.benchmarks.gpu.drive", "--out", str(tmp_path)]
    command += ["--device", "cpu", "--scale", "512", "--seconds", "0.5", "--skip", "verify"]
    done = subprocess.run([*command, "--subjects", "isotonic"], capture_output=True, text=True)
    assert done.returncode == 1 and "FAILED: isotonic (time)" in done.stdout


@needs_bash
@needs_no_gpu
def test_script_without_a_gpu_is_one_sentence(tmp_path):
    script = ["bash", REPOSITORY / "benchmarks/gpu.sh", tmp_path / "out"]
    environment = {"PYTHON": sys.executable, "PATH": "/usr/bin:/bin"}
    done = subprocess.run(script, capture_output=True, text=True, env=environment)
    assert done.returncode == 2 and not (tmp_path / "out").exists()
    assert len(done.stderr.splitlines()) == 1 and "no CUDA device" in done.stderr
