"""Attention by PyTorch's fused kernels: the output alone, for calls whose scores nobody reads."""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch.nn.attention.bias import causal_lower_right

from buzz.attention.naive import causal, grouped
from buzz.kernels.device import HALF
from buzz.rows import Rows

# Mask elements of one query chunk, where a mask is needed at all: 16 MiB of bool.
_CHUNK_ELEMENTS = 1 << 24


def attend(q: torch.Tensor, k: torch.Tensor, v: torch.Tensor, *, starts: Rows, scale: float) -> torch.Tensor:
    """Output [B, Hq, Lq, D] of one call; see `buzz.attention.attend` for the arguments."""
    B, Hq, Lq, _ = q.shape
    Hkv, C = k.shape[1:3]
    uniform = min(starts) == max(starts)
    if Lq == 1:
        # The heads of a group become queries of their KV head: nothing is repeated, and no mask is needed.
        mask = None if uniform else causal(starts, 0, 1, 0, C, q.device)[:, None]
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
        mask = causal(starts, i, n, 0, visible, q.device)[:, None]  # [B or 1, 1, n, visible]
        outputs.append(_grouped(q[:, :, i : i + n], k[:, :, :visible], v[:, :, :visible], attn_mask=mask, scale=scale))
    return torch.cat(outputs, dim=2)


def _grouped(q: torch.Tensor, k: torch.Tensor, v: torch.Tensor, **how: Any) -> torch.Tensor:
    """PyTorch's attention of q [B, Hq, L, D] over k and v [B, Hkv, S, D] by a kernel that holds no L x S matrix."""
    group = q.shape[1] // k.shape[1]
    if group == 1 or not q.is_cuda or q.dtype in HALF:
        return F.scaled_dot_product_attention(q, k, v, enable_gqa=group > 1, **how)
    # In float32 no fused CUDA kernel knows groups: one call for each query head of a group.
    heads = [F.scaled_dot_product_attention(part, k, v, **how) for part in grouped(q, k.shape[1]).unbind(2)]
    return torch.stack(heads, dim=2).flatten(1, 2)
