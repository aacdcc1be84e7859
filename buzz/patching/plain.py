"""Which modules may be read past their forward."""

from __future__ import annotations

from torch import nn


def is_plain(module: nn.Module, kind: type[nn.Module]) -> bool:
    """Whether a module does what its class does: not replaced by an adapter, say, and nobody watches it."""
    watched = module._forward_hooks or module._forward_pre_hooks
    return type(module) is kind and "forward" not in vars(module) and not watched
