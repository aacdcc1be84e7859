"""What a layer reads and writes in static memory, and how the parts of a step are run."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Literal, NamedTuple

import torch


class StaticLayer(NamedTuple):
    """What one layer's attention reads and writes; it takes the place of the cache in the layer's forward.

    keys, values: [B, H, C, D], and scores float32 [B, H, C] or None, written in place. lengths: int32 [B], the cached
    tokens before the step. live: int32 [1]; 0: nothing may change. window: tokens that a query sees, its own included;
    None: all. logn_base: of the log-n scaling; None: off. cos, sin: [at least C, D], the rotation of slot j; None: keys
    are multiplied as they are cached, be it that the layer rotates none or that they were rotated before. of, beyond:
    of which probabilities scores are made, as a policy's `ScoreSpec` has it.

    begin, longest: where heads hold unequally many slots, int32 [B, H], and the most that one can hold. Then keys and
    values are [B, P, D], scores [B, P], and lengths [B, H], as `buzz.attention.step.attend_step` has it.
    """

    keys: torch.Tensor
    values: torch.Tensor
    scores: torch.Tensor | None
    lengths: torch.Tensor
    live: torch.Tensor
    window: int | None
    logn_base: float | None
    cos: torch.Tensor | None
    sin: torch.Tensor | None
    of: Literal["sum", "mean", "largest"] = "sum"
    beyond: int = 0
    begin: torch.Tensor | None = None
    longest: int | None = None


class Stages(NamedTuple):
    """How the parts of a step are run: module by module, compiled, or by kernels of our own.

    layer: (decoder layer, hidden, StaticLayer, keyword arguments) -> hidden. The first one is given [B, 1, width]; what
        a layer gives is for the next one, or the head, and need not be a tensor.
    head: (family, backbone, output layer, hidden) -> logits float32 [B, vocabulary].
    plain: (what a layer gives) -> hidden [B, 1, width], for what is on another device.
    """

    layer: Callable[..., Any]
    head: Callable[..., torch.Tensor]
    plain: Callable[[Any], torch.Tensor]


def as_it_is(hidden: torch.Tensor) -> torch.Tensor:
    """Where a layer gives hidden [B, 1, width]."""
    return hidden
