"""What reads bytes or raw integers from outside, as functions of bytes that must not surprise.

A target takes any bytes. It returns where they are refused in the promised words or read as the
reference reads them, and raises where they are not. ``fuzz_bytes.py`` searches for bytes that
raise; ``tests/test_fuzz_bytes.py`` runs every target on the seeds and on damaged forms of them.
"""

from __future__ import annotations

import io
import struct
import tempfile
import zlib
from collections.abc import Callable
from pathlib import Path

import torch

import lirank_ext
from lirank_ext import nn
from lirank_ext.errors import UserError
from lirank_ext.library.op import OPS, implementations
from lirank_ext.verify.compare import REFUSALS, _outputs

TARGETS: dict[str, Callable[[bytes], None]] = {}
SEEDS: dict[str, Callable[[], list[bytes]]] = {}
_FOLDER = tempfile.TemporaryDirectory(prefix="lirank-fuzz-")  # removed at exit
FOLDER = Path(_FOLDER.name)


class Finding(AssertionError):
    """Bytes that were read as something else, or refused in no promised words."""


def target(seeds: Callable[[], list[bytes]]) -> Callable:
    def add(function: Callable[[bytes], None]) -> Callable[[bytes], None]:
        TARGETS[function.__name__] = function
        SEEDS[function.__name__] = seeds
        return function

    return add


class Reader:
    """Numbers from bytes; zeros behind their end."""

    def __init__(self, data: bytes) -> None:
        self.file = io.BytesIO(data)

    def bytes(self, count: int) -> bytes:
        return self.file.read(count)

    def int(self, format: str) -> int:
        size = struct.calcsize(f"<{format}")
        return struct.unpack(f"<{format}", self.bytes(size).ljust(size, b"\0"))[0]

    def below(self, limit: int) -> int:
        return self.int("B") % limit

    def number(self) -> int:
        """Often small, at times any number of 64 bits."""
        kind = self.below(4)
        return self.int("b") if kind < 2 else self.int("h") if kind == 2 else self.int("q")

    def numbers(self, most: int) -> torch.Tensor:
        return torch.tensor([self.number() for _ in range(self.below(most + 1))]).long()

    def rest(self) -> bytes:
        return self.file.read()


def tensor(data: bytes) -> torch.Tensor:
    return torch.tensor(list(data), dtype=torch.uint8)


def alike(op: str, *args: object) -> None:
    """The kernel and the reference both refuse, or give the same."""
    found = []
    for name in ("reference", "cpu"):
        if name not in implementations(op):
            continue
        try:
            found.append((name, implementations(op)[name](*args), ""))
        except (*REFUSALS, MemoryError) as error:
            found.append((name, None, str(error)))
    (_, wanted, said), (_, got, refused) = found[0], found[-1]
    if (wanted is None) != (got is None):
        raise Finding(f"{op}: the reference said {said!r}, the kernel {refused!r}")
    if got is None:
        if "lirank::" not in refused:
            raise Finding(f"{op}: refused in words of its own: {refused}")
        return
    for one, other in zip(_outputs(got), _outputs(wanted), strict=True):
        off = 1e-5 if other.is_floating_point() else 0  # hashes, rows and codes are equal
        torch.testing.assert_close(one, other, rtol=off, atol=off, equal_nan=True)


# ---- ops ---------------------------------------------------------------------------------------


def _strings() -> list[bytes]:
    return [b"", bytes([3, 0, 0, 0, 2, 0, 5]) + b"hello", bytes([4, 0, 0, 3, 0, 16]) + b"x" * 30]


@target(_strings)
def strings(data: bytes) -> None:
    """hash_strings of a pair of tensors: any bytes, any offsets."""
    reader = Reader(data)
    offsets, seed = reader.numbers(8), reader.number()
    alike("hash_strings", tensor(reader.rest()), offsets, seed)


