from __future__ import annotations

import random
import struct

import mmh3
import numpy as np
import pytest
import torch
from conftest import needs_library

from lirank_ext import hash_strings, murmur_hash
from lirank_ext.library.op import implementations
from lirank_ext.ops import hashing_text

SEEDS = (0, 1, 42, 0x9747B28C, (1 << 31) - 1, 1 << 31, (1 << 32) - 1)
TEXT = ["", "a", "member:1234", "müller", "Ελλάδα", "日本語" * 9, "🙂 ok", "x" * 100, "\0", "a\0b"]
OUT_OF_RANGE = (-1, 1 << 32, 1 << 40)


def expected(keys, seed=0):
    keys = [k.encode() if isinstance(k, str) else k for k in keys]
    return torch.tensor([mmh3.hash64(k, seed, signed=True)[0] for k in keys], dtype=torch.int64)


def as_pair(keys):
    data = torch.tensor(list(b"".join(keys)), dtype=torch.uint8)
    return data, torch.tensor([0, *map(len, keys)]).cumsum(0)


@pytest.fixture
def path(interface, monkeypatch):
    """Every way from Python's strings to hashes."""
    monkeypatch.setattr(hashing_text, "extension", interface)


def same(got, keys, seed=0):
    assert got.dtype == torch.int64 and got.shape == (len(keys),)
    return torch.equal(got, expected(keys, seed))


@pytest.mark.parametrize("seed", SEEDS)
def test_ids_are_bit_equal_to_mmh3(seed):
    ids = torch.randint(-(1 << 63), (1 << 63) - 1, (501,))
    ids[:4] = torch.tensor([0, -1, (1 << 63) - 1, -(1 << 63)])
    keys = [i.to_bytes(8, "little", signed=True) for i in ids.tolist()]
    assert same(murmur_hash(ids, seed), keys, seed)
    for implementation in implementations("murmur_hash").values():
        assert torch.equal(implementation(ids, seed), expected(keys, seed))


@pytest.mark.parametrize("seed", SEEDS)
def test_every_length_is_bit_equal_to_mmh3(seed):
    keys = [random.Random(n).randbytes(n) for n in range(65)]
    for implementation in implementations("hash_strings").values():
        assert same(implementation(*as_pair(keys), seed), keys, seed)
        for length in range(33):  # as the last key, with nothing behind it
            alone = [b"", b"\xff" * length]
            assert same(implementation(*as_pair(alone), seed), alone, seed)


@needs_library
@pytest.mark.parametrize("count", range(18))
def test_ids_left_over_by_the_lanes(count):
    ids = torch.randint(-(1 << 63), (1 << 63) - 1, (count + 1,))[1:]
    both = implementations("murmur_hash")
    assert torch.equal(both["cpu"](ids, 9), both["reference"](ids, 9))


def test_shapes_strides_and_empty():
    ids = torch.randint(-(1 << 62), 1 << 62, (6, 10))
    assert murmur_hash(ids).shape == (6, 10)
    assert torch.equal(murmur_hash(ids.t()), murmur_hash(ids).t())
    assert torch.equal(murmur_hash(ids[:, ::3]), murmur_hash(ids)[:, ::3])
    assert murmur_hash(ids[:0]).shape == (0, 10)
    assert murmur_hash(ids[0, 0]).shape == ()


def test_bit_equal_for_any_number_of_threads(threads):
    ids, keys = torch.arange(100_000), [f"k{i}" for i in range(50_000)]
    results = []
    for count in (1, 2, 3):
        threads(count)
        results.append((murmur_hash(ids, 3), hash_strings(keys, 3)))
    assert all(torch.equal(a, b) for r in results for a, b in zip(r, results[0], strict=True))


@pytest.mark.parametrize("seed", OUT_OF_RANGE)
def test_seed_out_of_range(seed, path):
    for call in (lambda: murmur_hash(torch.arange(3), seed), lambda: hash_strings(["a"], seed)):
        with pytest.raises(ValueError, match=r"'seed': wanted a number from 0 to 2\^32 - 1"):
            call()


