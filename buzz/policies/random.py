"""Random eviction: what any rule must beat."""

from __future__ import annotations

import dataclasses
import hashlib
from dataclasses import dataclass
from typing import ClassVar

import torch

from buzz.policies.base import LONGEST, Policy
from buzz.policies.held import Held
from buzz.policies.lengths import Plan, Steady

_COUNT = 1 << 20  # evictions after which the same draws come again


@dataclass(frozen=True, repr=False)
class RandomPolicy(Policy):
    """Sink and window stay; of the history between them a random part, so that `capacity` slots are left.

    The control experiment of the field, as in H2O (arXiv 2306.14048) and later papers. Every eviction draws anew, from
    the seed and the number of evictions so far, which `sampled` counts; all heads and layers drop the same slots, and a
    row in a batch is treated as it would be alone.

    Args:
        capacity: slots that stay, in tokens; at least sink + window.
        sink: slots at the start that always stay, in tokens.
        window: most recent slots that always stay, in tokens.
        seed: of the draws, below 2**63.
    """

    capacity: int = 512
    sink: int = 4
    window: int = 32
    seed: int = 0

    name: ClassVar[str] = "random"
    least: ClassVar[dict[str, int]] = {"capacity": 1, "sink": 0, "window": 1, "seed": 0}
    most: ClassVar[dict[str, int]] = {"seed": 2**63 - 1}

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.capacity < self.sink + self.window:
            raise ValueError(
                f"random: capacity must be at least sink + window, got capacity {self.capacity}, "
                f"sink {self.sink}, window {self.window}"
            )

    def plan(self, length: int, sampled: int = 0) -> Plan | None:
        return Plan(self.capacity, (sampled + 1) % _COUNT) if length > self.capacity else None

    def select(self, held: Held, length: int, sampled: int = 0) -> torch.Tensor:
        generator = torch.Generator("cpu").manual_seed(self._draw(sampled))
        history = length - self.sink - self.window
        drawn = torch.randperm(history, generator=generator, device="cpu")[: self.capacity - self.sink - self.window]
        sink = torch.arange(self.sink, device="cpu")
        window = torch.arange(length - self.window, length, device="cpu")
        kept = torch.cat([sink, self.sink + drawn.sort().values, window])[None, None]  # [1, 1, capacity]
        return kept.to(held.device)

    def _draw(self, evictions: int) -> int:
        """The generator's seed for one eviction. Torch's generator of the CPU reads the low 32 bits of it alone.

        Seeds below 4096 have all of their draws there, side by side; those of larger ones are scattered by a hash.
        """
        draw = self.seed * _COUNT + evictions
        if draw < 1 << 32:
            return draw
        return int.from_bytes(hashlib.blake2b(draw.to_bytes(12, "little"), digest_size=4).digest(), "little")

    # The number of evictions is part of the state, so a stream's states do not come back soon; its lengths are plain.

    def peak(self, length: int, sampled: int = 0) -> int | None:
        return max(length, self.capacity) + 1

    def steady(self) -> Steady | None:
        return Steady(float(self.capacity), self.capacity)

    def _widest(self) -> dict[str, int]:
        return {"capacity": LONGEST}

    def _fit(self, tokens: float, fixed: frozenset[str]) -> Policy:
        if "capacity" in fixed:
            return self._as_held(tokens, self.capacity, ("capacity",))
        capacity = round(tokens)
        window = self.window
        if "window" not in fixed:
            window = min(window, max(1, min(capacity // 2, capacity - self.sink)))
        if capacity < self.sink + window:
            raise ValueError(
                f"random: a budget of {tokens:g} tokens is too small for sink={self.sink}, window={window}"
            )
        return dataclasses.replace(self, capacity=capacity, window=window)
