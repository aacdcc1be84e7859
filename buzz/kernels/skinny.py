"""Matrices times a few vectors, at the pace of the memory: the products of a decoder layer for one token of a few rows.

As `buzz.kernels.product`, with matrix units: from two rows on, a thread that multiplied by itself would have more to do
than the memory leaves it time for.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

import torch
import triton
import triton.language as tl

from buzz.kernels.early import early_launch, let_next_start, wait_for_last
from buzz.kernels.gate import Activation, opened
from buzz.kernels.layout import check_matrices
from buzz.kernels.matrices import fitting

MOST_ROWS = 64  # of x
_SMALL = 2048  # rows of matrices
_SHARED, _RESERVED = 227 << 10, 4 << 10  # bytes that a program may share on an H100; what its compiler needs besides


@dataclass(frozen=True)
class Tile:
    """How the kernel is cut up; results differ in rounding alone.

    Args:
        rows: of a matrix that a program multiplies, a power of two of at least 16; of each of two that are gated.
        columns: of a tile, a power of two of at least 16.
        parts: programs that share the columns of their rows (`skinny_parts`).
        warps: of a program. stages: tiles that are on their way at once.
        early: a program fetches its first weights before the kernel before it has ended, where the device can.
    """

    rows: int = 32
    columns: int = 128
    parts: int = 1
    warps: int = 4
    stages: int = 4
    early: bool = True

    @classmethod
    def of(cls, count: int, rows: int, *, gated: bool, parts: bool, itemsize: int, memory: int) -> Tile:
        """What is taken by itself: what made products of Llama-2-7B's and Llama-3-8B's shapes the shortest on an H100.

        Args:
            count: of vectors; rows: of all matrices together; gated, parts: as for `skinny_product` and `skinny_parts`.
            itemsize: bytes of an element. memory: bytes that a program may share; fewer tiles are on their way at once
                where that is less than an H100's.
        """
        if rows < _SMALL:  # enough programs matter more than their pace
            tile = cls(16, 128, parts=4 if parts else 1, warps=2)
        elif parts:
            tile = cls(128, 128, parts=4, warps=8, stages=3)
        else:
            tile = cls(64, 128) if count <= 32 else cls(64, 64, stages=5)
        while tile.stages > 1 and tile.shared(count, gated, itemsize) > memory:
            tile = replace(tile, stages=tile.stages - 1)
        while tile.columns > 16 and tile.shared(count, gated, itemsize) > memory:
            tile = replace(tile, columns=tile.columns // 2)
        return tile

    def shared(self, count: int, gated: bool, itemsize: int) -> int:
        """Bytes that a program shares, at most: its tiles of weights and vectors."""
        rows = self.rows * (2 if gated else 1) + max(16, triton.next_power_of_2(count))
        return self.stages * self.columns * rows * itemsize


@triton.jit
def _skinny(
    X, W0, W1, W2, BIAS0, BIAS1, BIAS2, OUT,
    count, rows0, rows1, rows2, biased0, biased1, biased2, width, span,
    M: tl.constexpr, N: tl.constexpr, K: tl.constexpr, MATRICES: tl.constexpr, GATED: tl.constexpr,
    ACTIVATION: tl.constexpr, BIASED: tl.constexpr, STAGES: tl.constexpr, PRECISION: tl.constexpr, EARLY: tl.constexpr,
):  # fmt: skip
    """One program has N rows of one matrix, or of both that are gated, and `span` of their columns.

    OUT [count, rows of all], or float32 [parts, count, rows of all]. biased0 and so on: elements of the biases.
    """
    if EARLY:
        let_next_start()
    total = rows0 + rows1 + rows2
    if GATED:
        total = rows0
    block, W, rows, BIAS, biased = tl.program_id(0), W0, rows0, BIAS0, biased0
    OUT += tl.program_id(1).to(tl.int64) * count * total
    if MATRICES > 1:
        blocks0, blocks1 = tl.cdiv(rows0, N), tl.cdiv(rows1, N)
        if block >= blocks0:
            block, W, rows, BIAS, biased, OUT = block - blocks0, W1, rows1, BIAS1, biased1, OUT + rows0
            if MATRICES > 2:  # noqa: SIM102 (one is known to the compiler)
                if block >= blocks1:
                    block, W, rows, BIAS, biased, OUT = block - blocks1, W2, rows2, BIAS2, biased2, OUT + rows1
    n, m, k = block * N + tl.arange(0, N), tl.arange(0, M), tl.arange(0, K)
    begin = tl.program_id(1) * span
    end = tl.minimum(begin + span, width)
    in_rows, in_count = (n < rows)[:, None], (m < count)[None, :]
    places = W + n[:, None].to(tl.int64) * width + k[None, :]
    places1 = W1 + n[:, None].to(tl.int64) * width + k[None, :]
    xs = X + m[None, :] * width + k[:, None]
    # The first tiles of weights are on their way while the kernel before still writes x.
    w = tl.load(places + begin, mask=in_rows & (k < end - begin)[None, :], other=0.0)
    if GATED:
        w1 = tl.load(places1 + begin, mask=in_rows & (k < end - begin)[None, :], other=0.0)
    if EARLY:
        wait_for_last()
    x = tl.load(xs + begin, mask=in_count & (k < end - begin)[:, None], other=0.0)
    sums = tl.dot(w, x, input_precision=PRECISION)
    if GATED:
        sums1 = tl.dot(w1, x, input_precision=PRECISION)
    for k0 in tl.range(begin + K, end, K, num_stages=STAGES):
        inside = k < end - k0
        w = tl.load(places + k0, mask=in_rows & inside[None, :], other=0.0)
        if GATED:
            w1 = tl.load(places1 + k0, mask=in_rows & inside[None, :], other=0.0)
        x = tl.load(xs + k0, mask=in_count & inside[:, None], other=0.0)
        sums = tl.dot(w, x, sums, input_precision=PRECISION)
        if GATED:
            sums1 = tl.dot(w1, x, sums1, input_precision=PRECISION)
    dtype: tl.constexpr = X.dtype.element_ty
    if BIASED:
        sums += tl.load(BIAS + n, mask=n < biased, other=0.0).to(tl.float32)[:, None]
    if GATED:
        if BIASED:
            sums1 += tl.load(BIAS1 + n, mask=n < biased1, other=0.0).to(tl.float32)[:, None]
        sums, sums1 = sums.to(dtype).to(tl.float32), sums1.to(dtype).to(tl.float32)
        sums = opened(sums, ACTIVATION).to(dtype).to(tl.float32) * sums1
    out = OUT + m[None, :].to(tl.int64) * total + n[:, None]
    tl.store(out, sums.to(OUT.dtype.element_ty), mask=in_rows & in_count)


def skinny_product(
    x: torch.Tensor,
    weights: Sequence[torch.Tensor],
    *,
    biases: Sequence[torch.Tensor | None] | None = None,
    gated: bool = False,
    activation: Activation = "silu",
    tile: Tile | None = None,
) -> torch.Tensor:
    """Up to three matrices times each of a few vectors, one result after the other; float32 sums, rounded once.

    Args:
        x: [R, width], contiguous, R up to `MOST_ROWS`. weights: [rows, width] each, contiguous, all tensors in one
            dtype.
        biases: for each matrix [rows], contiguous, added before the product is rounded, or None; None: none at all.
        gated: two matrices of as many rows; the result is activation(first) * second, rounded as modules do it.
        activation: as for `buzz.kernels.gate.gate_`.
        tile: None: as is best known for the sizes.

    Returns:
        [R, sum of the rows], or with `gated` [R, rows].

    Raises:
        ValueError: sizes that do not fit together, a tensor that is not contiguous.
    """
    tile = tile or _tile(x, sum(map(len, weights)), gated=gated, parts=False)
    rows = len(weights[0]) if gated else sum(map(len, weights))
    out = torch.empty(len(x), rows, dtype=x.dtype, device=x.device)
    _launch(x, weights, biases, gated, activation, tile, 1, out)
    return out


def skinny_parts(x: torch.Tensor, weight: torch.Tensor, *, tile: Tile | None = None) -> torch.Tensor:
    """One matrix times each of a few vectors, not yet summed: float32 [parts, R, rows], for `buzz.kernels.norm`.

    Args:
        x, weight, tile: as of `skinny_product`.
    """
    tile = tile or _tile(x, len(weight), gated=False, parts=True)
    parts = triton.cdiv(x.shape[1], _span(x.shape[1], tile))
    out = torch.empty(parts, len(x), len(weight), dtype=torch.float32, device=x.device)
    _launch(x, [weight], None, False, "silu", tile, parts, out)
    return out


def _tile(x: torch.Tensor, rows: int, *, gated: bool, parts: bool) -> Tile:
    memory = _SHARED
    if x.is_cuda:
        properties = torch.cuda.get_device_properties(x.device)
        memory = getattr(properties, "shared_memory_per_block_optin", _SHARED) - _RESERVED
    return Tile.of(len(x), rows, gated=gated, parts=parts, itemsize=x.element_size(), memory=memory)


def _span(width: int, tile: Tile) -> int:
    """Columns of a part: whole tiles."""
    return triton.cdiv(triton.cdiv(width, tile.parts), tile.columns) * tile.columns


def _launch(
    x: torch.Tensor,
    weights: Sequence[torch.Tensor],
    biases: Sequence[torch.Tensor | None] | None,
    gated: bool,
    activation: Activation,
    tile: Tile,
    parts: int,
    out: torch.Tensor,
) -> None:
    count, width = x.shape
    sizes, all_biases, biased = fitting(weights, biases, width, gated, f"{tuple(x.shape)} vectors")
    check_matrices(weights, all_biases, x=x)
    if not 1 <= count <= MOST_ROWS:
        raise ValueError(f"there may be 1 to {MOST_ROWS} vectors, got {count}")
    blocks = triton.cdiv(sizes[0], tile.rows) if gated else sum(triton.cdiv(size, tile.rows) for size in sizes)
    early = early_launch(x.device) if tile.early else {}
    none = [0] * (3 - len(sizes))
    # The kernel gets x in the place of each tensor that is not there, and does not look at it.
    tensors = [x if t is None else t for t in (*weights, *[None] * len(none), *all_biases, *[None] * len(none))]
    with torch.cuda.device_of(x):
        _skinny[(blocks, parts)](
            x, *tensors, out, count, *sizes, *none, *biased, *none, width, _span(width, tile) if parts > 1 else width,
            M=max(16, triton.next_power_of_2(count)), N=tile.rows, K=tile.columns, MATRICES=1 if gated else len(sizes),
            GATED=gated, ACTIVATION=activation, BIASED=any(biased), STAGES=tile.stages,
            PRECISION="ieee" if x.dtype == torch.float32 else "tf32", EARLY=bool(early), num_warps=tile.warps, **early,
        )  # fmt: skip


__all__ = ["MOST_ROWS", "Tile", "skinny_parts", "skinny_product"]
