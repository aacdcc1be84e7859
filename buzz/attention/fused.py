"""A prompt's attention on a GPU: output from PyTorch's fused kernels, scores from the log-sum-exp; no matrix exists."""

from __future__ import annotations

import importlib.util

import torch
import torch.nn.functional as F

from buzz.rows import Rows


def usable(q: torch.Tensor, starts: Rows) -> bool:
    """Whether this is a prompt in half precision on a CUDA device, and Triton is installed."""
    half = q.dtype in (torch.float16, torch.bfloat16)
    return q.is_cuda and half and q.shape[2] > 1 and max(starts) == 0 and _has_triton()


def attend(
    q: torch.Tensor, k: torch.Tensor, v: torch.Tensor, *, counts: Rows, scale: float
) -> tuple[torch.Tensor, torch.Tensor]:
    """Output and scores of a first call; see `buzz.attention.attend` for the arguments."""
    from buzz.attention.column_sums import column_sums

    Lq, C = q.shape[2], k.shape[2]
    q, k, v = q.contiguous(), k[:, :, :Lq], v[:, :, :Lq]
    output, lse = _with_lse(q, k, v, scale)
    zeros = Rows([0] * len(counts))
    scores = column_sums(q, k, lse, starts=zeros, firsts=zeros, counts=counts, scale=scale)
    return output, F.pad(scores, (0, C - Lq))


def _with_lse(q: torch.Tensor, k: torch.Tensor, v: torch.Tensor, scale: float) -> tuple[torch.Tensor, torch.Tensor]:
    """Causal attention and float32 log-sum-exp [B, Hq, Lq]: cuDNN, which is faster, or flash where it cannot."""
    aten = torch.ops.aten
    try:
        output, lse = aten._scaled_dot_product_cudnn_attention(q, k, v, None, True, 0.0, True, False, scale=scale)[:2]
    except RuntimeError:
        output, lse = aten._scaled_dot_product_flash_attention(q, k, v, 0.0, True, False, scale=scale)[:2]
    return output, lse.reshape(*q.shape[:2], -1)[..., : q.shape[2]].float()


def _has_triton() -> bool:
    return importlib.util.find_spec("triton") is not None
