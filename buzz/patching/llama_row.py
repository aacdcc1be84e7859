"""Llama's decoding step for one row, in kernels that walk through the weights once: four a layer beside attention.

Inductor's kernels for such a step are as fast where its tuning has luck, but take their time to be tuned.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import nn
from transformers.models.llama.modeling_llama import LlamaDecoderLayer, LlamaMLP, LlamaRMSNorm

from buzz.patching.attend import attend_static
from buzz.patching.decoding.step import Stages, StaticLayer
from buzz.patching.plain import is_plain


def row_stages(backbone: Any, head: Any) -> Stages | None:
    """How a layer and the head are run; None where some module is not what it was when the model was made."""
    layers, dtype = list(backbone.layers), head.weight.dtype
    plain = _is_linear(head, dtype) and _is_norm(backbone.norm, dtype) and all(_is_layer(x, dtype) for x in layers)
    return Stages(_layer, _head) if plain else None


def _layer(layer: Any, hidden: torch.Tensor, slots: StaticLayer, inputs: dict[str, Any]) -> torch.Tensor:
    from buzz.patching.decoding.product import product

    attention, mlp = layer.self_attn, layer.mlp
    projections = [attention.q_proj.weight, attention.k_proj.weight, attention.v_proj.weight]
    projected = product(hidden, projections, **_normed(layer.input_layernorm))
    q, k, v = (
        part.view(1, -1, attention.head_dim) for part in projected.split([len(weight) for weight in projections])
    )
    attended = attend_static(q, k, v, slots, attention.scaling)
    hidden = product(attended, [attention.o_proj.weight], addend=hidden)
    gates = [mlp.gate_proj.weight, mlp.up_proj.weight]
    x = product(hidden, gates, gated=True, **_normed(layer.post_attention_layernorm))
    return product(x, [mlp.down_proj.weight], addend=hidden).view(1, 1, -1)


def _head(finish: Callable[..., Any], backbone: Any, head: Any, hidden: torch.Tensor) -> torch.Tensor:
    from buzz.patching.decoding.product import product

    return product(hidden, [head.weight], **_normed(backbone.norm))[None].float()


def _normed(norm: Any) -> dict[str, Any]:
    return {"norm": norm.weight, "epsilon": norm.variance_epsilon}


def _is_layer(layer: Any, dtype: torch.dtype) -> bool:
    attention, mlp = layer.self_attn, layer.mlp
    linears = [attention.q_proj, attention.k_proj, attention.v_proj, attention.o_proj]
    return (
        type(layer) is LlamaDecoderLayer
        and not attention._buzz.own
        and is_plain(mlp, LlamaMLP)
        and mlp.config.hidden_act in ("silu", "swish")
        and all(_is_linear(x, dtype) for x in (*linears, mlp.gate_proj, mlp.up_proj, mlp.down_proj))
        and all(_is_norm(x, dtype) for x in (layer.input_layernorm, layer.post_attention_layernorm))
    )


def _is_linear(module: Any, dtype: torch.dtype) -> bool:
    if not is_plain(module, nn.Linear) or module.bias is not None:
        return False
    return module.weight.dtype == dtype and module.weight.is_contiguous()


def _is_norm(module: Any, dtype: torch.dtype) -> bool:
    return is_plain(module, LlamaRMSNorm) and module.weight.dtype == dtype
