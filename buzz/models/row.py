"""A decoding step of one row, in kernels that walk through the weights once: some four a layer beside attention.

Compiled, the products of such a step would be inductor's, which are good only where its tuning has luck, and that takes
its time.
"""

from __future__ import annotations

from functools import partial
from typing import Any

import torch
from torch import nn

from buzz.models.attention import attend_static
from buzz.models.family import Family
from buzz.models.mlp import activation_of, gate_and_up, inner_linears, is_gated
from buzz.models.norms import epsilon_of, norms_of
from buzz.models.positions import Rotary, Table
from buzz.models.slots import Stages, StaticLayer, as_it_is
from buzz.models.tensor_parallel import gives_its_part, is_spread, is_summed, is_whole_in_each, local
from buzz.models.untouched import is_linear, is_rms_norm, is_watched


def has_kernels(family: Family, backbone: Any, head: Any) -> bool:
    """Whether the kernels do what a model does: none where some module is not as its library made it.

    Of a model whose weights are spread over processes, layers whose heads and inner rows are: then the head is left to
    its module, and the rest is for `buzz.models.rows` alone.
    """
    dtype = head.weight.dtype
    if family.norms is None or not _is_norm(family, backbone.norm, dtype):
        return False
    if not (is_spread(head.weight) or _is_matrix(head, dtype)):
        return False
    return all(_is_untouched_layer(family, layer, dtype) for layer in backbone.layers)


def row_stages(family: Family, positions: Rotary) -> Stages:
    """How a layer and the head are run; for models that `has_kernels` takes."""
    return Stages(partial(_layer, family, Rotation(family, positions)), _head, as_it_is)


