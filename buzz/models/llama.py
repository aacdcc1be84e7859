"""Llama: rotary positions, grouped-query attention."""

from __future__ import annotations

from typing import Any

import torch
from transformers.models.llama.modeling_llama import (
    LlamaAttention,
    LlamaDecoderLayer,
    LlamaForCausalLM,
    LlamaMLP,
    LlamaModel,
    LlamaRMSNorm,
)

from buzz.cache import BeehiveCache
from buzz.models.attention import attend_cached, attend_static
from buzz.models.family import Family
from buzz.models.layer import Prompt, add_gated_mlp, normed, sum_and_normed
from buzz.models.positions import RotaryTable, rotate, signed
from buzz.models.row import row_stages
from buzz.models.slots import StaticLayer


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


def _read(layer: Any, hidden: torch.Tensor, prompt: Prompt, kwargs: dict[str, Any]) -> torch.Tensor:
    x = normed(layer.input_layernorm, LlamaRMSNorm, hidden)
    attention = layer.self_attn
    attended, _ = attention(hidden_states=x, **kwargs)
    if prompt.ends_only and attention.layer_idx == attention.config.num_hidden_layers - 1:
        hidden, attended = prompt.at_ends(hidden), prompt.at_ends(attended)
    hidden, x = sum_and_normed(layer.post_attention_layernorm, LlamaRMSNorm, hidden, attended)
    return add_gated_mlp(hidden, layer.mlp, LlamaMLP, x)


def _position_ids(
    backbone: LlamaModel, cache: BeehiveCache, given: torch.Tensor | None, device: torch.device
) -> torch.Tensor:
    if cache.positions == "cache":
        return cache.slot_ids(device)  # nobody reads the angles; small positions keep dynamic ropes quiet
    return cache.query_columns(device) if given is None else given  # as the backbone counts, pads included


def _step(module: Any, hidden: torch.Tensor, slots: StaticLayer, kwargs: dict[str, Any]) -> torch.Tensor:
    shape = (hidden.shape[0], -1, module.head_dim)
    q = module.q_proj(hidden).view(shape)  # [B, Hq, D]
    k = module.k_proj(hidden).view(shape)  # [B, Hkv, D]
    v = module.v_proj(hidden).view(shape)
    if slots.cos is None:
        cos, sin = kwargs["position_embeddings"]  # [B, 1, D]
        sin = signed(sin)
        q, k = rotate(q, cos, sin), rotate(k, cos, sin)
    return module.o_proj(attend_static(q, k, v, slots, module.scaling))


def _embed(
    backbone: Any, ids: torch.Tensor, positions: torch.Tensor, slots: bool
) -> tuple[torch.Tensor, dict[str, Any]]:
    hidden = backbone.embed_tokens(ids)
    if slots:
        return hidden, {}  # rotated inside the attention
    return hidden, {"position_embeddings": backbone.rotary_emb(hidden, position_ids=positions)}


LLAMA = Family(
    name="llama",
    model=LlamaForCausalLM,
    backbone=LlamaModel,
    attention=LlamaAttention,
    layer=LlamaDecoderLayer,
    forward=_forward,
    position_ids=_position_ids,
    context=RotaryTable,
    renew=lambda context: context.renew(),
    known_positions=lambda backbone: None,
    read=_read,
    step=_step,
    embed=_embed,
    finish=lambda backbone, hidden: backbone.norm(hidden),
    row=row_stages,
    table=lambda context, slots, like: context.get(slots, like),
    static=lambda context: context.constant,
)
