"""The fuzzer of ``verify``: it finds nothing here, and what is wrong does not escape it."""

from __future__ import annotations

import json
import re

import pytest
import torch
from conftest import needs_library

from lirank_ext.cli import main
from lirank_ext.library.op import OPS, implementations
from lirank_ext.verify import fuzz, random_calls

CALLS = 40


def test_every_public_op_that_can_be_called_alone_has_random_calls():
    public = {name for name, op in OPS.items() if not op.internal}
    assert set(fuzz.GENERATORS) == public


@needs_library
@pytest.mark.parametrize("op", sorted(fuzz.GENERATORS))
def test_random_calls_find_nothing(op):
    found = {seed: fuzz.judge(op, seed) for seed in range(CALLS)}
    assert not {f"{op}:{seed}": problem for seed, problem in found.items() if problem}


@pytest.mark.parametrize("op", sorted(fuzz.GENERATORS))
def test_a_call_is_the_same_for_the_same_seed(op):
    def bits(seed):
        call = random_calls.random_call(op, seed)
        return [v.tolist() if isinstance(v, torch.Tensor) else v for v in call.values()]

    assert str(bits(3)) == str(bits(3))
    assert any(str(bits(3)) != str(bits(seed)) for seed in range(4, 9))


def wrong(kind):
    """The CPU kernel of isotonic_calibration with a defect."""
    right = implementations("isotonic_calibration")["cpu"]

    def call(logits, weight, *rest):
        if kind == "changes an input" and logits.numel():
            logits.view(-1)[0] += 1
        try:
            out = right(logits, weight, *rest)
        except Exception:
            if kind == "takes all":
                return torch.zeros(3)
            raise
        if kind == "refuses" and weight.numel() > 2:
            raise ValueError("lirank::isotonic_calibration: argument 'weight': wanted another")
        if kind == "a wrong value" and out.numel() > 3:
            out.view(-1)[2] += 1e-2
        if kind == "another dtype":
            out = out.double()
        if kind == "another shape":
            out = out.unsqueeze(0)
        if kind == "depends on threads" and torch.get_num_threads() > 1:
            out = out * (1 + 1e-7)
        return out

    return call


@needs_library
@pytest.mark.parametrize(
    ("kind", "words"),
    [
        ("changes an input", "an input was changed"),
        ("takes all", "took what the reference refuses"),
        ("refuses", "refused what the reference takes"),
        ("a wrong value", "error .* allowed"),
        ("another dtype", "the fake kernel promised otherwise"),
        ("another shape", "the fake kernel promised otherwise"),
        ("depends on threads", "other bits on another number of threads"),
    ],
)
def test_defects_are_found(monkeypatch, kind, words):
    monkeypatch.setattr(fuzz, "implementations", lambda op: {"cpu": wrong(kind)})
    problems = [fuzz.judge("isotonic_calibration", seed) for seed in range(CALLS)]
    assert any(re.search(words, problem) for problem in problems), set(problems)


def test_a_process_that_dies_is_a_finding(monkeypatch):
    monkeypatch.setattr(fuzz, "CHUNK", 3)
    judged, found = fuzz._chunk("murmur_hash", 0, 60.0)
    assert judged == 3 and not found
    monkeypatch.setattr(fuzz, "CHUNK", "no number")
    judged, (finding,) = fuzz._chunk("murmur_hash", 5, 60.0)
    assert (
        judged == 0 and finding.seed == 5 and "the process died (1) ValueError" in finding.problem
    )


@needs_library
def test_the_command_counts_calls_and_judges_one(tmp_path, capsys):
    command = ["verify", "--fuzz", "2", "--op", "murmur_hash", "--json", str(tmp_path / "f.json")]
    assert main(command) == 0
    assert "no findings" in capsys.readouterr().out
    figures = json.loads((tmp_path / "f.json").read_text())
    assert figures["calls"]["murmur_hash"] > 0 and figures["findings"] == []
    assert main(["verify", "--fuzz-call", "murmur_hash:7"]) == 0
    out = capsys.readouterr().out
    assert "ids: torch.int" in out and "no finding" in out
    assert main(["verify", "--fuzz-call", "murmur_hash"]) == 2
    assert "wanted OP:SEED" in capsys.readouterr().err
