"""What is not a tensor op, from ``liblirank.so`` by ``ctypes``: one build serves any Python.

It has the interface of the pybind11 module ``_C``, which builds from source have for their own
Python, and calls the same C functions (``csrc/bindings/python_interface.h``).
"""

from __future__ import annotations

import ctypes
import sys
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import torch

LIBRARY = Path(__file__).parents[1] / "liblirank.so"
KEYS = 1 << 16  # as many keys are hashed, in about 1 ms, before Ctrl-C is handled

_INT, _LONG, _DOUBLE, _TEXT = ctypes.c_int, ctypes.c_int64, ctypes.c_double, ctypes.c_char_p
_POINTER, _SEED = ctypes.c_void_p, ctypes.c_uint32
_SIGNATURES = {
    "lirank_isa_name": (_TEXT, ()),
    "lirank_built_for_torch": (_TEXT, ()),
    "lirank_compiler": (_TEXT, ()),
    "lirank_ceiling_copy": (_DOUBLE, (_LONG, _INT, _DOUBLE)),
    "lirank_ceiling_gather": (_DOUBLE, (_LONG, _LONG, _INT, _DOUBLE)),
    "lirank_ceiling_fma": (_DOUBLE, (_INT, _DOUBLE)),
    "lirank_ceiling_exp": (_DOUBLE, (_INT, _DOUBLE)),
    "lirank_move_to_huge_pages": (_LONG, (_POINTER, _LONG)),
    "lirank_hash_fixed_width": (_LONG, (_POINTER, _LONG, _LONG, _INT, _SEED, _POINTER)),
    "lirank_vocabulary_new": (_TEXT, (_POINTER, *[_LONG] * 4, _POINTER, _LONG, _POINTER)),
    "lirank_vocabulary_step": (_TEXT, (_POINTER, _LONG)),
    "lirank_vocabulary_parts": (_LONG, (_POINTER,)),
    "lirank_vocabulary_duplicate": (_LONG, (_POINTER,)),
    "lirank_vocabulary_delete": (None, (_POINTER,)),
}


def _declared(library: ctypes.CDLL, signatures: dict[str, Any]) -> ctypes.CDLL:
    for name, (result, arguments) in signatures.items():
        function = getattr(library, name)
        function.restype, function.argtypes = result, arguments
    return library


torch.ops.load_library(LIBRARY)  # registers the ops
_library = _declared(ctypes.CDLL(str(LIBRARY)), _SIGNATURES)  # releases the GIL in every call
_holding = _declared(  # keeps it, since the call reads Python's objects
    ctypes.PyDLL(str(LIBRARY)),
    {
        "lirank_hash_sequence": (
            _LONG,
            (_POINTER, ctypes.py_object, _INT, _LONG, _LONG, _SEED, _POINTER),
        )
    },
)

way = "ctypes"
built_for_torch: str = _library.lirank_built_for_torch().decode()
compiler: str = _library.lirank_compiler().decode()
ceiling_copy = _library.lirank_ceiling_copy
ceiling_gather = _library.lirank_ceiling_gather
ceiling_fma = _library.lirank_ceiling_fma
ceiling_exp = _library.lirank_ceiling_exp
move_to_huge_pages = _library.lirank_move_to_huge_pages


def isa() -> str:
    """Instruction set in use: plain, avx2, avx512, avx512_bf16 or amx."""
    return _library.lirank_isa_name().decode()


# ---- strings -----------------------------------------------------------------------------


class _Python(ctypes.Structure):
    """``lirank_python`` of ``csrc/bindings/python_interface.h``."""

    _fields_ = (
        ("type_at", _LONG),
        ("length_at", _LONG),
        ("state_at", _LONG),
        ("text_at", _LONG),
        ("str_type", _POINTER),
        ("ascii", ctypes.c_uint64),
        ("type_flags", _POINTER),
        ("list_item", _POINTER),
        ("tuple_item", _POINTER),
        ("str_length", _POINTER),
        ("str_code_points", _POINTER),
        ("bytes_size", _POINTER),
        ("bytes_text", _POINTER),
    )


_FUNCTIONS = {  # all of CPython's stable ABI, and none writes memory but the caller's
    "type_flags": "PyType_GetFlags",
    "list_item": "PyList_GetItem",
    "tuple_item": "PyTuple_GetItem",
    "str_length": "PyUnicode_GetLength",
    "str_code_points": "PyUnicode_AsUCS4",
    "bytes_size": "PyBytes_Size",
    "bytes_text": "PyBytes_AsString",
}


class _Text(str):
    """A str whose text is not within the object."""


def _word(obj: object, at: int, kind: Any) -> int:
    return kind.from_address(id(obj) + at).value


