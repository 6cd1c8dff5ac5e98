"""FBGEMM's batched int8 embedding bags as a benchmark peer.

    from fbgemm_peer import Int8Tables, fbgemm_int8_bags, usable
    if usable():                                    # else one sentence says why, and skip it
        tables = Int8Tables(list_of_tables)         # on the device of the first table
        call = fbgemm_int8_bags(tables, indices, offsets, torch.float16)
        out = call()                                # (B, sum of D): bag b of table t, sum pooled

``indices`` are concatenated table-major (all bags of table 0, then of table 1, ...) and ``offsets``
has T * B + 1 entries into them: bag b of table t is indices[offsets[t*B + b]:offsets[t*B + b + 1]].
Each table is one of
  * a float tensor (N, D), quantized here as FBGEMM does (FloatToFused8BitRowwiseQuantized, then
    scale and bias rounded to fp16);
  * FBGEMM's fused rows, uint8 (N, D + 8): D codes, fp32 scale, fp32 bias;
  * (codes, scale, bias): uint8 (N, D), or int8 (N, D) with value = scale * code + bias; scale and
    bias (N,).
The op's own layout: a row is fp16 scale, fp16 bias, D uint8 codes, padded to 16 bytes; a table
starts at a multiple of 128 bytes. Value = scale * code + bias, which the CUDA kernel rounds to fp16
for each element (one hfma2) and sums in fp32; the CPU kernel does not round it.

The call is what IntNBitTableBatchedEmbeddingBagsCodegen.forward ends in, without its
bounds_check_indices kernel (another library of the wheel): so it is FBGEMM's time at its best.
"""

import os
import subprocess
import sys

import torch

sys.path.insert(0, os.path.dirname(os.path.abspath(__file__)))
from load_fbgemm import load

ALIGNMENT = 16  # of a row, in bytes: FBGEMM's on CUDA (its CPU default is 1; the op takes either)
INT8, DEVICE, HOST = 2, 0, 3  # SparseType and EmbeddingLocation numbers
OUTPUT = {torch.float32: 0, torch.float16: 1, torch.bfloat16: 5}
POOLING = {"sum": 0, "mean": 1}
CHUNK = 1 << 18  # rows converted at a time


