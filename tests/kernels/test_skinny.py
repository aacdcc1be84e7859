"""Matrices times a few vectors, and what is made of their parts, against float64: on a GPU, else interpreted."""

from __future__ import annotations

import itertools

import pytest
import torch
import torch.nn.functional as F

pytest.importorskip("triton")

from buzz.kernels.norm import settle
from buzz.kernels.skinny import MOST_ROWS, Tile, skinny_parts, skinny_product

CUDA = torch.cuda.is_available()
DEVICE = "cuda" if CUDA else "cpu"
DTYPES = [torch.float32, torch.float16, *([torch.bfloat16] if CUDA else [])]  # which the interpreter multiplies wrongly
TILES = [*([None] if CUDA else []), Tile(rows=16, columns=64, stages=2, early=False)]
BOUND = {torch.float32: 1e-6, torch.float16: 1e-3, torch.bfloat16: 8e-3}


def made(*shape, dtype):
    return torch.randn(shape, device=DEVICE).mul(0.3).to(dtype)


def close(got, expected, dtype, factor=1):
    assert got.shape == expected.shape
    assert (got.double() - expected).norm() < factor * BOUND[dtype] * expected.norm()


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("tile", TILES)
@pytest.mark.parametrize(("rows", "width"), [(3, 206), (17, 200)])
def test_products(rows, width, tile, dtype):
    """Any sizes: of one to three matrices, biased or not, gated; and parts of one."""
    x = made(rows, width, dtype=dtype)
    matrices = [made(n, width, dtype=dtype) for n in (33, 8, 17)]
    biases = [made(33, dtype=dtype) * 30, None, made(17, dtype=dtype) * 30]
    exact = [x.double() @ matrix.double().T for matrix in matrices]
    for count in (1, 2):
        got = skinny_product(x, matrices[:count], tile=tile)
        assert got.dtype == dtype
        close(got, torch.cat(exact[:count], dim=1), dtype)
    biased = torch.cat([y if b is None else y + b.double() for y, b in zip(exact, biases, strict=True)], dim=1)
    close(skinny_product(x, matrices, biases=biases, tile=tile), biased, dtype)
    up = made(33, width, dtype=dtype)
    gated = F.silu(exact[0] + biases[0].double()) * (x.double() @ up.double().T)
    close(skinny_product(x, [matrices[0], up], biases=[biases[0], None], gated=True, tile=tile), gated, dtype, 2)
    for parts in (1, 3):
        got = skinny_parts(x, matrices[0], tile=Tile(rows=16, columns=32, parts=parts, stages=2))
        assert got.dtype == torch.float32
        assert len(got) == parts
        close(got.sum(dim=0), exact[0], torch.float32, 2)


@pytest.mark.parametrize("memory", [227 << 10, 163 << 10, 99 << 10, 64 << 10])
def test_tiles_fit_into_what_a_program_may_share(memory):
    """Of H100s, A100s and smaller cards; on the first the tiles that were measured."""
    for count, rows, gated, parts, itemsize in itertools.product(
        (2, 16, 33, 64), (600, 4096), (False, True), (False, True), (2, 4)
    ):
        tile = Tile.of(count, rows, gated=gated, parts=parts, itemsize=itemsize, memory=memory)
        assert tile.shared(count, gated, itemsize) <= memory
        assert tile.stages >= 1
        assert tile.columns >= 16
    assert Tile.of(16, 4096, gated=True, parts=False, itemsize=2, memory=227 << 10) == Tile(64, 128)
    assert Tile.of(64, 4096, gated=False, parts=True, itemsize=2, memory=227 << 10).stages == 3


def test_gelu_tanh():
    x, gate, up = made(2, 100, dtype=torch.float32), *(made(9, 100, dtype=torch.float32) for _ in range(2))
    opened = F.gelu(x.double() @ gate.double().T, approximate="tanh")
    got = skinny_product(x, [gate, up], gated=True, activation="gelu_tanh", tile=TILES[-1])
    close(got, opened * (x.double() @ up.double().T), torch.float32, 2)


def test_sizes_that_do_not_fit():
    x, matrix = torch.zeros(2, 8), torch.zeros(4, 8)
    for matrices, gated in (([matrix, matrix[:, :7]], False), ([matrix, matrix[:3]], True), ([matrix], True)):
        with pytest.raises(ValueError, match=r"do not fit \(2, 8\) vectors"):
            skinny_product(x, matrices, gated=gated)
    with pytest.raises(ValueError, match=f"1 to {MOST_ROWS} vectors, got 65"):
        skinny_product(torch.zeros(65, 8), [matrix])
    with pytest.raises(ValueError, match="do not fit matrices of"):
        skinny_product(x, [matrix], biases=[torch.zeros(3)])


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16])
@pytest.mark.parametrize("normed", [True, False])
@pytest.mark.parametrize("parts", [0, 1, 3])
def test_parts_are_settled(parts, normed, dtype):
    """Summed, biased, rounded, multiplied, normed, added, and the sum normed."""
    x, weight, other = made(5, 70, dtype=dtype), made(70, dtype=dtype), made(70, dtype=dtype)
    given = made(parts, 5, 70, dtype=torch.float32) if parts else None
    bias = made(70, dtype=dtype) if parts else None
    how = {"bias": bias, "factor": 0.5, "weight": weight, "epsilon": 1e-5, "offset": 1.0}
    total, norm = settle(x, given, **how, parts_weight=other if normed and parts else None)

    def rms(y, by):
        return y * (y.pow(2).mean(dim=-1, keepdim=True) + 1e-5).rsqrt() * (1 + by.double())

    expected = x.double()
    if given is not None:
        addend = 0.5 * (given.sum(dim=0).double() + bias.double()).to(dtype).double()
        expected = expected + (rms(addend, other) if normed else addend)
    # The interpreter truncates to bfloat16 where a GPU rounds.
    close(total, expected, dtype, 2)
    close(norm, rms(total.double(), weight), dtype, 2)


def test_nothing_to_settle():
    x = made(2, 16, dtype=torch.float16)
    assert all(torch.equal(y, x) for y in settle(x))
