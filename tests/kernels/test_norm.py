"""RMS norms against float32: on a GPU where there is one, else interpreted."""

from __future__ import annotations

import pytest
import torch

pytest.importorskip("triton")

from buzz.kernels.norm import add_rms_norm, rms_norm

DEVICE = "cuda" if torch.cuda.is_available() else "cpu"


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
@pytest.mark.parametrize("width", [64, 576, 4096])
def test_norms(dtype, width):
    x, addend = (torch.randn(2, 5, width, device=DEVICE).mul(3).to(dtype) for _ in range(2))
    weight = torch.rand(width, device=DEVICE).add(0.5).to(dtype)

    def expected(x):
        x = x.float()
        return x * (x.pow(2).mean(-1, keepdim=True) + 1e-5).rsqrt() * weight.float()

    # The interpreter truncates to bfloat16 where a GPU rounds.
    close = {"rtol": 2 * torch.finfo(dtype).eps, "atol": 0}
    got = rms_norm(x.transpose(0, 1), weight, 1e-5)
    torch.testing.assert_close(got, expected(x.transpose(0, 1)).to(dtype), **close)
    total, got = add_rms_norm(x, addend, weight, 1e-5)
    torch.testing.assert_close(total, x + addend, **close)
    torch.testing.assert_close(got, expected(total).to(dtype), **close)
