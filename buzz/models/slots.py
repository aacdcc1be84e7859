"""What a layer reads and writes in static memory, and how the parts of a step are run."""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

import torch


class StaticLayer(NamedTuple):
    """What one layer's attention reads and writes; it takes the place of the cache in the layer's forward.

    keys, values: [B, H, C, D], and scores float32 [B, H, C] or None, written in place. lengths: int32 [B], the cached
    tokens before the step. live: int32 [1]; 0: nothing may change. window: tokens that a query sees, its own included;
    None: all. logn_base: of the log-n scaling; None: off. cos, sin: [at least C, D], the rotation of slot j; None: keys
    are multiplied as they are cached, be it that the layer rotates none or that they were rotated before.
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


class Stages(NamedTuple):
    """How the parts of a step are run: module by module, compiled, or by kernels of our own.

    layer: (decoder layer, hidden [B, 1, width], StaticLayer, keyword arguments) -> hidden [B, 1, width].
    head: (family, backbone, output layer, hidden) -> logits float32 [B, vocabulary].
    """

    layer: Callable[..., torch.Tensor]
    head: Callable[..., torch.Tensor]
