"""OPT: learned absolute positions, added to the input, so that cached keys stay as they were made."""

from __future__ import annotations

from typing import Any

import torch
from transformers.models.opt.modeling_opt import OPTAttention, OPTDecoder

from buzz.cache import BeehiveCache
from buzz.patching.base import Family, attend_cached


def _forward(module: Any, hidden: torch.Tensor, cache: BeehiveCache, context: None, kwargs: dict) -> torch.Tensor:
    shape = (*hidden.shape[:2], module.num_heads, module.head_dim)
    q = (module.q_proj(hidden) * module.scaling).view(shape).transpose(1, 2)  # [B, H, L, D]
    k = module.k_proj(hidden).view(shape).transpose(1, 2)
    v = module.v_proj(hidden).view(shape).transpose(1, 2)
    slots = cache.append(k, v, module.layer_idx)
    return module.out_proj(attend_cached(cache, module.layer_idx, q, slots.keys, slots, scale=1.0))


def _position_ids(
    backbone: OPTDecoder, cache: BeehiveCache, given: torch.Tensor | None, device: torch.device
) -> torch.Tensor:
    """`positions: cache` gives the next token the cache length, which keeps an endless stream inside the table."""
    if cache.positions == "cache":
        positions, last = cache.slot_ids(device), cache.last_slot
    else:
        positions, last = cache.query_positions(device), cache.last_position
        positions = positions if given is None else given
    known = backbone.embed_positions.num_embeddings - backbone.embed_positions.offset
    if last >= known:
        raise ValueError(
            f"this OPT model has {known} positions, the call needs {last + 1}: "
            "use positions='cache' with a bounded policy, and generate(prefill_chunk_size=...) for long prompts"
        )
    return positions


OPT = Family(
    name="opt",
    backbone=OPTDecoder,
    attention=OPTAttention,
    forward=_forward,
    position_ids=_position_ids,
    context=lambda backbone: None,
)
