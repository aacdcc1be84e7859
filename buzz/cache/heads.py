"""The heads of a layer where each of several processes has some of them: what a policy needs that looks at all."""

from __future__ import annotations

from collections.abc import Callable
from typing import Protocol

import torch


class Heads(Protocol):
    """The KV heads of a layer, spread over processes that all make the same calls."""

    def select(self, choose: Callable[[torch.Tensor], torch.Tensor], scores: torch.Tensor) -> torch.Tensor:
        """Choose slots by the scores of all heads. Waits for the other processes, which do the same.

        Args:
            choose: scores float32 [R, H, L] -> slots int64 [R, H or 1, kept].
            scores: of the heads of this process, [R, H here, L].

        Returns:
            The slots of the heads of this process: int64 [R, H here or 1, kept].
        """
