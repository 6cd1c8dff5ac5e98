"""A fixed set of keys and their rows, stored in about 2.5 bits per key plus a tag."""

from __future__ import annotations

import os
import zlib
from typing import Any

import torch
from torch import Tensor

from ..library.files import replace
from ..library.load import extension
from ..ops.hashing import finalize, hash_strings
from ..ops.static_vocabulary import (
    MOST_TAG_BITS,
    Header,
    layout,
    new_header,
    read_header,
    shift_right,
    vocabulary_lookup,
)
from . import _vocabulary_builder
from ._common import ResizingBuffers, refuse

_OWNER = "StaticVocabulary"
# A file holds these 16 bytes, the size of the table, oov, the CRC-32 of size, oov and table, and
# then the table. The three numbers take 8 bytes each, signed and little-endian.
_FILE_MAGIC = b"lirank vocab 1\r\n"
_ATTEMPTS = 32
_UNMIX = (0x9CB4B2F8129337DB - (1 << 64), 0x4F74430C22A54005)


class StaticVocabulary(ResizingBuffers):
    """Maps each of n known keys to a row of its own in [0, n), and unknown keys to ``oov``.

    It is a minimal perfect hash. The keys are not stored, so a key costs about 2.5 bits and its
    tag. The tag tells unknown keys from known ones: an unknown key is taken for a known one with a
    probability of ``2 ** -tag_bits``, 1 in 256 by default. The set of keys determines the rows,
    whose order has no meaning. Source: LiRank (arXiv 2402.06859), section 4.2, which uses
    Limasset's BBHash for this purpose. The construction here is that of PTHash and PtrHash.

    Attributes:
        table: the uint8 buffer that :func:`lirank_ext.vocabulary_lookup` reads.
        header: number of keys, bits of the tag and seeds, read from the table.
        oov: the row of unknown keys.

    Examples:
        >>> known = lirank_ext.nn.StaticVocabulary.build(["news", "jobs"], tag_bits=16)
        >>> rows = known.lookup(["news", "jobs", "art"])
        >>> sorted(rows[:2].tolist()), int(rows[2])
        ([0, 1], -1)
    """

    table: Tensor
    header: Header

    def __init__(self, table: Tensor, oov: int = -1) -> None:
        super().__init__()
        self.header = read_header(table)
        whole = isinstance(oov, int) and not isinstance(oov, bool)
        if not whole or not -(2**63) <= oov < 2**63:
            refuse(_OWNER, "oov", "a whole number of 64 bits", repr(oov))
        self.oov = oov
        self.register_buffer("table", table)

    @classmethod
    def build(
        cls, keys: Any, tag_bits: int = 8, *, oov: int = -1, progress: bool = False
    ) -> StaticVocabulary:
        """Build the vocabulary of these keys.

        Args:
            keys: int64 tensor (n,), or strings in any form that ``hash_strings`` takes.
            tag_bits: bits of the tag, 0 to 32. Without a tag an unknown key gets the row of some
                known key.
            oov: row that ``lookup`` gives to unknown keys.
            progress: show a progress bar on stderr. This needs tqdm.

        Returns:
            The vocabulary, with its table on the CPU.

        Raises:
            ValueError: a key occurs twice (the message names it), or ``tag_bits`` is out of range.
            TypeError: the keys are neither int64 ids nor strings.
        """
        whole = isinstance(tag_bits, int) and not isinstance(tag_bits, bool)
        if not whole or not 0 <= tag_bits <= MOST_TAG_BITS:
            refuse(_OWNER, "tag_bits", f"a whole number from 0 to {MOST_TAG_BITS}", repr(tag_bits))
        with torch.device("cpu"):  # also where a model is built on the meta device
            return cls(_table_of(keys, tag_bits, progress), oov)

    def lookup(self, keys: Any, oov: int | None = None) -> Tensor:
        """Rows of the keys.

        Args:
            keys: int64 tensor of any shape if the vocabulary was built from ids, otherwise strings
                in any form that ``hash_strings`` takes.
            oov: row of unknown keys, instead of the one given to ``build``.

        Returns:
            int64 rows, in the shape of ``keys``.

        Raises:
            TypeError, ValueError: the keys are of another kind than the vocabulary's.
        """
        seed = self.string_seed
        if seed is None:
            if not isinstance(keys, Tensor):
                refuse(_OWNER, "keys", "an int64 tensor", type(keys).__name__, TypeError)
            _check_ids("keys", keys)
        elif isinstance(keys, Tensor):
            refuse(_OWNER, "keys", "strings, as the vocabulary was built from", "Tensor", TypeError)
        else:
            keys = hash_strings(keys, seed).to(self.table.device)
        return vocabulary_lookup(keys, self.table, self.oov if oov is None else oov)

    forward = lookup

    @property
    def tag_bits(self) -> int:
        return self.header.tag_bits

    @property
    def string_seed(self) -> int | None:
        """Seed of ``hash_strings`` if the keys are strings, None if they are ids."""
        seed = self.header.string_seed
        return None if seed < 0 else seed

    @property
    def bits_per_key(self) -> float:
        """Size of the whole table per key, tags included."""
        return 8 * self.table.numel() / max(len(self), 1)

    def __len__(self) -> int:
        return self.header.keys

    def extra_repr(self) -> str:
        kind = "ids" if self.string_seed is None else "strings"
        return f"{len(self)} {kind}, tag_bits={self.tag_bits}, oov={self.oov}"

    def _load_from_state_dict(self, state_dict, prefix, *rest) -> None:
        # A table that cannot be read is refused before it replaces the one that is here.
        if f"{prefix}table" in state_dict:
            read_header(state_dict[f"{prefix}table"])
        super()._load_from_state_dict(state_dict, prefix, *rest)
        self.header = read_header(self.table)

    def save(self, path: str | os.PathLike) -> None:
        """Write the vocabulary to a file. An existing file is replaced once the new one is done.

        Raises:
            OSError: the file cannot be written. An existing file stays as it was.
        """
        table = self.table.detach().cpu().contiguous().numpy()
        head = b"".join(x.to_bytes(8, "little", signed=True) for x in (len(table), self.oov))
        crc = zlib.crc32(table, zlib.crc32(head))
        head = _FILE_MAGIC + head + crc.to_bytes(8, "little")
        replace(path, (head, table.data))

    @classmethod
    def load(cls, path: str | os.PathLike) -> StaticVocabulary:
        """Read a vocabulary that ``save`` wrote.

        Raises:
            ValueError: the file is damaged, cut short, or not a vocabulary.
        """
        with open(path, "rb") as file:
            if file.read(len(_FILE_MAGIC)) != _FILE_MAGIC:
                raise ValueError(f"{_OWNER}.load: '{path}' is not a vocabulary file.")
            head = file.read(24)
            data = bytearray(file.read())
        if len(head) < 24:
            raise ValueError(f"{_OWNER}.load: '{path}' is damaged: it ends within its header.")
        size, oov, crc = (
            int.from_bytes(head[i : i + 8], "little", signed=True) for i in (0, 8, 16)
        )
        if len(data) != size:
            text = f"holds {len(data)} of the table's {size} bytes"
            raise ValueError(f"{_OWNER}.load: '{path}' is damaged: it {text}.")
        if zlib.crc32(data, zlib.crc32(head[:16])) != crc:
            text = "its checksum does not match its contents"
            raise ValueError(f"{_OWNER}.load: '{path}' is damaged: {text}.")
        table = torch.frombuffer(data, dtype=torch.uint8) if data else torch.empty(0).byte()
        try:
            return cls(table, oov)
        except (ValueError, RuntimeError) as error:
            raise ValueError(f"{_OWNER}.load: '{path}' is damaged: {error}") from error


