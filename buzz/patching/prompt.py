"""Norms and gated MLPs of a prompt on a GPU: one kernel each, where transformers' own forward runs several.

A prompt is long, so what these modules cost is memory traffic. Outside prompts, with another cache, on a CPU, in
float32 and where gradients are recorded they run the forward that was there.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import nn
from transformers.activations import ACT2FN

from buzz.attention.device import HALF, runs_triton

_SILU = (nn.SiLU, type(ACT2FN["silu"]))


@dataclass
class Prompt:
    """Whether the model is inside a call of many tokens on a GPU; one for all modules of a backbone."""

    open: bool = False

    def takes(self, x: torch.Tensor) -> bool:
        """Whether a module with this input is to take its one kernel."""
        return self.open and x.dtype in HALF and not torch.is_grad_enabled()


@dataclass
class Patched:
    """What a patched norm or MLP remembers."""

    prompt: Prompt
    forward: Callable[..., Any]  # the one that was there
    own: bool  # whether that one sat on the module itself


def norm_forward(self: Any, hidden: torch.Tensor) -> torch.Tensor:
    """Stands in for the forward of an RMS norm: PyTorch's fused kernel.

    That one multiplies by the weight before it rounds to half precision, transformers after.
    """
    patched: Patched = self._buzz
    if patched.prompt.takes(hidden) and hidden.dtype == self.weight.dtype:
        return F.rms_norm(hidden, self.weight.shape, self.weight, self.variance_epsilon)
    return patched.forward(hidden)


def mlp_forward(self: Any, hidden: torch.Tensor) -> torch.Tensor:
    """Stands in for the forward of an MLP that is gated by SiLU: one kernel between the projections."""
    patched: Patched = self._buzz
    if not patched.prompt.takes(hidden) or not runs_triton(hidden) or not isinstance(self.act_fn, _SILU):
        return patched.forward(hidden)
    from buzz.patching.gate import silu_gate_

    return self.down_proj(silu_gate_(self.gate_proj(hidden), self.up_proj(hidden)))
