"""What the modules of a backbone know of a prompt on a GPU, and how they read it in fewer passes over the memory.

A prompt is long, so beside its matrix products it costs memory traffic: norms, gates and sums run as one kernel each
where transformers' own forward runs several (of a short one, as few calls as PyTorch does it in), and the last layer
computes what it is asked for. Outside prompts, with another cache, on a CPU, in float32 and where gradients are
recorded, the forward that was there runs.
"""

from __future__ import annotations

import threading
from typing import Any

import torch
import torch.nn.functional as F
from torch import nn

from buzz.kernels.device import HALF, is_large, runs_triton
from buzz.models.untouched import is_plain_gated_mlp, is_plain_linear, is_plain_norm, is_watched


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


def normed(norm: Any, kind: type[nn.Module], hidden: torch.Tensor) -> torch.Tensor:
    """The output of an RMS norm, which is multiplied by the weight before it is rounded; transformers does it after."""
    if not is_plain_norm(norm, kind, hidden.dtype):
        return norm(hidden)
    if not is_large(hidden):
        return F.rms_norm(hidden, norm.weight.shape, norm.weight, norm.variance_epsilon)
    from buzz.kernels.norm import rms_norm

    return rms_norm(hidden, norm.weight, norm.variance_epsilon)


def sum_and_normed(
    norm: Any, kind: type[nn.Module], hidden: torch.Tensor, addend: torch.Tensor
) -> tuple[torch.Tensor, torch.Tensor]:
    """hidden + addend, and what an RMS norm makes of it, as `normed`."""
    if addend.dtype != hidden.dtype or not is_large(hidden) or not is_plain_norm(norm, kind, hidden.dtype):
        hidden = hidden + addend
        return hidden, normed(norm, kind, hidden)
    from buzz.kernels.norm import add_rms_norm

    return add_rms_norm(hidden, addend, norm.weight, norm.variance_epsilon)


def add_gated_mlp(hidden: torch.Tensor, mlp: Any, kind: type[nn.Module], x: torch.Tensor) -> torch.Tensor:
    """hidden + mlp(x), written to `hidden`, for an MLP down(silu(gate(x)) * up(x))."""
    if not is_plain_gated_mlp(mlp, kind):
        return hidden.add_(mlp(x))
    x, down = _gated(mlp.gate_proj(x), mlp.up_proj(x)), mlp.down_proj
    if not is_plain_linear(down, x.dtype):
        return hidden.add_(down(x))
    hidden.view(-1, hidden.shape[-1]).addmm_(x.view(-1, x.shape[-1]), down.weight.t())  # the product adds by itself
    return hidden


def _gated(gate: torch.Tensor, up: torch.Tensor) -> torch.Tensor:
    if not is_large(gate):
        return F.silu(gate).mul_(up)
    from buzz.kernels.gate import gate_

    return gate_(gate, up)
