"""Row-wise quantized tables against formulas and ``F.embedding_bag`` on the dequantized table."""

from __future__ import annotations

import copy

import numpy as np
import pytest
import torch
from conftest import needs_library
from torch.nn.functional import embedding_bag

import lirank_ext
from lirank_ext import (
    dequantize_rows,
    pack_rows,
    quantize_rows,
    quantized_embedding_bag,
    quantized_embedding_bags,
    unpack_rows,
)
from lirank_ext.nn import (
    QuantizedEmbedding,
    QuantizedEmbeddingBag,
    QuantizedEmbeddingBagCollection,
)

# Around every switch of the kernels: vectors of 4, 8 and 16 columns, whole blocks, row layouts.
DIMS = (1, 3, 7, 8, 9, 15, 16, 17, 24, 30, 31, 32, 33, 40, 48, 56, 63, 64, 65, 72, 96, 104, 127)
DIMS += (128, 129, 160, 192, 200, 255, 256, 257, 320, 512, 600)


def make(rows, dim, bits=8):
    """A packed table, and the dequantized float table."""
    codes, scale, mid = quantize_rows(torch.randn(rows, dim), bits)
    return pack_rows(codes, scale, mid, bits), mid[:, None] + codes * scale[:, None]


def some_bags(bags, most, rows, dtype=torch.int64):
    lengths = torch.randint(0, most + 1, (bags,))
    offsets = torch.cat([torch.zeros(1, dtype=torch.int64), lengths.cumsum(0)])
    return torch.randint(0, rows, (int(offsets[-1]),)).to(dtype), offsets.to(dtype)


def close(got, want):
    scale = float(want.abs().max().clamp(min=1))
    torch.testing.assert_close(got, want, rtol=0, atol=4e-6 * scale)


# ---- quantizing ------------------------------------------------------------------------


@pytest.mark.parametrize("bits", [8, 4])
def test_codes_follow_the_middle_max_formula(bits):
    weight = torch.randn(40, 37) * torch.logspace(-20, 20, 40)[:, None]
    half, steps = np.float32(2 ** (bits - 1)), np.float32(2**bits - 1)
    for row, codes, scale, mid in zip(weight.numpy(), *quantize_rows(weight, bits), strict=True):
        s = (row.max() - row.min()) / steps
        m = (row.max() * half + row.min() * (half - np.float32(1))) / steps
        assert scale.item() == s and mid.item() == m
        assert codes.tolist() == np.clip(np.rint((row - m) / s), -half, half - 1).tolist()


@pytest.mark.parametrize("bits", [8, 4])
def test_no_value_is_off_by_more_than_half_a_step(bits):
    weight = torch.randn(200, 65)
    codes, scale, mid = quantize_rows(weight, bits)
    error = (dequantize_rows(codes, scale, mid) - weight).abs().amax(1)
    assert (error <= 0.5001 * scale).all()
    assert codes.amin() == -(2 ** (bits - 1)) and codes.amax() == 2 ** (bits - 1) - 1


def test_a_constant_row_keeps_its_value():
    codes, scale, mid = quantize_rows(torch.tensor([[0.3] * 5, [0.0] * 5]))
    assert not codes.any() and scale.tolist() == [1, 1]
    assert torch.equal(mid, torch.tensor([0.3, 0.0]))


@pytest.mark.parametrize("value", [torch.nan, torch.inf, -torch.inf])
def test_a_row_that_is_not_finite_is_named(value):
    weight = torch.randn(50, 20)
    weight[31, 19] = value
    with pytest.raises(ValueError, match=r"quantize_rows: argument 'weight'.*got row 31"):
        quantize_rows(weight)


@pytest.mark.parametrize("bits", [8, 4])
@pytest.mark.parametrize("dim", DIMS)
def test_packing_loses_nothing(dim, bits):
    codes = torch.randint(-(2 ** (bits - 1)), 2 ** (bits - 1), (19, dim)).to(torch.int8)
    scale, mid = torch.rand(19), torch.randn(19)
    packed = pack_rows(codes, scale, mid, bits)
    for got, want in zip(unpack_rows(packed, dim, bits), (codes, scale, mid), strict=True):
        assert torch.equal(got, want)


