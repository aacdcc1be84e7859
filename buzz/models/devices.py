"""Where a model's weights are, whose layers may be on several devices (`device_map`)."""

from __future__ import annotations

from collections.abc import Iterable
from itertools import chain
from typing import Any, NamedTuple

import torch
from torch import nn

_BEFORE = frozenset({"embed_tokens", "embed_positions", "project_in"})  # of a backbone's parts
_ANYWHERE = "rotary_emb"  # its few frequencies go to where angles are needed (`buzz.models.positions`)


class Devices(NamedTuple):
    """Of what comes before a model's layers, of each layer, of what comes after them, and of the output layer."""

    before: torch.device
    layers: tuple[torch.device, ...]
    after: torch.device
    head: torch.device

    @property
    def in_order(self) -> tuple[torch.device, ...]:
        """As a token passes them."""
        return (self.before, *self.layers, self.after, self.head)

    @classmethod
    def of(cls, backbone: Any, head: nn.Module) -> Devices | None:
        """Where a model's parts are; None: one of them is on several devices, or has nothing to be anywhere."""
        parts = dict(backbone.named_children())
        layers = parts.pop("layers")
        parts.pop(_ANYWHERE, None)
        before = [part for name, part in parts.items() if name in _BEFORE]
        after = [part for name, part in parts.items() if name not in _BEFORE]
        found = [_places([each]) for each in layers]
        found = [_places(before), *found, _places(after) or _places([head]), _places([head])]
        if any(len(places) != 1 for places in found):
            return None
        first, *inner, last, output = (places.pop() for places in found)
        return cls(first, tuple(inner), last, output)


def _places(modules: Iterable[nn.Module]) -> set[torch.device]:
    """Where the tensors of some modules are. (`parameters()` of a model takes twice as long.)"""
    own = [each for module in modules for each in module.modules()]
    tensors = chain.from_iterable(chain(each._parameters.values(), each._buffers.values()) for each in own)
    return {tensor.device for tensor in tensors if tensor is not None}


__all__ = ["Devices"]
