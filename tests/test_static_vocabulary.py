from __future__ import annotations

import os
import zlib

import numpy as np
import pytest
import torch
from conftest import needs_library

from lirank_ext.library import files, load
from lirank_ext.library.op import implementations
from lirank_ext.nn import StaticVocabulary, static_vocabulary

KNOWN_UNFINALIZED = torch.tensor([0, 1, -1, (1 << 63) - 1, -(1 << 63), 123456789])


def distinct(n, start=0):
    """n different ids in a random order, some of them negative."""
    return torch.randperm(4 * n + 1)[:n] - 2 * n + start


@pytest.fixture
def builder(interface, monkeypatch):
    """Every builder."""
    monkeypatch.setattr(static_vocabulary, "extension", interface)


def is_bijective(rows, n):
    return rows.dtype == torch.int64 and torch.equal(rows.sort().values, torch.arange(n))


@pytest.mark.parametrize("tag_bits", [0, 1, 7, 8, 13, 16, 31, 32])
@pytest.mark.parametrize("n", [1, 2, 3, 17, 500, 3000])
def test_every_known_key_has_a_row_of_its_own(builder, n, tag_bits):
    keys = distinct(n)
    vocabulary = StaticVocabulary.build(keys, tag_bits=tag_bits)
    assert len(vocabulary) == n and vocabulary.tag_bits == tag_bits
    rows = vocabulary.lookup(keys)
    assert is_bijective(rows, n)
    for implementation in implementations("vocabulary_lookup").values():
        assert torch.equal(implementation(keys, vocabulary.table), rows)


@pytest.mark.parametrize(
    "keys",
    [
        torch.arange(5000),
        torch.arange(5000) << 50,
        torch.arange(5000) * -1024 - (1 << 62),
        torch.tensor([0, -1, (1 << 63) - 1, -(1 << 63)]),
        torch.arange(20)[::2],
    ],
)
def test_keys_with_a_pattern(builder, keys):
    assert is_bijective(StaticVocabulary.build(keys).lookup(keys), len(keys))


@pytest.mark.parametrize("n", [32_768, 32_769, 70_000, 300_000])
def test_several_parts(n):
    if load.extension is None and n > 100_000:
        pytest.skip("5 us a key without the extension")
    keys = distinct(n)
    vocabulary = StaticVocabulary.build(keys)
    assert is_bijective(vocabulary.lookup(keys), n)
    assert vocabulary.bits_per_key - vocabulary.tag_bits < 3
    unknown = torch.randint(1 << 40, 1 << 50, (1000,))
    for implementation in implementations("vocabulary_lookup").values():
        assert torch.equal(implementation(unknown, vocabulary.table), vocabulary.lookup(unknown))


@needs_library
@pytest.mark.parametrize("n", [0, 1, 40, 6000, 50_000])
@pytest.mark.parametrize("tag_bits", [0, 8, 11])
def test_both_builders_make_the_same_table(monkeypatch, n, tag_bits, threads):
    keys = distinct(n)
    table = StaticVocabulary.build(keys, tag_bits).table
    threads(1)
    assert torch.equal(StaticVocabulary.build(keys.flip(0), tag_bits).table, table)
    monkeypatch.setattr(static_vocabulary, "extension", None)
    assert torch.equal(StaticVocabulary.build(keys, tag_bits).table, table)


@pytest.mark.parametrize("tag_bits", [1, 4, 8, 12])
def test_unknown_keys_pass_for_known_ones_as_often_as_stated(tag_bits):
    """The rate is within 5 standard deviations of 2^-tag_bits, for far and for near keys."""
    n, tries = 4000, 400_000
    vocabulary = StaticVocabulary.build(torch.arange(n) * 2, tag_bits)
    wanted = 2.0**-tag_bits
    slack = 5 * (wanted * (1 - wanted) / tries) ** 0.5
    far = torch.randint(1 << 30, 1 << 60, (tries,))
    near = torch.arange(tries) * 2 + 1
    for unknown in (far, near):
        rate = (vocabulary.lookup(unknown) >= 0).double().mean().item()
        assert abs(rate - wanted) < slack


def test_no_tag_gives_some_row_and_32_bits_give_none():
    keys, unknown = torch.arange(1000), torch.randint(1 << 30, 1 << 60, (100_000,))
    rows = StaticVocabulary.build(keys, 0).lookup(unknown)
    assert (rows >= 0).all() and (rows < 1000).all()
    assert (StaticVocabulary.build(keys, 32).lookup(unknown) == -1).all()


def test_unknown_keys_get_oov():
    keys, unknown = torch.arange(100), torch.tensor([[1 << 40, 5]])
    vocabulary = StaticVocabulary.build(keys, 32)
    assert vocabulary.lookup(unknown)[0, 0] == -1
    assert vocabulary.lookup(unknown, oov=100)[0, 0] == 100
    vocabulary = StaticVocabulary.build(keys, 32, oov=7)
    assert vocabulary.lookup(unknown)[0, 0] == 7
    assert torch.equal(vocabulary(unknown), vocabulary.lookup(unknown))
    nothing = StaticVocabulary.build(keys[:0])
    assert len(nothing) == 0 and (nothing.lookup(keys) == -1).all()