# ---- one table -------------------------------------------------------------------------


@pytest.mark.parametrize("bits", [8, 4])
@pytest.mark.parametrize("dim", DIMS)
def test_every_width_equals_embedding_bag(dim, bits):
    packed, table = make(90, dim, bits)
    ids, offsets = some_bags(23, 12, 90)
    got = quantized_embedding_bag(packed, ids, offsets, dim, bits, include_last_offset=True)
    close(got, embedding_bag(ids, table, offsets, mode="sum", include_last_offset=True))
    weights = torch.randn(len(ids))
    got = quantized_embedding_bag(packed, ids, offsets, dim, bits, "sum", weights, True)
    want = embedding_bag(
        ids, table, offsets, mode="sum", per_sample_weights=weights, include_last_offset=True
    )
    close(got, want)
    close(quantized_embedding_bag(packed, ids, None, dim, bits), table[ids])


@pytest.mark.parametrize("ids_type", [torch.int32, torch.int64])
@pytest.mark.parametrize("last", [False, True])
@pytest.mark.parametrize("mode", ["sum", "mean"])
def test_calls_as_embedding_bag_takes_them(ids_type, last, mode):
    packed, table = make(300, 40)
    ids, offsets = some_bags(31, 9, 300, ids_type)
    offsets = offsets if last else offsets[:-1]
    options = {"mode": mode, "include_last_offset": last}
    got = quantized_embedding_bag(packed, ids, offsets, 40, **options)
    close(got, embedding_bag(ids, table, offsets, **options))
    square = torch.randint(0, 300, (7, 5), dtype=ids_type)
    got = quantized_embedding_bag(packed, square, None, 40, mode=mode)
    close(got, embedding_bag(square, table, mode=mode))


def test_bags_of_every_length_next_to_empty_ones():
    packed, table = make(1000, 64)
    lengths = torch.tensor([0, 1, 0, 2, 3, 0, 0, 15, 16, 17, 31, 32, 33, 500, 0, 1])
    offsets = torch.cat([torch.zeros(1, dtype=torch.int64), lengths.cumsum(0)])
    ids = torch.randint(0, 1000, (int(offsets[-1]),))
    got = quantized_embedding_bag(packed, ids, offsets, 64, include_last_offset=True)
    close(got, embedding_bag(ids, table, offsets, mode="sum", include_last_offset=True))
    assert not got[lengths == 0].any()


def test_ids_behind_the_last_bag_are_not_read():
    packed, table = make(10, 16)
    ids = torch.tensor([1, 2, 3, 99])
    got = quantized_embedding_bag(packed, ids, torch.tensor([0, 2]), 16, include_last_offset=True)
    close(got, table[1:3].sum(0, keepdim=True))


@needs_library  # the reference rounds its float64 sum
@pytest.mark.parametrize("dtype", [torch.float64, torch.float16, torch.bfloat16])
def test_output_dtype_is_one_rounding_of_the_float32_sum(dtype):
    packed, _ = make(50, 33)
    ids, offsets = some_bags(9, 6, 50)
    exact = quantized_embedding_bag(packed, ids, offsets[:-1], 33)
    got = quantized_embedding_bag(packed, ids, offsets[:-1], 33, output_dtype=dtype)
    assert torch.equal(got, exact.to(dtype))


