"""Forwards that stand in for those of a module's class, on the module itself, and how they are found and taken back.

Where accelerate has put a hook around a module's forward, the stand-in goes inside it.
"""

from __future__ import annotations

import functools
import os
import sys
from collections.abc import Callable
from types import MethodType
from typing import Any

import torch
import transformers
from torch import nn

_LIBRARIES = tuple(os.path.dirname(os.path.abspath(str(m.__file__))) + os.sep for m in (transformers, torch))


class StandIn:
    """A stand-in that was copied or pickled with its module, until it is installed anew."""

    def __init__(self, function: Callable[..., Any], module: nn.Module) -> None:
        self.function, self.module = function, module

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        return self.function(self.module, *args, **kwargs)


def install(module: nn.Module, function: Callable[..., Any], note: Any) -> None:
    """Let `function(module, *args, **kwargs)` be called as the module's forward; it finds `note` as `module._buzz`."""
    # A method, since torch.compile guards anything else by its identity, and would compile every layer on its own.
    vars(module)[_place(module)] = MethodType(function, module)
    # But a method is pickled by its name, as one of its class, which this one is not.
    vars(module)["__getstate__"] = MethodType(_state, module)
    module._buzz = note


def _state(module: nn.Module) -> dict[str, Any]:
    """What a module is copied and pickled with."""
    state, place = dict(vars(module)), _place(module)
    state.pop("__getstate__", None)
    if "_buzz" in state and isinstance(state.get(place), MethodType) and state[place].__self__ is module:
        state[place] = StandIn(state[place].__func__, module)
    return state


def uninstall(module: nn.Module, function: Callable[..., Any]) -> None:
    """Take it back. A wrapper that somebody put around it stays, and calls what the class does."""
    place = _place(module)
    if _is(vars(module).get(place), function):
        if place == "forward":
            del module.forward
        else:
            vars(module)[place] = MethodType(type(module).forward, module)
    for name in ("_buzz", "__getstate__"):
        vars(module).pop(name, None)


def own_forward(module: nn.Module, *args: Any, **kwargs: Any) -> Any:
    """What the forward of the module's class makes of it."""
    return type(module).forward(module, *args, **kwargs)  # not a method, which torch.compile would look up by its name


def difference(module: nn.Module, kind: Any, function: Callable[..., Any] | None = None) -> str | None:
    """What a module is that `kind`, as its library has it, is not; None: nothing.

    Args:
        function: its stand-in, which may be installed already.
    """
    if not _is_own(kind, kind.forward):
        return f"the forward of the class {kind.__name__} was replaced"
    if type(module) is not kind:
        return f"it is a {type(module).__name__}, not a {kind.__name__}"
    place = _place(module)
    forward = vars(module).get(place)
    if forward is None or _is(forward, function) or getattr(forward, "__func__", None) is kind.forward:
        return None
    return "its forward was replaced by another one"


def _place(module: nn.Module) -> str:
    """The attribute that holds the innermost forward of a module."""
    hooked = "_hf_hook" in vars(module) and "_old_forward" in vars(module)
    wrapper = getattr(vars(module).get("forward"), "func", None)
    accelerate = getattr(wrapper, "__module__", "").partition(".")[0] == "accelerate"
    return "_old_forward" if hooked and accelerate else "forward"


def _is(forward: Any, function: Callable[..., Any] | None) -> bool:
    found = forward.function if isinstance(forward, StandIn) else getattr(forward, "__func__", None)
    return function is not None and found is function


@functools.lru_cache(maxsize=256)
def _is_own(kind: Any, forward: Any) -> bool:
    """Whether a class's forward is the one that it was written with: its code, and that of decorators, tells."""
    ancestors = kind.__mro__
    files = {getattr(sys.modules.get(c.__module__), "__file__", None) for c in ancestors}
    if getattr(forward, "__qualname__", "").rpartition(".")[0] not in {c.__qualname__ for c in ancestors}:
        return False
    while forward is not None:
        file = getattr(getattr(forward, "__code__", None), "co_filename", None)
        if file is None or (file not in files and not os.path.abspath(file).startswith(_LIBRARIES)):
            return False
        forward = getattr(forward, "__wrapped__", None)
    return True