WORDS = [f"member:{i}" for i in range(700)] + ["", "é", "日本", "\0"]


def test_strings(builder):
    pa, pd = pytest.importorskip("pyarrow"), pytest.importorskip("pandas")
    encoded = [w.encode() for w in WORDS]
    pair = (
        torch.tensor(list(b"".join(encoded)), dtype=torch.uint8),
        torch.tensor([0, *map(len, encoded)]).cumsum(0),
    )
    forms = [WORDS, encoded, pair, np.array(WORDS, dtype=object), pa.array(WORDS)]
    forms += [pd.Series(WORDS), dict.fromkeys(WORDS).keys()]
    wanted = StaticVocabulary.build(WORDS, 16)
    assert is_bijective(wanted.lookup(WORDS), len(WORDS))
    for keys in forms:
        vocabulary = StaticVocabulary.build(keys, 16)
        assert torch.equal(vocabulary.table, wanted.table)
        assert torch.equal(wanted.lookup(keys), wanted.lookup(WORDS))
    assert (wanted.lookup([f"x{i}" for i in range(300)]) == -1).all()


def test_ids_and_strings_are_not_confused():
    ids, words = StaticVocabulary.build(torch.arange(5)), StaticVocabulary.build(WORDS)
    assert ids.string_seed is None and words.string_seed == 0
    with pytest.raises(TypeError, match="'keys': wanted an int64 tensor"):
        ids.lookup(["1"])
    with pytest.raises(TypeError, match="'keys': wanted strings"):
        words.lookup(torch.arange(5))


def test_duplicates_are_named(builder):
    keys = distinct(2000)
    keys[1500] = keys[77]
    with pytest.raises(ValueError, match=rf"key {keys[77]} occurs twice, at positions 77, 1500"):
        StaticVocabulary.build(keys)
    with pytest.raises(ValueError, match=r"key 'member:5' occurs twice, at positions 5, 704"):
        StaticVocabulary.build([*WORDS, "member:5"])
    pa = pytest.importorskip("pyarrow")
    with pytest.raises(ValueError, match=r"key 'é' occurs twice, at positions 0, 2"):
        StaticVocabulary.build(pa.array(["é", "a", "é"]))
    pair = (torch.tensor(list(b"abab"), dtype=torch.uint8), torch.tensor([0, 2, 4]))
    with pytest.raises(ValueError, match=r"key 'ab' occurs twice, at positions 0, 1"):
        StaticVocabulary.build(pair)
    with pytest.raises(ValueError, match=r"key b'\\xff' occurs twice"):
        StaticVocabulary.build([b"\xff", b"\xff"])


def test_strings_with_one_hash_are_told_from_duplicates(monkeypatch):
    """Under seed 0 all keys are given one hash; the next seed must be tried."""
    hash_strings = static_vocabulary.hash_strings
    monkeypatch.setattr(
        static_vocabulary,
        "hash_strings",
        lambda keys, seed: hash_strings(keys, seed) * (0 if seed == 0 else 1),
    )
    vocabulary = StaticVocabulary.build(WORDS)
    assert vocabulary.string_seed == 1
    assert is_bijective(vocabulary.lookup(WORDS), len(WORDS))
    with pytest.raises(ValueError, match="key 'a' occurs twice"):
        StaticVocabulary.build(["a", "b", "a"])


@pytest.mark.parametrize(
    ("keys", "options", "error", "text"),
    [
        (torch.arange(5).int(), {}, TypeError, "'keys': wanted an int64 tensor or strings"),
        (torch.zeros(5), {}, TypeError, "'keys': wanted an int64 tensor or strings"),
        (torch.zeros(5, 2).long(), {}, ValueError, "'keys': wanted one dimension"),
        (7, {}, TypeError, "'strings'"),
        (["a", None], {}, TypeError, "position 1"),
        (torch.arange(5), {"tag_bits": 33}, ValueError, "'tag_bits': wanted a whole number"),
        (torch.arange(5), {"tag_bits": -1}, ValueError, "'tag_bits'"),
        (torch.arange(5), {"tag_bits": 8.0}, ValueError, "'tag_bits'"),
    ],
)
def test_refused(builder, keys, options, error, text):
    with pytest.raises(error, match=text):
        StaticVocabulary.build(keys, **options)


def test_save_and_load(tmp_path):
    for keys in (torch.arange(3000), WORDS):
        path = tmp_path / "vocabulary.bin"
        vocabulary = StaticVocabulary.build(keys, 12, oov=-5)
        vocabulary.save(path)
        loaded = StaticVocabulary.load(path)
        assert torch.equal(loaded.table, vocabulary.table) and loaded.oov == -5
        assert torch.equal(loaded.lookup(keys), vocabulary.lookup(keys))
        assert [p.name for p in tmp_path.iterdir()] == ["vocabulary.bin"]


