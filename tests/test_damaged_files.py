"""Every format of file: one flipped bit or a missing end is refused by name, a failed write keeps
the old file."""

from __future__ import annotations

import errno
import os
import subprocess
import sys
import textwrap

import pytest
import torch
from conftest import REPOSITORY

pytest.importorskip("safetensors")
pytest.importorskip("yaml")

from lirank_ext.library import files
from lirank_ext.models import ConfigError
from lirank_ext.nn import StaticVocabulary
from lirank_ext.training import checkpoint
from lirank_ext.training.settings import Config


def write_checkpoint(path):
    tensors = {"w": torch.arange(5.0), "half": torch.ones(2, 2).half(), "n": torch.tensor(7)}
    checkpoint.save(path, tensors, {"edges": [0.5, 2.25], "seed": 3, "name": "é"})


def write_vocabulary(path):
    StaticVocabulary.build(torch.arange(5), 8, oov=-2).save(path)


FORMATS = {
    "checkpoint": (write_checkpoint, checkpoint.load, checkpoint.CheckpointError),
    "vocabulary": (write_vocabulary, StaticVocabulary.load, ValueError),
}


def refused(path, data, load, error) -> None:
    path.write_bytes(data)
    with pytest.raises(error) as caught:
        load(path)
    message = str(caught.value)
    assert str(path) in message and "\n" not in message, message


@pytest.mark.parametrize("name", FORMATS)
def test_every_flipped_bit_is_refused_by_name(name, tmp_path):
    write, load, error = FORMATS[name]
    path = tmp_path / "file"
    write(path)
    whole = path.read_bytes()
    assert 100 < len(whole) < 2000
    for at in range(len(whole)):
        for bit in range(8):
            damaged = bytearray(whole)
            damaged[at] ^= 1 << bit
            refused(path, damaged, load, error)
    path.write_bytes(whole)
    load(path)


@pytest.mark.parametrize("name", FORMATS)
def test_every_length_is_refused_by_name(name, tmp_path):
    write, load, error = FORMATS[name]
    path = tmp_path / "file"
    write(path)
    whole = path.read_bytes()
    for length in range(len(whole)):
        refused(path, whole[:length], load, error)
    refused(path, whole + b"\0", load, error)


@pytest.mark.parametrize("size", [2**31, 2**40, 2**63 - 1, 2**64 - 1])
def test_a_size_in_a_header_is_checked_before_memory_is_asked_for(size, tmp_path):
    """Of the header of safetensors, and of the table and the keys of a vocabulary."""
    path = tmp_path / "file"
    write_checkpoint(path)
    whole = path.read_bytes()
    number = size.to_bytes(8, "little")
    refused(path, number + whole[8:], checkpoint.load, checkpoint.CheckpointError)
    write_vocabulary(path)
    whole = path.read_bytes()
    for at in (16, 48, 56, 64, 72):  # bytes of the table, keys, parts, buckets, spare slots
        damaged = whole[:at] + number + whole[at + 8 :]
        refused(path, damaged, StaticVocabulary.load, ValueError)


FULL = """
import os, resource, signal, sys
import torch
from lirank_ext.nn import StaticVocabulary
from lirank_ext.training import checkpoint
signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
resource.setrlimit(resource.RLIMIT_FSIZE, (1000, 1000))
path = sys.argv[1]
"""
WRITES = {
    "checkpoint": "checkpoint.save(path, {'w': torch.zeros(10**5)}, {})",
    "text": "checkpoint.save_text(path, 'x' * 10**5)",
    "vocabulary": "StaticVocabulary.build(torch.arange(10**5)).save(path)",
}


@pytest.mark.skipif(sys.platform != "linux", reason="limits of Linux processes")
@pytest.mark.parametrize("name", WRITES)
def test_a_disk_that_fills_up_leaves_the_old_file(name, tmp_path):
    path = tmp_path / "file"
    path.write_bytes(b"the old one")
    code = FULL + textwrap.dedent(
        f"""
        try:
            {WRITES[name]}
        except Exception as error:
            print(type(error).__name__, error)
        """
    )
    search = os.pathsep.join([str(REPOSITORY), *filter(None, [os.environ.get("PYTHONPATH")])])
    done = subprocess.run(
        [sys.executable, "-c", code, str(path)],
        env={**os.environ, "PYTHONPATH": search},
        capture_output=True,
        text=True,
    )
    assert os.strerror(errno.EFBIG) in done.stdout, done.stdout + done.stderr
    assert path.read_bytes() == b"the old one"
    assert [p.name for p in tmp_path.iterdir()] == ["file"]


@pytest.mark.parametrize("moment", ["write", "fsync", "replace"])
def test_a_kill_at_any_moment_leaves_the_old_file_or_the_new_one(moment, tmp_path):
    """The process ends within the call, without a cleanup."""
    path = tmp_path / "file"
    path.write_bytes(b"old")
    child = os.fork()
    if child == 0:
        try:  # whatever happens, the child is no second run of the tests
            parts = [b"new"]
            if moment == "write":
                parts = (os._exit(0) for _ in range(1))
            else:
                setattr(files.os, moment, lambda *_: os._exit(0))
            files.replace(path, parts)
        finally:
            os._exit(1)
    assert os.waitpid(child, 0)[1] == 0
    assert path.read_bytes() == b"old"


DEEP = {
    "brackets": "[" * 3_000,
    "braces": "{a: " * 3_000,
    "dashes": "- " * 3_000,
    "an alias of itself": "model: &a {mlp: *a}",
    "aliases of aliases": "a0: &a0 [x, x]\n"
    + "".join(f"a{i}: &a{i} [*a{i - 1}, *a{i - 1}]\n" for i in range(1, 40)),
    "aliases in a value": "model: {mlp: {dims: [["
    + ", ".join(["&a0 [x, x]", *(f"&a{i} [*a{i - 1}, *a{i - 1}]" for i in range(1, 60))])
    + "]]}}",
    "aliases in a choice": "training: {monitor: ["
    + ", ".join(["&a0 [x, x]", *(f"&a{i} [*a{i - 1}, *a{i - 1}]" for i in range(1, 60))])
    + "]}",
    "a tag": "model: !!python/object/apply:os.system [echo]",
    "two keys": "training: {lr: 1}\ntraining: {lr: 2}",
    "bytes": "training: {lr: \x00}",
}


@pytest.mark.parametrize("name", DEEP)
def test_a_configuration_that_would_not_end_is_refused_in_a_sentence(name, tmp_path):
    path = tmp_path / "config.yaml"
    path.write_text(DEEP[name])
    with pytest.raises(ConfigError) as caught:
        Config.load(path)
    message = str(caught.value)
    assert str(path) in message and "\n" not in message and len(message) < 1000, message
