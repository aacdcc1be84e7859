"""RMS norms against float32: on a GPU where there is one, else interpreted."""

from __future__ import annotations

import pytest
import torch

pytest.importorskip("triton")

from buzz.kernels.norm import add_normed, add_rms_norm, rms_norm

DEVICE = "cuda" if torch.cuda.is_available() else "cpu"


HALVES = pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])


def made(*shape, dtype):
    return torch.randn(shape, device=DEVICE).mul(3).to(dtype)


def normed(x, weight, offset=0.0):
    """In float32, rounded once."""
    x = x.float()
    return x * (x.pow(2).mean(-1, keepdim=True) + 1e-5).rsqrt() * (offset + weight.float())


def close(got, expected, roundings=2):
    # The interpreter truncates to bfloat16 where a GPU rounds.
    torch.testing.assert_close(got, expected.to(got.dtype), rtol=roundings * torch.finfo(got.dtype).eps, atol=0)


@HALVES
@pytest.mark.parametrize("offset", [0.0, 1.0])
@pytest.mark.parametrize("width", [64, 576, 4096])
def test_norms(dtype, width, offset):
    x, addend = (made(2, 5, width, dtype=dtype) for _ in range(2))
    weight = torch.rand(width, device=DEVICE).add(0.5).to(dtype)
    how = () if not offset else (offset,)
    got = rms_norm(x.transpose(0, 1), weight, 1e-5, *how)
    close(got, normed(x.transpose(0, 1), weight, offset))
    total, got = add_rms_norm(x, addend, weight, 1e-5, *how)
    close(total, x + addend)
    close(got, normed(total, weight, offset))


@HALVES
@pytest.mark.parametrize(("shape", "width"), [((1,), 128), ((2, 9, 5), 128), ((7, 3), 64), ((33,), 80), ((3, 3), 256)])
def test_narrow_norms(shape, width, dtype):
    """Several rows in one program, whose number need not be a multiple of anything."""
    x, weight = made(*shape, width, dtype=dtype), made(width, dtype=dtype)
    x[..., 0] *= torch.arange(1, shape[-1] + 1, device=DEVICE)  # no row's scale is another's
    close(rms_norm(x, weight, 1e-5), normed(x, weight))
    total, got = add_rms_norm(x, x.flip(0), weight, 1e-5)
    close(total, x + x.flip(0))
    close(got, normed(total, weight))


def test_a_factor():
    """What is multiplied is rounded before it is added, as PyTorch does it in two steps."""
    x, addend, weight = (made(*shape, 576, dtype=torch.float16) for shape in ((2, 5), (2, 5), ()))
    total, got = add_rms_norm(64 * x, addend, weight, 1e-5, factor=0.22)
    assert torch.equal(total, 64 * x + 0.22 * addend)
    assert (64 * x.float() + 0.22 * addend.float()).half().ne(total).any()
    close(got, normed(total, weight))


@HALVES
@pytest.mark.parametrize("offset", [0.0, 1.0])
@pytest.mark.parametrize("width", [64, 576, 4096])
def test_sums_of_what_is_normed(dtype, width, offset):
    x, addend = (made(2, 5, width, dtype=dtype) for _ in range(2))
    weights = [torch.rand(width, device=DEVICE).add(0.5).to(dtype) for _ in range(2)]
    total, none = add_normed(x, addend, weights[0], 1e-5, offset)
    assert none is None
    # Both summands have an error, which may be larger than what is left of them.
    summand = normed(addend, weights[0], offset).to(dtype)
    error = (total.float() - x.float() - summand.float()).abs()
    assert (error <= 3 * torch.finfo(dtype).eps * (x.float().abs() + summand.float().abs())).all()
    again, got = add_normed(x, addend, weights[0], 1e-5, offset, weights[1])
    assert torch.equal(again, total)
    close(got, normed(total, weights[1], offset))


def test_what_is_normed_is_rounded_before_the_sum():
    """Rows of ones and minus ones, whose norm is the weight: the bits of two steps, but where a tie falls otherwise."""
    addend = torch.randint(2, (50, 64), device=DEVICE).mul(2).sub(1).half()
    weight, x = made(64, dtype=torch.float16) / 30, made(50, 64, dtype=torch.float16) / 4
    total, _ = add_normed(x, addend, weight, 1e-12, 1.0)
    exact = addend * (1 + weight.float())
    twice, once = x + exact.half(), (x.float() + exact).half()
    assert (total == twice).double().mean() > 0.95 > (once == twice).double().mean()