def test_a_damaged_file_is_one_clear_sentence(tmp_path):
    path = tmp_path / "vocabulary.bin"
    StaticVocabulary.build(torch.arange(1000)).save(path)
    whole = path.read_bytes()

    def refused(data, text):
        path.write_bytes(data)
        with pytest.raises(ValueError, match=text) as caught:
            StaticVocabulary.load(path)
        message = str(caught.value)
        assert message.startswith("StaticVocabulary.load: '") and message.count("\n") == 0

    for at in [*range(16, 40), *range(40, len(whole), 97)]:
        refused(whole[:at] + bytes([whole[at] ^ 4]) + whole[at + 1 :], "is damaged: ")
    refused(whole[:-1], "is damaged: it holds")
    refused(whole + b"\0", "is damaged: it holds")
    for size in range(16, 41):
        refused(whole[:size], "is damaged: ")
    # Cut or changed by somebody who also corrects the size and the checksum.
    for table in (b"", whole[40:60], whole[40:-8], b"x" * 100, whole[40:48] * 40):
        head = len(table).to_bytes(8, "little") + whole[24:32]
        crc = zlib.crc32(table, zlib.crc32(head)).to_bytes(8, "little")
        refused(whole[:16] + head + crc + table, "is damaged: ")
    refused(b"", "is not a vocabulary file")
    refused(b"PK" + whole, "is not a vocabulary file")
    with pytest.raises(FileNotFoundError):
        StaticVocabulary.load(tmp_path / "none")


def test_a_failed_save_leaves_the_old_file(tmp_path, monkeypatch):
    path = tmp_path / "vocabulary.bin"
    vocabulary = StaticVocabulary.build(torch.arange(10))
    vocabulary.save(path)
    before = path.read_bytes()

    def full(*_):
        raise OSError("no space left")

    monkeypatch.setattr(files.os, "replace", full)
    with pytest.raises(OSError, match="no space"):
        vocabulary.save(path)
    assert path.read_bytes() == before and len(list(tmp_path.iterdir())) == 1


def test_a_saved_file_is_as_readable_as_any_other_and_a_link_stays_one(tmp_path):
    umask = os.umask(0o022)
    try:
        target, link = tmp_path / "target.bin", tmp_path / "link.bin"
        link.symlink_to(target)
        StaticVocabulary.build(torch.arange(10)).save(link)
    finally:
        os.umask(umask)
    assert link.is_symlink() and target.stat().st_mode & 0o777 == 0o644
    assert len(StaticVocabulary.load(link)) == 10


def test_a_refused_state_dict_leaves_the_vocabulary_as_it_was():
    vocabulary = StaticVocabulary.build(torch.arange(10))
    before = vocabulary.lookup(torch.arange(10))
    with pytest.raises(ValueError, match="wanted the table of a StaticVocabulary"):
        vocabulary.load_state_dict({"table": torch.zeros(200, dtype=torch.uint8)})
    assert torch.equal(vocabulary.lookup(torch.arange(10)), before)


@pytest.mark.parametrize("oov", [1.5, None, True, 2**63])
def test_oov_is_a_whole_number_of_64_bits(oov):
    with pytest.raises(ValueError, match=r"StaticVocabulary: .*oov.*: wanted a whole number"):
        StaticVocabulary.build(torch.arange(3), oov=oov)


def test_state_dict_of_another_size():
    source, target = StaticVocabulary.build(WORDS, 16), StaticVocabulary.build(torch.arange(3))
    target.load_state_dict(source.state_dict())
    assert len(target) == len(WORDS) and target.string_seed == 0
    assert torch.equal(target.lookup(WORDS), source.lookup(WORDS))


def test_progress_goes_to_stderr(builder, capsys):
    pytest.importorskip("tqdm")
    StaticVocabulary.build(torch.arange(40_000), progress=True)
    out, err = capsys.readouterr()
    assert out == "" and "vocabulary: 100%" in err


def test_unfinalize():
    finalized = static_vocabulary.finalize(KNOWN_UNFINALIZED)
    assert torch.equal(static_vocabulary._unfinalize(finalized), KNOWN_UNFINALIZED)


def test_in_a_compiled_graph_and_bit_equal_for_any_number_of_threads(threads):
    keys = distinct(50_000)
    vocabulary = StaticVocabulary.build(keys)
    wanted = vocabulary.lookup(keys)
    for count in (1, 2, 3):
        threads(count)
        assert torch.equal(vocabulary.lookup(keys), wanted)
    compiled = torch.compile(lambda k: vocabulary(k) + 1, fullgraph=True)
    assert torch.equal(compiled(keys), wanted + 1)


def test_buffers_of_another_size_are_refused(interface):
    if interface is None:
        pytest.skip("plain Python hands over no buffer")
    keys, table = np.arange(10), np.zeros(100, np.uint8)
    with pytest.raises(ValueError, match="table of another size"):
        interface.VocabularyBuilder(keys, 8, 1, -1, table)
    with pytest.raises(ValueError, match="one run of int64"):
        interface.VocabularyBuilder(keys.astype(np.int32), 8, 1, -1, table)
    with pytest.raises(ValueError, match="one run of bytes"):
        interface.VocabularyBuilder(keys, 8, 1, -1, table[::2])
    with pytest.raises(ValueError, match="0 to 32 bits"):
        interface.VocabularyBuilder(keys, 33, 1, -1, table)
