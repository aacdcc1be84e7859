"""A policy for tests: H2O by other scores than sums of all attention."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from buzz.policies import ScoreSpec
from buzz.policies.h2o import H2OPolicy


@dataclass(frozen=True, repr=False)
class Afar(H2OPolicy):
    """Whether scores accumulate, of which probabilities they are, and how far behind a query counts."""

    name: ClassVar[str] = "afar"
    accumulate: bool = True
    of: str = "largest"
    beyond: int = 3

    @property
    def score_spec(self):
        return ScoreSpec(self.accumulate, None, self.of, self.beyond)
