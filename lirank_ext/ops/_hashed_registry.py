"""Fake kernels, backward and registration of the look-ups in hashed tables."""

from __future__ import annotations

import torch

from ..library.op import register
from . import _hashed_reference as ref

STEM = "hashed_embedding"


def _bag_fake(
    ids,
    offsets,
    quotient_b,
    remainder_b,
    quotient_c,
    remainder_c,
    num_buckets,
    seed=0,
    mode="sum",
    per_sample_weights=None,
    include_last_offset=False,
    prehashed=False,
    sparse=False,
):
    ref.check_call("hashed_embedding_bag", ids, offsets,
                   (quotient_b, remainder_b, quotient_c, remainder_c), num_buckets, seed, mode,
                   per_sample_weights, include_last_offset)  # fmt: skip
    bags = ref.quantized.bag_count(ids, offsets, include_last_offset)
    return quotient_b.new_empty((bags, quotient_b.shape[1]))


def _filled(ctx, inputs, defaults, count):
    """All arguments: PyTorch hands over those of the call, without the schema's defaults."""
    ctx.given = len(inputs)
    return (*inputs, *defaults[len(inputs) - count :]) if len(inputs) < count else inputs


def _bag_context(ctx, inputs, output):
    inputs = _filled(ctx, inputs, (0, "sum", None, False, False, False), 13)
    ids, offsets, *tables, ctx.num_buckets, ctx.seed, ctx.mode, weights = inputs[:10]
    ctx.include_last, ctx.prehashed, ctx.sparse = inputs[10:]
    # Without weights to train, the gradients of the tables need no table.
    ctx.remainders = tables[1].shape[0]
    ctx.quotients, ctx.dim = tables[0].shape
    ctx.weighted = weights is not None and weights.requires_grad
    ctx.save_for_backward(ids, offsets, weights, *(tables if ctx.weighted else ()))


def _carries_sparse(grad) -> bool:
    """Only plain tensors can: a traced or functorch gradient has to stay dense."""
    plain = type(grad) is torch.Tensor and not torch.compiler.is_compiling()
    return plain and not torch._C._functorch.is_functorch_wrapped_tensor(grad)


def _bag_backward(ctx, grad):
    ids, offsets, weights, *tables = ctx.saved_tensors
    gradients: list = [None] * 13
    rule = (ctx.num_buckets, ctx.remainders, ctx.seed, ctx.mode, ctx.include_last, ctx.prehashed)
    if any(ctx.needs_input_grad[2:6]):
        if ctx.sparse and _carries_sparse(grad):
            parts = backward_sparse_op(grad, ids, offsets, weights, *rule)
            size = (ctx.quotients, ctx.dim)
            gradients[2:6] = (
                _coalesced(parts[0], parts[1], size),
                parts[2],
                _coalesced(parts[3], parts[4], size),
                parts[5],
            )
        else:
            gradients[2:6] = backward_op(grad, ids, offsets, weights, *rule)
    if ctx.weighted:
        rest = (ctx.num_buckets, ctx.seed, ctx.include_last, ctx.prehashed)
        gradient = backward_weights_op(grad, ids, offsets, *tables, *rest)
        gradients[9] = gradient.to(weights.dtype)
    return tuple(gradients[: ctx.given])


def _coalesced(rows, values, size):
    return torch.sparse_coo_tensor(
        rows.unsqueeze(0), values, size, is_coalesced=True, check_invariants=False
    )


