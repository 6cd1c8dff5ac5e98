"""What the Triton launchers of tables and hashes do beyond the cases, under the interpreter.

``TRITON_INTERPRET=1 LIRANK_NO_EXT=1 python tests/triton_tables_interpreted.py`` runs every check
and prints, as JSON, what was wrong with it ("" where nothing was). ``tests/test_triton_tables.py``
reads that.
"""

from __future__ import annotations

import json
import sys
import time
import traceback

import torch

from lirank_ext.kernels import errors
from lirank_ext.kernels import hashed_embedding_runs as runs
from lirank_ext.kernels.launch import INTERPRETED
from lirank_ext.library import gpu
from lirank_ext.library.device_errors import check_errors
from lirank_ext.library.op import OPS
from lirank_ext.nn.static_vocabulary import StaticVocabulary
from lirank_ext.ops import static_vocabulary as vocabulary
from lirank_ext.verify.cases.quantized_embedding import table

CHECKS = {}


def check(function):
    CHECKS[function.__name__] = function
    return function


def launch(name, *args, **kwargs):
    """The op by its Triton launcher, whatever device the tensors are on."""
    return gpu.launcher(OPS[name])(*args, **kwargs)


def reference(name, *args, **kwargs):
    return OPS[name].reference(*args, **kwargs)


def generator():
    return torch.Generator().manual_seed(5)


def close(got, wanted, tolerance=64 * 2.0**-23):
    assert got.shape == wanted.shape, (got.shape, wanted.shape)
    error = (got.double() - wanted.double()).abs().max() if got.numel() else 0
    scale = wanted.abs().max() if got.numel() else 1
    assert error <= tolerance * float(scale), f"error {float(error)}"


def found_wrong():
    """The message of what was counted since last time, or ''."""
    try:
        check_errors()
    except (IndexError, ValueError) as error:
        return str(error)
    return ""


# ---- many tables ---------------------------------------------------------------------------


def many(sizes, bits, lengths, dtype=torch.int64):
    """Tables end to end, their rows and dims, and random bags of these lengths in each."""
    g = generator()
    packed = torch.cat([table(g, n, d, bits).reshape(-1) for n, d in sizes])
    ids = [torch.randint(0, n, (k,), generator=g) for n, _ in sizes for k in lengths]
    offsets = torch.tensor([0, *map(len, ids)]).cumsum(0)
    rows, dims = torch.tensor(sizes).t()
    return packed, rows, dims, torch.cat(ids).to(dtype), offsets.to(dtype), bits


@check
def many_tables_of_one_bag_each():
    args = many([(9, 1), (1, 33), (5, 300), (4, 64)], 4, [3], torch.int32)
    out = launch("quantized_embedding_bags", *args, total_dim=398)
    close(out, reference("quantized_embedding_bags", *args))


@check
def more_tables_than_one_block_of_descriptors():
    args = many([(2, 1 + t % 3) for t in range(130)], 8, [1])
    close(
        launch("quantized_embedding_bags", *args),
        reference("quantized_embedding_bags", *args),
    )


@check
def strided_ids_and_half_weights_of_many_tables():
    *tables, ids, offsets, bits = many([(7, 24), (5, 10)], 8, [4, 0, 1, 9])
    ids = torch.stack([ids, ids], 1)[:, 0]
    weights = torch.randn(2 * len(ids), generator=generator()).half()[::2]
    args = (*tables, ids, offsets, bits, "sum", weights)
    close(
        launch("quantized_embedding_bags", *args),
        reference("quantized_embedding_bags", *args),
    )


@check
def a_bad_index_reads_nothing_and_is_counted():
    *tables, ids, offsets, bits = many([(7, 24), (5, 10)], 8, [4, 2, 1])
    bad = ids.clone()
    bad[8] = 5  # in the first bag of table 1, which has 5 rows
    zero = torch.ones(len(ids))
    zero[8] = 0
    out = launch("quantized_embedding_bags", *tables, bad, offsets, bits)
    assert "indices[8] = 5 is out of range for table 1 with 5 rows" in found_wrong()
    wanted = reference("quantized_embedding_bags", *tables, ids, offsets, bits, "sum", zero)
    close(out, wanted)
    grad = torch.randn(out.shape, generator=generator())
    got = launch("quantized_embedding_bags_backward", grad, *tables, bad, offsets, bits)
    assert "indices[8] = 5" in found_wrong() and got[8] == 0
    wanted = reference("quantized_embedding_bags_backward", grad, *tables, ids, offsets, bits)
    close(got, wanted * zero)


@check
def every_bad_index_is_counted():
    packed = table(generator(), 6, 16, 8)
    ids = torch.tensor([6, 1, -1, 1 << 40, 2, -(1 << 63)])
    out = launch("quantized_embedding_bag", packed, ids, None, 16)
    assert "4 such findings" in found_wrong()
    wanted = reference("quantized_embedding_bag", packed, ids.clamp(0, 5), None, 16)
    wanted[[0, 2, 3, 5]] = 0
    close(out, wanted)


