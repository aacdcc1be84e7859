"""cuDNN's attention is the fastest for long prompts, and plans anew for every shape: 45 ms on an H100, each time that a
length is new to a process (docs/results/speed.md). So it is asked where that pays, and for few shapes."""

from __future__ import annotations

import contextlib
from typing import Any

import torch
import torch.nn.functional as F
from torch.nn.attention import SDPBackend, sdpa_kernel

from buzz.kernels.device import HALF

_LEAST = 2048  # tokens, below which flash attention is as fast
_STEP = 512  # tokens: prompts are made so long in whole steps, and share their plans
_MOST = 1 << 26  # elements of the queries, from which a copy with such an end costs more memory than a plan is worth
_UNPLANNED = [SDPBackend.FLASH_ATTENTION, SDPBackend.EFFICIENT_ATTENTION, SDPBackend.MATH]


def whole(q: torch.Tensor, k: torch.Tensor, v: torch.Tensor, scale: float) -> torch.Tensor:
    """Output [B, Hq, L, D] of a whole prompt, by what PyTorch takes to be the fastest kernel.

    Args:
        q: [B, Hq, L, D] on a CUDA device in half precision. k, v: [B, Hkv, L, D] likewise.
    """
    tokens = q.shape[2]
    how: dict[str, Any] = {"is_causal": True, "scale": scale, "enable_gqa": q.shape[1] > k.shape[1]}
    if tokens < _LEAST:
        with sdpa_kernel(_UNPLANNED):
            return F.scaled_dot_product_attention(q, k, v, **how)
    q, k, v = _in_whole_steps(q, k, v)
    return F.scaled_dot_product_attention(q, k, v, **how)[:, :, :tokens]


def causal(q: torch.Tensor, k: torch.Tensor, v: torch.Tensor, scale: float) -> tuple[torch.Tensor, torch.Tensor]:
    """`whole`, and the natural log-sum-exp float32 [B, Hq, L]; or of queries that are the last of S tokens.

    A whole prompt of some length goes to cuDNN; to flash attention what cuDNN cannot, short prompts, and a chunk of a
    prompt: there flash aligns the last query with the last key, as is wanted here, and cuDNN the first with the first.

    Args:
        q: [B, Hq, L, D] on a CUDA device in half precision, D a multiple of 8 up to 256.
        k, v: [B, Hkv, S, D] likewise.
    """
    aten, result, tokens = torch.ops.aten, None, q.shape[2]
    if tokens == k.shape[2] and tokens >= _LEAST:
        with contextlib.suppress(RuntimeError):
            longer = _in_whole_steps(q, k, v)
            result = aten._scaled_dot_product_cudnn_attention(*longer, None, True, 0.0, True, False, scale=scale)
    if result is None:
        result = aten._scaled_dot_product_flash_attention(q, k, v, 0.0, True, False, scale=scale)
    output, lse = result[:2]
    return output[:, :, :tokens], lse.reshape(*q.shape[:2], -1)[..., :tokens].float()


def _in_whole_steps(*tensors: torch.Tensor) -> tuple[torch.Tensor, ...]:
    """Queries, keys and values [B, H, L, D] with zeros behind them, which no query of the text sees."""
    more = -tensors[0].shape[2] % _STEP if tensors[0].numel() <= _MOST else 0
    return tuple(F.pad(t, (0, 0, 0, more)) for t in tensors) if more else tensors


def unplanned(q: torch.Tensor) -> Any:
    """A context for attention whose shapes are as many as its calls, in which PyTorch does not ask cuDNN.

    Of the kernels that are left those that take a mask know no groups of query heads.
    """
    return sdpa_kernel(_UNPLANNED) if q.is_cuda and q.dtype in HALF else contextlib.nullcontext()


__all__ = ["causal", "unplanned", "whole"]
