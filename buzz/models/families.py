"""The table of model families: a new one is a line here, and a function where it does something of its own."""

from __future__ import annotations

from typing import Any

import torch

from buzz.models.family import Family, unscaled
from buzz.models.positions import Learned
from buzz.models.projections import fused, normed_heads, normed_whole, scaled


def _where_asked(attention: Any) -> bool:
    return bool(attention.use_rope)


def _residual_multiplier(layer: Any) -> float:
    return layer.residual_multiplier


def _multiplied(backbone: Any, ids: torch.Tensor) -> torch.Tensor:
    return backbone.embed_tokens(ids) * backbone.embedding_multiplier


def _divided(config: Any, logits: torch.Tensor) -> torch.Tensor:
    return logits / config.logits_scaling


def _capped(config: Any, logits: torch.Tensor) -> torch.Tensor:
    cap = config.final_logit_softcapping
    return logits if cap is None else torch.tanh(logits / cap) * cap


def _projected_in(backbone: Any, ids: torch.Tensor) -> torch.Tensor:
    hidden = backbone.embed_tokens(ids)
    return hidden if backbone.project_in is None else backbone.project_in(hidden)


def _projected_out(backbone: Any, hidden: torch.Tensor) -> torch.Tensor:
    if backbone.final_layer_norm is not None:
        hidden = backbone.final_layer_norm(hidden)
    return hidden if backbone.project_out is None else backbone.project_out(hidden)


_ALL = (
    Family("llama", "Llama"),
    Family("mistral", "Mistral"),
    Family("qwen2", "Qwen2"),
    Family("qwen3", "Qwen3", project=normed_heads),
    Family("phi3", "Phi3", project=fused),
    Family(
        "gemma3_text", "Gemma3", "transformers.models.gemma3.modeling_gemma3", {"Model": "Gemma3TextModel"},
        project=normed_heads, norms="both", offset=1.0, logits=_capped,
    ),
    Family("smollm3", "SmolLM3", rotates=_where_asked),
    Family("granite", "Granite", residual=_residual_multiplier, embed=_multiplied, logits=_divided),
    Family("olmo2", "Olmo2", project=normed_whole, norms="after"),
    Family("mixtral", "Mixtral"),
    Family("qwen3_moe", "Qwen3Moe", project=normed_heads),
    Family(
        "opt", "OPT", names={"Model": "OPTDecoder"}, project=scaled, positions=Learned, scale=unscaled, norms=None,
        embed=_projected_in, finish=_projected_out,
    ),
)  # fmt: skip

FAMILIES: dict[str, Family] = {family.name: family for family in _ALL}
