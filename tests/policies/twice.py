"""A policy of the tests alone, that has calls of several tokens read twice."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import torch

from buzz.policies import Held, Plan, Policy, ScoreSpec
from buzz.policies.ranking import ranked


@dataclass(frozen=True, repr=False)
class Twice(Policy):
    """The newest slots, and those before them with the highest scores; nothing is evicted up to capacity + lazy slots.

    Args:
        chunk: of the copy. mean: weight of the first reading's mean from more than 2 slots away; 0: nothing is asked.
        of: how scores accumulate over calls: "largest", "sum"; "call": they do not; "echo": and steps give none.
    """

    capacity: int = 8
    window: int = 3
    lazy: int = 4
    chunk: int = 5
    mean: float = 0.0
    of: str = "largest"

    name: ClassVar[str] = "twice"

    @property
    def score_spec(self) -> ScoreSpec | None:
        if self.of == "echo":
            return None
        if self.of == "call":
            return ScoreSpec(False, None, "largest")
        return ScoreSpec(True, None, self.of)

    @property
    def prompt_spec(self) -> ScoreSpec | None:
        return ScoreSpec(False, None, "mean", 2) if self.mean else None

    @property
    def echo_chunk(self) -> int | None:
        return self.chunk or None

    @property
    def bounded(self) -> bool:
        return self.of != "echo"

    def heard(self, first: torch.Tensor | None, echo: torch.Tensor) -> torch.Tensor:
        assert (first is None) == (not self.mean)
        return echo if first is None else echo + self.mean * first

    def plan(self, length: int, sampled: int = 0) -> Plan | None:
        if self.of == "echo":  # a prompt alone
            return None if sampled or not length else Plan(min(length, self.capacity), 1)
        return Plan(self.capacity, 1) if length > self.capacity + self.lazy else None

    def select(self, held: Held, length: int, sampled: int = 0) -> torch.Tensor:
        scores = held.scored(self.name)
        if length <= self.capacity:
            return torch.arange(length, device=scores.device).expand(*scores.shape[:2], -1)
        old = length - self.window
        heavy = ranked(scores[..., :old])[..., : self.capacity - self.window]
        newest = torch.arange(old, length, device=scores.device).expand(*scores.shape[:2], -1)
        return torch.cat([heavy.sort(dim=-1).values, newest], dim=-1)


@dataclass(frozen=True, repr=False)
class Once(Twice):
    """The same without a second reading."""

    name: ClassVar[str] = "once"

    @property
    def prompt_spec(self) -> ScoreSpec | None:
        return self.score_spec

    @property
    def echo_chunk(self) -> int | None:
        return None


__all__ = ["Once", "Twice"]
