"""Which modules may be read past their forward: those that are as their library made them."""

from __future__ import annotations

from typing import Any

import torch
from torch import nn

_CAPTURING = "transformers.utils.output_capturing"


def is_watched(module: nn.Module, after: int = 0, before: int = 0) -> bool:
    """Whether a module has hooks beside so many of ours and those of transformers, which sleep unless asked."""
    for hooks, own in ((module._forward_hooks, after), (module._forward_pre_hooks, before)):
        if hooks and sum(getattr(hook, "__module__", "") != _CAPTURING for hook in hooks.values()) > own:
            return True
    return False


def is_untouched(module: nn.Module, kind: type[nn.Module] | None) -> bool:
    """Whether a module does what its class does: not replaced by an adapter, say, and nobody watches it."""
    watched = module._forward_hooks or module._forward_pre_hooks
    return kind is not None and type(module) is kind and "forward" not in vars(module) and not watched


def is_linear(module: Any, dtype: torch.dtype) -> bool:
    """Whether a module is x @ weight.T in a dtype, plus a bias if it has one; weights of a kind of their own, as some
    that are quantised, are none."""
    plain = is_untouched(module, nn.Linear) and type(module.weight) is nn.Parameter
    return plain and module.weight.dtype == dtype


def is_rms_norm(module: Any, kind: type[nn.Module] | None, dtype: torch.dtype) -> bool:
    """Whether a module is the RMS norm of a family with a weight of a dtype."""
    return is_untouched(module, kind) and module.weight.dtype == dtype
