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
def _walk(X, NORM, W, n, rows, width, N: tl.constexpr, K: tl.constexpr, NORMED: tl.constexpr, EARLY: tl.constexpr):
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
            x *= tl.load(NORM + k0 + k, mask=k < width - k0, other=0.0).to(tl.float32)
        these = weights.to(tl.float32)
        weights = tl.load(places + k0 + K, mask=inside & (k < width - k0 - K)[None, :], other=0.0)
        sums += these * x[None, :]
    return tl.sum(sums, axis=1), tl.sum(squares, axis=0)


@triton.jit
def _product(
    X, NORM, W0, W1, W2, ADDEND, OUT, rows0, rows1, rows2, width, epsilon,
    N: tl.constexpr, K: tl.constexpr, MATRICES: tl.constexpr, GATED: tl.constexpr, NORMED: tl.constexpr,
    ADDS: tl.constexpr, EARLY: tl.constexpr,
):  # fmt: skip
    """One program has N rows of one matrix, or of both that are gated. OUT has the rows of all, one after the other."""
    if EARLY:
        let_next_start()
    dtype = X.dtype.element_ty
    block, W, rows = tl.program_id(0), W0, rows0
    if MATRICES > 1:
        blocks0, blocks1 = tl.cdiv(rows0, N), tl.cdiv(rows1, N)
        if block >= blocks0:
            block, W, rows, OUT = block - blocks0, W1, rows1, OUT + rows0
            if MATRICES > 2:  # noqa: SIM102 (one is known to the compiler)
                if block >= blocks1:
                    block, W, rows, OUT = block - blocks1, W2, rows2, OUT + rows1
    n = block * N + tl.arange(0, N)
    y, squares = _walk(X, NORM, W, n, rows, width, N, K, NORMED, EARLY)
    scale = 1.0
    if NORMED:
        scale = tl.rsqrt(squares / width + epsilon)
    y = (y * scale).to(dtype).to(tl.float32)
    if GATED:
        up, _ = _walk(X, NORM, W1, n, rows, width, N, K, NORMED, False)
        y = (y / (1.0 + tl.exp(-y))).to(dtype).to(tl.float32) * (up * scale).to(dtype).to(tl.float32)
    if ADDS:
        y += tl.load(ADDEND + n, mask=n < rows, other=0.0).to(tl.float32)
    tl.store(OUT + n, y.to(dtype), mask=n < rows)


def product(
    x: torch.Tensor,
    weights: Sequence[torch.Tensor],
    *,
    norm: torch.Tensor | None = None,
    epsilon: float = 0.0,
    gated: bool = False,
    addend: torch.Tensor | None = None,
    cut: Cut | None = None,
) -> torch.Tensor:
    """Up to three matrices times one vector, one result after the other; float32 sums.

    Every product is rounded to the dtype before it is gated or added to something, as a layer's modules do it; what is
    normed is not rounded before the product.

    Args:
        x: `width` elements of any shape, contiguous. weights: [rows, width] each, contiguous, all tensors in one dtype.
        norm: [width], the weight of an RMS norm of x; None: x as it is. epsilon: of the norm.
        gated: two matrices of as many rows; the result is silu(first) * second.
        addend: as many elements as the result, contiguous, added to it.
        cut: None: `Cut.of` these matrices.

    Returns:
        [sum of the rows], or with `gated` [rows].

    Raises:
        ValueError: sizes that do not fit together.
    """
    sizes = [len(weight) for weight in weights]
    if any(weight.shape[1] != x.numel() for weight in weights) or (gated and (len(sizes) != 2 or len(set(sizes)) > 1)):
        shapes = ", ".join(str(tuple(weight.shape)) for weight in weights)
        raise ValueError(f"matrices {shapes} do not fit {x.numel()} elements{' and a gate' if gated else ''}")
    cut = cut or Cut.of(len(sizes), x.numel(), gated)
    out = torch.empty(sizes[0] if gated else sum(sizes), dtype=x.dtype, device=x.device)
    blocks = triton.cdiv(sizes[0], cut.rows) if gated else sum(triton.cdiv(size, cut.rows) for size in sizes)
    early = early_launch(x.device) if cut.early else {}
    first, second, third = (*weights, *[weights[0]] * (3 - len(weights)))
    rows = (*sizes, 0, 0)[:3]
    with torch.cuda.device_of(x):
        _product[(blocks,)](
            x, x if norm is None else norm, first, second, third, x if addend is None else addend, out, *rows,
            x.numel(), epsilon,
            N=cut.rows, K=cut.columns, MATRICES=1 if gated else len(weights), GATED=gated, NORMED=norm is not None,
            ADDS=addend is not None, EARLY=bool(early), num_warps=cut.warps, **early,
        )  # fmt: skip
    return out
