"""Hidden states as queries, keys and values, where a family makes them otherwise than by three projections."""

from __future__ import annotations

from typing import Any

import torch

from buzz.models.family import Family, Projected, separate
from buzz.models.norms import normed


def normed_heads(family: Family, attention: Any, hidden: torch.Tensor) -> Projected:
    """Queries and keys are normed head by head."""
    q, k, v = separate(family, attention, hidden)
    return normed(family, attention.q_norm, q), normed(family, attention.k_norm, k), v


def normed_whole(family: Family, attention: Any, hidden: torch.Tensor) -> Projected:
    """Queries and keys are normed over all heads together."""
    shape = (*hidden.shape[:2], -1, attention.head_dim)
    q = normed(family, attention.q_norm, attention.q_proj(hidden))
    k = normed(family, attention.k_norm, attention.k_proj(hidden))
    return q.view(shape), k.view(shape), attention.v_proj(hidden).view(shape)


def fused(family: Family, attention: Any, hidden: torch.Tensor) -> Projected:
    """One projection gives queries, keys and values, one after the other."""
    config, width = attention.config, attention.head_dim
    parts = [config.num_attention_heads, config.num_key_value_heads, config.num_key_value_heads]
    joint = attention.qkv_proj(hidden).view(*hidden.shape[:2], -1, width)  # [B, L, Hq + 2 Hkv, D]
    q, k, v = joint.split(parts, dim=2)
    return q, k, v


def scaled(family: Family, attention: Any, hidden: torch.Tensor) -> Projected:
    """Three projections, and queries that are multiplied by the factor of the logits at once."""
    shape = (*hidden.shape[:2], -1, attention.head_dim)
    q = (attention.q_proj(hidden) * attention.scaling).view(shape)
    return q, attention.k_proj(hidden).view(shape), attention.v_proj(hidden).view(shape)