@target(lambda: [b"a", "é日本".encode(), "\U0001f600".encode("utf-32-le"), b"\xff\xd8" * 3])
def texts(data: bytes) -> None:
    """hash_strings of Python's strings of every width, against the UTF-8 of each."""
    for encoding in ("latin-1", "utf-16-le", "utf-32-le"):
        text = data.decode(encoding, "replace")
        encoded = text.encode()
        ends = torch.tensor([0, len(encoded), len(encoded) + len(data)])
        got = lirank_ext.hash_strings([text, data], seed=7)
        wanted = lirank_ext.hash_strings((tensor(encoded + data), ends), seed=7)
        if not torch.equal(got, wanted):
            raise Finding(f"another hash of {text!r}")


def _bags() -> list[bytes]:
    return [b"", bytes([0, 3, 0, 1, 0, 2, 0, 3, 2, 0, 0, 0, 2]), bytes([1, 4, 0, 1, 0, 1, 1, 255])]


TABLE = torch.linspace(-1, 1, 7 * 9).reshape(7, 9)


@target(_bags)
def bags(data: bytes) -> None:
    """quantized_embedding_bag: any ids, any offsets."""
    reader = Reader(data)
    bits, last, mode = (8, 4)[reader.below(2)], bool(reader.below(2)), reader.below(2)
    packed = OPS["pack_rows"].reference(*OPS["quantize_rows"].reference(TABLE, bits), bits)
    ids, offsets = reader.numbers(9), reader.numbers(7)
    call = OPS["quantized_embedding_bag"].call(
        packed=packed,
        indices=ids,
        offsets=offsets,
        dim=9,
        bits=bits,
        mode=("sum", "mean")[mode],
        include_last_offset=last,
    )
    alike("quantized_embedding_bag", *call)


@target(lambda: [b"", bytes([0, 1, 0, 2, 1, 0, 3]) + bytes(22), bytes([2, 0, 0]) + b"\xff" * 40])
def many_tables(data: bytes) -> None:
    """quantized_embedding_bags: any numbers of rows, any widths, any bytes of tables."""
    reader = Reader(data)
    rows, dims = reader.numbers(3), reader.numbers(3)
    ids, offsets = reader.numbers(5), reader.numbers(5)
    # The reference makes the whole result; both would refuse it for want of memory alone.
    if (dims.abs() > 1 << 20).any() and not (dims.abs() > 1 << 40).any():
        return
    call = OPS["quantized_embedding_bags"].call(
        packed=tensor(reader.rest()), rows=rows, dims=dims, indices=ids, offsets=offsets, bits=8
    )
    alike("quantized_embedding_bags", *call)


