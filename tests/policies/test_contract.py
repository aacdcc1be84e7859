"""Every policy of the registry keeps what policies promise, and so does one that nobody has heard of."""

from __future__ import annotations

import re
from dataclasses import dataclass
from pathlib import Path
from typing import ClassVar

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from buzz.policies import POLICIES, Held, Plan, Policy, ScoreSpec, make_policy
from tests.policies import contract
from tests.policies.strategies import policies_of

CALLS = st.lists(st.integers(1, 40), min_size=1, max_size=4)
STEPS = st.integers(0, 30)

pytestmark = pytest.mark.filterwarnings("ignore:.*never thins the sample")


@dataclass(frozen=True, repr=False)
class Middling(Policy):
    """A newcomer, as a contributor would write one: what scored neither most nor least stays."""

    most_left: int = 8
    best: int = 1

    name: ClassVar[str] = "middling"
    least: ClassVar[dict[str, int]] = {"most_left": 2, "best": 0}

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.best >= self.most_left:
            raise ValueError("middling: best must be below most_left")

    @property
    def score_spec(self) -> ScoreSpec | None:
        return ScoreSpec(accumulate=True, queries=None)

    def plan(self, length: int, sampled: int = 0) -> Plan | None:
        return Plan(self.most_left - self.best, 0) if length > self.most_left else None

    def select(self, held: Held, length: int, sampled: int = 0) -> torch.Tensor:
        order = held.scored(self.name).nan_to_num(nan=-1).argsort(dim=-1, descending=True, stable=True)
        return order[..., self.best : self.most_left].sort(dim=-1).values


def some_of(families):
    """One to four policies of one of the families."""
    return st.sampled_from(families).flatmap(lambda one: st.lists(policies_of([one]), min_size=1, max_size=4))


@settings(max_examples=200)
@given(some_of(list(POLICIES.values())), CALLS, STEPS)
def test_every_policy_keeps_its_promises(policies, chunks, steps):
    contract.check_all(policies, [*chunks, *[1] * steps])


@settings(max_examples=40)
@given(some_of([Middling]), CALLS, STEPS)
def test_a_newcomer_is_checked_like_the_others(policies, chunks, steps):
    contract.check_all(policies, [*chunks, *[1] * steps])


def test_the_checks_find_what_is_wrong():
    class Unplanned(Middling):
        def select(self, held, length, sampled=0):
            return super().select(held, length, sampled)[..., 1:]

    class Unsorted(Middling):
        def select(self, held, length, sampled=0):
            return super().select(held, length, sampled).flip(-1)

    class Now(Middling):  # and then not
        def plan(self, length, sampled=0):
            return Plan(self.most_left, 0) if length % 9 == 0 and length else None

    class Together(Middling):
        @classmethod
        def select_rows(cls, policies, held, lengths, sampled):
            return super().select_rows(policies, Held(-held.scores), lengths, sampled)

    class Wrong(Middling):
        def peak(self, length, sampled=0):
            return 5

    class Silent(Middling):
        def __repr__(self):
            return "Silent()"

    calls = [30, *[1] * 20]
    faults = [(contract.check_selection, [family()], calls) for family in (Unplanned, Unsorted, Together)]
    faults += [(contract.check_plan, Now(), calls), (contract.check_figures, Wrong(), 30)]
    faults += [(contract.check_value, Silent(best=3))]
    for check, *wrong in faults:
        with pytest.raises(AssertionError):
            check(*wrong)


@pytest.mark.parametrize("name", POLICIES)
def test_a_name_is_all_that_the_registry_needs(name):
    policy = make_policy(name)
    assert (policy.name, type(policy)) == (name, POLICIES[name])
    if policy.score_spec is not None:
        with pytest.raises(ValueError, match=f"^{name}: select needs scores"):
            policy.select(Held(), 4000)


def test_every_policy_has_a_row_in_the_docs():
    page = (Path(__file__).parents[2] / "docs" / "policies.md").read_text(encoding="utf-8")
    assert set(POLICIES) == set(re.findall(r"^\| `(\w+)` \|", page, flags=re.MULTILINE))
