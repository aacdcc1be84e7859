"""PyTorch's fused kernels, which hold no attention matrix: the output alone, or the scores too by its log-sum-exp."""

from __future__ import annotations

import functools
from collections.abc import Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch.nn.attention.bias import causal_lower_right

from buzz.attention import blocks, naive, one, plans
from buzz.attention.wanted import Wanted
from buzz.kernels.device import HALF, runs_triton
from buzz.rows import Rows

# Mask elements of one query chunk, where a mask is needed at all: 16 MiB of bool.
_CHUNK_ELEMENTS = 1 << 24
_LONG = 1 << 17  # queries times slots, from which on a CPU is faster with scores by blocks than with all logits at once


# --- the output alone ------------------------------------------------------------------------------------------------


def attend(
    q: torch.Tensor,
    k: torch.Tensor,
    v: torch.Tensor,
    *,
    starts: Rows,
    counts: Rows | None = None,
    scale: float,
    window: int | None = None,
) -> torch.Tensor:
    """Output [B, Hq, Lq, D] of one call; see `buzz.attention.attend` for the arguments."""
    B, _, Lq, _ = q.shape
    C = k.shape[2]
    uniform = min(starts) == max(starts)
    if window is not None and max(starts) - min(starts) >= window:
        # Rows that see no slot in common: together they would read all that lies between.
        rows = [attend(q[b, None], k[b, None], v[b, None], starts=Rows([start]), scale=scale, window=window)
                for b, start in enumerate(starts)]  # fmt: skip
        return torch.cat(rows)
    if Lq == 1:
        return one.attend(q, k, v, starts, scale, window)
    whole, outputs = 0, []  # queries that are done
    if window is not None:
        whole = min(Lq, max(0, window - max(starts)))  # so many see all that is before them
        if whole:
            outputs.append(attend(q[:, :, :whole], k, v, starts=starts, scale=scale))
    elif max(starts) == 0 and q.is_cuda and q.dtype in HALF:
        return plans.whole(q, k[:, :, :Lq], v[:, :, :Lq], scale)
    elif max(starts) == 0:
        return _grouped(q, k[:, :, :Lq], v[:, :, :Lq], is_causal=True, scale=scale)
    elif uniform and starts[0] + Lq <= C and q.is_cuda and q.dtype in HALF:
        # Flash attention aligns the last query with the last key by itself.
        end = starts[0] + Lq
        how: Any = {"attn_mask": causal_lower_right(Lq, end), "enable_gqa": q.shape[1] > k.shape[1]}
        with plans.CUDNN.off():
            return F.scaled_dot_product_attention(q, k[:, :, :end], v[:, :, :end], scale=scale, **how)
    elif counts is not None and plans.takes_flash(q) and torch.backends.cuda.flash_sdp_enabled():
        return plans.ragged(q, k, v, starts, counts, scale)[0]
    chunk = naive.queries_at_once(_CHUNK_ELEMENTS, 1 if uniform else B, C, window)
    for i in range(whole, Lq, chunk):
        n = min(chunk, Lq - i)
        begin, end = naive.span(starts, i, n, C, window)
        mask = naive.seen(starts, i, n, begin, end, q.device, window)[:, None]  # [B or 1, 1, n, end - begin]
        part = (q[:, :, i : i + n], k[:, :, begin:end], v[:, :, begin:end])
        outputs.append(_grouped(*part, attn_mask=mask, scale=scale))
    return torch.cat(outputs, dim=2)


def _grouped(q: torch.Tensor, k: torch.Tensor, v: torch.Tensor, **how: Any) -> torch.Tensor:
    """PyTorch's attention of q [B, Hq, L, D] over k and v [B, Hkv, S, D] by a kernel that holds no L x S matrix."""
    group = q.shape[1] // k.shape[1]
    if not q.is_cuda:
        return F.scaled_dot_product_attention(q, k, v, enable_gqa=group > 1, **how)
    with plans.CUDNN.off():
        if group == 1:
            return F.scaled_dot_product_attention(q, k, v, **how)
        # No fused CUDA kernel that takes float32, or a mask, knows groups: one call for each query head of a group.
        heads = [F.scaled_dot_product_attention(part, k, v, **how) for part in naive.grouped(q, k.shape[1]).unbind(2)]
    return torch.stack(heads, dim=2).flatten(1, 2)


