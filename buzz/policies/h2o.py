"""H2O: the heaviest hitters of the whole history."""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass
from typing import ClassVar

import torch

from buzz.policies.base import Plan, Policy, RowPolicies, ScoreSpec
from buzz.policies.held import Held
from buzz.policies.ranking import highest, kept_slots, ranked
from buzz.rows import Rows


@dataclass(frozen=True, repr=False)
class H2OPolicy(Policy):
    """Heavy hitters by accumulated attention, and a recent window (H2O: Zhang et al., arXiv 2306.14048).

    On equal scores the older slot stays. No sink is protected.

    Args:
        heavy: heavy hitters kept among the slots before the window, in tokens.
        window: most recent slots that always stay, in tokens.
    """

    heavy: int = 400
    window: int = 160

    name: ClassVar[str] = "h2o"
    least: ClassVar[dict[str, int]] = {"heavy": 1, "window": 1}

    @property
    def score_spec(self) -> ScoreSpec | None:
        return ScoreSpec(accumulate=True, queries=None)

    def plan(self, length: int, sampled: int = 0) -> Plan | None:
        kept = self.heavy + self.window
        return Plan(kept, 0) if length > kept else None

    def select(self, held: Held, length: int, sampled: int = 0) -> torch.Tensor:
        scores = held.scored(self.name)
        history = scores[..., : length - self.window]  # [B, H, length - window]
        heavy = ranked(history)[..., : self.heavy].sort(dim=-1).values  # [B, H, heavy]
        window = torch.arange(length - self.window, length, device=scores.device)
        return torch.cat([heavy, window.expand(*heavy.shape[:2], -1)], dim=-1)

    @classmethod
    def select_rows(cls, policies: RowPolicies, held: Held, lengths: Rows, sampled: Rows) -> torch.Tensor:
        scores = held.scored(cls.name)
        heavy, window = (policies.column(name, scores.device) for name in ("heavy", "window"))
        end = lengths.on(scores.device)[:, None, None]
        slots = torch.arange(scores.shape[-1], device=scores.device)
        history = slots < end - window  # [R, 1, L]
        keep = highest(scores.masked_fill(~history, -torch.inf), heavy) | (~history & (slots < end))
        return kept_slots(keep, max(policy.advance(n)[0] for policy, n in zip(policies, lengths, strict=True)))

    def _fit(self, tokens: float, fixed: frozenset[str]) -> Policy:
        total = round(tokens)
        if {"heavy", "window"} <= fixed:
            return self._as_held(tokens, self.heavy + self.window, ("heavy", "window"))
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
