"""Which modules may be read past their forward: those that are as their library made them."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
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


def forward_of(module: nn.Module) -> Callable[..., Any] | None:
    """What takes the place of the forward of a module's class; None: nothing, or what only brings its inputs to where
    its weights are, as accelerate does it to the modules of a model on several devices."""
    own = vars(module)
    forward, inner, hook = own.get("forward"), own.get("_old_forward"), own.get("_hf_hook")
    if forward is None or hook is None or not _is_accelerates(type(hook), "AlignDevicesHook"):
        return forward
    if not isinstance(forward, partial) or not _is_accelerates(forward.func) or hook.offload:
        return forward
    if {"pre_forward", "post_forward"} & vars(hook).keys():
        return forward
    tensors = [t for t in (*module._parameters.values(), *module._buffers.values()) if t is not None]
    if not all(_is_at(tensor, hook.execution_device) for tensor in tensors):
        return forward
    untouched = getattr(inner, "__func__", None) is type(module).forward and getattr(inner, "__self__", None) is module
    return None if untouched else inner


def _is_accelerates(thing: Any, name: str | None = None) -> bool:
    return getattr(thing, "__module__", None) == "accelerate.hooks" and name in (None, thing.__name__)


def _is_at(tensor: torch.Tensor, named: Any) -> bool:
    """Whether a tensor is on the device that accelerate names, by its number perhaps."""
    try:
        device = torch.device(named)
    except (RuntimeError, TypeError):  # it names none
        return False
    return tensor.device.type == device.type and tensor.device.index in (None, device.index or 0)


def is_untouched(module: nn.Module, kind: type[nn.Module] | None) -> bool:
    """Whether a module does what its class does: not replaced by an adapter, say, and nobody watches it."""
    watched = module._forward_hooks or module._forward_pre_hooks
    return kind is not None and type(module) is kind and forward_of(module) is None and not watched


def is_linear(module: Any, dtype: torch.dtype) -> bool:
    """Whether a module is x @ weight.T in a dtype, plus a bias if it has one; weights of a kind of their own, as some
    that are quantised, are none."""
    plain = is_untouched(module, nn.Linear) and type(module.weight) is nn.Parameter
    return plain and module.weight.dtype == dtype


def is_rms_norm(module: Any, kind: type[nn.Module] | None, dtype: torch.dtype) -> bool:
    """Whether a module is the RMS norm of a family with a weight of a dtype."""
    return is_untouched(module, kind) and module.weight.dtype == dtype
