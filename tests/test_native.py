"""liblirank.so without the pybind11 module: what any Python reaches by ctypes is the same."""

from __future__ import annotations

import ctypes
import sys
import threading

import pytest
import torch
from conftest import needs_library

from lirank_ext import hash_strings
from lirank_ext.library import load
from lirank_ext.ops import hashing_text

pytestmark = needs_library


@pytest.fixture
def native(monkeypatch):
    from lirank_ext.library import native

    monkeypatch.setattr(hashing_text, "extension", native)
    return native


def test_it_has_all_that_the_pybind11_module_has(native):
    if load.extension is native:
        pytest.skip("there is no pybind11 module for this Python")
    names = {name for name in dir(load.extension) if not name.startswith("_")}
    assert "hash_sequence" in names and all(hasattr(native, name) for name in names)
    assert native.isa() == load.extension.isa()
    assert native.built_for_torch == load.extension.built_for_torch
    assert native.compiler == load.extension.compiler
    assert native.ceiling_fma(1, 0.01) > 0


def test_the_layout_of_str_is_known_in_every_cpython_that_runs_these_tests(native):
    """If it is not, strings are hashed by way of bytes objects, which takes longer."""
    layout = native.python()
    assert layout is not None and layout.ascii
    assert layout.text_at == sys.getsizeof("") - 1


def test_where_the_layout_is_unknown_python_encodes(native, monkeypatch):
    keys = ["a", "ü", b"c", *map(str, range(50))]
    wanted = hash_strings(keys)
    monkeypatch.setattr(native, "python", lambda: None)
    assert torch.equal(hash_strings(keys), wanted)
    assert hash_strings([]).shape == (0,)
    with pytest.raises(TypeError, match="got NoneType at position 1"):
        hash_strings(["a", None])


class Text(str):
    pass


class Data(bytes):
    pass


def test_strings_in_every_state(native):
    """Interned, of a subclass, one character, as keys of a dict, with UTF-8 kept by CPython."""
    kept = "".join(["kept ", "λ", "!"])
    ctypes.pythonapi.PyUnicode_AsUTF8AndSize.argtypes = [ctypes.py_object, ctypes.c_void_p]
    ctypes.pythonapi.PyUnicode_AsUTF8AndSize(kept, None)
    plain = ["", "a", "é", "member:1", "λ", "日本", "🙂", "\0", "x" * 1000, "é" * 1000, kept]
    keys = [*plain, *map(Text, plain), *map(sys.intern, plain), *(p.encode() for p in plain)]
    keys += [Data(p.encode()) for p in plain]
    hashes = hash_strings(keys).view(-1, len(plain))
    assert torch.equal(hashes, hashes[:1].expand_as(hashes))
    assert len(hashes[0].unique()) == len(plain)
    assert torch.equal(hash_strings(dict.fromkeys(plain).keys()), hashes[0])


def test_a_list_that_another_thread_changes(native):
    """It is read to its end as it is, or refused; nothing else may happen."""
    keys, stop = [f"member:{i}" for i in range(300_000)], threading.Event()

    def change():
        while not stop.is_set():
            keys.append("more")
            keys.pop()

    thread = threading.Thread(target=change)
    thread.start()
    try:
        for _ in range(5):
            try:
                assert hash_strings(keys).shape[0] in (300_000, 300_001)
            except ValueError as error:
                assert "wanted a writable buffer" in str(error) or "changed its length" in str(
                    error
                )
    finally:
        stop.set()
        thread.join()
