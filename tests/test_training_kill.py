"""``train``, killed at random moments and resumed, gives the weights of an uninterrupted run."""

from __future__ import annotations

import multiprocessing
import os
import random
import signal
import sys
import time

import pytest
import torch

for name in ("pyarrow", "yaml", "safetensors", "sklearn", "tqdm"):
    pytest.importorskip(name)

from test_training import write_csv  # noqa: E402

from lirank_ext.training.session import load_model  # noqa: E402
from lirank_ext.training.trainer import CHECKPOINT  # noqa: E402
from lirank_ext.training.tuning import STATE  # noqa: E402

KILLS = 10
OPTIONS = ["--label", "click", "--set", "training.patience=0"]
OPTIONS += ["--set", "training.checkpoint_every=3", "--set", "training.batch_size=64"]
OPTIONS += ["--set", "training.fisher_rows=20", "--set", "training.shuffle_rows=256"]
OPTIONS += ["--set", "model.embedding.dim=4", "--set", "model.mlp.dims=[8]"]
OPTIONS += ["--set", "model.cross.rank=4"]


def train(arguments: list[str]) -> None:
    """Runs the command in a forked process, without output."""
    torch.set_num_threads(1)
    nowhere = os.open(os.devnull, os.O_WRONLY)
    os.dup2(nowhere, 1)
    os.dup2(nowhere, 2)
    from lirank_ext.__main__ import main

    sys.exit(main(["train", *arguments]))


def start(context, arguments):
    process = context.Process(target=train, args=([str(a) for a in arguments],))
    process.start()
    return process


def same_weights(one, two) -> bool:
    ours, theirs = load_model(one)[0].state_dict(), load_model(two)[0].state_dict()
    return all(torch.equal(ours[k], theirs[k]) for k in theirs)


@pytest.mark.skipif(sys.platform != "linux", reason="forkserver and SIGKILL")
@pytest.mark.parametrize(("tune", "epochs"), [("off", "15"), ("on", "4")])
def test_ten_kills_cost_no_bit(tmp_path, tune, epochs):
    """Killed by SIGKILL at moments drawn by a seed, before, in and between checkpoints."""
    options = [*OPTIONS, "--tune", tune, "--epochs", epochs]
    data = write_csv(tmp_path / "clicks.csv", 600)
    # One process imports PyTorch; every train is forked from it.
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(["lirank_ext.cli.train", "lirank_ext.training.run"])
    start(context, ["--help"]).join()  # waits for the imports

    whole = tmp_path / "whole"
    began = time.monotonic()
    process = start(context, [data, "--output", whole, *options])
    process.join()
    assert process.exitcode == 0
    seconds = time.monotonic() - began

    draw, kills, number = random.Random(7), 0, 0
    while True:
        cut = tmp_path / f"cut{number}"
        there = (cut / CHECKPOINT).exists() or (cut / STATE).exists()
        process = start(context, [data, "--output", cut, *options, *["--resume"] * there])
        process.join(draw.uniform(0, seconds / 6) if kills < KILLS else None)
        if process.exitcode is None:
            process.kill()
            process.join()
            assert process.exitcode == -signal.SIGKILL
            kills += 1
            continue
        assert process.exitcode == 0
        assert same_weights(cut, whole)
        if kills == KILLS:
            break
        number += 1  # it was faster than the first one: another run takes the kills that are left
