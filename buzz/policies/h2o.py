"""H2O: the heaviest hitters of the whole history."""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass
from typing import ClassVar

import torch

from buzz.policies.base import Policy, RowPolicies
from buzz.policies.held import Held
from buzz.policies.lengths import Plan
from buzz.policies.ranking import ends_and_highest, highest, kept_slots
from buzz.policies.specs import ScoreSpec
from buzz.rows import Rows


@dataclass(frozen=True, repr=False)
class H2OPolicy(Policy):
    """Heavy hitters by accumulated attention, and a recent window (H2O: Zhang et al., arXiv 2306.14048).

    On equal scores the older slot stays. As in the paper no sink is protected unless asked for: with a sink and a small
    window this is a control for policies that have both.

    Args:
        heavy: heavy hitters kept among the slots before the window, in tokens.
        window: most recent slots that always stay, in tokens.
        sink: first slots that always stay, in tokens.
    """

    heavy: int = 400
    window: int = 160
    sink: int = 0

    name: ClassVar[str] = "h2o"
    least: ClassVar[dict[str, int]] = {"heavy": 1, "window": 1, "sink": 0}

    @property
    def score_spec(self) -> ScoreSpec | None:
        return ScoreSpec(accumulate=True, queries=None)

    def plan(self, length: int, sampled: int = 0) -> Plan | None:
        kept = self.sink + self.heavy + self.window
        return Plan(kept, 0) if length > kept else None

    def select(self, held: Held, length: int, sampled: int = 0) -> torch.Tensor:
        kept = self.sink + self.heavy + self.window
        return ends_and_highest(held.scored(self.name)[..., :length], kept, self.sink, self.window)

    @classmethod
    def select_rows(cls, policies: RowPolicies, held: Held, lengths: Rows, sampled: Rows) -> torch.Tensor:
        scores = held.scored(cls.name)
        heavy, window, sink = (policies.column(name, scores.device) for name in ("heavy", "window", "sink"))
        end = lengths.on(scores.device)[:, None, None]
        slots = torch.arange(scores.shape[-1], device=scores.device)
        before = slots < end - window  # [R, 1, L]
        first = scores.masked_fill(~before, -torch.inf).masked_fill(slots < sink, torch.inf)
        keep = highest(first, sink + heavy) | (~before & (slots < end))
        return kept_slots(keep, max(policy.advance(n)[0] for policy, n in zip(policies, lengths, strict=True)))

    def _fit(self, tokens: float, fixed: frozenset[str]) -> Policy:
        if {"heavy", "window"} <= fixed:
            held = ("heavy", "window", "sink") if self.sink else ("heavy", "window")
            return self._as_held(tokens, self.sink + self.heavy + self.window, held)
        total = round(tokens) - self.sink
        heavy, window = self.heavy, self.window
        if "heavy" in fixed:
            window = total - heavy
        else:
            if "window" not in fixed:  # keep the proportion between the two
                window = max(1, round(total * self.window / (self.heavy + self.window)))
            heavy = total - window
        if heavy < 1 or window < 1:
            raise ValueError(
                f"h2o: a budget of {tokens:g} tokens is too small: heavy would be {heavy}, window {window}"
            )
        return dataclasses.replace(self, heavy=heavy, window=window)
