"""One query in every row, as in a decode step: where its probabilities are wanted they stand in the open, being few."""

from __future__ import annotations

import contextlib
from collections.abc import Sequence

import torch
import torch.nn.functional as F

from buzz.attention import naive, plans
from buzz.attention.wanted import Wanted
from buzz.rows import Rows


def attend(
    q: torch.Tensor, k: torch.Tensor, v: torch.Tensor, starts: Rows, scale: float, window: int | None
) -> torch.Tensor:
    """Output [B, Hq, 1, D]; the heads of a group become queries of their KV head, so nothing is repeated, and where
    rows are alike there is no mask. See `buzz.attention.attend` for the arguments."""
    B, Hq, _, D = q.shape
    Hkv, C = k.shape[1:3]
    begin, end = naive.span(starts, 0, 1, C, window)
    mask = None
    if min(starts) != max(starts):
        end = C if window is None else end
        mask = naive.seen(starts, 0, 1, begin, end, q.device, window)[:, None]
    if end - begin < C:
        k, v = k[:, :, begin:end], v[:, :, begin:end]
    with plans.CUDNN.off() if q.is_cuda else contextlib.nullcontext():
        output = F.scaled_dot_product_attention(q.view(B, Hkv, Hq // Hkv, D), k, v, attn_mask=mask, scale=scale)
    return output.reshape(B, Hq, 1, D)


def attend_scored(
    q: torch.Tensor, k: torch.Tensor, v: torch.Tensor, *, starts: Rows, scale: float, wanted: Sequence[Wanted]
) -> tuple[torch.Tensor, list[torch.Tensor]]:
    """Output and what is wanted, as of `buzz.attention.naive.attend`, by fewer operators; every query counts."""
    dtype = torch.promote_types(q.dtype, torch.float32)
    (B, Hq, _, D), (Hkv, C) = q.shape, k.shape[1:3]
    rows, keys, values = (q.to(dtype) * scale).reshape(B * Hkv, -1, D), k.to(dtype).flatten(0, 1), v.to(dtype)
    logits = torch.bmm(rows, keys.transpose(1, 2))  # [B * Hkv, G, C]
    if min(starts) + 1 < C:
        hidden = ~naive.seen(starts, 0, 1, 0, C, q.device)  # [B or 1, 1, C]
        logits.view(B, Hq, C).masked_fill_(hidden, -torch.inf)
    probs = torch.softmax(logits, dim=-1)
    output = torch.bmm(probs, values.flatten(0, 1))
    return output.view(B, Hq, 1, D), [_received(probs.view(B, Hkv, -1, C), starts, what) for what in wanted]


def _received(probs: torch.Tensor, starts: Rows, wanted: Wanted) -> torch.Tensor:
    """What the slots are given by probabilities [B, Hkv, G, C]: float32 [B, Hkv, C]."""
    if wanted.lag:
        behind = naive.seen(starts, -wanted.lag, 1, 0, probs.shape[3], probs.device)
        probs = probs.masked_fill(~behind[:, None], 0.0)
    return probs.amax(dim=2).float() if wanted.of == "largest" else probs.sum(dim=2, dtype=torch.float32)


__all__ = ["attend", "attend_scored"]
