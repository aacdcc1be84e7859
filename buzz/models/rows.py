"""A decoding step of a few rows, in kernels that walk through the weights once: some eight a layer, attention included.

A library's products leave a fifth of the memory's pace unused with so few rows, and what lies between them costs a step
of many layers as much again.
"""

from __future__ import annotations

from functools import partial
from typing import Any, NamedTuple

import torch

from buzz.models.attention import attend_static
from buzz.models.family import Family
from buzz.models.mlp import activation_of, gate_and_up
from buzz.models.norms import epsilon_of, norms_of
from buzz.models.positions import Rotary
from buzz.models.row import Rotation, projections, split_heads
from buzz.models.slots import Stages, StaticLayer
from buzz.models.tensor_parallel import is_spread, local, summed


class Unsettled(NamedTuple):
    """What a layer gives: hidden [R, width], and what the next kernel adds to it.

    parts: float32 [S, R, width], whose sum an output projection makes; None: there is nothing to add. bias, norm: of
    that projection, and of what it gives. factor: of what is added.
    """

    hidden: torch.Tensor
    parts: torch.Tensor | None = None
    bias: torch.Tensor | None = None
    norm: Any = None
    factor: float = 1.0


def rows_stages(family: Family, positions: Rotary) -> Stages:
    """How a layer and the head are run; for models that `buzz.models.row.has_kernels` takes, in half precision.

    Where heads and inner rows are spread over processes, each computes with its own, and what its two output
    projections give is added up before the next kernel rounds it.
    """
    return Stages(partial(_layer, family, Rotation(family, positions)), _head, partial(_plain, family))


def _layer(
    family: Family,
    rotation: Rotation,
    layer: Any,
    given: torch.Tensor | Unsettled,
    slots: StaticLayer,
    inputs: dict[str, Any],
) -> Unsettled:
    from buzz.kernels.skinny import skinny_parts, skinny_product

    attention, mlp, norms, factor = layer.self_attn, layer.mlp, norms_of(family, layer), family.residual(layer)
    hidden, x = _settled(family, given, norms.before_attention)
    linears = projections(attention)
    weights, biases = [local(linear.weight) for linear in linears], [local(linear.bias) for linear in linears]
    joint = skinny_product(x, weights, biases=biases)
    q, k, v = split_heads(family, attention, joint)
    q, k = rotation.ordered(attention, q, k)
    own = rotation.own(attention, slots, inputs)
    attended = attend_static(q, k, v, slots, family.scale(attention), own).flatten(1)
    parts = summed(attention.o_proj, skinny_parts(attended, local(attention.o_proj.weight)))
    after = Unsettled(hidden, parts, local(attention.o_proj.bias), norms.after_attention, factor)
    hidden, x = _settled(family, after, norms.before_mlp)
    weights, biases = gate_and_up(mlp)
    x = skinny_product(x, weights, biases=biases, gated=True, activation=activation_of(mlp))
    parts = summed(mlp.down_proj, skinny_parts(x, local(mlp.down_proj.weight)))
    return Unsettled(hidden, parts, local(mlp.down_proj.bias), norms.after_mlp, factor)


def _plain(family: Family, given: torch.Tensor | Unsettled) -> torch.Tensor:
    return _settled(family, given, None)[0][:, None]


def _settled(family: Family, given: torch.Tensor | Unsettled, norm: Any) -> tuple[torch.Tensor, torch.Tensor]:
    """The sum, and what a norm makes of it; twice the sum where there is none."""
    from buzz.kernels.norm import settle

    if not isinstance(given, Unsettled):  # [B, 1, width], of the embedding or of another device
        given = Unsettled(given.flatten(0, 1))
    norms = [each for each in (norm, given.norm) if each is not None]
    return settle(
        given.hidden, given.parts, bias=given.bias, factor=given.factor,
        parts_weight=None if given.norm is None else given.norm.weight, weight=None if norm is None else norm.weight,
        epsilon=epsilon_of(norms[0]) if norms else 0.0, offset=family.offset,
    )  # fmt: skip


def _head(family: Family, backbone: Any, head: Any, given: torch.Tensor | Unsettled) -> torch.Tensor:
    from buzz.kernels.skinny import skinny_product

    x = _settled(family, given, backbone.norm)[1]
    logits = head(x) if is_spread(head.weight) else skinny_product(x, [head.weight], biases=[head.bias])
    return family.logits(backbone.config, logits).float()


__all__ = ["Unsettled", "rows_stages"]
