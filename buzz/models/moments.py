"""How the queries of a call are distributed, turned as if they came later: what expected attention reads."""

from __future__ import annotations

from typing import Any

import torch

from buzz.models.positions import Learned, Rotary, rotate
from buzz.policies import Asked
from buzz.rows import Rows

AHEAD = 512  # positions that a rotation is averaged over, as in the release of arXiv 2510.00636
UNLIKE = 4  # first tokens of a text, whose queries are unlike all others


def moments(
    q: torch.Tensor,
    counts: Rows,
    seen: Rows,
    ahead: torch.Tensor,
    scale: float,
    module: Any,
    positions: Rotary | Learned,
    rotates: bool,
) -> Asked:
    """Mean and covariance of each row's queries, as `Asked` has them.

    Sums are over a row's own queries, those of the text's first tokens left out. The covariance is divided by their
    number. A row without such queries gets zeros.

    Args:
        q: [B, Hq, L, D], not rotated, in the order that angles are for (`Rotary.ordered`).
        counts: queries of each row. seen: tokens of each row before the call.
        ahead: int64 [B], the position that follows each row's last one.
        scale: of attention.
        module: the layer's attention module. rotates: whether it rotates queries and keys.

    Returns:
        mean [B, Hq, D], covariance [B, Hq, D, D], float32.
    """
    end = counts.on(q.device)[:, None, None, None]
    place = torch.arange(q.shape[2], device=q.device)[:, None]
    counted = (place < end) & (place + seen.on(q.device)[:, None, None, None] >= UNLIKE)  # [B, 1, L, 1]
    number = counted.sum(dim=2).clamp(min=1)  # [B, 1, 1]
    queries = (q.float() * scale).where(counted, 0.0)
    mean = queries.sum(dim=2) / number  # [B, Hq, D]
    off = (queries - mean[:, :, None]).where(counted, 0.0)
    covariance = off.mT @ off / number[..., None]
    if not rotates or not isinstance(positions, Rotary):
        return Asked(mean, covariance)
    at = ahead[:, None] + torch.arange(AHEAD, device=ahead.device)  # [B, AHEAD]
    cos, sin = (t.mean(dim=1)[:, None] for t in positions.at(module, at, mean))  # [B, 1, D]
    covariance = rotate(covariance, cos[:, None], sin[:, None])  # C R^T, then R C R^T
    return Asked(rotate(mean, cos, sin), rotate(covariance.mT, cos[:, None], sin[:, None]).mT)


__all__ = ["moments"]
