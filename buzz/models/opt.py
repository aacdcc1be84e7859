"""OPT: learned absolute positions, added to the input, so that cached keys stay as they were made."""

from __future__ import annotations

from typing import Any

import torch
from transformers.models.opt.modeling_opt import OPTAttention, OPTDecoder, OPTDecoderLayer, OPTForCausalLM

from buzz.cache import BeehiveCache
from buzz.models.attention import attend_cached, attend_static
from buzz.models.family import Family
from buzz.models.slots import StaticLayer


def _forward(module: Any, hidden: torch.Tensor, cache: BeehiveCache, context: None, kwargs: dict) -> torch.Tensor:
    shape = (*hidden.shape[:2], -1, module.head_dim)
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
        if given is not None:
            positions, last = given, int(given.max())
    known = _known_positions(backbone)
    if last >= known:
        raise ValueError(
            f"this OPT model has {known} positions, the call needs {last + 1}: "
            "use positions='cache' with a bounded policy, and generate(prefill_chunk_size=...) for long prompts"
        )
    return positions


def _known_positions(backbone: OPTDecoder) -> int:
    return backbone.embed_positions.num_embeddings - backbone.embed_positions.offset


def _step(module: Any, hidden: torch.Tensor, slots: StaticLayer, kwargs: dict[str, Any]) -> torch.Tensor:
    shape = (hidden.shape[0], -1, module.head_dim)
    q = (module.q_proj(hidden) * module.scaling).view(shape)
    k = module.k_proj(hidden).view(shape)
    v = module.v_proj(hidden).view(shape)
    return module.out_proj(attend_static(q, k, v, slots, scale=1.0))


def _embed(
    backbone: Any, ids: torch.Tensor, positions: torch.Tensor, slots: bool
) -> tuple[torch.Tensor, dict[str, Any]]:
    hidden = backbone.embed_tokens(ids)
    # Calls that change nothing may come after a row's last position.
    positions = positions.clamp(max=_known_positions(backbone) - 1)
    if backbone.project_in is not None:
        hidden = backbone.project_in(hidden)
    return hidden + backbone.embed_positions(None, 0, position_ids=positions), {}


def _finish(backbone: Any, hidden: torch.Tensor) -> torch.Tensor:
    if backbone.final_layer_norm is not None:
        hidden = backbone.final_layer_norm(hidden)
    return hidden if backbone.project_out is None else backbone.project_out(hidden)


OPT = Family(
    name="opt",
    model=OPTForCausalLM,
    backbone=OPTDecoder,
    attention=OPTAttention,
    layer=OPTDecoderLayer,
    forward=_forward,
    position_ids=_position_ids,
    context=lambda backbone: None,
    renew=lambda context: 0,
    read=None,
    known_positions=_known_positions,
    step=_step,
    embed=_embed,
    finish=_finish,
    row=None,
    table=lambda context, slots, like: None,
    static=lambda context: True,
)