@check
def rows_and_dims_that_do_not_fit_read_nothing():
    packed, rows, dims, ids, offsets, bits = many([(7, 24), (5, 10)], 8, [4, 2, 1])
    wrong = [
        (packed, rows * 100, dims, 34),
        (packed, rows, dims + 1, 36),
        (packed, rows, dims, 33),
        (packed, -rows, dims, 34),
        (packed, torch.tensor([1 << 62, 5]), dims, 34),
        (packed, rows, torch.tensor([1 << 40, 10]), 34),
        (packed[:-16], rows, dims, 34),
    ]
    for p, r, d, width in wrong:
        out = launch("quantized_embedding_bags", p, r, d, ids, offsets, bits, total_dim=width)
        assert "'packed'" in found_wrong() and out.shape == (3, width) and not out.any()


@check
def a_table_at_an_odd_address():
    packed = table(generator(), 6, 20, 4)
    moved = torch.cat([packed.reshape(-1)[:1], packed.reshape(-1)])[1:].view(packed.shape)
    assert moved.data_ptr() % 8
    ids = torch.tensor([0, 5, 3])
    wanted = reference("quantized_embedding_bag", packed, ids, None, 20, 4)
    close(launch("quantized_embedding_bag", moved, ids, None, 20, 4), wanted)
    got = launch("unpack_rows", moved, 20, 4)
    assert all(map(torch.equal, got, reference("unpack_rows", packed, 20, 4)))


@check
def rows_beyond_two_billion_bytes():
    rows, dim = (1 << 27) + 3, 8  # 2 GiB of address space, of which two pages are touched
    packed = torch.empty((rows, 16), dtype=torch.uint8)
    few = table(generator(), 2, dim, 8)
    packed[0], packed[-1] = few[0], few[1]
    ids, weights = torch.tensor([[rows - 1, 0]]), torch.tensor([[1.0, 2.0]])
    args = (ids, None, dim, 8, "sum", weights)
    wanted = reference("quantized_embedding_bag", few, torch.tensor([[1, 0]]), None, dim, 8, "sum",
                                               weights)  # fmt: skip
    close(launch("quantized_embedding_bag", packed, *args), wanted)
    flat = (
        packed.view(-1),
        torch.tensor([rows]),
        torch.tensor([dim]),
        ids[0],
        torch.tensor([0, 2]),
    )
    got = launch("quantized_embedding_bags", *flat, 8, "sum", weights[0], total_dim=dim)
    close(got, wanted)


@check
def rows_of_codes_are_those_of_the_reference():
    codes = torch.randint(-8, 8, (5, 33), generator=generator(), dtype=torch.int8)
    scale, mid = torch.rand(5, generator=generator()), torch.randn(5, generator=generator())
    got = launch("dequantize_rows", codes.t().contiguous().t(), scale, mid)
    assert torch.equal(got, reference("dequantize_rows", codes, scale, mid))
    codes[3, 32] = 8
    launch("pack_rows", codes, scale, mid, 4)
    assert "row 3" in found_wrong()


# ---- hashed tables -------------------------------------------------------------------------


def whole_numbers(*shape):
    """Of few bits: their sums are exact in any order."""
    return torch.randint(-8, 9, shape, generator=generator()).float()


def backward_args(grad, ids, offsets, weights=None, mode="sum", last=False, rule=(50, 7)):
    return grad, ids, offsets, weights, *rule, 3, mode, last, False


@check
def runs_across_many_chunks():
    ids = torch.randint(-5, 5, (150,), generator=generator())
    ids[20:140] = 4  # one row of every table takes most
    offsets = torch.arange(0, 150, 3)
    before, runs.CHUNK = runs.CHUNK, 4  # so that a run has more parts than are joined at once
    try:
        for sparse in ("", "_sparse"):
            name = f"hashed_embedding_bag_backward{sparse}"
            args = backward_args(whole_numbers(50, 5), ids, offsets, whole_numbers(150))
            for got, wanted in zip(launch(name, *args), reference(name, *args), strict=True):
                assert torch.equal(got, wanted)
    finally:
        runs.CHUNK = before


@check
def sparse_gradients():
    g = generator()
    ids = torch.randint(-(1 << 62), 1 << 62, (24,), generator=g)
    offsets, matrix = torch.tensor([0, 5, 5, 11, 20]), ids.view(8, 3)
    calls = [
        backward_args(torch.randn(4, 3), ids, offsets, None, "mean", True),
        backward_args(torch.randn(5, 3), ids, offsets.int()),
        backward_args(torch.randn(8, 40).half(), matrix, None, None, "mean"),
        backward_args(torch.randn(8, 3).double(), matrix, None, torch.rand(8, 3).double()),
        backward_args(torch.randn(24, 2), ids, None),
        backward_args(torch.randn(5, 3), ids[:0], torch.zeros(5).long()),
        backward_args(torch.randn(0, 3), ids[:0], None),
    ]
    for args in calls:
        got = launch("hashed_embedding_bag_backward_sparse", *args)
        wanted = reference("hashed_embedding_bag_backward_sparse", *args)
        tolerance = 2.0**-9 if args[0].dtype == torch.float16 else 2.0**-17
        for a, b in zip(got, wanted, strict=True):
            assert a.dtype == b.dtype
            close(a, b, tolerance)
        assert torch.equal(got[0], wanted[0]) and torch.equal(got[3], wanted[3])


