"""Columns of a call's tensors, where every row has an order of its own."""

from __future__ import annotations

import torch


def pick_columns(x: torch.Tensor, columns: torch.Tensor) -> torch.Tensor:
    """x[b, columns[b]] of x [B, L] or [B, L, width]."""
    columns = columns.to(x.device)
    return x.gather(1, columns if x.dim() == 2 else columns[..., None].expand(-1, -1, x.shape[2]))
