"""Fake kernels, backward and registration of the ops on row-wise quantized tables."""

from __future__ import annotations

import torch

from ..library.op import register
from . import _quantized_reference as ref
from . import _rowwise

STEM = "quantized_embedding"


def _quantize_fake(weight, bits=8):
    ref.check_weight(weight, bits)
    row = weight.new_empty(weight.shape[0], dtype=torch.float32)
    return weight.new_empty(weight.shape, dtype=torch.int8), row, torch.empty_like(row)


def _quantize_context(ctx, inputs, output):
    ctx.mark_non_differentiable(*output)


def _quantize_backward(ctx, *gradients):
    return None, None


def _dequantize_fake(codes, scale, mid):
    ref.check_rows("dequantize_rows", codes, scale, mid)
    return codes.new_empty(codes.shape, dtype=scale.dtype)


def _dequantize_context(ctx, inputs, output):
    ctx.save_for_backward(inputs[0])


def _dequantize_backward(ctx, grad):
    (codes,) = ctx.saved_tensors
    return None, (grad * codes.to(grad.dtype)).sum(1), grad.sum(1)


def _pack_fake(codes, scale, mid, bits=8):
    ref.check_rows("pack_rows", codes, scale, mid)
    ref.check_bits("pack_rows", bits)
    ref.check(codes.shape[1] > 0, "pack_rows", "dim", "a positive width", codes.shape[1])
    row_bytes = _rowwise.layout(codes.shape[1], bits).row_bytes
    return codes.new_empty((codes.shape[0], row_bytes), dtype=torch.uint8)


def _unpack_fake(packed, dim, bits=8):
    ref.check_packed("unpack_rows", packed, dim, bits)
    rows = packed.shape[0]
    row = packed.new_empty(rows, dtype=torch.float32)
    return packed.new_empty((rows, dim), dtype=torch.int8), row, torch.empty_like(row)


def _bag_fake(
    packed,
    indices,
    offsets,
    dim,
    bits=8,
    mode="sum",
    per_sample_weights=None,
    include_last_offset=False,
    output_dtype=torch.float32,
):
    ref.check_bag_call("quantized_embedding_bag", packed, indices, offsets, dim, bits, mode,
                       per_sample_weights, include_last_offset, output_dtype)  # fmt: skip
    bags = ref.bag_count(indices, offsets, include_last_offset)
    return packed.new_empty((bags, dim), dtype=output_dtype)


def _bag_context(ctx, inputs, output):
    packed, indices, offsets, ctx.dim, ctx.bits, _, weights, ctx.include_last, _ = inputs
    ctx.weight_dtype = None if weights is None else weights.dtype
    ctx.save_for_backward(packed, indices, offsets)


def _bag_backward(ctx, grad):
    packed, indices, offsets = ctx.saved_tensors
    gradient = None
    if ctx.weight_dtype is not None and ctx.needs_input_grad[6]:
        gradient = bag_backward_op(
            grad, packed, indices, offsets, ctx.dim, ctx.bits, ctx.include_last
        ).to(ctx.weight_dtype)
    return None, None, None, None, None, None, gradient, None, None


def _bag_backward_fake(grad, packed, indices, offsets, dim, bits, include_last_offset):
    ref.check_bag_call("quantized_embedding_bag_backward", packed, indices, offsets, dim, bits,
                       "sum", None, include_last_offset, torch.float32)  # fmt: skip
    return indices.new_empty(indices.shape, dtype=torch.float32)


def _bags_fake(
    packed,
    rows,
    dims,
    indices,
    offsets,
    bits=8,
    mode="sum",
    per_sample_weights=None,
    output_dtype=torch.float32,
    total_dim=-1,
):
    ref.check_bags_call("quantized_embedding_bags", packed, rows, dims, indices, offsets, bits,
                        mode, per_sample_weights, output_dtype)  # fmt: skip
    if total_dim < 0:  # the widths are data: a size that only the run knows
        total_dim = torch.library.get_ctx().new_dynamic_size()
    bags = (offsets.shape[0] - 1) // rows.shape[0]
    return packed.new_empty((bags, total_dim), dtype=output_dtype)