def _up(number, multiple):
    return -(-number // multiple) * multiple


def _shape(table):
    if isinstance(table, (tuple, list)):
        return tuple(table[0].shape)
    rows, width = table.shape
    return (rows, width - 8) if table.dtype == torch.uint8 else (rows, width)


def _parts(table, rows):
    """uint8 codes (n, D), fp16 scale and bias (n,) of a slice of rows."""
    if isinstance(table, (tuple, list)):
        codes, scale, bias = (part[rows] for part in table)
        scale, bias = scale.reshape(-1).float(), bias.reshape(-1).float()
        if codes.dtype == torch.int8:
            bias = bias - 128 * scale
            codes = codes.view(torch.uint8) ^ 128
        return codes, scale.half(), bias.half()
    part = table[rows]
    if part.dtype == torch.uint8:
        pairs = part[:, -8:].contiguous().view(torch.float32)
        return part[:, :-8], pairs[:, 0].half(), pairs[:, 1].half()
    part = part.float()
    low, high = part.aminmax(dim=1)
    scale = (high - low) / 255
    inverse = 255 / (high - low + 1e-8)  # FBGEMM's
    codes = ((part - low[:, None]) * inverse[:, None]).round_().clamp_(0, 255).to(torch.uint8)
    return codes, scale.half(), low.half()


class Int8Tables:
    """T int8 tables in one buffer, with the constant arguments of the op."""

    def __init__(self, tables, device=None, feature_table_map=None):
        first = tables[0][0] if isinstance(tables[0], (tuple, list)) else tables[0]
        self.device = device = torch.device(device or first.device)
        shapes = [_shape(table) for table in tables]
        for t, (_, dim) in enumerate(shapes):
            if dim % 4 or not 0 < dim <= 4092:
                raise ValueError(f"table {t}: dim: wanted a multiple of 4 up to 4092, got {dim}")
        self.rows = [rows for rows, _ in shapes]
        self.dims = [dim for _, dim in shapes]
        self.strides = [_up(dim + 4, ALIGNMENT) for dim in self.dims]
        starts, size = [], 0
        for rows, stride in zip(self.rows, self.strides, strict=False):
            starts.append(size)
            size += _up(rows * stride, 128)
        self.starts = starts
        self.buffer = torch.zeros(size, dtype=torch.uint8, device=device)
        for t, table in enumerate(tables):
            view = self.table(t)
            for start in range(0, self.rows[t], CHUNK):
                rows = slice(start, min(start + CHUNK, self.rows[t]))
                codes, scale, bias = _parts(table, rows)
                pair = torch.stack((scale, bias), 1).view(torch.uint8)
                view[rows, :4] = pair.to(device)
                view[rows, 4 : 4 + self.dims[t]] = codes.to(device)
        features = list(feature_table_map or range(len(tables)))
        self.features = features
        ends = [0]
        for t in features:
            ends.append(ends[-1] + self.dims[t])

        def on(numbers, dtype):
            return torch.tensor(numbers, dtype=dtype, device=device)

        place = DEVICE if device.type == "cuda" else HOST
        self.constants = dict(
            dev_weights=self.buffer,
            uvm_weights=torch.empty(0, dtype=torch.uint8, device=device),
            weights_placements=on([place] * len(features), torch.int32),
            weights_offsets=on([starts[t] for t in features], torch.int64),
            weights_tys=on([INT8] * len(features), torch.uint8),
            D_offsets=on(ends, torch.int32),
            total_D=ends[-1],
            max_int2_D=0,
            max_int4_D=0,
            max_int8_D=max(self.dims),
            max_float16_D=0,
            max_float32_D=0,
            lxu_cache_weights=torch.zeros(0, 0, dtype=torch.uint8, device=device),
            lxu_cache_locations=torch.empty(0, dtype=torch.int32, device=device),
            row_alignment=ALIGNMENT,
            max_float8_D=0,
            fp8_exponent_bits=-1,
            fp8_exponent_bias=-1,
        )

    def table(self, t):
        """Table t's rows as a uint8 view (N, stride) of the buffer."""
        start, rows, stride = self.starts[t], self.rows[t], self.strides[t]
        return self.buffer[start : start + rows * stride].view(rows, stride)

    def dequantized(self, t, index=None):
        """fp32 rows of table t (those of ``index``), rounded to fp16 as the CUDA kernel does."""
        view = self.table(t) if index is None else self.table(t)[index]
        pairs = view[:, :4].contiguous().view(torch.float16).double()
        values = view[:, 4 : 4 + self.dims[t]].double() * pairs[:, :1] + pairs[:, 1:]
        return values.half().float() if self.device.type == "cuda" else values.float()


def fbgemm_int8_bags(
    tables, indices, offsets, output_dtype=torch.float16, pooling="sum", weights=None, check=True
):
    """A zero-argument callable: the op on these indices, giving (B, total D) of output_dtype.

    ``tables``: an Int8Tables, or what it takes. ``weights``: fp32, one for each index. ``check``:
    look once, here, that every index is in its table (the op does not, and would read wild memory).
    """
    op = load().default
    if not isinstance(tables, Int8Tables):
        tables = Int8Tables(tables)
    features = len(tables.features)
    if indices.dtype not in (torch.int32, torch.int64):
        raise ValueError(f"indices: wanted int32 or int64, got {indices.dtype}")
    indices = indices.to(tables.device).contiguous()
    offsets = offsets.to(tables.device, indices.dtype).contiguous()
    if offsets.dim() != 1 or (offsets.numel() - 1) % features or offsets.numel() < 2:
        raise ValueError(f"offsets: wanted T * B + 1 with T = {features}, got {offsets.numel()}")
    if check:
        batch = (offsets.numel() - 1) // features
        edges = offsets[::batch].tolist()
        if edges[0] != 0 or edges[-1] != indices.numel() or bool((offsets.diff() < 0).any()):
            raise ValueError("offsets: wanted ascending from 0 to the number of indices")
        for t, start, end in zip(tables.features, edges, edges[1:], strict=False):
            part = indices[start:end]
            if end > start and not (int(part.min()) >= 0 and int(part.max()) < tables.rows[t]):
                raise ValueError(f"indices: some lie outside table {t}, of {tables.rows[t]} rows")
    if weights is not None:
        weights = weights.to(tables.device, torch.float32).contiguous()
    arguments = dict(
        tables.constants,
        indices=indices,
        offsets=offsets,
        pooling_mode=POOLING[pooling],
        indice_weights=weights,
        output_dtype=OUTPUT[output_dtype],
    )
    # In the schema's order: positional arguments cost less to dispatch than keywords.
    row = [arguments.pop(argument.name) for argument in op._schema.arguments]
    assert not arguments, arguments

    def call():
        return op(*row)

    return call


def gathered(tables, indices, offsets, pooling="sum", weights=None):
    """The same in plain torch: gather, dequantize, sum in fp64. fp32 (B, total D)."""
    batch = (offsets.numel() - 1) // len(tables.features)
    blocks = []
    for i, t in enumerate(tables.features):
        edges = offsets[i * batch : (i + 1) * batch + 1].long()
        start, end = int(edges[0]), int(edges[-1])
        rows = tables.dequantized(t, indices[start:end].long()).double()
        if weights is not None:
            rows = rows * weights[start:end, None].double()
        bags = torch.repeat_interleave(torch.arange(batch, device=rows.device), edges.diff())
        out = rows.new_zeros(batch, tables.dims[t]).index_add_(0, bags, rows)
        if pooling == "mean":
            out /= edges.diff().clamp(min=1)[:, None]
        blocks.append(out.float())
    return torch.cat(blocks, 1)


def _random_case(device, seed, dims, counts, batch, longest, dtype):
    make = torch.Generator().manual_seed(seed)
    floats = [
        torch.randn(n, d, generator=make).to(device) for n, d in zip(counts, dims, strict=False)
    ]
    lengths = torch.randint(0, longest + 1, (len(dims) * batch,), generator=make)
    offsets = torch.cat((torch.zeros(1, dtype=torch.long), lengths.cumsum(0)))
    pieces = lengths.view(len(dims), batch).sum(1).tolist()
    indices = torch.cat(
        [torch.randint(0, n, (k,), generator=make) for n, k in zip(counts, pieces, strict=False)]
    )
    weights = torch.rand(indices.numel(), generator=make).to(device)
    return floats, indices.to(device, dtype), offsets.to(device, dtype), weights


CASES = (  # dims, rows, batch, longest bag: every width class of the kernel up to 1024
    ((128,) * 4, (1000, 77, 5000, 1), 37, 40),
    ((4, 64, 124, 128, 252, 256), (50, 200, 300, 400, 500, 600), 13, 9),
    ((512, 1024, 32), (99, 300, 10), 5, 3),
    ((64,), (1000,), 2048, 1),
)


shares = {}  # of a passed check: output dtype -> mean error over mean magnitude, worst case


def self_check(device="cuda"):
    """Compare with ``gathered``; None if all is well, else one sentence. Asks for no GPU on cpu."""
    worst = {torch.float32: 0.0, torch.float16: 0.0}
    try:
        if device == "cuda" and not torch.cuda.is_available():
            return "FBGEMM peer skipped: no CUDA device."
        if device == "cuda" and torch.cuda.get_device_capability() != (9, 0):
            return "FBGEMM peer skipped: its copy here has code for sm_90 alone."
        load()
        for number, (dims, counts, batch, longest) in enumerate(CASES):
            for dtype in (torch.int32, torch.int64):
                case = _random_case(device, number, dims, counts, batch, longest, dtype)
                floats, indices, offsets, weights = case
                tables = Int8Tables(floats)
                for t, table in enumerate(floats):  # half a step of the grid, and fp16's rounding
                    span = table.amax(1) - table.amin(1)
                    allowed = (span / 255 * 0.51 + 2e-3 * (span + table.abs().amax(1)))[:, None]
                    if bool(((tables.dequantized(t) - table).abs() > allowed).any()):
                        return f"FBGEMM peer skipped: case {number}: table {t} is packed wrongly."
                for pooling in ("sum", "mean"):
                    for scaling in (None, weights):
                        wanted = gathered(tables, indices, offsets, pooling, scaling)
                        for output in (torch.float32, torch.float16):
                            got = fbgemm_int8_bags(
                                tables, indices, offsets, output, pooling, scaling
                            )()
                            if got.shape != wanted.shape or got.dtype != output:
                                return (
                                    f"FBGEMM peer skipped: case {number}: it gave {got.dtype} "
                                    f"{tuple(got.shape)}, wanted {output} {tuple(wanted.shape)}."
                                )
                            error = (got.double() - wanted.double()).abs()
                            # Far above both kernels' rounding (measured: see README), far
                            # below what a wrong offset, header or code does (about 1).
                            room = 2**-6 + 2**-9 * wanted.double().abs()
                            share = error.mean().item() / (wanted.abs().mean().item() + 1e-6)
                            worst[output] = max(worst[output], share)
                            if bool((error > room).any()) or share > 1e-3:
                                return (
                                    f"FBGEMM peer skipped: case {number}, {pooling}, {output}, "
                                    f"{dtype}, weighted {scaling is not None}: off by up to "
                                    f"{error.max().item():.3g} (mean {error.mean().item():.3g})."
                                )
        if device == "cuda":
            torch.cuda.synchronize()
    except Exception as error:  # a peer that fails must not end the benchmark
        text = " ".join(str(error).split())[:300]
        return f"FBGEMM peer skipped: {type(error).__name__}: {text}"
    shares.update({str(output): share for output, share in worst.items()})
    return None


def usable(device="cuda", apart=True):
    """Whether the self-check passes; prints its sentence if not.

    ``apart`` runs it in a process of its own, since a crash there, or a CUDA error, which would
    leave this process's context unusable, then costs nothing here.
    """
    if not apart:
        sentence = self_check(device)
    else:
        try:
            done = subprocess.run(
                [sys.executable, os.path.abspath(__file__), device],
                capture_output=True,
                text=True,
                timeout=180,
            )
            lines = done.stdout.strip().splitlines()
            sentence = None
            if done.returncode:
                told = bool(lines) and lines[-1].startswith("FBGEMM")
                ended = f"FBGEMM peer skipped: its check ended with status {done.returncode}."
                sentence = lines[-1] if told else ended
        except subprocess.TimeoutExpired:
            sentence = "FBGEMM peer skipped: its check took over 180 s."
    if sentence:
        print(sentence, flush=True)
    return sentence is None


if __name__ == "__main__":
    result = self_check(*sys.argv[1:2])
    print(result or f"FBGEMM peer agrees with a gather of the dequantized rows: {shares}.")
    sys.exit(1 if result else 0)
