"""What the modules of a backbone know of a prompt on a GPU, and how they read it in fewer passes over the memory.

A prompt is long, so beside its matrix products it costs memory traffic: norms, gates and sums run as one kernel each
where transformers' own forward runs several (of a short one, as few calls as PyTorch does it in), and the last layer
computes what it is asked for. Outside prompts, with another cache, on a CPU, in float32 and where gradients are
recorded, the forward that was there runs.
"""

from __future__ import annotations

import threading
from functools import partial
from typing import Any

import torch
import torch.nn.functional as F
from torch import nn

from buzz.kernels.device import HALF, is_large, runs_triton
from buzz.models.family import Family
from buzz.models.mlp import activation_of, gate_and_up, has_matrices, is_gated, is_joint
from buzz.models.norms import norms_of, quickly_normed, sum_and_normed
from buzz.models.untouched import is_linear, is_watched

# PyTorch's own of the kernels' activations.
_FUNCTIONS: dict[str, Any] = {"silu": F.silu, "gelu_tanh": partial(F.gelu, approximate="tanh")}


class Prompt(threading.local):
    """The call that a backbone is in; one for all its modules, and another one in every thread.

    open: it is a call of many tokens that takes the fewer kernels. asked: the next call is asked for the logits of
    every row's last column alone. ends_only: this one is. ends: int64 [B, 1], where those columns are; None: at the
    right.
    """

    open: bool = False
    asked: bool = False
    ends_only: bool = False
    ends: torch.Tensor | None = None

    def __reduce__(self) -> Any:
        """A copied model is in no call."""
        return Prompt, ()

    def begin(self, backbone: nn.Module, columns: int) -> None:
        """A call of an evicting cache begins."""
        weight = next(backbone.parameters())
        self.open = columns > 1 and weight.dtype in HALF and runs_triton(weight) and not torch.is_grad_enabled()
        self.ends_only = self.open and self.asked and not _watches_ends(backbone)
        self.asked, self.ends = False, None

    def close(self) -> None:
        """No call is open, or one of another cache: nothing that was asked holds for the next."""
        self.open = self.asked = self.ends_only = False
        self.ends = None

    def at_ends(self, hidden: torch.Tensor) -> torch.Tensor:
        """Every row's last column [B, 1, width] of hidden [B, L, width]."""
        if self.ends is None:
            return hidden[:, -1:]
        return hidden.gather(1, self.ends.to(hidden.device)[..., None].expand(-1, -1, hidden.shape[2]))


def _watches_ends(backbone: Any) -> bool:
    """Whether somebody watches what the last layer gives."""
    return any(map(is_watched, (backbone, backbone.layers[-1], *backbone.layers[-1].children())))


def read(family: Family, layer: Any, hidden: torch.Tensor, prompt: Prompt, kwargs: dict[str, Any]) -> torch.Tensor:
    """A decoder layer's forward in a prompt: hidden [B, L, width], the last one's [B, 1, width] if it `ends_only`."""
    norms, attention, factor = norms_of(family, layer), layer.self_attn, family.residual(layer)
    x = quickly_normed(family, norms.before_attention, hidden)
    attended, _ = attention(hidden_states=x, **kwargs)
    if prompt.ends_only and attention.layer_idx == attention.config.num_hidden_layers - 1:
        hidden, attended = prompt.at_ends(hidden), prompt.at_ends(attended)
    hidden, x = sum_and_normed(family, hidden, attended, norms.after_attention, norms.before_mlp, factor)
    if norms.after_mlp is not None:
        return sum_and_normed(family, hidden, _gated(family, layer.mlp, x), norms.after_mlp, None, factor)[0]
    return _add_mlp(family, hidden, layer.mlp, x, factor)


def _add_mlp(family: Family, hidden: torch.Tensor, mlp: Any, x: torch.Tensor, factor: float) -> torch.Tensor:
    """hidden + factor * mlp(x), written to `hidden`."""
    inner = _inner(family, mlp, x)
    if inner is None:
        return hidden.add_(mlp(x), alpha=factor)
    down = mlp.down_proj
    if not is_linear(down, inner.dtype) or down.bias is not None:
        return hidden.add_(down(inner), alpha=factor)
    flat = hidden.view(-1, hidden.shape[-1])
    flat.addmm_(inner.view(-1, inner.shape[-1]), down.weight.t(), alpha=factor)  # the product adds by itself
    return hidden


def _gated(family: Family, mlp: Any, x: torch.Tensor) -> torch.Tensor:
    inner = _inner(family, mlp, x)
    return mlp(x) if inner is None else mlp.down_proj(inner)


def _inner(family: Family, mlp: Any, x: torch.Tensor) -> torch.Tensor | None:
    """activation(gate(x)) * up(x) of a gated MLP; None: it is none, or its two projections cannot be told apart."""
    if not is_gated(family, mlp):
        return None
    if not is_joint(mlp):
        gate, up = mlp.gate_proj(x), mlp.up_proj(x)
    elif has_matrices(mlp, x.dtype):  # two products, for results that lie together
        gate, up = (F.linear(x, weight, bias) for weight, bias in zip(*gate_and_up(mlp), strict=True))
    else:
        return None
    if not is_large(gate):
        return _FUNCTIONS[activation_of(mlp)](gate).mul_(up)
    from buzz.kernels.gate import gate_

    return gate_(gate, up, activation_of(mlp))
