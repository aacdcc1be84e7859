"""TOVA: the token that the newest query looks at least goes."""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass
from typing import ClassVar

import torch

from buzz.policies.base import Policy, RowPolicies
from buzz.policies.held import Held
from buzz.policies.lengths import Plan
from buzz.policies.ranking import highest, kept_slots, ranked
from buzz.policies.specs import ScoreSpec
from buzz.rows import Rows


@dataclass(frozen=True, repr=False)
class TovaPolicy(Policy):
    """Token omission via attention (Oren et al., arXiv 2401.06104).

    Once more than `capacity` slots are cached, those with the highest attention from the call's last query stay,
    averaged over all heads of the layer, so that all heads keep the same slots. On equal scores the older slot stays.
    No slot is protected, not even the newest.

    Args:
        capacity: slots that stay, in tokens.
    """

    capacity: int = 512

    name: ClassVar[str] = "tova"
    across_heads: ClassVar[bool] = True
    least: ClassVar[dict[str, int]] = {"capacity": 1}

    @property
    def score_spec(self) -> ScoreSpec | None:
        return ScoreSpec(accumulate=False, queries=1)

    def plan(self, length: int, sampled: int = 0) -> Plan | None:
        return Plan(self.capacity, 0) if length > self.capacity else None

    def select(self, held: Held, length: int, sampled: int = 0) -> torch.Tensor:
        scores = held.scored(self.name)
        layer = scores.sum(dim=1, keepdim=True)  # [B, 1, length]
        return ranked(layer)[..., : self.capacity].sort(dim=-1).values.expand(-1, scores.shape[1], -1)

    @classmethod
    def select_rows(cls, policies: RowPolicies, held: Held, lengths: Rows, sampled: Rows) -> torch.Tensor:
        scores = held.scored(cls.name)
        layer = scores.sum(dim=1, keepdim=True)  # [R, 1, L]
        end = lengths.on(scores.device)[:, None, None]
        past = torch.arange(scores.shape[-1], device=scores.device) >= end
        keep = highest(layer.masked_fill(past, -torch.inf), policies.column("capacity", scores.device))
        return kept_slots(keep, max(policy.advance(n)[0] for policy, n in zip(policies, lengths, strict=True)))

    def _fit(self, tokens: float, fixed: frozenset[str]) -> Policy:
        if "capacity" in fixed:
            return self._as_held(tokens, self.capacity, ("capacity",))
        return dataclasses.replace(self, capacity=round(tokens))
