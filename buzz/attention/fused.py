"""PyTorch's fused kernels, which hold no attention matrix: the output alone, or the scores too by its log-sum-exp."""

from __future__ import annotations

import contextlib
from typing import Any

import torch
import torch.nn.functional as F
from torch.nn.attention.bias import causal_lower_right

from buzz.attention import naive
from buzz.kernels.device import HALF, runs_triton
from buzz.rows import Rows

# Mask elements of one query chunk, where a mask is needed at all: 16 MiB of bool.
_CHUNK_ELEMENTS = 1 << 24


# --- the output alone ------------------------------------------------------------------------------------------------


def attend(q: torch.Tensor, k: torch.Tensor, v: torch.Tensor, *, starts: Rows, scale: float) -> torch.Tensor:
    """Output [B, Hq, Lq, D] of one call; see `buzz.attention.attend` for the arguments."""
    B, Hq, Lq, _ = q.shape
    Hkv, C = k.shape[1:3]
    uniform = min(starts) == max(starts)
    if Lq == 1:
        # The heads of a group become queries of their KV head: nothing is repeated, and no mask is needed.
        mask = None if uniform else naive.seen(starts, 0, 1, 0, C, q.device)[:, None]
        end = starts[0] + 1 if uniform else C
        q = q.view(B, Hkv, Hq // Hkv, -1)
        output = F.scaled_dot_product_attention(q, k[:, :, :end], v[:, :, :end], attn_mask=mask, scale=scale)
        return output.reshape(B, Hq, 1, -1)
    if max(starts) == 0:
        return _grouped(q, k[:, :, :Lq], v[:, :, :Lq], is_causal=True, scale=scale)
    end = starts[0] + Lq
    if uniform and end <= C and q.is_cuda and q.dtype in HALF:
        # Flash attention aligns the last query with the last key by itself.
        return _grouped(q, k[:, :, :end], v[:, :, :end], attn_mask=causal_lower_right(Lq, end), scale=scale)
    chunk = max(16, _CHUNK_ELEMENTS // (C * (1 if uniform else B)))
    outputs = []
    for i in range(0, Lq, chunk):
        n = min(chunk, Lq - i)
        visible = min(C, max(starts) + i + n)
        mask = naive.seen(starts, i, n, 0, visible, q.device)[:, None]  # [B or 1, 1, n, visible]
        outputs.append(_grouped(q[:, :, i : i + n], k[:, :, :visible], v[:, :, :visible], attn_mask=mask, scale=scale))
    return torch.cat(outputs, dim=2)


def _grouped(q: torch.Tensor, k: torch.Tensor, v: torch.Tensor, **how: Any) -> torch.Tensor:
    """PyTorch's attention of q [B, Hq, L, D] over k and v [B, Hkv, S, D] by a kernel that holds no L x S matrix."""
    group = q.shape[1] // k.shape[1]
    if group == 1 or not q.is_cuda or q.dtype in HALF:
        return F.scaled_dot_product_attention(q, k, v, enable_gqa=group > 1, **how)
    # In float32 no fused CUDA kernel knows groups: one call for each query head of a group.
    heads = [F.scaled_dot_product_attention(part, k, v, **how) for part in naive.grouped(q, k.shape[1]).unbind(2)]
    return torch.stack(heads, dim=2).flatten(1, 2)


# --- output and scores, on a GPU -------------------------------------------------------------------------------------


def gives_scores(q: torch.Tensor) -> bool:
    """Whether this is a prompt or a chunk in half precision on a CUDA device, and Triton is installed."""
    return q.dtype in HALF and q.shape[2] > 1 and q.shape[3] % 8 == 0 and q.shape[3] <= 256 and runs_triton(q)


def attend_scored(
    q: torch.Tensor, k: torch.Tensor, v: torch.Tensor, *, starts: Rows, firsts: Rows, counts: Rows, scale: float
) -> tuple[torch.Tensor, torch.Tensor]:
    """Output and scores of one call; see `buzz.attention.attend` for the arguments.

    Args:
        firsts: of row b the queries firsts[b] .. counts[b] - 1 count for the scores.
    """
    from buzz.kernels.column_sums import column_sums

    if q.stride(-1) != 1:
        q = q.contiguous()
    output, lse = _by_rows(q, k, v, starts, counts, scale)
    return output, column_sums(q, k, lse, starts=starts, firsts=firsts, counts=counts, scale=scale)


def _by_rows(
    q: torch.Tensor, k: torch.Tensor, v: torch.Tensor, starts: Rows, counts: Rows, scale: float
) -> tuple[torch.Tensor, torch.Tensor]:
    """Output [B, Hq, Lq, D] and log-sum-exp float32 [B, Hq, Lq]: all rows together if they start at the same slot."""
    end = starts[0] + q.shape[2]
    if min(starts) == max(starts) and end <= k.shape[2]:
        return causal(q, k[:, :, :end], v[:, :, :end], scale)
    output, lse = torch.zeros_like(q), q.new_zeros(q.shape[:3], dtype=torch.float32)
    for row, (start, count) in enumerate(zip(starts, counts, strict=True)):
        if count:
            one, end = slice(row, row + 1), start + count
            output[one, :, :count], lse[one, :, :count] = causal(
                q[one, :, :count], k[one, :, :end], v[one, :, :end], scale
            )
    return output, lse


def causal(q: torch.Tensor, k: torch.Tensor, v: torch.Tensor, scale: float) -> tuple[torch.Tensor, torch.Tensor]:
    """Output and natural log-sum-exp float32 [B, Hq, Lq] of queries [B, Hq, Lq, D] that are the last of S tokens.

    A whole prompt goes to cuDNN, which is faster; to flash attention what cuDNN cannot, and a chunk of a prompt: there
    flash aligns the last query with the last key, as is wanted here, and cuDNN the first with the first.
    """
    aten, result = torch.ops.aten, None
    if q.shape[2] == k.shape[2]:
        with contextlib.suppress(RuntimeError):
            result = aten._scaled_dot_product_cudnn_attention(q, k, v, None, True, 0.0, True, False, scale=scale)
    if result is None:
        result = aten._scaled_dot_product_flash_attention(q, k, v, 0.0, True, False, scale=scale)
    output, lse = result[:2]
    return output, lse.reshape(*q.shape[:2], -1)[..., : q.shape[2]].float()