def _bags_context(ctx, inputs, output):
    packed, rows, dims, indices, offsets, ctx.bits, _, weights, _, _ = inputs
    ctx.weight_dtype = None if weights is None else weights.dtype
    ctx.save_for_backward(packed, rows, dims, indices, offsets)


def _bags_backward(ctx, grad):
    gradient = None
    if ctx.weight_dtype is not None and ctx.needs_input_grad[7]:
        gradient = bags_backward_op(grad, *ctx.saved_tensors, ctx.bits).to(ctx.weight_dtype)
    return None, None, None, None, None, None, None, gradient, None, None


def _bags_backward_fake(grad, packed, rows, dims, indices, offsets, bits):
    ref.check_bags_call("quantized_embedding_bags_backward", packed, rows, dims, indices, offsets,
                        bits, "sum", None, torch.float32)  # fmt: skip
    return indices.new_empty(indices.shape, dtype=torch.float32)


quantize_op = register(
    "quantize_rows(Tensor weight, int bits=8) -> (Tensor, Tensor, Tensor)",
    stem=STEM,
    reference=ref.quantize_rows,
    fake=_quantize_fake,
    setup_context=_quantize_context,
    backward=_quantize_backward,
)
dequantize_op = register(
    "dequantize_rows(Tensor codes, Tensor scale, Tensor mid) -> Tensor",
    stem=STEM,
    reference=ref.dequantize_rows,
    fake=_dequantize_fake,
    setup_context=_dequantize_context,
    backward=_dequantize_backward,
)
pack_op = register(
    "pack_rows(Tensor codes, Tensor scale, Tensor mid, int bits=8) -> Tensor",
    stem=STEM,
    reference=ref.pack_rows,
    fake=_pack_fake,
)
unpack_op = register(
    "unpack_rows(Tensor packed, int dim, int bits=8) -> (Tensor, Tensor, Tensor)",
    stem=STEM,
    reference=ref.unpack_rows,
    fake=_unpack_fake,
)
bag_backward_op = register(
    "quantized_embedding_bag_backward(Tensor grad, Tensor packed, Tensor indices, Tensor? "
    "offsets, int dim, int bits, bool include_last_offset) -> Tensor",
    stem=STEM,
    reference=ref.quantized_embedding_bag_backward,
    fake=_bag_backward_fake,
    internal=True,
)
bags_backward_op = register(
    "quantized_embedding_bags_backward(Tensor grad, Tensor packed, Tensor rows, Tensor dims, "
    "Tensor indices, Tensor offsets, int bits) -> Tensor",
    stem=STEM,
    reference=ref.quantized_embedding_bags_backward,
    fake=_bags_backward_fake,
    internal=True,
)
bag_op = register(
    "quantized_embedding_bag(Tensor packed, Tensor indices, Tensor? offsets, int dim, int "
    'bits=8, str mode="sum", Tensor? per_sample_weights=None, bool include_last_offset=False, '
    "ScalarType output_dtype=float) -> Tensor",
    stem=STEM,
    reference=ref.quantized_embedding_bag,
    fake=_bag_fake,
    setup_context=_bag_context,
    backward=_bag_backward,
)
bags_op = register(
    "quantized_embedding_bags(Tensor packed, Tensor rows, Tensor dims, Tensor indices, Tensor "
    'offsets, int bits=8, str mode="sum", Tensor? per_sample_weights=None, ScalarType '
    "output_dtype=float, int total_dim=-1) -> Tensor",
    stem=STEM,
    reference=ref.quantized_embedding_bags,
    fake=_bags_fake,
    setup_context=_bags_context,
    backward=_bags_backward,
)