class Rotation:
    """What a step's kernels need to rotate queries and keys. The angles of tokens are brought into their form once for
    all layers that have the same."""

    def __init__(self, family: Family, positions: Rotary) -> None:
        self._family, self._positions = family, positions
        self._known: list[tuple[Any, Table]] = []

    def ordered(self, attention: Any, q: torch.Tensor, k: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """Queries and keys [..., D] in the order that angles are for."""
        if not self._family.rotates(attention):
            return q, k
        return self._positions.ordered(attention, q), self._positions.ordered(attention, k)

    def own(self, attention: Any, slots: StaticLayer, inputs: dict[str, Any]) -> Table | None:
        """cos and sin [B, 1, D] of the tokens, where they are rotated by these, and not by slots."""
        if slots.cos is not None or not self._family.rotates(attention):
            return None
        given = inputs["position_embeddings"]
        for known, angles in self._known:
            if known is given:
                return angles
        angles = self._positions.given(attention, inputs)
        self._known = [*self._known[-3:], (given, angles)]  # of a few kinds of layers
        return angles


def _layer(
    family: Family, rotation: Rotation, layer: Any, hidden: torch.Tensor, slots: StaticLayer, inputs: dict[str, Any]
) -> torch.Tensor:
    from buzz.kernels.product import product

    attention, mlp, norms, factor = layer.self_attn, layer.mlp, norms_of(family, layer), family.residual(layer)
    linears = projections(attention)
    joint = product(
        hidden, [linear.weight for linear in linears], biases=[linear.bias for linear in linears],
        **_normed(family, norms.before_attention),
    )  # fmt: skip
    q, k, v = split_heads(family, attention, joint[None])
    q, k = rotation.ordered(attention, q, k)
    attended = attend_static(q, k, v, slots, family.scale(attention), rotation.own(attention, slots, inputs))
    hidden = _added(family, hidden, attended, attention.o_proj, norms.after_attention, factor)
    weights, biases = gate_and_up(mlp)
    normed = _normed(family, norms.before_mlp)
    x = product(hidden, weights, biases=biases, gated=True, activation=activation_of(mlp), **normed)
    return _added(family, hidden, x, mlp.down_proj, norms.after_mlp, factor).view(1, 1, -1)


def split_heads(family: Family, attention: Any, joint: torch.Tensor) -> list[torch.Tensor]:
    """q [R, Hq, D], k and v [R, Hkv, D] of what the projections give, [R, sum], normed where the family norms them.

    Hq and Hkv are this process's, of a model whose heads are spread.
    """
    from buzz.kernels.norm import norm_heads_

    config, width = attention.config, attention.head_dim
    group = config.num_attention_heads // config.num_key_value_heads
    kv_size = joint.shape[1] // (width * (group + 2)) * width
    q_size = group * kv_size
    if hasattr(attention, "q_norm"):
        q_norm, k_norm = attention.q_norm, attention.k_norm
        norm_heads_(joint, q_norm.weight, k_norm.weight, q_size, kv_size, epsilon_of(q_norm), family.offset)
    return [part.unflatten(1, (-1, width)) for part in joint.split([q_size, kv_size, kv_size], dim=1)]


def _added(
    family: Family, hidden: torch.Tensor, x: torch.Tensor, linear: Any, norm: Any, factor: float
) -> torch.Tensor:
    """hidden and what a projection makes of x, normed before it is added if there is a norm."""
    from buzz.kernels.norm import add_normed
    from buzz.kernels.product import product

    if norm is None:
        return product(x, [linear.weight], biases=[linear.bias], factor=factor, addend=hidden)
    y = product(x, [linear.weight], biases=[linear.bias])
    return add_normed(hidden.view(-1), y, norm.weight, epsilon_of(norm), family.offset)[0]


def _head(family: Family, backbone: Any, head: Any, hidden: torch.Tensor) -> torch.Tensor:
    from buzz.kernels.product import product

    logits = product(hidden, [head.weight], biases=[head.bias], **_normed(family, backbone.norm))[None]
    return family.logits(backbone.config, logits).float()


def _normed(family: Family, norm: Any) -> dict[str, Any]:
    """Arguments of a product of what a norm gives."""
    return {} if norm is None else {"norm": norm.weight, "epsilon": epsilon_of(norm), "offset": family.offset}


def projections(attention: Any) -> list[Any]:
    """The modules that make queries, keys and values, in this order."""
    return [attention.qkv_proj] if hasattr(attention, "qkv_proj") else [
        attention.q_proj, attention.k_proj, attention.v_proj
    ]  # fmt: skip


def _is_untouched_layer(family: Family, layer: Any, dtype: torch.dtype) -> bool:
    attention, mlp = layer.self_attn, layer.mlp
    if type(layer) is not family.kind("DecoderLayer") or not is_gated(family, mlp):
        return False
    inner, outer = [*projections(attention), *inner_linears(mlp)], [attention.o_proj, mlp.down_proj]
    whole = all(_is_matrix(linear, dtype) for linear in (*inner, *outer))
    spread = all(_is_part(linear, dtype) and gives_its_part(linear) for linear in inner)
    if not (whole or (spread and all(_is_part(linear, dtype) and is_summed(linear) for linear in outer))):
        return False
    heads = [attention.q_norm, attention.k_norm] if hasattr(attention, "q_norm") else []
    return all(norm is None or _is_norm(family, norm, dtype) for norm in (*norms_of(family, layer), *heads))


def _is_norm(family: Family, norm: Any, dtype: torch.dtype) -> bool:
    kind = family.kind("RMSNorm")
    if is_rms_norm(norm, kind, dtype):
        return True
    return type(norm) is kind and is_whole_in_each(norm) and not is_watched(norm) and norm.weight.dtype == dtype


def _is_matrix(module: Any, dtype: torch.dtype) -> bool:
    return is_linear(module, dtype) and module.weight.is_contiguous()


def _is_part(module: Any, dtype: torch.dtype) -> bool:
    """Whether a module is a matrix of which this process has a part."""
    if type(module) is not nn.Linear or is_watched(module) or not is_spread(module.weight):
        return False
    part = local(module.weight)
    return part.dtype == dtype and part.is_contiguous()


__all__ = ["Rotation", "has_kernels", "projections", "row_stages", "split_heads"]
