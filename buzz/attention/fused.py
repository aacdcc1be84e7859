"""Many queries on a GPU: output from PyTorch's fused kernels, scores from the log-sum-exp; no matrix exists."""

from __future__ import annotations

import contextlib

import torch

from buzz.kernels.device import HALF, runs_triton
from buzz.rows import Rows


def usable(q: torch.Tensor) -> bool:
    """Whether this is a prompt or a chunk in half precision on a CUDA device, and Triton is installed."""
    return q.dtype in HALF and q.shape[2] > 1 and q.shape[3] % 8 == 0 and q.shape[3] <= 256 and runs_triton(q)


def attend(
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