class _Collision(Exception):
    """Different strings have the same hash."""


def _check_ids(argument: str, keys: Tensor, dims: int | None = None) -> None:
    if keys.dtype != torch.int64:
        refuse(_OWNER, argument, "an int64 tensor or strings", keys.dtype, TypeError)
    if dims is not None and keys.dim() != dims:
        refuse(_OWNER, argument, "one dimension", tuple(keys.shape))


def _table_of(keys: Any, tag_bits: int, progress: bool) -> Tensor:
    """The table of ids or strings."""
    if isinstance(keys, Tensor):
        _check_ids("keys", keys, 1)
        if keys.is_meta:
            refuse(_OWNER, "keys", "ids with data", "a tensor on the meta device")
        return _build(keys.cpu().contiguous(), tag_bits, -1, keys, progress)
    if hasattr(keys, "__iter__") and not hasattr(keys, "__getitem__"):
        keys = list(keys)
    for string_seed in range(_ATTEMPTS):
        hashes = hash_strings(keys, string_seed).cpu()
        try:
            return _build(hashes, tag_bits, string_seed, keys, progress)
        except _Collision:
            # Two strings share a 64-bit hash. With 10 million keys this happens with a
            # probability of 3 in a million.
            continue
    raise RuntimeError(f"{_OWNER}.build: two keys share a hash under {_ATTEMPTS} seeds")


