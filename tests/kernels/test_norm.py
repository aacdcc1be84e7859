"""RMS norms against float32: on a GPU where there is one, else interpreted."""

from __future__ import annotations

import pytest
import torch

pytest.importorskip("triton")

from buzz.kernels.norm import add_normed, add_rms_norm, norm_heads_, rms_norm

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


@HALVES
@pytest.mark.parametrize("offset", [0.0, 1.0])
@pytest.mark.parametrize(
    ("q_width", "k_width", "q_pieces", "k_pieces"),
    [(128, 128, 8, 2), (80, 80, 3, 3), (64, 128, 2, 1), (640, 160, 1, 1), (96, 96, 5, 0)],
)
def test_heads_of_a_token(dtype, offset, q_width, k_width, q_pieces, k_pieces):
    q_size, k_size = q_width * q_pieces, k_width * k_pieces
    whole = made(q_size + k_size + 37, dtype=dtype)
    whole *= torch.arange(len(whole), device=DEVICE) // min(q_width, k_width) + 1  # no piece's scale is another's
    q_weight, k_weight = made(q_width, dtype=dtype), made(k_width, dtype=dtype)
    q, k, rest = whole.split([q_size, k_size, 37])
    expected = torch.cat(
        [
            normed(q.view(-1, q_width), q_weight, offset).flatten(),
            normed(k.view(-1, k_width), k_weight, offset).flatten(),
        ]
    )
    x = torch.stack([whole.flip(0), whole])
    assert norm_heads_(x, q_weight, k_weight, q_size, k_size, 1e-5, *([offset] if offset else [])) is x
    close(x[1, : q_size + k_size], expected)
    assert torch.equal(x[1, q_size + k_size :], rest)
    alone = whole.flip(0)[None].clone()
    assert torch.equal(norm_heads_(alone, q_weight, k_weight, q_size, k_size, 1e-5, offset)[0], x[0])


def test_heads_that_do_not_fit():
    x, weight = torch.zeros(1, 64), torch.ones(16)
    for vector, q_size, k_size in ((x, 32, 24), (x, 40, 16), (x, 48, 32), (torch.zeros(2, 128)[:, ::2], 32, 16)):
        with pytest.raises(ValueError, match="contiguous and hold whole pieces"):
            norm_heads_(vector, weight, weight, q_size, k_size, 1e-5)


@pytest.mark.cuda
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
def test_heads_between_products_of_a_captured_graph():
    """All three may start early, and each waits for the one before: a replay gives what single calls give."""
    from buzz.kernels.product import product

    x, weight = made(2048, dtype=torch.bfloat16) / 3, torch.rand(128, device="cuda").bfloat16()
    ones = torch.ones(3072, device="cuda").bfloat16()
    matrix, back = (made(*shape, dtype=torch.bfloat16) / 50 for shape in ((3072, 2048), (2048, 3072)))

    def steps(x):
        for _ in range(20):
            heads = norm_heads_(product(x, [matrix])[None], weight, weight, 2048, 512, 1e-5)
            x = product(heads, [back], norm=ones, epsilon=1e-5)
        return x

    expected = steps(x)
    torch.cuda.synchronize()
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        got = steps(x)
    for _ in range(5):
        got.zero_()
        graph.replay()
        assert torch.equal(got, expected)
    exact = product(x, [matrix])
    parts = exact.split([2048, 512, 512])
    wanted = torch.cat([*(normed(p.view(-1, 128), weight).flatten() for p in parts[:2]), parts[2].float()])
    close(norm_heads_(exact[None], weight, weight, 2048, 512, 1e-5)[0], wanted)
