"""A tiny random model of every family, and of what a family can be beside its default."""

from __future__ import annotations

import re
from dataclasses import fields

import torch
from transformers import CONFIG_MAPPING, AutoConfig, AutoModelForCausalLM, PreTrainedConfig, PreTrainedModel

from buzz.models.families import FAMILIES
from tests.conftest import VOCAB

LAYERS, WINDOW = 4, 7
# Each family takes those of these that its configuration knows. Heads are wider than hidden_size / heads where that can
# be said, and a window is shorter than any text.
SIZES = {
    "vocab_size": VOCAB,
    "hidden_size": 64,
    "word_embed_proj_dim": 64,
    "intermediate_size": 48,
    "moe_intermediate_size": 24,
    "ffn_dim": 48,
    "num_hidden_layers": LAYERS,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "head_dim": 24,
    "num_experts": 4,
    "num_local_experts": 4,
    "num_experts_per_tok": 2,
    "max_position_embeddings": 256,
    "original_max_position_embeddings": 256,
    "query_pre_attn_scalar": 16,
    "sliding_window": WINDOW,
    "max_window_layers": 2,
    "attention_dropout": 0.0,
    "dropout": 0.0,
    "initializer_range": 0.1,
    "init_std": 0.1,
    "pad_token_id": 0,
    "bos_token_id": 1,
    "eos_token_id": 2,
}
TYPES = ["sliding_attention", "full_attention"] * (LAYERS // 2)
# name -> (family, what its configuration says otherwise).
VARIANTS: dict[str, tuple[str, dict]] = {
    "llama-biases": ("llama", {"attention_bias": True, "mlp_bias": True}),
    "mistral-unbounded": ("mistral", {"sliding_window": None}),
    "qwen2-windows": ("qwen2", {"use_sliding_window": True}),
    "qwen3-windows": ("qwen3", {"use_sliding_window": True}),
    "qwen3-biases": ("qwen3", {"attention_bias": True}),
    "phi3-unbounded": ("phi3", {"sliding_window": None}),
    "phi3-partial": ("phi3", {"sliding_window": None, "partial_rotary_factor": 0.5}),
    "gemma3_text-mixed": ("gemma3_text", {"layer_types": TYPES}),
    "gemma3_text-capped": (
        "gemma3_text",
        {"layer_types": TYPES, "final_logit_softcapping": 1.5, "attention_bias": True},
    ),
    "smollm3-windows": ("smollm3", {"use_sliding_window": True, "no_rope_layers": [1, 0, 1, 0]}),
    "smollm3-rotated": ("smollm3", {"no_rope_layers": [1] * LAYERS}),
    "granite-multipliers": (
        "granite",
        {
            "embedding_multiplier": 3.0,
            "residual_multiplier": 0.4,
            "logits_scaling": 0.7,
            "attention_multiplier": 0.3,
        },
    ),
    "olmo2-biases": ("olmo2", {"attention_bias": True}),
    "mixtral-unbounded": ("mixtral", {"sliding_window": None}),
    "qwen3_moe-windows": ("qwen3_moe", {"mlp_only_layers": [1], "use_sliding_window": True}),
    "opt-projected": ("opt", {"word_embed_proj_dim": 40, "do_layer_norm_before": False}),
}
# Every family of the table as its configuration makes it by default, and the variants.
CASES = [*FAMILIES, *VARIANTS]


def tiny_config(name: str, **changes) -> PreTrainedConfig:
    """The configuration of a family or a variant, by name, with changes."""
    family, variant = VARIANTS.get(name, (name, {}))
    known = {field.name for field in fields(CONFIG_MAPPING[family])}
    sizes = {key: value for key, value in SIZES.items() if key in known}
    return AutoConfig.for_model(family, **{**sizes, **variant, **changes})


def tiny(name: str, seed: int = 0, **changes) -> PreTrainedModel:
    """A model whose every weight is felt: no norm is all ones, no bias zero, and attention is far from uniform."""
    torch.manual_seed(seed)
    config = tiny_config(name, **changes)
    # Grouped products of experts know no float64.
    return spread(AutoModelForCausalLM.from_config(config, experts_implementation="eager").eval())


@torch.no_grad()
def spread(model: PreTrainedModel) -> PreTrainedModel:
    """Make weights differ from what they are by default, in place."""
    for name, weight in model.named_parameters():
        if weight.dim() == 1:
            weight += 0.3 * torch.randn_like(weight)
        if re.search(r"\b(q|k)_norm\.", name):
            weight += 0.5
        if re.search(r"\b(q|k|qkv)_proj\.weight", name):
            weight *= 2
    return model
