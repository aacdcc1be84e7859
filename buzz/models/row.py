"""Llama's decoding step for one row, in kernels that walk through the weights once: four a layer beside attention.

Compiled, the products of such a step would be inductor's, which are good only where its tuning has luck, and that takes
its time.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from transformers.models.llama.modeling_llama import LlamaDecoderLayer, LlamaMLP, LlamaRMSNorm

from buzz.models.attention import attend_static
from buzz.models.slots import Stages, StaticLayer
from buzz.models.untouched import is_plain_gated_mlp, is_plain_linear, is_plain_norm


def row_stages(backbone: Any, head: Any) -> Stages | None:
    """How a layer and the head are run; None where some module is not what it was when the model was made."""
    layers, dtype = list(backbone.layers), head.weight.dtype
    ends = _is_matrix(head, dtype) and is_plain_norm(backbone.norm, LlamaRMSNorm, dtype)
    return Stages(_layer, _head) if ends and all(_is_plain_layer(layer, dtype) for layer in layers) else None


def _layer(layer: Any, hidden: torch.Tensor, slots: StaticLayer, inputs: dict[str, Any]) -> torch.Tensor:
    from buzz.kernels.product import product

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
    from buzz.kernels.product import product

    return product(hidden, [head.weight], **_normed(backbone.norm))[None].float()


def _normed(norm: Any) -> dict[str, Any]:
    return {"norm": norm.weight, "epsilon": norm.variance_epsilon}


def _is_plain_layer(layer: Any, dtype: torch.dtype) -> bool:
    attention, mlp = layer.self_attn, layer.mlp
    linears = [attention.q_proj, attention.k_proj, attention.v_proj, attention.o_proj]
    return (
        type(layer) is LlamaDecoderLayer
        and is_plain_gated_mlp(mlp, LlamaMLP)
        and all(_is_matrix(x, dtype) for x in (*linears, mlp.gate_proj, mlp.up_proj, mlp.down_proj))
        and is_plain_norm(layer.input_layernorm, LlamaRMSNorm, dtype)
        and is_plain_norm(layer.post_attention_layernorm, LlamaRMSNorm, dtype)
    )


def _is_matrix(module: Any, dtype: torch.dtype) -> bool:
    return is_plain_linear(module, dtype) and module.weight.is_contiguous()
