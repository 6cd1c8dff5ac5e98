"""16-bit floats on their way into float32 kernels and back (csrc/library/convert.cpp)."""

from __future__ import annotations

import pytest
import torch

from lirank_ext import low_rank_cross, outer_attention

SHORT = [torch.bfloat16, torch.float16]


@pytest.mark.parametrize("dtype", SHORT)
def test_every_number_survives(dtype):
    """Attention among one component is its value: widened, multiplied by 1, narrowed."""
    v = torch.arange(1 << 16, dtype=torch.int32).to(torch.int16).view(dtype).unsqueeze(1)
    got = outer_attention(torch.zeros_like(v), torch.zeros_like(v), v)
    numbers = ~v.isnan()
    assert torch.equal(got[numbers].view(torch.int16), (v[numbers] + 0).view(torch.int16))
    assert got[~numbers].isnan().all()


@pytest.mark.parametrize("dtype", SHORT)
@pytest.mark.parametrize(("batch", "width"), [(1, 1), (3, 7), (3, 8), (5, 33), (40, 4099)])
def test_rounding_is_pytorchs(batch, width, dtype):
    """With x0 = 1 and no projection the result is bias + x, rounded in float32 and once more."""
    generator = torch.Generator().manual_seed(width)
    spread = torch.randn(batch, width, generator=generator) * 4
    x = (torch.randn(batch, width, generator=generator) * spread.exp()).clamp(-6e4, 6e4).to(dtype)
    bias = torch.randn(width, generator=generator).to(dtype)
    v, u = torch.zeros(2, width, dtype=dtype), torch.zeros(width, 2, dtype=dtype)
    got = low_rank_cross(torch.ones_like(x), x, v, u, bias)
    assert got.dtype == dtype
    assert torch.equal(got, (bias.float() + x.float()).to(dtype))
    turned = x.t().contiguous().t()  # strided: PyTorch's own way
    assert torch.equal(low_rank_cross(torch.ones_like(x), turned, v, u, bias), got)
