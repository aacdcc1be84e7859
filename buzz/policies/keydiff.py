"""KeyDiff: keys that are like the mean of all keys go."""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass
from typing import ClassVar, Literal

import torch
import torch.nn.functional as F

from buzz.policies.base import Policy, RowPolicies
from buzz.policies.held import Held
from buzz.policies.lengths import Plan
from buzz.policies.ranking import highest, kept_slots, ranked
from buzz.rows import Rows


@dataclass(frozen=True, repr=False)
class KeyDiffPolicy(Policy):
    """Slots whose keys are least like the mean key (KeyDiff: Park et al., arXiv 2504.15364).

    Once more than `capacity` slots are cached, those stay whose keys have the lowest cosine with the mean of all keys
    of the head, each of length one. On equal cosines the older slot stays. No slot is protected, not even the newest,
    and no attention is read. Blocks of a prompt, which the paper evicts after, are the calls that read it.

    Args:
        capacity: slots that stay, in tokens.
    """

    capacity: int = 512

    name: ClassVar[str] = "keydiff"
    least: ClassVar[dict[str, int]] = {"capacity": 1}

    @property
    def reads(self) -> frozenset[str]:
        return frozenset({"keys"})

    @property
    def positions(self) -> Literal["cache", "original"] | None:
        return "original"  # the paper compares keys as they are attended to

    def plan(self, length: int, sampled: int = 0) -> Plan | None:
        return Plan(self.capacity, 0) if length > self.capacity else None

    def select(self, held: Held, length: int, sampled: int = 0) -> torch.Tensor:
        likeness = _likeness(held.keyed(self.name)[..., :length, :], torch.full((), length, device=held.device))
        return ranked(-likeness)[..., : self.capacity].sort(dim=-1).values

    @classmethod
    def select_rows(cls, policies: RowPolicies, held: Held, lengths: Rows, sampled: Rows) -> torch.Tensor:
        keys = held.keyed(cls.name)
        end = lengths.on(keys.device)[:, None, None]
        past = torch.arange(keys.shape[2], device=keys.device) >= end  # [R, 1, L]
        likeness = _likeness(keys.masked_fill(past[..., None], 0), end)
        # A key that is no number is like the mean, and yet better than no slot.
        worth = (-likeness).nan_to_num(nan=-2).masked_fill(past, -torch.inf)
        keep = highest(worth, policies.column("capacity", keys.device))
        return kept_slots(keep, max(policy.advance(n)[0] for policy, n in zip(policies, lengths, strict=True)))

    def _fit(self, tokens: float, fixed: frozenset[str]) -> Policy:
        if "capacity" in fixed:
            return self._as_held(tokens, self.capacity, ("capacity",))
        return dataclasses.replace(self, capacity=round(tokens))


def _likeness(keys: torch.Tensor, lengths: torch.Tensor) -> torch.Tensor:
    """The cosine of every key with the mean of all keys, times the length of that mean, float32 [R, H, L].

    That length is the same for all slots of a head, so it does not matter. Sums are float64: what a row gets must not
    depend on the zeros behind it.

    Args:
        keys: [R, H, L, D]; zeros past the end of a row.
        lengths: of the rows, broadcast to [R, H, L].
    """
    directions = F.normalize(keys.float(), dim=-1).double()  # [R, H, L, D]
    mean = directions.sum(dim=2, keepdim=True) / lengths[..., None]  # [R, H, 1, D]
    return (directions * mean).sum(dim=-1).float()
