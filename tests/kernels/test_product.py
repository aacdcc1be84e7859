"""Matrices times a vector against float64: on a GPU where there is one, else interpreted."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F

pytest.importorskip("triton")

from buzz.kernels.product import Cut, product

DEVICE = "cuda" if torch.cuda.is_available() else "cpu"
CUTS = [None, Cut(rows=4, columns=256, warps=1, early=False)]


def made(*shape, dtype):
    return torch.randn(shape, device=DEVICE).mul(0.3).to(dtype)


def close(got, expected, dtype):
    # The interpreter truncates to bfloat16 where a GPU rounds.
    bound = 1e-6 if dtype == torch.float32 else 4 * torch.finfo(dtype).eps
    assert got.dtype == dtype
    assert got.shape == expected.shape
    assert (got.double() - expected).norm() < bound * expected.norm()


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16])
@pytest.mark.parametrize("cut", CUTS)
@pytest.mark.parametrize("width", [16, 1030])
def test_products(width, cut, dtype):
    """Any sizes: of one to three matrices, normed, gated, added to."""
    x = made(1, 1, width, dtype=dtype)
    matrices = [made(rows, width, dtype=dtype) for rows in (33, 8, 7)]
    norm = made(width, dtype=dtype) + 1
    exact, wide = x.double().flatten(), [matrix.double() for matrix in matrices]
    normed = exact * (exact.pow(2).mean() + 1e-5).rsqrt() * norm.double()
    for count in (1, 2, 3):
        got = product(x, matrices[:count], cut=cut)
        close(got, torch.cat([matrix @ exact for matrix in wide[:count]]), dtype)
        got = product(x, matrices[:count], norm=norm, epsilon=1e-5, cut=cut)
        close(got, torch.cat([matrix @ normed for matrix in wide[:count]]), dtype)
    addend = made(33, dtype=dtype)
    close(product(x, matrices[:1], addend=addend, cut=cut), wide[0] @ exact + addend.double(), dtype)
    up = made(33, width, dtype=dtype)
    got = product(x, [matrices[0], up], norm=norm, epsilon=1e-5, gated=True, cut=cut)
    expected = F.silu(wide[0] @ normed) * (up.double() @ normed)
    assert (got.double() - expected).norm() < (1e-6 if dtype == torch.float32 else 3e-2) * expected.norm()


def test_a_wide_product():
    x, matrix = made(1, 1, 8200, dtype=torch.float32), made(5, 8200, dtype=torch.float32)
    assert Cut.of(1, 8200, gated=False) != Cut.of(1, 8000, gated=False)
    close(product(x, [matrix]), matrix.double() @ x.double().flatten(), torch.float32)


def test_products_of_other_sizes():
    x, matrix = torch.zeros(8), torch.zeros(4, 8)
    for matrices, gated in (([matrix, matrix[:, :7]], False), ([matrix, matrix[:3]], True), ([matrix], True)):
        with pytest.raises(ValueError, match="do not fit 8 elements"):
            product(x, matrices, gated=gated)
