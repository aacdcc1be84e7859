"""Matrices times one vector, at the pace of the memory: the products of a decoder layer for one token of one row.

A library's matrix product is made for many columns; with one, a layer is a walk through its weights, and what it does
besides (norms, sums, the gate) is free if the same kernel does it.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
import triton
import triton.language as tl

from buzz.kernels.early import early_launch, let_next_start, wait_for_last
from buzz.kernels.gate import Activation, opened
from buzz.kernels.layout import check_matrices
from buzz.kernels.matrices import fitting

_WIDE = 8192  # elements of a vector


@dataclass(frozen=True)
class Cut:
    """How the kernel is cut up; results differ in rounding alone.

    Args:
        rows: of a matrix that a program multiplies, a power of two; of each of two that are gated.
        columns: of a tile, a power of two.
        warps: of a program.
        early: a program fetches its first weights before the kernel before it has ended, where the device can.
    """

    rows: int
    columns: int
    warps: int = 4
    early: bool = True

    @classmethod
    def of(cls, matrices: int, width: int, gated: bool) -> Cut:
        """What `product` takes by itself: what made whole steps of Llama-2-7B's shape the shortest on an H100.

        Args:
            matrices: how many; width: elements of the vector; gated: as for `product`.
        """
        if gated:
            rows, columns = 4, 2048
        elif matrices > 1:
            rows, columns = 8, 512
        else:
            rows, columns = (2, 4096) if width > _WIDE else (8, 1024)
        return cls(rows, min(columns, triton.next_power_of_2(width)))


@triton.jit
def _walk(
    X, NORM, W, n, rows, width,
    N: tl.constexpr, K: tl.constexpr, NORMED: tl.constexpr, OFFSET: tl.constexpr, EARLY: tl.constexpr,
):  # fmt: skip
    """Rows n of W times x: float32 [N]; and the sum of the squares of x, if it is to be normed."""
    k = tl.arange(0, K)
    places, inside = W + n[:, None].to(tl.int64) * width + k[None, :], (n < rows)[:, None]
    weights = tl.load(places, mask=inside & (k < width)[None, :], other=0.0)
    if EARLY:
        wait_for_last()
    sums, squares = tl.zeros([N, K], tl.float32), tl.zeros([K], tl.float32)
    for k0 in range(0, width, K):
        x = tl.load(X + k0 + k, mask=k < width - k0, other=0.0).to(tl.float32)
        if NORMED:
            squares += x * x
            norm = tl.load(NORM + k0 + k, mask=k < width - k0, other=0.0).to(tl.float32)
            if OFFSET != 0.0:
                norm += OFFSET
            x *= norm
        these = weights.to(tl.float32)
        weights = tl.load(places + k0 + K, mask=inside & (k < width - k0 - K)[None, :], other=0.0)
        sums += these * x[None, :]
    return tl.sum(sums, axis=1), tl.sum(squares, axis=0)


@triton.jit
def _rounded(y, BIAS, n, biased, BIASED: tl.constexpr, DTYPE: tl.constexpr):
    """y plus the elements n of a bias that has so many, as float32 of what is left after rounding."""
    if BIASED:
        y += tl.load(BIAS + n, mask=n < biased, other=0.0).to(tl.float32)
    return y.to(DTYPE).to(tl.float32)


@triton.jit
def _product(
    X, NORM, W0, W1, W2, BIAS0, BIAS1, BIAS2, ADDEND, OUT,
    rows0, rows1, rows2, biased0, biased1, biased2, width, epsilon, factor,
    N: tl.constexpr, K: tl.constexpr, MATRICES: tl.constexpr, GATED: tl.constexpr, ACTIVATION: tl.constexpr,
    NORMED: tl.constexpr, OFFSET: tl.constexpr, BIASED: tl.constexpr, SCALED: tl.constexpr, ADDS: tl.constexpr,
    EARLY: tl.constexpr,
):  # fmt: skip
    """One program has N rows of one matrix, or of both that are gated. OUT has the rows of all, one after the other.

    biased0 and so on: elements of the biases, which are none or as many as rows.
    """
    if EARLY:
        let_next_start()
    dtype: tl.constexpr = X.dtype.element_ty
    block, W, rows, BIAS, biased = tl.program_id(0), W0, rows0, BIAS0, biased0
    if MATRICES > 1:
        blocks0, blocks1 = tl.cdiv(rows0, N), tl.cdiv(rows1, N)
        if block >= blocks0:
            block, W, rows, BIAS, biased, OUT = block - blocks0, W1, rows1, BIAS1, biased1, OUT + rows0
            if MATRICES > 2:  # noqa: SIM102 (one is known to the compiler)
                if block >= blocks1:
                    block, W, rows, BIAS, biased, OUT = block - blocks1, W2, rows2, BIAS2, biased2, OUT + rows1
    n = block * N + tl.arange(0, N)
    y, squares = _walk(X, NORM, W, n, rows, width, N, K, NORMED, OFFSET, EARLY)
    scale = 1.0
    if NORMED:
        scale = tl.rsqrt(squares / width + epsilon)
    y = _rounded(y * scale, BIAS, n, biased, BIASED, dtype)
    if GATED:
        up, _ = _walk(X, NORM, W1, n, rows, width, N, K, NORMED, OFFSET, False)
        up = _rounded(up * scale, BIAS1, n, biased1, BIASED, dtype)
        y = (opened(y, ACTIVATION).to(dtype).to(tl.float32) * up).to(dtype).to(tl.float32)
    if SCALED:
        y = (y * factor).to(dtype).to(tl.float32)
    if ADDS:
        y += tl.load(ADDEND + n, mask=n < rows, other=0.0).to(tl.float32)
    tl.store(OUT + n, y.to(dtype), mask=n < rows)


def product(
    x: torch.Tensor,
    weights: Sequence[torch.Tensor],
    *,
    biases: Sequence[torch.Tensor | None] | None = None,
    norm: torch.Tensor | None = None,
    epsilon: float = 0.0,
    offset: float = 0.0,
    gated: bool = False,
    activation: Activation = "silu",
    factor: float = 1.0,
    addend: torch.Tensor | None = None,
    cut: Cut | None = None,
) -> torch.Tensor:
    """Up to three matrices times one vector, one result after the other; float32 sums.

    Every product is rounded to the dtype before it is gated, multiplied or added to something, and so is what is made
    of it, as a layer's modules do it; what is normed is not rounded before the product.

    Args:
        x: `width` elements of any shape, contiguous. weights: [rows, width] each, contiguous, all tensors in one dtype;
            rows of a larger matrix are fine.
        biases: for each matrix [rows], contiguous, added before the product is rounded, or None; None: none at all.
        norm: [width], the weight of an RMS norm of x; None: x as it is. epsilon: of the norm. offset: a constant that
            is added to the weight.
        gated: two matrices of as many rows; the result is activation(first) * second.
        activation: as for `buzz.kernels.gate.gate_`.
        factor: what the result is multiplied by before the addend comes to it.
        addend: as many elements as the result, contiguous, added to it.
        cut: None: `Cut.of` these matrices.

    Returns:
        [sum of the rows], or with `gated` [rows].

    Raises:
        ValueError: sizes that do not fit together, a tensor that is not contiguous.
    """
    sizes, all_biases, biased = fitting(weights, biases, x.numel(), gated, f"{x.numel()} elements")
    check_matrices(weights, all_biases, x=x, addend=addend, norm=norm)
    cut = cut or Cut.of(len(sizes), x.numel(), gated)
    out = torch.empty(sizes[0] if gated else sum(sizes), dtype=x.dtype, device=x.device)
    blocks = triton.cdiv(sizes[0], cut.rows) if gated else sum(triton.cdiv(size, cut.rows) for size in sizes)
    early = early_launch(x.device) if cut.early else {}
    missing = 3 - len(sizes)
    # The kernel gets x in the place of each tensor that is not there, and does not look at it.
    tensors = [
        x if t is None else t for t in (norm, *weights, *[None] * missing, *all_biases, *[None] * missing, addend)
    ]
    none = [0] * missing
    with torch.cuda.device_of(x):
        _product[(blocks,)](
            x, *tensors, out, *sizes, *none, *biased, *none, x.numel(), epsilon, factor,
            N=cut.rows, K=cut.columns, MATRICES=1 if gated else len(sizes), GATED=gated, ACTIVATION=activation,
            NORMED=norm is not None, OFFSET=float(offset), BIASED=any(biased), SCALED=factor != 1.0,
            ADDS=addend is not None, EARLY=bool(early), num_warps=cut.warps, **early,
        )  # fmt: skip
    return out