@cache
def python() -> _Python | None:
    """Where this interpreter keeps the text of a str, found in strings that are known.

    CPython stores a str of ASCII characters as a header and the characters. Which bit of the header
    says that they are ASCII, and how long the header is, depends on its version. The stable ABI has
    no function that tells it without storing UTF-8 in the str.

    Returns:
        None for an interpreter that does otherwise.
    """
    header = object.__basicsize__
    found = _Python(
        type_at=header - 8,
        length_at=header,
        state_at=header + 16,  # behind the length and the hash
        text_at=sys.getsizeof("") - 1,  # the text of "" is its zero
        str_type=id(str),
    )
    made = ["".join(["member:", str(i), "-" * i]) for i in range(40)]
    plain = ["", "a", "Z", "member", *made, *map(sys.intern, made[::2])]
    # None of these may look like ASCII: Latin-1, two and four bytes a character, a subclass.
    others = [c * n for c in ("é", "ü", "λ", "日", "🙂") for n in (1, 2, 9)]
    others += [f"{name}é" for name in made] + [sys.intern("éü"), *map(_Text, plain)]
    bits = (1 << 32) - 1
    for text in plain:
        bits &= _word(text, found.state_at, ctypes.c_uint32)
        as_known = (
            _word(text, found.type_at, ctypes.c_void_p) == id(str)
            and _word(text, found.length_at, _LONG) == len(text)
            and ctypes.string_at(id(text) + found.text_at, len(text) + 1) == text.encode() + b"\0"
        )
        if not as_known:
            return None
    if any(_word(text, found.state_at, ctypes.c_uint32) & bits == bits for text in others):
        return None
    if any(_word(o, found.type_at, ctypes.c_void_p) != id(type(o)) for o in (b"", 1.5, others[-1])):
        return None
    found.ascii = bits
    for field, name in _FUNCTIONS.items():
        setattr(found, field, ctypes.cast(getattr(ctypes.pythonapi, name), _POINTER).value)
    return found


def _gil_is_on() -> bool:
    return getattr(sys, "_is_gil_enabled", lambda: True)()


def _address(out: np.ndarray, n: int) -> int:
    """Of a writable int64 array of ``n`` elements in one run."""
    fits = isinstance(out, np.ndarray) and out.shape == (n,) and out.dtype == np.int64
    if not (fits and out.flags.c_contiguous and out.flags.writeable):
        raise ValueError("wanted a writable buffer of as many int64 as there are keys")
    return out.ctypes.data


def hash_sequence(keys: list | tuple, seed: int, out: np.ndarray) -> int:
    """Hash str and bytes into ``out``, int64 (n,).

    Returns:
        The position of the first key that cannot be hashed where it lies, or -1. It is neither
        bytes nor a str that has UTF-8, or this interpreter does not show its text.
    """
    if not isinstance(keys, (list, tuple)):
        raise TypeError("wanted a list or a tuple")
    if not _gil_is_on():
        keys = tuple(keys)  # another thread may change a list while it is read
    n, address = len(keys), _address(out, len(keys))
    call, layout, is_tuple = _holding.lirank_hash_sequence, python(), isinstance(keys, tuple)
    if layout is None:
        return 0 if keys else -1
    for begin in range(0, n, KEYS):
        if len(keys) != n:
            raise ValueError("the list changed its length while it was read")
        count = min(KEYS, n - begin)
        at = address + 8 * begin
        bad = call(ctypes.byref(layout), keys, is_tuple, begin, count, seed, at)
        if bad >= 0:
            return begin + bad
    return -1


def hash_fixed_width(keys: np.ndarray, width: int, unit: int, seed: int, out: np.ndarray) -> int:
    """Hash keys of ``width`` bytes: uint8 (n * width,), in units of 1 byte or code points of 4.

    Returns:
        The position of the first key that has no UTF-8, or -1.
    """
    runs = keys.ndim == 1 and keys.itemsize == 1 and keys.flags.c_contiguous
    if not runs or width < 1 or keys.size % width:
        raise ValueError("wanted whole keys in one run of bytes")
    if unit != 1 and (unit != 4 or width % 4):
        raise ValueError("wanted units of 1 or 4 bytes")
    n = keys.size // width
    address = _address(out, n)
    return _library.lirank_hash_fixed_width(keys.ctypes.data, n, width, unit, seed, address)


# ---- vocabularies ------------------------------------------------------------------------


class VocabularyBuilder:
    """Builds the table of a static vocabulary, some parts at a time."""

    def __init__(
        self, keys: np.ndarray, tag_bits: int, seed: int, string_seed: int, table: np.ndarray
    ) -> None:
        self._builder = _POINTER()
        if keys.ndim != 1 or keys.itemsize != 8 or not keys.flags.c_contiguous:
            raise ValueError("wanted keys in one run of int64")
        runs = table.ndim == 1 and table.itemsize == 1 and table.flags.c_contiguous
        if not runs or not table.flags.writeable:
            raise ValueError("wanted a writable table in one run of bytes")
        self._table = table  # is written to until the last step
        wrong = _library.lirank_vocabulary_new(
            keys.ctypes.data, keys.size, tag_bits, seed, string_seed,
            table.ctypes.data, table.size, ctypes.byref(self._builder),
        )  # fmt: skip
        if wrong is not None:
            raise ValueError(wrong.decode()) if wrong else MemoryError("no room for a vocabulary")
        self.parts: int = _library.lirank_vocabulary_parts(self._builder)

    def step(self, parts: int) -> str:
        """Build up to ``parts`` more: "building", "done", "duplicate" or "failed"."""
        state = _library.lirank_vocabulary_step(self._builder, parts)
        if not state:
            raise MemoryError("no room for a vocabulary")
        return state.decode()

    @property
    def duplicate_hash(self) -> int:
        """The hash that two keys have, after "duplicate"."""
        return _library.lirank_vocabulary_duplicate(self._builder)

    def __del__(self) -> None:
        if getattr(self, "_builder", None):
            _library.lirank_vocabulary_delete(self._builder)
