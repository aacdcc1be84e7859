"""What every key received, without an attention matrix: a Triton kernel over the log-sum-exp of fused attention."""

from __future__ import annotations

import torch
import triton
import triton.language as tl

from buzz.rows import Rows

LOG2E = 1.4426950408889634


@triton.jit
def _column_sums(
    Q, K, LSE, ROWS, OUT,
    q_row, q_head, q_token, k_row, k_head, k_slot, lse_row, lse_head, out_row, out_head,
    kv_heads, slots, scale,
    GROUP: tl.constexpr, D: tl.constexpr, D_PADDED: tl.constexpr, M: tl.constexpr, N: tl.constexpr,
):  # fmt: skip
    """One program sums, for N keys of one KV head, exp2(scale q k - lse) over all queries that see them.

    ROWS int32 [B, 3]: cached slots before the call, first and end of the queries that count. The key blocks with the
    most queries come first. No atomics: the same input gives the same bits.
    """
    row, head = tl.program_id(1) // kv_heads, tl.program_id(1) % kv_heads
    start, first, end = tl.load(ROWS + 3 * row), tl.load(ROWS + 3 * row + 1), tl.load(ROWS + 3 * row + 2)
    n = tl.program_id(0) * N + tl.arange(0, N)
    d = tl.arange(0, D_PADDED)
    inside = (n < slots)[:, None] & (d < D)[None, :]
    keys = K + row.to(tl.int64) * k_row + head.to(tl.int64) * k_head
    k = tl.load(keys + n[:, None].to(tl.int64) * k_slot + d[None, :], mask=inside, other=0.0)  # [N, D]

    sums = tl.zeros([N, M], dtype=tl.float32)
    begin = tl.maximum(first, tl.program_id(0) * N - start) // M * M
    # Queries in [clear, full) see every key of the block and all count: nothing is masked there.
    clear = tl.maximum(first, tl.program_id(0) * N + N - 1 - start)
    clear = tl.minimum((clear + M - 1) // M * M, end)
    full = tl.maximum(end // M * M, clear)
    for g in range(GROUP):
        query_head = (head * GROUP + g).to(tl.int64)
        queries = Q + row.to(tl.int64) * q_row + query_head * q_head
        lses = LSE + row.to(tl.int64) * lse_row + query_head * lse_head
        for m0 in range(begin, clear, M):
            sums += _received(queries, lses, k, n, d, m0, start, first, end, q_token, scale, D, D_PADDED, M, True)
        for m0 in range(clear, full, M):
            sums += _received(queries, lses, k, n, d, m0, start, first, end, q_token, scale, D, D_PADDED, M, False)
        for m0 in range(full, end, M):
            sums += _received(queries, lses, k, n, d, m0, start, first, end, q_token, scale, D, D_PADDED, M, True)
    out = OUT + row.to(tl.int64) * out_row + head.to(tl.int64) * out_head
    tl.store(out + n, tl.sum(sums, axis=1), mask=n < slots)


@triton.jit
def _received(
    queries, lses, k, n, d, m0, start, first, end, q_token, scale,
    D: tl.constexpr, D_PADDED: tl.constexpr, M: tl.constexpr, MASKED: tl.constexpr,
):  # fmt: skip
    """Probabilities [N, M] of M queries."""
    m = m0 + tl.arange(0, M)
    places = queries + m[:, None].to(tl.int64) * q_token + d[None, :]
    if MASKED:
        q = tl.load(places, mask=(m < end)[:, None] & (d < D)[None, :], other=0.0)
        lse = tl.load(lses + m, mask=m < end, other=0.0)
    elif D == D_PADDED:
        q = tl.load(places)
        lse = tl.load(lses + m)
    else:
        q = tl.load(places, mask=(d < D)[None, :], other=0.0)
        lse = tl.load(lses + m)
    logits = tl.dot(k, tl.trans(q), input_precision="ieee")
    probs = tl.exp2(logits * scale - (lse * 1.4426950408889634)[None, :])
    if MASKED:
        seen = (n[:, None] <= start + m[None, :]) & ((m >= first) & (m < end))[None, :]
        probs = tl.where(seen, probs, 0.0)
    return probs


def column_sums(
    q: torch.Tensor, k: torch.Tensor, lse: torch.Tensor, *, starts: Rows, firsts: Rows, counts: Rows, scale: float
) -> torch.Tensor:
    """Attention probability that every slot received, summed over queries and over the query heads of the group.

    Args:
        q: [B, Hq, Lq, D], the last axis contiguous. k: [B, Hkv, C, D] likewise.
        lse: float32 [B, Hq, Lq], natural log-sum-exp of each query's scaled logits over the slots that it sees.
        starts: cached slots of each row before the call; query i of row b sees the slots 0 .. starts[b] + i.
        firsts, counts: of row b the queries firsts[b] .. counts[b] - 1 count.
        scale: factor of the logits.

    Returns:
        float32 [B, Hkv, C].
    """
    B, Hq, _, D = q.shape
    Hkv, C = k.shape[1:3]
    out = torch.empty(B, Hkv, C, dtype=torch.float32, device=q.device)
    rows = torch.stack([starts.on(q.device), firsts.on(q.device), counts.on(q.device)], dim=1).int()  # [B, 3]
    padded = max(16, triton.next_power_of_2(D))
    M, N, warps, stages = _blocks(q.dtype, padded)
    _column_sums[(triton.cdiv(C, N), B * Hkv)](
        q, k, lse, rows, out,
        *q.stride()[:3], *k.stride()[:3], *lse.stride()[:2], *out.stride()[:2],
        Hkv, C, scale * LOG2E,
        GROUP=Hq // Hkv, D=D, D_PADDED=padded, M=M, N=N, num_warps=warps, num_stages=stages,
    )  # fmt: skip
    return out


def _blocks(dtype: torch.dtype, head_dim: int) -> tuple[int, int, int, int]:
    """Queries and keys of a block, warps, pipeline stages."""
    if dtype == torch.float32:
        return 32, 64, 4, 2
    return (64, 128, 4, 3) if head_dim <= 128 else (64, 64, 4, 2)