# --- output and scores -----------------------------------------------------------------------------------------------


def gives_scores(q: torch.Tensor, k: torch.Tensor) -> bool:
    """Whether this is a long prompt or chunk on a CPU, or on a GPU with Triton any that flash attention reads."""
    if q.shape[2] == 1:
        return False
    if q.device.type == "cpu":
        return (q.dtype in HALF or q.dtype == torch.float32) and q.shape[2] * k.shape[2] >= _LONG
    return plans.takes_flash(q) and runs_triton(q)


def attend_scored(
    q: torch.Tensor,
    k: torch.Tensor,
    v: torch.Tensor,
    *,
    starts: Rows,
    firsts: Rows,
    counts: Rows,
    scale: float,
    wanted: Sequence[Wanted] = (Wanted(),),
) -> tuple[torch.Tensor, list[torch.Tensor]]:
    """Output and what is wanted of one call; see `buzz.attention.attend` and `buzz.attention.naive.attend`.

    Args:
        firsts: of row b the queries firsts[b] .. counts[b] - 1 count.
    """
    if q.stride(-1) != 1:
        q = q.contiguous()
    output, lse = _by_rows(q, k, v, starts, counts, scale)
    given: dict[str, Any] = {"starts": starts, "firsts": firsts, "counts": counts, "scale": scale, "wanted": wanted}
    if not runs_triton(q):
        return output, blocks.received(q, k, lse, **given)
    from buzz.kernels.received import received

    return output, received(q, k, lse, **given)


def _by_rows(
    q: torch.Tensor, k: torch.Tensor, v: torch.Tensor, starts: Rows, counts: Rows, scale: float
) -> tuple[torch.Tensor, torch.Tensor]:
    """Output [B, Hq, Lq, D] and log-sum-exp float32 [B, Hq, Lq]: all rows together, but on a CPU only if they start at
    the same slot."""
    end = starts[0] + q.shape[2]
    if min(starts) == max(starts) and end <= k.shape[2]:
        return causal(q, k[:, :, :end], v[:, :, :end], scale)
    if q.device.type != "cpu":
        return plans.ragged(q, k, v, starts, counts, scale)
    output, lse = torch.zeros_like(q), q.new_zeros(q.shape[:3], dtype=torch.float32)
    for row, (start, count) in enumerate(zip(starts, counts, strict=True)):
        if count:
            one, end = slice(row, row + 1), start + count
            output[one, :, :count], lse[one, :, :count] = causal(
                q[one, :, :count], k[one, :, :end], v[one, :, :end], scale
            )
    return output, lse


def causal(q: torch.Tensor, k: torch.Tensor, v: torch.Tensor, scale: float) -> tuple[torch.Tensor, torch.Tensor]:
    """Output and natural log-sum-exp float32 [B, Hq, Lq] of queries [B, Hq, Lq, D] that are the last of S tokens."""
    return _causal_on_cpu(q, k, v, scale) if q.device.type == "cpu" else plans.causal(q, k, v, scale)


def _causal_on_cpu(
    q: torch.Tensor, k: torch.Tensor, v: torch.Tensor, scale: float
) -> tuple[torch.Tensor, torch.Tensor]:
    """The kernel there aligns the first query with the first key, so what comes before a chunk is read by itself."""
    group, before = q.shape[1] // k.shape[1], k.shape[2] - q.shape[2]
    k, v = (t if group == 1 else t.repeat_interleave(group, dim=1) for t in (k, v))  # not every version knows groups
    flash = functools.partial(torch.ops.aten._scaled_dot_product_flash_attention_for_cpu, scale=scale)
    output, lse = flash(q, k[:, :, before:], v[:, :, before:], 0.0, True)
    if not before:
        return output, lse.float()
    past, lse_past = flash(q, k[:, :, :before], v[:, :, :before], 0.0, False)
    both = torch.logaddexp(lse.float(), lse_past.float())
    own, other = ((part.float() - both).exp()[..., None] for part in (lse, lse_past))
    return (own * output.float() + other * past.float()).to(q.dtype), both
