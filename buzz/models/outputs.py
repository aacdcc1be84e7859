"""The output projection of attention, and how much of a value gets through it: what CriticalKV weighs slots by."""

from __future__ import annotations

from typing import Any

import torch
from torch import nn

from buzz.models.tensor_parallel import has_spread

_ELEMENTS = 2**24  # of projected values that exist at a time, of one KV head


def output_projection(attention: Any) -> Any:
    """The output projection of an attention module, which has two names."""
    return getattr(attention, "o_proj", None) or attention.out_proj


def output_weight(attention: Any) -> torch.Tensor:
    """The weight of an output projection, [width, Hq * D].

    Raises:
        ValueError: it is not whole here, or no plain matrix (quantised, adapted, offloaded).
    """
    projection = output_projection(attention)
    if has_spread(attention):
        raise ValueError(
            "norms of projected values need the whole output projection, which is spread over processes here: take a "
            "policy without them, such as snapkv with values=False (docs/limits.md)"
        )
    weight = getattr(projection, "weight", None)
    plain = type(projection) is nn.Linear and type(weight) in (nn.Parameter, torch.Tensor)
    if not plain or weight.is_meta:  # type: ignore[union-attr]
        raise ValueError(
            f"norms of projected values need an output projection with a plain weight on its device, got "
            f"{type(projection).__name__} (quantised, adapted or offloaded?): take a policy without them, such as "
            "snapkv with values=False (docs/limits.md)"
        )
    return weight.detach()  # type: ignore[union-attr]


def projected_norms(attention: Any, values: torch.Tensor, kv_heads: int) -> torch.Tensor:
    """The sum of the components, without their signs, of what the output projection makes of each slot's value in a
    query head; the mean over the query heads of a group (CriticalKV: Feng et al., arXiv 2502.03805). Without its bias.

    Args:
        attention: the layer's attention module.
        values: [B, H, S, D], or [B * H, 1, S, D] where heads are apart.
        kv_heads: H.

    Returns:
        float32 [B, H, S].
    """
    slots, width = values.shape[2:]
    values = values.reshape(-1, kv_heads, slots, width)
    weight = output_weight(attention)
    exact = torch.promote_types(values.dtype, torch.float32)
    by_head = weight.view(len(weight), kv_heads, -1, width).permute(1, 2, 3, 0)  # [H, group, D, width of the model]
    norms = values.new_empty(values.shape[:3], dtype=torch.float32)
    size = max(1, _ELEMENTS // (len(values) * by_head.shape[1] * len(weight)))
    for head, matrices in enumerate(by_head):
        matrices = matrices.to(exact)
        for begin in range(0, slots, size):
            some = values[:, head, None, begin : begin + size].to(exact) @ matrices  # [B, group, size, width]
            norms[:, head, begin : begin + size] = some.abs().sum(dim=-1).mean(dim=1)
    return norms


__all__ = ["output_projection", "output_weight", "projected_norms"]
