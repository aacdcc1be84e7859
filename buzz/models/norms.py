"""Where the layers of a family have RMS norms, and what these are made of."""

from __future__ import annotations

from typing import Any, NamedTuple

import torch
import torch.nn.functional as F

from buzz.kernels.device import HALF, is_large, runs_triton
from buzz.models.family import Family
from buzz.models.untouched import is_rms_norm

_NAMES: dict[str, tuple[str | None, str | None, str | None, str | None]] = {
    "before": ("input_layernorm", None, "post_attention_layernorm", None),
    "after": (None, "post_attention_layernorm", None, "post_feedforward_layernorm"),
    "both": (
        "input_layernorm",
        "post_attention_layernorm",
        "pre_feedforward_layernorm",
        "post_feedforward_layernorm",
    ),
}


class Norms(NamedTuple):
    """The norms of a layer: of what goes into attention and the MLP, and of what they give, before it is added."""

    before_attention: Any
    after_attention: Any
    before_mlp: Any
    after_mlp: Any


def norms_of(family: Family, layer: Any) -> Norms:
    """The norms of a decoder layer; None where it has none."""
    assert family.norms is not None
    return Norms(*(None if name is None else getattr(layer, name) for name in _NAMES[family.norms]))


def epsilon_of(norm: Any) -> float:
    """What a norm adds to the mean square, which has two names."""
    return norm.variance_epsilon if hasattr(norm, "variance_epsilon") else norm.eps


def normed(family: Family, norm: Any, x: torch.Tensor) -> torch.Tensor:
    """What an RMS norm makes of x [..., width]; of many tokens on a GPU, in half precision, in one kernel.

    That multiplies by the weight before it rounds; most families' modules round before.
    """
    if not (is_large(x) and _has_kernel(family, norm, x)):
        return norm(x)
    from buzz.kernels.norm import rms_norm

    return rms_norm(x, norm.weight, epsilon_of(norm), family.offset)


def quickly_normed(family: Family, norm: Any, x: torch.Tensor) -> torch.Tensor:
    """The same in a prompt on a GPU, where few tokens take one call of PyTorch in place of several."""
    if norm is None:
        return x
    if is_large(x) or not _has_kernel(family, norm, x):
        return normed(family, norm, x)
    weight = norm.weight + family.offset if family.offset else norm.weight
    return F.rms_norm(x, weight.shape, weight, epsilon_of(norm))


def sum_and_normed(
    family: Family, hidden: torch.Tensor, addend: torch.Tensor, after: Any, before: Any, factor: float
) -> tuple[torch.Tensor, torch.Tensor]:
    """hidden + factor * addend in a prompt on a GPU, and what goes into the next block.

    Args:
        after: the norm of the addend. before: the norm of the sum. None: there is none.
    """
    ready = addend.dtype == hidden.dtype and is_large(hidden)
    ready = ready and all(norm is None or _has_kernel(family, norm, hidden) for norm in (after, before))
    if not ready or (after is None and before is None):
        addend = quickly_normed(family, after, addend)
        hidden = hidden + (addend if factor == 1.0 else addend * factor)
        return hidden, quickly_normed(family, before, hidden)
    from buzz.kernels.norm import add_normed, add_rms_norm

    if after is None:
        return add_rms_norm(hidden, addend, before.weight, epsilon_of(before), family.offset, factor)
    weight = None if before is None else before.weight
    total, x = add_normed(hidden, addend, after.weight, epsilon_of(after), family.offset, weight)
    return total, total if x is None else x


def _has_kernel(family: Family, norm: Any, x: torch.Tensor) -> bool:
    """Whether a kernel of ours does what the norm does to x."""
    if not (x.dtype in HALF and runs_triton(x) and is_rms_norm(norm, family.kind("RMSNorm"), x.dtype)):
        return False
    return norm.weight.device == x.device  # else its forward brings them together
