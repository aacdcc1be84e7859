"""The full cache: the reference that every other policy is measured against."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import torch

from buzz.policies.base import Policy
from buzz.policies.held import Held
from buzz.policies.lengths import Plan


@dataclass(frozen=True, repr=False)
class FullPolicy(Policy):
    """Never evicts."""

    name: ClassVar[str] = "full"

    @property
    def bounded(self) -> bool:
        return False

    def plan(self, length: int, sampled: int = 0) -> Plan | None:
        return None

    def select(self, held: Held, length: int, sampled: int = 0) -> torch.Tensor:
        raise ValueError("full: nothing is ever evicted, so there is nothing to select")

    def _fit(self, tokens: float, fixed: frozenset[str]) -> Policy:
        return self  # no parameter to fit: the full cache has no steady length
