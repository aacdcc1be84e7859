"""Which modules may be read past their forward: those that do what their class does."""

from __future__ import annotations

from typing import Any

import torch
from torch import nn

_CAPTURING = "transformers.utils.output_capturing"


def is_watched(module: nn.Module, after: int = 0, before: int = 0) -> bool:
    """Whether a module has hooks beside so many of ours and those of transformers, which sleep unless asked."""
    for hooks, own in ((module._forward_hooks, after), (module._forward_pre_hooks, before)):
        if sum(getattr(hook, "__module__", "") != _CAPTURING for hook in hooks.values()) > own:
            return True
    return False


def is_plain(module: nn.Module, kind: type[nn.Module]) -> bool:
    """Whether a module does what its class does: not replaced by an adapter, say, and nobody watches it."""
    watched = module._forward_hooks or module._forward_pre_hooks
    return type(module) is kind and "forward" not in vars(module) and not watched


def is_plain_linear(module: Any, dtype: torch.dtype) -> bool:
    """Whether a module is x @ weight.T in a dtype, without a bias."""
    return is_plain(module, nn.Linear) and module.bias is None and module.weight.dtype == dtype


def is_plain_norm(module: Any, kind: type[nn.Module], dtype: torch.dtype) -> bool:
    """Whether a module is the RMS norm of a family with a weight of a dtype."""
    return is_plain(module, kind) and module.weight.dtype == dtype


def is_plain_gated_mlp(module: Any, kind: type[nn.Module]) -> bool:
    """Whether a module is down(silu(gate(x)) * up(x)), whatever its projections are."""
    return is_plain(module, kind) and module.config.hidden_act in ("silu", "swish")
