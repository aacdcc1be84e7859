"""The Triton kernel against the plain rotation: on a GPU where there is one, else interpreted."""

from __future__ import annotations

import pytest
import torch

pytest.importorskip("triton")

from buzz.kernels.rotation import rotate

DEVICE = "cuda" if torch.cuda.is_available() else "cpu"


def check(got, x, cos, sin):
    """Against float64, to one rounding; Triton's interpreter rounds to bfloat16 by cutting off."""
    half = x.shape[-1] // 2
    x, cos, sin = (t.cpu().double() for t in (x, cos, sin))
    first, second = x * cos, x.roll(half, dims=-1) * sin
    error = (got.cpu().double() - first - second).abs()
    roundings = 3 if DEVICE == "cpu" and got.dtype == torch.bfloat16 else 1
    # Every product and the sum may be rounded.
    assert (error <= roundings * torch.finfo(got.dtype).eps * (first.abs() + second.abs()) + 1e-7).all()


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
@pytest.mark.parametrize(("heads", "tokens", "dim"), [(1, 9, 16), (9, 20, 80), (3, 33, 64), (8, 8, 96)])
def test_shapes_and_layouts(heads, tokens, dim, dtype):
    generator = torch.Generator().manual_seed(dim)
    projected = torch.randn(2, tokens, heads, dim, generator=generator).to(dtype)
    x = projected.to(DEVICE).transpose(1, 2)  # as a projection leaves it
    cos, sin = (torch.randn(tokens + 3, dim, generator=generator).to(dtype).to(DEVICE) for _ in range(2))
    got = rotate(x, cos[3:], sin[3:])
    check(got, x, cos[3:], sin[3:])
    assert got.stride() == x.stride()
    cached = torch.randn(2, heads, tokens + 5, dim, generator=generator).to(dtype).to(DEVICE)[:, :, :tokens]
    check(rotate(cached, cos[:tokens], sin[:tokens]), cached, cos[:tokens], sin[:tokens])


def test_angles_of_every_row():
    x = torch.randn(3, 2, 11, 32).half().to(DEVICE)
    table = torch.randn(2, 40, 32).half().to(DEVICE)
    slots = torch.randint(40, (3, 1, 11), device=DEVICE)
    cos, sin = table[0][slots], table[1][slots]  # [3, 1, 11, 32]
    check(rotate(x, cos, sin), x, cos, sin)
    check(rotate(x, cos[:1], sin[:1]), x, cos[:1], sin[:1])
