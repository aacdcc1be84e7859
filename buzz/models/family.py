"""What a model family tells about itself."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch
from torch import nn

from buzz.cache import BeehiveCache

if TYPE_CHECKING:
    from buzz.models.layer import Prompt
    from buzz.models.slots import Stages, StaticLayer


@dataclass(frozen=True)
class Family:
    """How one model family is patched.

    Args:
        name: `config.model_type`.
        model: class of the language model whose logits are its output layer's, applied to the backbone's output.
        backbone: class of the module that embeds tokens and runs the layers; has `layers`.
        attention: class of its attention modules; each has `layer_idx`.
        layer: class of its decoder layers.
        forward: the attention forward for a BeehiveCache: (module, hidden [B, L, width], cache, context, kwargs)
            -> output [B, L, width].
        renew: context -> how often what it was made of has changed; looks before every call.
        position_ids: (backbone, cache, given, device) -> int64 [1 or B, L], the positions the backbone embeds.
        context: backbone -> whatever `forward` needs beside the module; it sees later changes of the backbone.
        known_positions: backbone -> how many positions it can embed; None: any.
        read: a layer's forward in a prompt on a GPU, in fewer kernels: (layer, hidden [B, L, width], prompt, kwargs)
            -> hidden [B, L, width], of the last layer [B, 1, width] if the prompt is `ends_only`; None: its own.

    And for decoding in static memory, where nothing may depend on the host knowing a length:

        step: the attention forward: (module, hidden [B, 1, width], slots, kwargs) -> output [B, 1, width].
        embed: (backbone, ids int64 [B, 1], positions int64 [B, 1], whether those are slots) -> what goes into the
            first layer [B, 1, width], and the keyword arguments of all layers.
        finish: (backbone, hidden [B, 1, width]) -> what goes into the output layer.
        row: (backbone, output layer) -> how a step of one row whose keys are rotated to their slots is run on a GPU,
            or None where it is compiled like any other; None: always.
        table: (context, slots, like) -> cos and sin [at least slots, D] by which cached keys are rotated to their
            slots, or None if they are not rotated.
        static: context -> whether all this works for it: angles of rotation must not depend on the length.
    """

    name: str
    model: type[nn.Module]
    backbone: type[nn.Module]
    attention: type[nn.Module]
    layer: type[nn.Module]
    forward: Callable[[Any, torch.Tensor, BeehiveCache, Any, dict[str, Any]], torch.Tensor]
    position_ids: Callable[[Any, BeehiveCache, torch.Tensor | None, torch.device], torch.Tensor]
    context: Callable[[Any], Any]
    renew: Callable[[Any], int]
    known_positions: Callable[[Any], int | None]
    read: Callable[[Any, torch.Tensor, Prompt, dict[str, Any]], torch.Tensor] | None
    step: Callable[[Any, torch.Tensor, StaticLayer, dict[str, Any]], torch.Tensor]
    embed: Callable[[Any, torch.Tensor, torch.Tensor, bool], tuple[torch.Tensor, dict[str, Any]]]
    finish: Callable[[Any, torch.Tensor], torch.Tensor]
    row: Callable[[Any, nn.Module], Stages | None] | None
    table: Callable[[Any, int, torch.Tensor], tuple[torch.Tensor, torch.Tensor] | None]
    static: Callable[[Any], bool]

    def __reduce__(self) -> Any:
        """A patched model is copied and pickled with its family's name."""
        return _named, (self.name,)

    def __deepcopy__(self, memo: dict[int, Any]) -> Family:
        return self


def _named(name: str) -> Family:
    from buzz.patching import FAMILIES

    return next(family for family in FAMILIES if family.name == name)
