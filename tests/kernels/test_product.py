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


def tanh_gelu(x):
    return F.gelu(x, approximate="tanh")


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


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16])
@pytest.mark.parametrize("cut", CUTS)
def test_biases(cut, dtype):
    """Of all matrices, or of some; and of two that are gated."""
    x, sizes = made(1030, dtype=dtype), (33, 8, 7)
    matrices, biases = [made(n, 1030, dtype=dtype) for n in sizes], [made(n, dtype=dtype) * 30 for n in sizes]
    exact = [matrix.double() @ x.double() + bias.double() for matrix, bias in zip(matrices, biases, strict=True)]
    without = [matrix.double() @ x.double() for matrix in matrices]
    close(product(x, matrices[:1], biases=biases[:1], cut=cut), exact[0], dtype)
    close(product(x, matrices, biases=biases, cut=cut), torch.cat(exact), dtype)
    close(product(x, matrices[:2], biases=[None, biases[1]], cut=cut), torch.cat([without[0], exact[1]]), dtype)
    some = product(x, matrices, biases=[biases[0], None, biases[2]], cut=cut)
    close(some, torch.cat([exact[0], without[1], exact[2]]), dtype)
    up, bias = made(33, 1030, dtype=dtype), made(33, dtype=dtype) * 30
    opened = F.silu(exact[0]) * (up.double() @ x.double() + bias.double())
    close(product(x, [matrices[0], up], biases=[biases[0], bias], gated=True, cut=cut), opened, dtype)


def test_a_bias_is_added_before_rounding():
    """1 + 2^-12 would be 1, and 2049 lies between the even 2048 and 2050."""
    x, bias = torch.tensor([1.0, 2.0**-12]).half().to(DEVICE), torch.tensor([2048.0]).half().to(DEVICE)
    assert product(x, [torch.ones_like(x)[None]], biases=[bias]).item() == 2050.0


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16])
@pytest.mark.parametrize("cut", CUTS)
def test_a_norm_whose_weight_has_an_offset(cut, dtype):
    x, norm, matrices = made(300, dtype=dtype), made(300, dtype=dtype), [made(n, 300, dtype=dtype) for n in (9, 5)]
    exact = x.double()
    normed = exact * (exact.pow(2).mean() + 1e-5).rsqrt() * (1 + norm.double())
    got = product(x, matrices, norm=norm, epsilon=1e-5, offset=1.0, cut=cut)
    close(got, torch.cat([matrix.double() @ normed for matrix in matrices]), dtype)


@pytest.mark.parametrize("cut", CUTS)
def test_gelu_tanh(cut):
    x = made(300, dtype=torch.float32)
    gate, up = made(9, 300, dtype=torch.float32), made(9, 300, dtype=torch.float32)
    opened = F.gelu(gate.double() @ x.double(), approximate="tanh")
    got = product(x, [gate, up], gated=True, activation="gelu_tanh", cut=cut)
    close(got, opened * (up.double() @ x.double()), torch.float32)


@pytest.mark.parametrize(("activation", "function"), [("silu", F.silu), ("gelu_tanh", tanh_gelu)])
def test_a_gate_rounds_as_modules_do(activation, function):
    """Of products that are exact, the bits of float16, but where an activation lies within its error of a tie."""
    generator = torch.Generator().manual_seed(0)
    x = torch.randint(-3, 4, (40,), generator=generator).half().to(DEVICE)
    gate, up = (torch.randint(-2, 3, (200, 40), generator=generator).half().to(DEVICE) for _ in range(2))
    got = product(x, [gate / 8, up / 8], gated=True, activation=activation)
    exact = [(matrix.double() @ x.double() / 8).half() for matrix in (gate, up)]
    expected = function(exact[0]) * exact[1]
    assert (got == expected).double().mean() > 0.95
    torch.testing.assert_close(got, expected, rtol=2**-9, atol=1e-6)


@pytest.mark.parametrize("adds", [True, False])
def test_a_factor(adds):
    """What is multiplied is rounded before and after; products that are exact give the bits of float16."""
    x, matrix = torch.randint(-3, 4, (40,), device=DEVICE).half(), torch.randint(-9, 9, (200, 40), device=DEVICE).half()
    addend = (1024 * torch.rand(200, device=DEVICE)).half() if adds else None
    expected = (matrix.double() @ x.double()).half() * 0.22
    got = product(x, [matrix], factor=0.22, addend=addend)
    assert torch.equal(got, expected + addend if adds else expected)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16])
@pytest.mark.parametrize("width", [64, 75])
def test_rows_of_larger_matrices(width, dtype):
    """Their places are aligned to the width of an element alone."""
    torch.manual_seed(0)  # one element of a sum that nearly cancels would be far off, relatively
    x, weight, bias = made(width, dtype=dtype), made(30, width, dtype=dtype), made(30, dtype=dtype)
    parts, biases = weight.split([7, 12, 11]), bias.split([7, 12, 11])
    exact = weight.double() @ x.double()
    close(product(x, parts, biases=biases), exact + bias.double(), dtype)
    close(product(x, [weight[1:16], weight[15:]], gated=True), F.silu(exact[1:16]) * exact[15:], dtype)
    close(product(x, [weight[29:]], addend=bias[5:6]), exact[29:] + bias[5:6].double(), dtype)


def test_a_wide_product():
    x, matrix = made(1, 1, 8200, dtype=torch.float32), made(5, 8200, dtype=torch.float32)
    assert Cut.of(1, 8200, gated=False) != Cut.of(1, 8000, gated=False)
    close(product(x, [matrix]), matrix.double() @ x.double().flatten(), torch.float32)


def test_products_of_other_sizes():
    x, matrix = torch.zeros(8), torch.zeros(4, 8)
    for matrices, gated in (([matrix, matrix[:, :7]], False), ([matrix, matrix[:3]], True), ([matrix], True)):
        with pytest.raises(ValueError, match="do not fit 8 elements"):
            product(x, matrices, gated=gated)


@pytest.mark.parametrize("biases", [[torch.zeros(4)], [torch.zeros(4), torch.zeros(3)]])
def test_biases_of_other_sizes(biases):
    with pytest.raises(ValueError, match="do not fit matrices of"):
        product(torch.zeros(8), [torch.zeros(4, 8)] * 2, biases=biases)
