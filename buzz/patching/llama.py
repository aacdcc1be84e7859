"""Llama: rotary positions, grouped-query attention."""

from __future__ import annotations

from typing import Any

import torch
from transformers.models.llama.modeling_llama import LlamaAttention, LlamaModel

from buzz.cache import BeehiveCache
from buzz.patching.base import Family, attend_cached
from buzz.patching.rotary import RotaryTable, rotate, signed


def _forward(
    module: Any, hidden: torch.Tensor, cache: BeehiveCache, table: RotaryTable, kwargs: dict[str, Any]
) -> torch.Tensor:
    shape = (*hidden.shape[:2], -1, module.head_dim)
    q = module.q_proj(hidden).view(shape).transpose(1, 2)  # [B, Hq, L, D]
    k = module.k_proj(hidden).view(shape).transpose(1, 2)  # [B, Hkv, L, D]
    v = module.v_proj(hidden).view(shape).transpose(1, 2)
    layer = module.layer_idx
    if cache.positions == "cache":
        slots = cache.append(k, v, layer)  # cached as they are, rotated to their slots in every call
        n = slots.keys.shape[2]
        cos, sin = table.get(n, q)
        at = cache.query_slots(layer, q.device)
        q = rotate(q, cos[at], sin[at])
        keys = rotate(slots.keys, cos[:n], sin[:n])
    else:
        cos, sin = (t[:, None] for t in kwargs["position_embeddings"])  # [1 or B, 1, L, D]
        sin = signed(sin)
        q = rotate(q, cos, sin)
        slots = cache.append(rotate(k, cos, sin), v, layer)
        keys = slots.keys
    return module.o_proj(attend_cached(cache, layer, q, keys, slots, module.scaling))


def _position_ids(
    backbone: LlamaModel, cache: BeehiveCache, given: torch.Tensor | None, device: torch.device
) -> torch.Tensor:
    if cache.positions == "cache":
        return cache.slot_ids(device)  # nobody reads the angles; small positions keep dynamic ropes quiet
    return cache.query_positions(device) if given is None else given


LLAMA = Family(
    name="llama",
    backbone=LlamaModel,
    attention=LlamaAttention,
    forward=_forward,
    position_ids=_position_ids,
    context=lambda backbone: RotaryTable(backbone.rotary_emb),
)
