"""Policies that keep slots by place alone: StreamingLLM and a plain sliding window."""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass
from typing import ClassVar

import torch

from buzz.policies.base import Policy
from buzz.policies.held import Held
from buzz.policies.lengths import Plan


@dataclass(frozen=True, repr=False)
class StreamingPolicy(Policy):
    """Attention sinks and a sliding window (StreamingLLM: Xiao et al., arXiv 2309.17453).

    Args:
        sink: slots at the start that always stay, in tokens.
        window: most recent slots that always stay, in tokens.
    """

    sink: int = 4
    window: int = 160

    name: ClassVar[str] = "streaming"
    least: ClassVar[dict[str, int]] = {"sink": 0, "window": 1}

    def plan(self, length: int, sampled: int = 0) -> Plan | None:
        kept = self.sink + self.window
        return Plan(kept, 0) if length > kept else None

    def select(self, held: Held, length: int, sampled: int = 0) -> torch.Tensor:
        device = held.device
        sink = torch.arange(self.sink, device=device)
        window = torch.arange(length - self.window, length, device=device)
        return torch.cat([sink, window])[None, None]

    def _fit(self, tokens: float, fixed: frozenset[str]) -> Policy:
        if "window" in fixed:
            return self._as_held(tokens, self.sink + self.window, ("sink", "window"))
        window = round(tokens) - self.sink
        if window < 1:
            raise ValueError(
                f"{self.name}: a budget of {tokens:g} tokens leaves no window beside {self.sink} sink tokens"
            )
        return dataclasses.replace(self, window=window)


@dataclass(frozen=True, repr=False)
class LocalPolicy(StreamingPolicy):
    """The last `sink + window` slots, nothing protected: a sliding window with the memory of StreamingLLM.

    Args:
        sink: added to the window, so that equal flags give equal memory; protects nothing.
        window: most recent slots that stay, in tokens.
    """

    sink: int = 0
    window: int = 164

    name: ClassVar[str] = "local"

    def select(self, held: Held, length: int, sampled: int = 0) -> torch.Tensor:
        device = held.device
        return torch.arange(length - self.sink - self.window, length, device=device)[None, None]