@check
def rows_of_32_bits_rise():
    ids = torch.randint(-(1 << 62), 1 << 62, (9,), generator=generator())
    ids[4] = -1  # as a hash: the last row of both
    args = (torch.randn(9, 2), ids, None, None, 1 << 32, 1, 0, "sum", False, True)
    got = launch("hashed_embedding_bag_backward_sparse", *args)
    wanted = reference("hashed_embedding_bag_backward_sparse", *args)
    assert torch.equal(got[0], wanted[0]) and torch.equal(got[3], wanted[3])
    assert int(got[0][-1]) == (1 << 32) - 1
    assert torch.equal(got[1], wanted[1]) and torch.equal(got[4], wanted[4])


@check
def a_nan_stays_in_the_rows_of_its_bag():
    ids = torch.randint(-50, 50, (40,), generator=generator())
    grad = whole_numbers(40, 3)
    grad[17] = torch.nan
    args = backward_args(grad, ids, None)
    for got, wanted in zip(
        launch("hashed_embedding_bag_backward", *args),
        reference("hashed_embedding_bag_backward", *args),
        strict=True,
    ):
        assert wanted.isnan().any() and not wanted.isnan().all()
        assert torch.equal(got.nan_to_num(99.0), wanted.nan_to_num(99.0))


@check
def bad_offsets_are_counted_and_lead_nowhere():
    ids = torch.randint(-50, 50, (10,), generator=generator())
    for offsets in ([0, 7, 3], [1, 2, 3], [0, 4, 1 << 40], [0, -5, 3]):
        args = backward_args(whole_numbers(3, 2), ids, torch.tensor(offsets))
        launch("hashed_embedding_bag_backward", *args)
        assert "'offsets'" in found_wrong()
        launch("hashed_embedding_bag_backward_sparse", *args)
        assert "'offsets'" in found_wrong()


# ---- hashes --------------------------------------------------------------------------------


@check
def strings_under_all_seeds():
    mmh3 = __import__("mmh3")
    keys = [bytes(range(200, 200 + n)) for n in (0, 1, 7, 8, 9, 15, 16, 17, 31, 32, 33, 50)]
    data = torch.frombuffer(bytearray(b"".join(keys)), dtype=torch.uint8)
    offsets = torch.tensor([0, *map(len, keys)]).cumsum(0)
    for seed in (0, 1, (1 << 32) - 1):
        wanted = [mmh3.hash64(key, seed, signed=True)[0] for key in keys]
        assert launch("hash_strings", data, offsets, seed).tolist() == wanted


@check
def a_key_with_bad_offsets_gets_0_and_its_neighbors_their_hash():
    data = torch.arange(40, dtype=torch.uint8)
    offsets = torch.tensor([0, 5, 3, 9, 41])
    got = launch("hash_strings", data, offsets)
    assert "2 such findings" in found_wrong()
    assert got[1] == 0 and got[3] == 0
    for i, (begin, end) in ((0, (0, 5)), (2, (3, 9))):
        key = data[begin:end]
        assert got[i] == launch("hash_strings", key, torch.tensor([0, len(key)]))[0]


@check
def no_damaged_vocabulary_leads_outside():
    g = generator()
    keys = torch.randint(-(1 << 62), 1 << 62, (60,), generator=g)
    whole = StaticVocabulary.build(keys, 8).table
    header = vocabulary.read_header(whole)
    tags = vocabulary.layout(header).tags
    for _ in range(25):
        damaged = whole.clone()
        at = int(torch.randint(64, tags, (1,), generator=g))
        damaged[at : at + 2] = torch.randint(0, 256, (2,), generator=g).byte()
        rows = launch("vocabulary_lookup", keys, damaged, -9)
        assert ((rows == -9) | ((rows >= 0) & (rows < 60))).all()
    found_wrong()
    assert torch.equal(
        launch("vocabulary_lookup", keys, whole),
        vocabulary.vocabulary_lookup.op.reference(keys, whole),
    )


@check
def a_damaged_vocabulary_is_found_without_keys():
    table = StaticVocabulary.build(torch.arange(100)).table.clone()
    table[:8] = 0
    launch("vocabulary_lookup", torch.empty(0, dtype=torch.int64), table)
    assert "'table'" in found_wrong()


def main() -> None:
    assert INTERPRETED, "set TRITON_INTERPRET=1"
    results = {}
    for name, function in CHECKS.items():
        torch.manual_seed(0)
        begun = time.perf_counter()
        try:
            function()
            results[name] = ""
            left = list(errors.take())
            assert not left, f"findings left: {left}"
        except Exception:
            results[name] = traceback.format_exc()[-1500:]
            list(errors.take())
        print(f"{name}: {time.perf_counter() - begun:.1f} s", file=sys.stderr)
    print(json.dumps(results))


if __name__ == "__main__":
    main()
