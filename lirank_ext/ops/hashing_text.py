"""Reads strings from Python, NumPy and Arrow for ``hash_strings``, where they lie if possible."""

from __future__ import annotations

import ctypes
import importlib.util
from collections.abc import Callable, Sequence
from typing import Any, NoReturn

import numpy as np
import torch
from torch import Tensor

from ..library.checks import refuse
from ..library.load import extension

PairHash = Callable[[Tensor, Tensor, int], Tensor]
ACCEPTED = (
    "wanted a sequence of str or bytes, a NumPy or Arrow array of strings, or the pair of tensors "
    "(bytes, offsets)"
)


def _refuse(text: str, error: type[Exception] = TypeError) -> NoReturn:
    refuse("hash_strings", "strings", text, error)


def hash_text(strings: Any, seed: int, pair_hash: PairHash) -> Tensor:
    """Hashes of anything that holds text; ``pair_hash`` is the op over (bytes, offsets)."""
    if isinstance(strings, (list, tuple)):
        return _hash_sequence(strings, seed, pair_hash)
    if isinstance(strings, np.ndarray):
        return _hash_numpy(strings, seed, pair_hash)
    if _is_arrow(strings):
        return _hash_arrow(strings, seed, pair_hash)
    if type(strings).__module__.startswith("pandas."):
        return _hash_numpy(np.asarray(strings, dtype=object), seed, pair_hash)
    unfit = (str, bytes, bytearray, memoryview, Tensor, dict, set, frozenset)
    if isinstance(strings, unfit) or not hasattr(strings, "__iter__"):
        _refuse(f"{ACCEPTED}, got {type(strings).__name__}")
    return _hash_sequence(list(strings), seed, pair_hash)


def _hash_sequence(strings: Sequence[Any], seed: int, pair_hash: PairHash) -> Tensor:
    if extension is None:
        return pair_hash(*_join(strings), seed)
    out = torch.empty(len(strings), dtype=torch.int64)
    bad = extension.hash_sequence(strings, seed, out.numpy())
    if bad < 0:
        return out
    _encode(strings[bad], bad)  # refuses all but text that is not readable where it lies
    return pair_hash(*_join(strings), seed)


def _join(strings: Sequence[Any]) -> tuple[Tensor, Tensor]:
    """The keys one behind the other, and where each begins; a copy."""
    encoded = [_encode(s, i) for i, s in enumerate(strings)]
    lengths = torch.tensor([0, *map(len, encoded)], dtype=torch.int64)
    joined = bytearray().join(encoded)
    data = torch.frombuffer(joined, dtype=torch.uint8) if joined else torch.empty(0).byte()
    return data, lengths.cumsum(0)


def _encode(key: Any, at: int) -> bytes:
    if isinstance(key, bytes):
        return key
    if not isinstance(key, str):
        _refuse(f"wanted str or bytes, got {type(key).__name__} at position {at}")
    try:
        return key.encode()
    except UnicodeEncodeError:
        _refuse(f"wanted text that has UTF-8, got a lone surrogate at position {at}", ValueError)


def _hash_numpy(array: np.ndarray, seed: int, pair_hash: PairHash) -> Tensor:
    if array.ndim != 1:
        _refuse(f"wanted an array of one dimension, got shape {array.shape}", ValueError)
    if array.dtype.kind not in "US":
        if array.dtype.kind not in "OT":
            _refuse(f"{ACCEPTED}, got a NumPy array of {array.dtype}")
        return _hash_sequence(array.tolist(), seed, pair_hash)
    array = np.ascontiguousarray(array, dtype=array.dtype.newbyteorder("="))
    if extension is None or array.dtype.itemsize == 0:
        return _hash_sequence(array.tolist(), seed, pair_hash)
    out = torch.empty(len(array), dtype=torch.int64)
    unit = 4 if array.dtype.kind == "U" else 1
    width = array.dtype.itemsize
    bad = extension.hash_fixed_width(array.view(np.uint8), width, unit, seed, out.numpy())
    if bad >= 0:
        what = "a lone surrogate or no character"
        _refuse(f"wanted text that has UTF-8, got {what} at position {bad}", ValueError)
    return out


