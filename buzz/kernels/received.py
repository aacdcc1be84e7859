"""What every key received, without an attention matrix: a Triton kernel over the log-sum-exp of fused attention."""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Sequence
from typing import Any, Literal

import torch
import triton
import triton.language as tl

from buzz.kernels.device import HALF
from buzz.kernels.launch import Tiles
from buzz.kernels.layout import check_rows
from buzz.rows import Rows

try:
    from triton.tools.tensor_descriptor import TensorDescriptor
except ImportError:  # an older Triton
    TensorDescriptor = None

LOG2E = 1.4426950408889634


@triton.jit(do_not_specialize=["lag_largest", "lag_sum"])
def _received(
    Q, K, LSE, ROWS, LARGEST_OUT, SUM_OUT,
    q_row, q_head, q_token, q_column, k_row, k_head, k_slot, lse_row, lse_head, out_row, out_head,
    kv_heads, slots, lag_largest, lag_sum, scale,
    GROUP: tl.constexpr, D: tl.constexpr, D_PADDED: tl.constexpr, M: tl.constexpr, N: tl.constexpr,
    TILES: tl.constexpr, LARGEST: tl.constexpr, SUM: tl.constexpr,
):  # fmt: skip
    """One program goes, for N keys of one KV head, over the exp2(scale q k - lse) of all queries that count for them.

    With LARGEST it takes the maximum, with SUM it adds them up; one of the two at least. ROWS int32 [B, 3]: cached
    slots before the call, first and end of the queries that count; for a key they do so from `lag_largest` or `lag_sum`
    tokens behind it on, which are equal where only one is wanted. Q is a pointer, and its strides count elements; with
    TILES it is a descriptor of a matrix, and its strides count rows of that, q_column columns. The key blocks with the
    most queries come first. No atomics: the same input gives the same bits.
    """
    row, head = tl.program_id(1) // kv_heads, tl.program_id(1) % kv_heads
    start, first, end = tl.load(ROWS + 3 * row), tl.load(ROWS + 3 * row + 1), tl.load(ROWS + 3 * row + 2)
    # As if every query came so much earlier.
    far, near = start - lag_largest, start - lag_sum
    n = tl.program_id(0) * N + tl.arange(0, N)
    d = tl.arange(0, D_PADDED)
    inside = (n < slots)[:, None] & (d < D)[None, :]
    keys = K + row.to(tl.int64) * k_row + head.to(tl.int64) * k_head
    k = tl.load(keys + n[:, None].to(tl.int64) * k_slot + d[None, :], mask=inside, other=0.0)  # [N, D]

    # A result for every two places of a tile that one thread has, until the end: no thread waits for another. The
    # largest probability is that of the largest logit less lse, so it takes one exponential a key.
    largest = tl.full([M // 16, 8, N], float("-inf"), dtype=tl.float32)
    sums = tl.zeros([M // 16, 8, N], dtype=tl.float32)
    begin = tl.maximum(first, tl.program_id(0) * N - tl.maximum(far, near)) // M * M
    # Queries in [clear, full) count for every key of the block: nothing is masked there.
    clear = tl.maximum(first, tl.program_id(0) * N + N - 1 - tl.minimum(far, near))
    clear = tl.minimum((clear + M - 1) // M * M, end)
    full = tl.maximum(end // M * M, clear)
    for g in range(GROUP):
        query_head = head * GROUP + g
        lses = LSE + row.to(tl.int64) * lse_row + query_head.to(tl.int64) * lse_head
        for m0 in range(begin, clear, M):
            q = _queries(Q, row, query_head, m0, end, d, q_row, q_head, q_token, q_column, D, D_PADDED, M, TILES, True)
            largest, sums = _joined(
                largest, sums, q, k, lses, m0, n, far, near, first, end, scale, M, True, LARGEST, SUM
            )
        for m0 in range(clear, full, M):
            q = _queries(Q, row, query_head, m0, end, d, q_row, q_head, q_token, q_column, D, D_PADDED, M, TILES, False)
            largest, sums = _joined(
                largest, sums, q, k, lses, m0, n, far, near, first, end, scale, M, False, LARGEST, SUM
            )
        for m0 in range(full, end, M):
            q = _queries(Q, row, query_head, m0, end, d, q_row, q_head, q_token, q_column, D, D_PADDED, M, TILES, True)
            largest, sums = _joined(
                largest, sums, q, k, lses, m0, n, far, near, first, end, scale, M, True, LARGEST, SUM
            )
    out = row.to(tl.int64) * out_row + head.to(tl.int64) * out_head + n
    if LARGEST:
        tl.store(LARGEST_OUT + out, tl.exp2(tl.max(tl.max(largest, axis=0), axis=0)), mask=n < slots)
    if SUM:
        tl.store(SUM_OUT + out, tl.sum(tl.sum(sums, axis=0), axis=0), mask=n < slots)


@triton.jit
def _queries(
    Q, row, head, m0, end, d, q_row, q_head, q_token, q_column,
    D: tl.constexpr, D_PADDED: tl.constexpr, M: tl.constexpr, TILES: tl.constexpr, MASKED: tl.constexpr,
):  # fmt: skip
    """M queries of one head, [M, D_PADDED]. Past the end of a head a tile has what lies there, or zeros."""
    if TILES:
        q = Q.load([row * q_row + head * q_head + m0, head * q_column])
    else:
        m = m0 + tl.arange(0, M)
        places = Q + row.to(tl.int64) * q_row + head.to(tl.int64) * q_head
        places += m[:, None].to(tl.int64) * q_token + d[None, :]
        if MASKED:
            q = tl.load(places, mask=(m < end)[:, None] & (d < D)[None, :], other=0.0)
        elif D == D_PADDED:
            q = tl.load(places)
        else:
            q = tl.load(places, mask=(d < D)[None, :], other=0.0)
    return q


@triton.jit
def _joined(
    largest, sums, q, k, lses, m0, n, far, near, first, end, scale,
    M: tl.constexpr, MASKED: tl.constexpr, LARGEST: tl.constexpr, SUM: tl.constexpr,
):  # fmt: skip
    """Results [M / 16, 8, N] with the probabilities of M queries, every two of them that are eight apart together.

    Of the result of a matrix product, a thread holds just such pairs of rows.
    """
    m = m0 + tl.arange(0, M)
    lse = tl.load(lses + m, mask=m < end, other=0.0) if MASKED else tl.load(lses + m)
    logits = tl.dot(q, tl.trans(k), input_precision="ieee")
    logits = logits * scale - (lse * 1.4426950408889634)[:, None]
    if MASKED:
        here = ((m >= first) & (m < end))[:, None]
    if LARGEST:
        found = logits
        if MASKED:
            found = tl.where(here & (n[None, :] <= far + m[:, None]), found, float("-inf"))
        largest = tl.maximum(largest, tl.max(tl.reshape(found, [M // 16, 2, 8, found.shape[1]]), axis=1))
    if SUM:
        probs = tl.exp2(logits)
        if MASKED:
            probs = tl.where(here & (n[None, :] <= near + m[:, None]), probs, 0.0)
        sums += tl.sum(tl.reshape(probs, [M // 16, 2, 8, probs.shape[1]]), axis=1)
    return largest, sums


def received(
    q: torch.Tensor,
    k: torch.Tensor,
    lse: torch.Tensor,
    *,
    starts: Rows,
    firsts: Rows,
    counts: Rows,
    scale: float,
    wanted: Sequence[tuple[Literal["sum", "largest"], int]] = (("sum", 0),),
    tiles: Tiles | None = None,
) -> list[torch.Tensor]:
    """Attention probability that every slot received, over queries and over the query heads of the group.

    Args:
        q: [B, Hq, Lq, D], the last axis contiguous, finite throughout. k: [B, Hkv, C, D] likewise.
        lse: float32 [B, Hq, Lq] likewise, natural log-sum-exp of a query's scaled logits over the slots that it sees.
        starts: cached slots of each row before the call; query i of row b sees the slots 0 .. starts[b] + i.
        firsts, counts: of row b the queries firsts[b] .. counts[b] - 1 count.
        scale: factor of the logits.
        wanted: their sum, or the largest, or both; and with each a lag: a query counts for the slots that are at least
            so many before its own.
        tiles: for sweeps; None: as is best known.

    Returns:
        float32 [B, Hkv, C] for each of `wanted`; 0 where no query counts.

    Raises:
        ValueError: a last axis is not contiguous.
    """
    check_rows(q=q, k=k, lse=lse)
    B, Hq, _, D = q.shape
    Hkv, C = k.shape[1:3]
    lags = dict(wanted)
    out = {of: torch.empty(B, Hkv, C, dtype=torch.float32, device=q.device) for of in lags}
    one = out[wanted[0][0]]  # stands for what is not wanted
    rows = starts.beside(firsts, counts, device=q.device)
    padded = max(16, triton.next_power_of_2(D))
    cut: Any = _chosen(tiles or Tiles(), q.dtype, padded)
    half = q.is_cuda and q.dtype in HALF
    matrix = _matrix(q, cut.queries, padded) if half else None
    queries, strides = (q, (*q.stride()[:3], 0)) if matrix is None else matrix
    how = {"num_warps": cut.warps, "num_stages": cut.stages}
    if half and cut.registers:
        how["maxnreg"] = cut.registers
    with torch.cuda.device_of(q):
        _received[(triton.cdiv(C, cut.keys), B * Hkv)](
            queries, k, lse, rows, out.get("largest", one), out.get("sum", one),
            *strides, *k.stride()[:3], *lse.stride()[:2], *one.stride()[:2],
            Hkv, C, lags.get("largest", wanted[0][1]), lags.get("sum", wanted[0][1]), scale * LOG2E,
            GROUP=Hq // Hkv, D=D, D_PADDED=padded, M=cut.queries, N=cut.keys, TILES=matrix is not None,
            LARGEST="largest" in lags, SUM="sum" in lags, **how,
        )  # fmt: skip
    return [out[of] for of, _ in wanted]


@functools.cache
def _chosen(tiles: Tiles, dtype: torch.dtype, head_dim: int) -> Tiles:
    """Tiles without a None."""
    if dtype == torch.float32:
        best = Tiles(32, 64, 4, 2, 0)
    else:
        # With so many registers three programs of 128 threads share a multiprocessor's 65536, so that one multiplies
        # while another takes exponentials.
        best = Tiles(64, 128 if head_dim <= 128 else 64, 4, 2, 168)
    given = {name: value for name, value in dataclasses.asdict(tiles).items() if value is not None}
    return dataclasses.replace(best, **given)


def _matrix(q: torch.Tensor, M: int, width: int) -> tuple[Any, tuple[int, int, int, int]] | None:
    """q as a matrix of which the copy engine of a Hopper GPU fetches tiles, and its strides there; None: it cannot.

    Rows are the tokens of all heads if those of a head lie together, and tokens alone if the heads of a token do. Tiles
    are as wide as a head: padded ones would fetch what nobody reads.
    """
    B, Hq, Lq, D = q.shape
    if TensorDescriptor is None or width != D or q.data_ptr() % 16:
        return None
    if not _copies_tiles(q.device):
        return None
    if q.is_contiguous():
        matrix, strides = q.view(-1, D), (Hq * Lq, Lq, 1, 0)
    elif q.transpose(1, 2).is_contiguous():
        matrix, strides = q.transpose(1, 2).reshape(B * Lq, Hq * D), (Lq, 0, 1, D)
    else:
        return None
    return TensorDescriptor.from_tensor(matrix, [M, width]), strides


@functools.cache
def _copies_tiles(device: torch.device) -> bool:
    return torch.cuda.get_device_capability(device)[0] >= 9


__all__ = ["received"]