@pytest.mark.parametrize("bits", [8, 4])
@pytest.mark.parametrize("shape", [(16, 4096, 20), (64, 3000, 50), (200, 500, 20), (32, 6000, 1)])
def test_bit_equal_for_any_number_of_threads(threads, shape, bits):
    dim, bags, most = shape
    packed, _ = make(2000, dim, bits)
    ids, offsets = some_bags(bags, most, 2000)
    weights = torch.randn(len(ids))
    found = []
    for count in (1, 2, 3):
        threads(count)
        found.append(
            (
                quantized_embedding_bag(packed, ids, offsets, dim, bits, include_last_offset=True),
                quantized_embedding_bag(packed, ids, offsets, dim, bits, "sum", weights, True),
                quantized_embedding_bag(packed, ids, offsets[:-1], dim, bits, "mean"),
                *quantize_rows(torch.linspace(-1, 1, 3000 * dim).sin().view(-1, dim), bits),
            )
        )
    for other in found[1:]:
        assert all(torch.equal(a, b) for a, b in zip(found[0], other, strict=True))


@pytest.mark.parametrize("rows", [5, 50_000])
def test_a_bag_does_not_depend_on_its_neighbors(rows):
    packed, _ = make(rows, 128)
    ids, offsets = some_bags(50, 30, rows)
    whole = quantized_embedding_bag(packed, ids, offsets, 128, include_last_offset=True)
    for b in range(50):
        mine = ids[offsets[b] : offsets[b + 1]]
        alone = quantized_embedding_bag(packed, mine, torch.zeros(1, dtype=torch.int64), 128)
        assert torch.equal(alone[0], whole[b])