def _is_arrow(strings: Any) -> bool:
    """Whether Arrow can read it without making strings first."""
    if not (hasattr(strings, "__arrow_c_array__") or hasattr(strings, "__arrow_c_stream__")):
        return False
    if str(getattr(strings, "dtype", "")) == "object":  # pandas: the objects are there already
        return False
    return importlib.util.find_spec("pyarrow") is not None


def _hash_arrow(strings: Any, seed: int, pair_hash: PairHash) -> Tensor:
    import pyarrow as pa

    if not isinstance(strings, (pa.Array, pa.ChunkedArray)):
        one = hasattr(strings, "__arrow_c_array__")
        strings = pa.array(strings) if one else pa.chunked_array(strings)
    try:
        chunks = strings.chunks if isinstance(strings, pa.ChunkedArray) else [strings]
    except KeyError:  # a type that Arrow can read and Python has no class for
        _refuse(f"{ACCEPTED}, got an Arrow array of {strings.type}")
    hashes, done = [torch.empty(0, dtype=torch.int64)], 0
    for chunk in chunks:
        chunk = _plain_arrow(chunk, done)
        hashes.append(pair_hash(*_arrow_pair(chunk), seed))
        done += len(chunk)
    return torch.cat(hashes) if len(hashes) > 2 else hashes[-1]


def _plain_arrow(chunk: Any, done: int) -> Any:
    """The chunk with its bytes in one run; views and dictionaries are unpacked."""
    import pyarrow as pa

    kind = chunk.type
    if chunk.null_count:
        at = done + chunk.is_null().to_numpy(zero_copy_only=False).argmax()
        _refuse(f"wanted strings, got a null at position {at}", ValueError)
    if pa.types.is_dictionary(kind):
        return _plain_arrow(chunk.dictionary_decode(), done)
    known = ("is_string", "is_large_string", "is_binary", "is_large_binary")
    if any(getattr(pa.types, name)(kind) for name in known):
        return chunk
    if str(kind) in ("string_view", "binary_view"):
        return chunk.cast(pa.large_string() if str(kind) == "string_view" else pa.large_binary())
    _refuse(f"{ACCEPTED}, got an Arrow array of {kind}")


def _arrow_pair(chunk: Any) -> tuple[Tensor, Tensor]:
    """(bytes, offsets) over Arrow's own buffers, which ``chunk`` keeps alive.

    The bytes are never copied. The offsets are where they have 32 bits or the array is a slice.
    """
    import pyarrow as pa

    wide = pa.types.is_large_string(chunk.type) or pa.types.is_large_binary(chunk.type)
    dtype, size = (torch.int64, 8) if wide else (torch.int32, 4)
    _, offsets, data = chunk.buffers()
    if len(chunk) == 0:
        return torch.empty(0, dtype=torch.uint8), torch.zeros(1, dtype=torch.int64)
    if offsets is None or offsets.size < (chunk.offset + len(chunk) + 1) * size:
        held = offsets.size if offsets else 0
        _refuse(f"wanted offsets of {len(chunk)} strings, got a buffer of {held} bytes", ValueError)
    bounds = _borrow(offsets.address + chunk.offset * size, (len(chunk) + 1) * size).view(dtype)
    first, last = int(bounds[0]), int(bounds[-1])
    held = data.size if data else 0
    if not 0 <= first <= last <= held:
        text = f"wanted offsets within the {held} bytes of text"
        _refuse(f"{text}, got {first} to {last}", ValueError)
    bounds = bounds.long() - first if first else bounds.long()
    return _borrow(data.address + first if data else 0, last - first), bounds


def _borrow(address: int, size: int) -> Tensor:
    """uint8 tensor over memory of somebody else, who outlives it."""
    if size == 0:
        return torch.empty(0, dtype=torch.uint8)
    return torch.frombuffer((ctypes.c_uint8 * size).from_address(address), dtype=torch.uint8)