@pytest.mark.parametrize("seed", [0, (1 << 32) - 1])
def test_sequences(path, seed):
    encoded = [t.encode() for t in TEXT]
    lengths = [c * n for n in range(40) for c in ("x", "é", "語", "🙂")]
    for keys in (TEXT, tuple(TEXT), encoded, [*TEXT, *encoded], [np.str_("é"), "b"], [], lengths):
        assert same(hash_strings(keys, seed), keys, seed)
    assert same(hash_strings(dict.fromkeys(TEXT).keys(), seed), TEXT, seed)


def test_many_keys(path):
    keys = [f"{random.random()}é"[: i % 23] for i in range(70_000)]
    assert same(hash_strings(keys), keys)


@pytest.mark.parametrize(
    ("keys", "error", "text"),
    [
        (["a", "\ud800"], ValueError, "lone surrogate at position 1"),
        (["a", "b\udfff\U0001f642"], ValueError, "lone surrogate at position 1"),
        (["a", None], TypeError, "wanted str or bytes, got NoneType at position 1"),
        (["a"] * 99 + [7], TypeError, "got int at position 99"),
        ([float("nan")], TypeError, "got float at position 0"),
        ("member:1", TypeError, "got str"),
        (b"member:1", TypeError, "got bytes"),
        ({"a", "b"}, TypeError, "got set"),
        (7, TypeError, "got int"),
        (torch.zeros(3), TypeError, "got Tensor"),
        (np.arange(3), TypeError, "NumPy array of int64"),
        (np.array([["a"]]), ValueError, "one dimension"),
        (np.array(["a", "\udc00"]), ValueError, "position 1"),
        (np.array(["a", None]), TypeError, "NoneType at position 1"),
        ((torch.zeros(3).byte(), "x"), TypeError, "two tensors"),
        ([torch.zeros(3).byte()], TypeError, "two tensors"),
    ],
)
def test_refused(path, keys, error, text):
    with pytest.raises(error, match=text):
        hash_strings(keys)


def test_numpy(path):
    long = np.array(TEXT[:8])
    for array in (
        long,
        long[::2],
        long[::-1],
        long[:0],
        long.astype(long.dtype.newbyteorder(">")),
        np.array(TEXT, dtype=object),
        np.array([b"", b"abc", b"a\0b", b"0123456789abcdef"]),
        np.array(["", ""]),
    ):
        assert same(hash_strings(array, 5), array.tolist(), 5)


@pytest.mark.skipif(
    not hasattr(getattr(np, "dtypes", None), "StringDType"), reason="NumPy 1 has no StringDType"
)
def test_numpy_strings_of_any_length(path):
    assert same(hash_strings(np.array(TEXT, dtype=np.dtypes.StringDType())), TEXT)


ARROW = ("string", "large_string", "string_view")


@pytest.mark.parametrize("kind", ARROW)
def test_arrow(path, kind):
    pa = pytest.importorskip("pyarrow")
    array = pa.array(TEXT, type=getattr(pa, kind)())
    for part in (array, array[3:], array[2:7], array[4:4], array[:0], array[9:]):
        assert same(hash_strings(part, 5), part.to_pylist(), 5)
    chunked = pa.chunked_array([array, array[5:], array[:0]])
    assert same(hash_strings(chunked, 5), chunked.to_pylist(), 5)
    assert same(hash_strings(chunked[4:14], 5), chunked[4:14].to_pylist(), 5)
    assert hash_strings(pa.chunked_array([], type=array.type)).shape == (0,)
    if kind != "string_view":
        assert same(hash_strings(array.dictionary_encode()), TEXT)


def test_arrow_binary_and_refusals(path):
    pa = pytest.importorskip("pyarrow")
    for kind in (pa.binary(), pa.large_binary()):
        assert same(hash_strings(pa.array([b"\xff\0", b""], type=kind)), [b"\xff\0", b""])
    holed = pa.array(["a", "b", None])
    with pytest.raises(ValueError, match="null at position 2"):
        hash_strings(holed)
    with pytest.raises(ValueError, match="null at position 4"):
        hash_strings(pa.chunked_array([pa.array(["x", "y"]), holed]))
    assert same(hash_strings(holed[:2]), ["a", "b"])
    with pytest.raises(TypeError, match="Arrow array of int64"):
        hash_strings(pa.array([1, 2]))