@needs_library  # the reference unpacks the whole table
@pytest.mark.parametrize("dim", [64, 30])  # pairs apart, and behind the codes of each row
def test_a_table_beyond_two_gigabytes(dim):
    row_bytes = pack_rows(torch.zeros(1, dim, dtype=torch.int8), *torch.ones(2, 1)).shape[1]
    rows = 2**31 // row_bytes + 1_000_000
    used = torch.tensor([0, rows // 2, 2**31 // row_bytes + 1, rows - 1])
    small, table = make(len(used), dim)
    packed = torch.empty(rows, row_bytes, dtype=torch.uint8)  # pages never written take no memory
    flat, from_flat = packed.view(-1), small.view(-1)
    apart = dim == 64
    for i, row in enumerate(used.tolist()):
        if apart:
            flat[row * 64 : (row + 1) * 64] = from_flat[i * 64 : (i + 1) * 64]
            pair = from_flat[len(used) * 64 + i * 8 :][:8]
            flat[rows * 64 + row * 8 : rows * 64 + row * 8 + 8] = pair
        else:
            packed[row] = small[i]
    got = quantized_embedding_bag(packed, used, None, dim)
    close(got, table)
    with pytest.raises(IndexError, match=rf"indices\[0\] = {rows} is out of range.* {rows} rows"):
        quantized_embedding_bag(packed, torch.tensor([rows]), None, dim)


# ---- gradients -------------------------------------------------------------------------


@pytest.mark.parametrize("bits", [8, 4])
@pytest.mark.parametrize("dim", [1, 30, 64, 129])
def test_gradient_of_the_weights_is_that_of_embedding_bag(dim, bits):
    packed, table = make(60, dim, bits)
    ids, offsets = some_bags(12, 7, 60)
    weights = torch.randn(len(ids), requires_grad=True)
    twin = weights.detach().clone().requires_grad_()
    g = torch.randn(12, dim)
    quantized_embedding_bag(packed, ids, offsets, dim, bits, "sum", weights, True).backward(g)
    embedding_bag(
        ids, table, offsets, mode="sum", per_sample_weights=twin, include_last_offset=True
    ).backward(g)
    torch.testing.assert_close(weights.grad, twin.grad, rtol=1e-4, atol=1e-4)


def test_gradient_of_no_weights_at_all():
    packed, _ = make(5, 8)
    weights = torch.empty(4, 0, requires_grad=True)
    ids = torch.empty(4, 0, dtype=torch.int64)
    out = quantized_embedding_bag(packed, ids, None, 8, per_sample_weights=weights)
    assert not out.any()
    out.sum().backward()
    assert weights.grad.shape == (4, 0)


def test_gradients_of_dequantize():
    codes, scale, mid = quantize_rows(torch.randn(6, 9))
    scale, mid = scale.requires_grad_(), mid.requires_grad_()
    dequantize_rows(codes, scale, mid).backward(g := torch.randn(6, 9))
    torch.testing.assert_close(scale.grad, (g * codes).sum(1))
    torch.testing.assert_close(mid.grad, g.sum(1))


def test_a_quantized_table_cannot_be_trained():
    codes, scale, mid = quantize_rows(torch.randn(6, 9, requires_grad=True))
    assert not scale.requires_grad
    with pytest.raises(ValueError, match="cannot be trained"):
        pack_rows(codes, scale.requires_grad_(), mid)
    layers = (
        QuantizedEmbedding.from_float(torch.nn.Embedding(4, 8)),
        QuantizedEmbeddingBag.from_float(torch.nn.EmbeddingBag(4, 8)),
        QuantizedEmbeddingBagCollection.from_float({"a": torch.nn.EmbeddingBag(4, 8)}),
    )
    for layer in layers:
        with pytest.raises(ValueError, match="requires_grad_: wanted False, got True"):
            layer.requires_grad_()
        assert layer.requires_grad_(False) is layer and not list(layer.parameters())


# ---- refusals --------------------------------------------------------------------------


@pytest.mark.parametrize("index", [50, -1, 2**31, -(2**40)])
@pytest.mark.parametrize("at", [0, 7, 29])
def test_an_index_out_of_range_is_named(at, index):
    packed, _ = make(50, 16)
    ids = torch.randint(0, 50, (30,))
    ids[at] = index
    text = rf"indices\[{at}\] = {index} is out of range for table 0 with 50 rows"
    with pytest.raises(IndexError, match=text):
        quantized_embedding_bag(packed, ids, torch.tensor([0, 10, 25]), 16)
    with pytest.raises(IndexError, match=text):
        quantized_embedding_bag(packed, ids, None, 16)


def test_the_first_of_several_bad_indices_is_named(threads):
    packed, _ = make(50, 64)
    ids = torch.randint(0, 50, (200_000,))
    ids[[60_001, 130_000, 199_999]] = 77
    offsets = torch.arange(0, 200_000, 20)
    for count in (1, 2):
        threads(count)
        with pytest.raises(IndexError, match=r"indices\[60001\] = 77 is"):
            quantized_embedding_bag(packed, ids, offsets, 64)


@pytest.mark.parametrize(
    ("offsets", "last", "text"),
    [
        ([1, 2], False, "wanted 0 first, got 1"),
        ([0, 3, 2], False, "wanted no decrease, got 2 after 3 at position 2"),
        ([0, 9], False, r"wanted at most 8 \(the number of indices\), got 9 at position 1"),
        ([0, 4, 9], True, "wanted at most 8"),
        ([-1, 4], False, "wanted 0 first, got -1"),
        ([], True, "include_last_offset"),
        ([[0]], False, "wanted 1 dimension"),
    ],
)
@pytest.mark.parametrize("dtype", [torch.int32, torch.int64])
def test_offsets_that_do_not_fit(offsets, last, text, dtype):
    packed, _ = make(10, 8)
    ids = torch.zeros(8, dtype=torch.int64)
    with pytest.raises((ValueError, RuntimeError), match=f"argument 'offsets'.*{text}"):
        quantized_embedding_bag(
            packed, ids, torch.tensor(offsets, dtype=dtype), 8, include_last_offset=last
        )


# ---- many tables -----------------------------------------------------------------------


def many(dims, bags, most, bits=8, rows=lambda t: 20 + 7 * t):
    """Tables, their floats, and the ids of one call, table-major."""
    made = [make(rows(t), d, bits) for t, d in enumerate(dims)]
    counts = torch.tensor([len(p) for p, _ in made])
    lengths = torch.randint(0, most + 1, (len(dims) * bags,))
    offsets = torch.cat([torch.zeros(1, dtype=torch.int64), lengths.cumsum(0)])
    table_of = torch.arange(len(dims)).repeat_interleave(bags).repeat_interleave(lengths)
    ids = (torch.rand(int(offsets[-1])) * counts[table_of]).long()
    return [p for p, _ in made], [f for _, f in made], counts, ids, offsets


def table_by_table(floats, ids, offsets, bags, mode="sum", weights=None):
    parts = []
    for t, table in enumerate(floats):
        mine = offsets[t * bags : (t + 1) * bags + 1]
        span = slice(int(mine[0]), int(mine[-1]))
        w = None if weights is None else weights[span]
        parts.append(
            embedding_bag(
                ids[span],
                table,
                mine - mine[0],
                mode=mode,
                per_sample_weights=w,
                include_last_offset=True,
            )
        )
    return torch.cat(parts, 1)


@pytest.mark.parametrize("bits", [8, 4])
@pytest.mark.parametrize("bags", [1, 2, 64, 300])
@pytest.mark.parametrize("dims", [(64,), (16, 30, 64, 200, 1), (32,) * 26])
def test_many_tables_equal_one_call_each(dims, bags, bits):
    tables, floats, rows, ids, offsets = many(dims, bags, 5, bits)
    packed = lirank_ext.concatenate_tables(tables)
    call = (rows, torch.tensor(dims), ids, offsets, bits)
    for mode in ("sum", "mean"):
        got = quantized_embedding_bags(packed, *call, mode)
        close(got, table_by_table(floats, ids, offsets, bags, mode))
    weights = torch.randn(len(ids))
    got = quantized_embedding_bags(packed, *call, "sum", weights)
    close(got, table_by_table(floats, ids, offsets, bags, "sum", weights))
    narrow = quantized_embedding_bags(packed, rows, call[1], ids.int(), offsets.int(), bits)
    assert torch.equal(narrow, quantized_embedding_bags(packed, *call))
    tight = torch.cat([t.reshape(-1) for t in tables])
    assert torch.equal(narrow, quantized_embedding_bags(tight, *call))
    assert torch.equal(narrow, quantized_embedding_bags(tables, *call))


def test_many_tables_bit_equal_for_any_number_of_threads(threads):
    dims = (32, 64, 30, 128) * 5
    tables, _, rows, ids, offsets = many(dims, 300, 20)
    packed, found = lirank_ext.concatenate_tables(tables), []
    for count in (1, 2, 3):
        threads(count)
        found.append(quantized_embedding_bags(packed, rows, torch.tensor(dims), ids, offsets))
    assert torch.equal(found[0], found[1]) and torch.equal(found[0], found[2])


def test_many_tables_agree_with_single_calls_to_the_bit():
    dims, bags = (64, 30, 128), 40
    tables, _, rows, ids, offsets = many(dims, bags, 9)
    got = quantized_embedding_bags(tables, rows, torch.tensor(dims), ids, offsets)
    column = 0
    for t, dim in enumerate(dims):
        mine = offsets[t * bags : (t + 1) * bags + 1]
        span = ids[int(mine[0]) : int(mine[-1])]
        alone = quantized_embedding_bag(
            tables[t], span, mine - mine[0], dim, include_last_offset=True
        )
        assert torch.equal(got[:, column : column + dim], alone)
        column += dim


def test_many_tables_name_the_table_of_a_bad_index():
    dims = (16, 16, 16)
    tables, _, rows, ids, offsets = many(dims, 10, 4)
    at = int(offsets[20]) + 1  # in table 2
    ids[at] = int(rows[2])
    text = rf"indices\[{at}\] = {rows[2]} is out of range for table 2 with {rows[2]} rows"
    with pytest.raises(IndexError, match=text):
        quantized_embedding_bags(tables, rows, torch.tensor(dims), ids, offsets)


def test_numbers_of_rows_that_overflow_are_refused():
    ids, offsets = torch.zeros(1, dtype=torch.int64), torch.tensor([0, 1])
    with pytest.raises((ValueError, RuntimeError), match=r"argument '(packed|rows)'"):
        quantized_embedding_bags(
            torch.empty(0, dtype=torch.uint8),
            torch.tensor([2**61]),
            torch.tensor([56]),
            ids,
            offsets,
        )


def test_offsets_of_many_tables_must_be_whole():
    tables, _, rows, ids, offsets = many((8, 8), 5, 4)
    with pytest.raises((ValueError, RuntimeError), match=r"tables \* bags \+ 1 offsets"):
        quantized_embedding_bags(tables, rows, torch.tensor([8, 8]), ids, offsets[:-1])


# ---- modules ---------------------------------------------------------------------------


@pytest.mark.parametrize("bits", [8, 4])
def test_embedding_module(bits):
    plain = torch.nn.Embedding(100, 24)
    fast = QuantizedEmbedding.from_float(plain, bits)
    table = dequantize_rows(*quantize_rows(plain.weight, bits))
    for shape in [(), (5,), (3, 4), (2, 3, 4), (0,)]:
        ids = torch.randint(0, 100, shape)
        assert fast(ids).shape == (*shape, 24)
        close(fast(ids), table[ids]) if ids.numel() else None
    assert torch.equal(fast.dequantize().weight, table)
    assert fast.num_embeddings == 100 and f"bits={bits}" in repr(fast)


@pytest.mark.parametrize("mode", ["sum", "mean"])
def test_embedding_bag_module(mode):
    plain = torch.nn.EmbeddingBag(100, 24, mode=mode, include_last_offset=True)
    fast = QuantizedEmbeddingBag.from_float(plain)
    twin = fast.dequantize()
    ids, offsets = some_bags(9, 5, 100)
    close(fast(ids, offsets), twin(ids, offsets))
    square = torch.randint(0, 100, (3, 7))
    close(fast(square), twin(square))
    if mode == "sum":
        weights = torch.randn(3, 7)
        close(fast(square, per_sample_weights=weights), twin(square, per_sample_weights=weights))
    with pytest.raises(ValueError, match="wanted offsets"):
        fast(ids)


def test_collection_module():
    names, dims = ("member", "job", "title"), (16, 64, 30)
    plain = {n: torch.nn.EmbeddingBag(40, d, mode="sum") for n, d in zip(names, dims, strict=True)}
    fast = QuantizedEmbeddingBagCollection.from_float(plain)
    floats = [dequantize_rows(*quantize_rows(m.weight)) for m in plain.values()]
    lengths = torch.randint(0, 4, (3 * 8,))
    offsets = torch.cat([torch.zeros(1, dtype=torch.int64), lengths.cumsum(0)])
    ids = torch.randint(0, 40, (int(offsets[-1]),))
    close(fast(ids, offsets), table_by_table(floats, ids, offsets, 8))
    assert fast.names == list(names) and fast.total_dim == sum(dims)
    compiled = torch.compile(fast, fullgraph=True)
    assert torch.equal(compiled(ids, offsets), fast(ids, offsets))


@pytest.mark.parametrize(
    ("make_module", "text"),
    [
        (lambda: torch.nn.EmbeddingBag(4, 8, max_norm=1.0), "max_norm: wanted None"),
    ],
)
def test_what_a_bag_cannot_be_made_from(make_module, text):
    with pytest.raises(ValueError, match=text):
        QuantizedEmbeddingBag.from_float(make_module())


def test_modules_of_different_modes_make_no_collection():
    plain = {
        "a": torch.nn.EmbeddingBag(4, 8, mode="sum"),
        "b": torch.nn.EmbeddingBag(4, 8, mode="mean"),
    }
    with pytest.raises(ValueError, match="all of one mode"):
        QuantizedEmbeddingBagCollection.from_float(plain)
    with pytest.raises(ValueError, match="at least one"):
        QuantizedEmbeddingBagCollection.from_float({})


def test_saved_state_and_copies_give_the_same_bits(tmp_path):
    a = QuantizedEmbeddingBag.from_float(torch.nn.EmbeddingBag(5000, 64, mode="sum"))
    b = QuantizedEmbeddingBag.from_float(torch.nn.EmbeddingBag(5000, 64, mode="sum"))
    ids, offsets = some_bags(20, 9, 5000)
    assert not torch.equal(a(ids, offsets[:-1]), b(ids, offsets[:-1]))
    torch.save(a.state_dict(), tmp_path / "state.pt")
    b.load_state_dict(torch.load(tmp_path / "state.pt"))
    torch.save(a, tmp_path / "module.pt")
    c = torch.load(tmp_path / "module.pt", weights_only=False)
    for other in (b, c, copy.deepcopy(a), a.half().float()):
        assert torch.equal(a(ids, offsets[:-1]), other(ids, offsets[:-1]))


def test_a_dtype_cast_leaves_the_table_alone():
    layer = QuantizedEmbedding.from_float(torch.nn.Embedding(10, 16))
    before = layer.packed.clone()
    assert torch.equal(layer.bfloat16().packed, before)


def test_compiled_in_one_graph():
    embedding = QuantizedEmbedding.from_float(torch.nn.Embedding(100, 24), 4)
    bag = QuantizedEmbeddingBag.from_float(torch.nn.EmbeddingBag(100, 24))

    def model(ids, square):
        return torch.cat([embedding(ids).relu(), bag(square) * 2])

    ids, square = torch.randint(0, 100, (6,)), torch.randint(0, 100, (3, 7))
    compiled = torch.compile(model, fullgraph=True)
    assert torch.equal(compiled(ids, square), model(ids, square))


# ---- torch's own quantized look-ups and FBGEMM's rows ----------------------------------


@pytest.mark.parametrize("dim", [2, 30, 64])
def test_codes_are_those_of_the_byte_prepack_but_for_ties(dim):
    """It quantizes from the minimum, so a code may differ if a value is halfway between two."""
    weight = torch.randn(500, dim)
    theirs = torch.ops.quantized.embedding_bag_byte_prepack(weight)
    codes, scale, mid = quantize_rows(weight)
    difference = (theirs[:, :dim].int() - 128) - codes
    halfway = ((weight - mid[:, None]) / scale[:, None]) % 1
    assert ((difference == 0) | ((halfway - 0.5).abs() < 1e-3)).all()
    assert difference.abs().max() <= 1 and difference.count_nonzero() < 20


@pytest.mark.parametrize("dim", [1, 30, 64, 129])
def test_fbgemm_rows_out_and_in(dim):
    plain = torch.nn.EmbeddingBag(200, dim, mode="sum")
    layer = QuantizedEmbeddingBag.from_float(plain)
    rows = layer.to_fbgemm()
    assert rows.dtype == torch.uint8 and rows.shape == (200, dim + 8)
    ids, offsets = some_bags(30, 9, 200)
    close(
        layer(ids, offsets[:-1]),
        torch.ops.quantized.embedding_bag_byte_rowwise_offsets(rows, ids, offsets[:-1], mode=0),
    )
    back = QuantizedEmbeddingBag.from_fbgemm(rows)
    codes, scale, mid = unpack_rows(layer.packed, dim)
    got = unpack_rows(back.packed, dim)
    assert torch.equal(got[0], codes) and torch.equal(got[1], scale)
    torch.testing.assert_close(got[2], mid, rtol=1e-5, atol=1e-5)


def test_rows_made_by_torch_are_read():
    weight = torch.randn(200, 48)
    rows = torch.ops.quantized.embedding_bag_byte_prepack(weight)
    ids = torch.randint(0, 200, (50,))
    got = QuantizedEmbedding.from_fbgemm(rows)(ids)
    close(got, torch.ops.quantized.embedding_bag_byte_unpack(rows)[ids])


@pytest.mark.parametrize("bits", [8, 4])
@pytest.mark.parametrize("dim", [30, 57, 64, 128])
def test_rows_are_taken_and_joined_bit_for_bit(dim, bits):
    packed = pack_rows(*quantize_rows(torch.randn(10, dim), bits), bits)

    def values(table):
        ids = torch.arange(table.shape[0])
        return quantized_embedding_bag(table, ids, None, dim, bits)

    whole = values(packed)
    for rows in (slice(2, 7), slice(0, 0), torch.tensor([9, 0, 0]), torch.arange(10) % 3 == 0):
        assert torch.equal(values(lirank_ext.slice_rows(packed, rows, dim, bits)), whole[rows])
    parts = [lirank_ext.slice_rows(packed, slice(a, a + 5), dim, bits) for a in (0, 5)]
    assert torch.equal(lirank_ext.concatenate_rows(parts, dim, bits), packed)
    with pytest.raises(ValueError, match="wanted at least one table"):
        lirank_ext.concatenate_rows([], dim, bits)
    with pytest.raises(IndexError):
        lirank_ext.slice_rows(packed, torch.tensor([10]), dim, bits)


def test_a_module_refuses_rows_cut_out_of_a_table():
    """At 64 columns the scales of all rows stand behind the codes of all rows."""
    packed = pack_rows(*quantize_rows(torch.randn(10, 64)))
    for rows in (packed[:5], packed[2:], packed[::2]):
        with pytest.raises(ValueError, match="slice_rows takes rows out of one"):
            QuantizedEmbeddingBag(rows, 64, 8)
    QuantizedEmbeddingBag(packed, 64, 8)
    QuantizedEmbeddingBag(packed[:], 64, 8)
    QuantizedEmbeddingBag(lirank_ext.slice_rows(packed, slice(5), 64), 64, 8)


@pytest.mark.parametrize("offsets", [[2, 3], [0, 9], [0, 3, 1]])
def test_a_maximum_refuses_offsets_as_a_sum_does(offsets):
    for mode in ("sum", "max"):
        module = QuantizedEmbeddingBag.from_float(torch.nn.EmbeddingBag(5, 8, mode=mode))
        with pytest.raises(ValueError, match="argument 'offsets': wanted"):
            module(torch.arange(4), torch.tensor(offsets))


def test_a_mean_without_padding_is_divided_before_it_is_rounded():
    table = torch.nn.EmbeddingBag(4, 8, mode="mean", padding_idx=0).half()
    with torch.no_grad():
        table.weight.fill_(30000.0)  # three of them leave float16's range
    module = QuantizedEmbeddingBag.from_float(table)
    assert (module(torch.tensor([1, 2, 3, 0]), torch.tensor([0])) == 30000).all()


def test_a_negative_padding_idx_counts_from_the_last_row():
    module = QuantizedEmbeddingBag(
        pack_rows(*quantize_rows(torch.randn(5, 8))), 8, 8, "sum", padding_idx=-1
    )
    ids, offsets = torch.tensor([0, 4, 1]), torch.tensor([0])
    assert torch.equal(module(ids, offsets), module(torch.tensor([0, 1]), offsets))
    torch.testing.assert_close(module(ids, offsets), module.dequantize()(ids, offsets))


def test_fbgemm_rows_have_eight_bits():
    layer = QuantizedEmbedding.from_float(torch.nn.Embedding(4, 8), 4)
    with pytest.raises(ValueError, match="to_fbgemm: bits: wanted 8, got 4"):
        layer.to_fbgemm()
    with pytest.raises(ValueError, match="from_fbgemm: rows: wanted uint8"):
        QuantizedEmbedding.from_fbgemm(torch.zeros(4, 8, dtype=torch.uint8))


def test_inference_mode():
    packed, table = make(20, 16)
    with torch.inference_mode():
        ids = torch.tensor([3, 4])
        close(quantized_embedding_bag(packed, ids, None, 16), table[ids])