def _backward_fake(
    grad,
    ids,
    offsets,
    per_sample_weights,
    num_buckets,
    num_remainders,
    seed,
    mode,
    include_last_offset,
    prehashed,
):
    ref._check_backward("hashed_embedding_bag_backward", grad, ids, offsets, per_sample_weights,
                        num_buckets, num_remainders, seed, mode, include_last_offset)  # fmt: skip
    dim, quotients = grad.shape[1], -(-num_buckets // num_remainders)
    return tuple(grad.new_empty((rows, dim)) for rows in (quotients, num_remainders) * 2)


def _backward_sparse_fake(
    grad,
    ids,
    offsets,
    per_sample_weights,
    num_buckets,
    num_remainders,
    seed,
    mode,
    include_last_offset,
    prehashed,
):
    ref._check_backward("hashed_embedding_bag_backward_sparse", grad, ids, offsets,
                        per_sample_weights, num_buckets, num_remainders, seed, mode,
                        include_last_offset)  # fmt: skip
    out = []
    for _ in range(2):
        rows = torch.library.get_ctx().new_dynamic_size()
        out += [
            ids.new_empty(rows),
            grad.new_empty((rows, grad.shape[1])),
            grad.new_empty((num_remainders, grad.shape[1])),
        ]
    return tuple(out)


def _backward_weights_fake(
    grad,
    ids,
    offsets,
    quotient_b,
    remainder_b,
    quotient_c,
    remainder_c,
    num_buckets,
    seed,
    include_last_offset,
    prehashed,
):
    op = "hashed_embedding_bag_backward_weights"
    tables = (quotient_b, remainder_b, quotient_c, remainder_c)
    ref.check_call(op, ids, offsets, tables, num_buckets, seed, "sum", None, include_last_offset)
    ref._check_grad(op, grad, ids, offsets, include_last_offset, quotient_b.shape[1])
    return ids.new_empty(ids.shape, dtype=ref.compute_dtype(quotient_b.dtype))


def _packed_fake(
    ids,
    offsets,
    quotient_b,
    remainder_b,
    quotient_c,
    remainder_c,
    num_buckets,
    dim,
    bits=8,
    seed=0,
    mode="sum",
    per_sample_weights=None,
    include_last_offset=False,
    prehashed=False,
    output_dtype=torch.float32,
):
    ref.check_packed_call("quantized_hashed_embedding_bag", ids, offsets,
                          (quotient_b, remainder_b, quotient_c, remainder_c), num_buckets, dim,
                          bits, seed, mode, per_sample_weights, include_last_offset,
                          output_dtype)  # fmt: skip
    bags = ref.quantized.bag_count(ids, offsets, include_last_offset)
    return quotient_b.new_empty((bags, dim), dtype=output_dtype)


def _packed_context(ctx, inputs, output):
    defaults = (8, 0, "sum", None, False, False, torch.float32)
    inputs = _filled(ctx, inputs, defaults, 15)
    ids, offsets, *tables, ctx.num_buckets, ctx.dim, ctx.bits, ctx.seed, _, weights = inputs[:12]
    ctx.include_last, ctx.prehashed, _ = inputs[12:]
    ctx.weight_dtype = None if weights is None else weights.dtype
    ctx.save_for_backward(ids, offsets, *tables)


def _packed_backward(ctx, grad):
    gradients: list = [None] * 15
    if ctx.weight_dtype is not None and ctx.needs_input_grad[11]:
        rest = (ctx.num_buckets, ctx.dim, ctx.bits, ctx.seed, ctx.include_last, ctx.prehashed)
        gradient = packed_backward_op(grad, *ctx.saved_tensors, *rest)
        gradients[11] = gradient.to(ctx.weight_dtype)
    return tuple(gradients[: ctx.given])


def _packed_backward_fake(
    grad,
    ids,
    offsets,
    quotient_b,
    remainder_b,
    quotient_c,
    remainder_c,
    num_buckets,
    dim,
    bits,
    seed,
    include_last_offset,
    prehashed,
):
    op = "quantized_hashed_embedding_bag_backward"
    tables = (quotient_b, remainder_b, quotient_c, remainder_c)
    ref.check_packed_call(op, ids, offsets, tables, num_buckets, dim, bits, seed, "sum", None,
                          include_last_offset, torch.float32)  # fmt: skip
    ref._check_grad(op, grad, ids, offsets, include_last_offset, dim)
    return ids.new_empty(ids.shape, dtype=torch.float32)


_TABLES = "Tensor quotient_b, Tensor remainder_b, Tensor quotient_c, Tensor remainder_c"
_BACKWARD = (
    "(Tensor grad, Tensor ids, Tensor? offsets, Tensor? per_sample_weights, int num_buckets, "
    "int num_remainders, int seed, str mode, bool include_last_offset, bool prehashed) -> "
)
backward_op = register(
    f"hashed_embedding_bag_backward{_BACKWARD}(Tensor, Tensor, Tensor, Tensor)",
    stem=STEM,
    reference=ref.hashed_embedding_bag_backward,
    fake=_backward_fake,
    internal=True,
)
backward_sparse_op = register(
    f"hashed_embedding_bag_backward_sparse{_BACKWARD}"
    "(Tensor, Tensor, Tensor, Tensor, Tensor, Tensor)",
    stem=STEM,
    reference=ref.hashed_embedding_bag_backward_sparse,
    fake=_backward_sparse_fake,
    internal=True,
)
backward_weights_op = register(
    f"hashed_embedding_bag_backward_weights(Tensor grad, Tensor ids, Tensor? offsets, {_TABLES}, "
    "int num_buckets, int seed, bool include_last_offset, bool prehashed) -> Tensor",
    stem=STEM,
    reference=ref.hashed_embedding_bag_backward_weights,
    fake=_backward_weights_fake,
    internal=True,
)
packed_backward_op = register(
    f"quantized_hashed_embedding_bag_backward(Tensor grad, Tensor ids, Tensor? offsets, {_TABLES}, "
    "int num_buckets, int dim, int bits, int seed, bool include_last_offset, bool prehashed) -> "
    "Tensor",
    stem=STEM,
    reference=ref.quantized_hashed_embedding_bag_backward,
    fake=_packed_backward_fake,
    internal=True,
)
bag_op = register(
    f"hashed_embedding_bag(Tensor ids, Tensor? offsets, {_TABLES}, int num_buckets, int seed=0, "
    'str mode="sum", Tensor? per_sample_weights=None, bool include_last_offset=False, bool '
    "prehashed=False, bool sparse=False) -> Tensor",
    stem=STEM,
    reference=ref.hashed_embedding_bag,
    fake=_bag_fake,
    setup_context=_bag_context,
    backward=_bag_backward,
)
packed_op = register(
    f"quantized_hashed_embedding_bag(Tensor ids, Tensor? offsets, {_TABLES}, int num_buckets, int "
    'dim, int bits=8, int seed=0, str mode="sum", Tensor? per_sample_weights=None, bool '
    "include_last_offset=False, bool prehashed=False, ScalarType output_dtype=float) -> Tensor",
    stem=STEM,
    reference=ref.quantized_hashed_embedding_bag,
    fake=_packed_fake,
    setup_context=_packed_context,
    backward=_packed_backward,
)