def from_file(array, before: bytes, after: bytes):
    """The array as read from an Arrow file in which some bytes are others."""
    import pyarrow as pa

    batch, sink = pa.record_batch({"s": array}), pa.BufferOutputStream()
    with pa.ipc.new_stream(sink, batch.schema) as writer:
        writer.write_batch(batch)
    data = sink.getvalue().to_pybytes()
    assert data.count(before) == 1
    return pa.ipc.open_stream(data.replace(before, after)).read_all().column(0)


@pytest.mark.parametrize(("kind", "format"), [("string", "<3i"), ("large_string", "<3q")])
@pytest.mark.parametrize("bounds", [(0, 5, 1 << 30), (0, 5, 500), (0, 5, 4), (-3, 5, 10)])
def test_arrow_offsets_beyond_the_text_are_refused(path, kind, format, bounds):
    """Arrow does not look at the offsets that it reads from a file."""
    pa = pytest.importorskip("pyarrow")
    array = pa.array(["hello", "world"], type=getattr(pa, kind)())
    bad = from_file(array, struct.pack(format, 0, 5, 10), struct.pack(format, *bounds))
    with pytest.raises((ValueError, RuntimeError), match="hash_strings: argument"):
        hash_strings(bad)


def test_arrow_offsets_that_are_too_few_are_refused():
    pa = pytest.importorskip("pyarrow")

    class Short:
        type, offset = pa.string(), 0

        def __len__(self):
            return 2

        def buffers(self):
            return None, pa.py_buffer(np.array([0, 5], np.int32)), pa.py_buffer(b"helloworld")

    with pytest.raises(ValueError, match="wanted offsets of 2 strings, got a buffer of 8 bytes"):
        hashing_text._arrow_pair(Short())


def test_arrow_text_is_not_copied():
    pa = pytest.importorskip("pyarrow")
    array = pa.array(["aa", "b", "ccc"], type=pa.large_string())
    data, offsets = hashing_text._arrow_pair(array)
    assert data.data_ptr() == array.buffers()[2].address
    assert offsets.data_ptr() == array.buffers()[1].address
    data, offsets = hashing_text._arrow_pair(array[1:])
    assert data.data_ptr() == array.buffers()[2].address + 2
    assert offsets.tolist() == [0, 1, 4]


def test_pandas(path):
    pd = pytest.importorskip("pandas")
    for dtype in (object, "str", "category"):
        series = pd.Series(TEXT, dtype=dtype)
        assert same(hash_strings(series[2:]), TEXT[2:])
    with pytest.raises((TypeError, ValueError), match="position 1"):
        hash_strings(pd.Series(["a", None]))


def test_text_keeps_no_copy_in_the_strings(path):
    """PyUnicode_AsUTF8 would leave the UTF-8 of each key with it, for as long as it lives."""
    import sys

    key = "ü" * 1000
    before = sys.getsizeof(key)
    hash_strings([key])
    assert sys.getsizeof(key) == before


def test_a_buffer_of_another_size_is_refused(interface):
    if interface is None:
        pytest.skip("plain Python hands over no buffer")
    with pytest.raises(ValueError, match="as many int64"):
        interface.hash_sequence(["a", "b"], 0, np.empty(1, np.int64))
    with pytest.raises(TypeError, match="a list or a tuple"):
        interface.hash_sequence("ab", 0, np.empty(2, np.int64))
    with pytest.raises(ValueError, match="whole keys"):
        interface.hash_fixed_width(np.zeros(7, np.uint8), 4, 1, 0, np.empty(1, np.int64))
    with pytest.raises(ValueError, match="units of 1 or 4"):
        interface.hash_fixed_width(np.zeros(6, np.uint8), 6, 4, 0, np.empty(1, np.int64))


def test_in_a_compiled_graph():
    def rows(ids, data, offsets):
        return murmur_hash(ids, 3) % 1000, hash_strings((data, offsets), 4) % 1000

    args = (torch.arange(-5, 20), *as_pair([b"abc", b"", b"x" * 40]))
    compiled = torch.compile(rows, fullgraph=True)
    for got, wanted in zip(compiled(*args), rows(*args), strict=True):
        assert torch.equal(got, wanted)
