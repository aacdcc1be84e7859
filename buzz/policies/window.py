"""What a layer with a sliding window keeps, whatever policy the model's other layers have."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import torch

from buzz.policies.base import Policy
from buzz.policies.held import Held
from buzz.policies.lengths import Plan


@dataclass(frozen=True, repr=False)
class SlidingWindow(Policy):
    """The newest `window - 1` slots: with its own, all that a query of such a layer may see.

    Not for users, so not in the registry: a cache gives it to the layers whose model has them look no further.
    A stream of one-token calls is compacted once in `slack` calls, so up to that many slots more are held; attention
    masks those.

    Args:
        window: tokens that a query sees, its own included.
    """

    window: int

    name: ClassVar[str] = "sliding_window"
    least: ClassVar[dict[str, int]] = {"window": 1}

    @property
    def slack(self) -> int:
        """Slots beyond those that are kept that make an eviction due."""
        return max(1, self.window // 8)

    @property
    def sizable(self) -> bool:
        return False

    def plan(self, length: int, sampled: int = 0) -> Plan | None:
        return Plan(self.window - 1, 0) if length >= self.window - 1 + self.slack else None

    def select(self, held: Held, length: int, sampled: int = 0) -> torch.Tensor:
        device = held.device
        return torch.arange(length - self.window + 1, length, device=device)[None, None]