@target(lambda: [b"", bytes([0, 9]) + bytes(90), bytes([1, 3, 0]) + b"\xff" * 60])
def packed_rows(data: bytes) -> None:
    """unpack_rows: any bytes as a packed table, any width, any bits."""
    reader = Reader(data)
    bits, dim, columns = (8, 4)[reader.below(2)], reader.number(), 1 + reader.below(40)
    whole = reader.rest()
    rows = tensor(whole[: len(whole) // columns * columns]).reshape(-1, columns)
    alike("unpack_rows", rows, dim, bits)


def _hashed() -> list[bytes]:
    return [bytes([10, 0, 3]) + bytes(20), b"\xff" * 30, b""]


@target(_hashed)
def hashed_rule(data: bytes) -> None:
    """hashed_embedding_bag: any number of buckets, any heights, ids and offsets."""
    reader = Reader(data)
    buckets, height, remainders = reader.number(), reader.below(20), reader.below(20)
    tables = [torch.ones(n, 3) for n in (height, remainders) * 2]
    ids, offsets = reader.numbers(6), reader.numbers(5)
    alike("hashed_embedding_bag", ids, offsets, *tables, buckets)


# ---- vocabularies ------------------------------------------------------------------------------


def _vocabularies() -> list[bytes]:
    found = []
    for keys, bits in ((torch.arange(0), 8), (torch.arange(40), 0), (torch.arange(90), 13)):
        path = FOLDER / "seed.bin"
        nn.StaticVocabulary.build(keys, bits).save(path)
        found.append(path.read_bytes())
    return found


def _look_up(vocabulary: nn.StaticVocabulary) -> None:
    keys = torch.arange(-60, 60)
    if vocabulary.string_seed is not None:
        rows = vocabulary_rows(vocabulary, lirank_ext.hash_strings([str(k) for k in range(120)]))
    else:
        rows = vocabulary_rows(vocabulary, keys)
    inside = (rows >= 0) & (rows < max(len(vocabulary), 1))
    if not (inside | (rows == vocabulary.oov)).all():
        raise Finding(f"rows outside of a vocabulary of {len(vocabulary)} keys: {rows.tolist()}")


def vocabulary_rows(vocabulary: nn.StaticVocabulary, keys: torch.Tensor) -> torch.Tensor:
    return lirank_ext.vocabulary_lookup(keys, vocabulary.table, vocabulary.oov)


@target(_vocabularies)
def vocabulary_file(data: bytes) -> None:
    """A vocabulary's file, as it is and with the sizes and the checksum made right."""
    path = FOLDER / "vocabulary.bin"
    table = data[40:]
    head = struct.pack("<q", len(table)) + data[24:32].ljust(8, b"\0")
    mended = data[:16] + head + struct.pack("<q", zlib.crc32(table, zlib.crc32(head))) + table
    for content in (data, mended):
        path.write_bytes(content)
        try:
            vocabulary = nn.StaticVocabulary.load(path)
        except ValueError as error:
            if str(path) not in str(error):
                raise Finding(f"refused without the file's name: {error}") from error
            continue
        try:
            _look_up(vocabulary)
        except (ValueError, RuntimeError) as error:  # parts out of order are seen by the look-up
            if "lirank::vocabulary_lookup: argument 'table': " not in str(error):
                raise Finding(f"look-up in a damaged table: {error}") from error


@target(lambda: [seed[40:] for seed in _vocabularies()])
def vocabulary_table(data: bytes) -> None:
    """vocabulary_lookup in any bytes: the kernel and the reference agree."""
    alike("vocabulary_lookup", torch.arange(-20, 100), tensor(data), -3)


# ---- files of models ---------------------------------------------------------------------------


def _checkpoints() -> list[bytes]:
    from lirank_ext.training import checkpoint

    path = FOLDER / "seed.safetensors"
    checkpoint.save(path, {"a": torch.arange(3.0), "b": torch.ones(2, 2).half()}, {"x": [1, 2.5]})
    return [path.read_bytes()]


@target(_checkpoints)
def checkpoint_file(data: bytes) -> None:
    """A checkpoint: only what was saved is read, all else is refused by name."""
    from lirank_ext.training import checkpoint

    path = FOLDER / "model.safetensors"
    path.write_bytes(data)
    try:
        tensors, content = checkpoint.load(path)
    except checkpoint.CheckpointError as error:
        if str(path) not in str(error):
            raise Finding(f"refused without the file's name: {error}") from error
        return
    again = FOLDER / "again.safetensors"
    checkpoint.save(again, tensors, content)
    checkpoint.load(again)


def _tags() -> list[bytes]:
    table = nn.QuantizedEmbeddingBag.empty(5, 8, 4)
    return [bytes(table.state_dict()["_extra_state"].tolist()), b'{"format": 2}', b"[]", b"5"]


@target(_tags)
def table_tag(data: bytes) -> None:
    """The tag of a table in a state dict."""
    table = nn.QuantizedEmbeddingBag.empty(5, 8, 4)
    state = table.state_dict()
    state["_extra_state"] = tensor(data)
    try:
        table.load_state_dict(state)
    except (ValueError, RuntimeError) as error:
        if "tag of a table is damaged" not in str(error) and "wanted a table with" not in str(
            error
        ):
            raise Finding(f"refused in other words: {error}") from error


# ---- configurations and data --------------------------------------------------------------------


def _yaml() -> list[bytes]:
    return [
        b"model:\n  cross: {rank: 16}\n  mlp: {dims: [8, 4]}\ntraining: {lr: 0.1, seed: 3}\n",
        b"model: {schema: {columns: {user: {kind: categorical}}}}\n",
        b"training: {epochs: .inf, batch_size: 1e3}\n",
        b"a: &a [*a]\n",
    ]


@target(_yaml)
def configuration(data: bytes) -> None:
    """A YAML configuration."""
    from lirank_ext.training.settings import Config

    path = FOLDER / "config.yaml"
    path.write_bytes(data)
    try:
        Config.load(path)
    except UserError as error:
        if "\n" in str(error):
            raise Finding(f"more than a sentence: {error}") from error


def _tables() -> list[bytes]:
    lines = "".join(f"u{i % 7},{i / 3:.2f},2024-01-0{1 + i % 9},{i % 2}\n" for i in range(12))
    return [
        b"user,x,day,click\n" + lines.encode(),
        b"click\tuser\n1\ta|b\n0\t\n",
        'user,click\n"a\n""b",1\né,0\n'.encode(),
        b"user,x,click\na,1e400,1\nb,nan,0\n",
    ]


@target(_tables)
def table_file(data: bytes) -> None:
    """A CSV file: how its columns are understood, and its rows."""
    from lirank_ext.data.broken import BadRows
    from lirank_ext.data.features import Converter
    from lirank_ext.data.infer import infer
    from lirank_ext.data.reading import Reading
    from lirank_ext.data.source import Source

    path = FOLDER / "data.csv"
    path.write_bytes(data)
    for skip in (False, True):
        try:
            schema = infer([path], ["click"], Reading()).schema
            converter = Converter(schema, BadRows(skip=skip), labels=False)
            for chunk in Source([path], converter.columns, names=schema.names).chunks():
                rows = converter.rows(chunk)
                if torch.as_tensor(rows.numeric).isinf().any():
                    raise Finding("an infinity among the numbers")
        except UserError as error:
            if "\n" in str(error):
                raise Finding(f"more than a sentence: {error}") from error


def _arrow() -> list[bytes]:
    import pyarrow as pa

    found = []
    for array in (pa.array(["hello", "", "wörld"]), pa.array([b"a", b"bc"], pa.large_binary())):
        batch = pa.record_batch({"s": array})
        sink = pa.BufferOutputStream()
        with pa.ipc.new_stream(sink, batch.schema) as writer:
            writer.write_batch(batch)
        found.append(sink.getvalue().to_pybytes())
    # Found by fuzzing: a type for which Python has no class.
    found.append(Path(__file__).with_name("corpus_arrow.bin").read_bytes())
    return found


@target(_arrow)
def arrow_stream(data: bytes) -> None:
    """Strings of an Arrow stream, whose offsets Arrow does not check."""
    import pyarrow as pa

    try:
        table = pa.ipc.open_stream(pa.py_buffer(data)).read_all()
        columns = table.columns  # Arrow reads the names of columns here, which may be no text
    except (pa.ArrowException, OSError, ValueError, MemoryError):
        return
    for column in columns:
        try:
            hashes = lirank_ext.hash_strings(column)
        except (ValueError, TypeError, pa.ArrowException):
            continue
        if hashes.shape != (len(column),):
            raise Finding(f"{hashes.shape[0]} hashes of {len(column)} strings")


def damaged(seed: bytes, draw) -> bytes:
    """A seed with a few random changes, for tests without a fuzzer."""
    raw = bytearray(seed)
    for _ in range(draw.randint(1, 4)):
        kind = draw.randrange(4)
        at = draw.randrange(len(raw) + 1)
        if kind == 0 and raw:
            raw[at % len(raw)] ^= 1 << draw.randrange(8)
        elif kind == 1:
            del raw[at : at + draw.randint(1, 9)]
        elif kind == 2:
            raw[at:at] = draw.randbytes(draw.randint(1, 9))
        elif raw:
            number = draw.choice((0, -1, 1 << 31, (1 << 63) - 1, -(1 << 63), len(raw)))
            raw[at : at + 8] = struct.pack("<q", number)
    return bytes(raw)