def _build(hashes: Tensor, tag_bits: int, string_seed: int, keys: Any, progress: bool) -> Tensor:
    """The table of the ids, or of the hashes of the strings ``keys``."""
    implementation = _vocabulary_builder if extension is None else extension
    array = hashes.numpy()
    table = torch.empty(layout(new_header(len(array), tag_bits, 0, -1)).size, dtype=torch.uint8)
    for attempt in range(_ATTEMPTS):
        seed = int(finalize(torch.tensor(attempt + 1)))
        arguments = (array, tag_bits, seed, string_seed, table.numpy())
        builder = implementation.VocabularyBuilder(*arguments)
        state = _run(builder, progress)
        if state == "done":
            return table
        if state == "duplicate":
            _refuse_duplicate(hashes, builder.duplicate_hash, seed, keys)
    raise RuntimeError(f"{_OWNER}.build: no table found under {_ATTEMPTS} seeds")


def _run(builder: Any, progress: bool) -> str:
    """Build some parts at a time, so that the bar advances and Ctrl-C is handled."""
    # 32 parts are a million keys and take 0.2 s on two cores.
    if not progress:
        while (state := builder.step(32)) == "building":
            pass
        return state
    try:
        from tqdm import tqdm
    except ImportError as error:
        raise ImportError(f"{_OWNER}.build: progress=True needs tqdm: pip install tqdm") from error
    with tqdm(total=builder.parts, desc="vocabulary", unit="part") as bar:
        while (state := builder.step(8)) == "building":
            bar.update(8)
        bar.update(builder.parts - bar.n)
    return state


def _unfinalize(hashed: Tensor) -> Tensor:
    """Inverse of ``finalize``."""
    for inverse in _UNMIX:
        hashed = (hashed ^ shift_right(hashed, 33)) * inverse
    return hashed ^ shift_right(hashed, 33)


def _refuse_duplicate(hashes: Tensor, duplicate: int, seed: int, keys: Any) -> None:
    value = int(_unfinalize(torch.tensor(duplicate))) ^ seed
    at = (hashes == value).nonzero().flatten().tolist()
    if isinstance(keys, Tensor):
        raise ValueError(f"{_OWNER}.build: key {value} occurs twice, at positions {at[0]}, {at[1]}")
    seen: dict[Any, int] = {}
    for i in at:
        key = _key_at(keys, i)
        if key in seen:
            text = f"occurs twice, at positions {seen[key]}, {i}"
            raise ValueError(f"{_OWNER}.build: key {key!r} {text}")
        seen[key] = i
    raise _Collision


def _key_at(keys: Any, i: int) -> str | bytes:
    """One key for a message: as text, or as bytes if they are not valid text."""
    if isinstance(keys, (tuple, list)) and any(isinstance(k, Tensor) for k in keys[:2]):
        data, offsets = keys
        key: Any = bytes(data[int(offsets[i]) : int(offsets[i + 1])].tolist())
    else:
        key = keys.iloc[i] if hasattr(keys, "iloc") else keys[i]
        key = key.as_py() if hasattr(key, "as_py") else key
    try:
        return key.decode() if isinstance(key, bytes) else str(key)
    except UnicodeDecodeError:
        return key
