"""Peak and steady length of endless streams: what a walk token by token finds, and at once for any parameter."""

from __future__ import annotations

import time
from dataclasses import dataclass
from typing import ClassVar

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from buzz.policies import POLICIES, Held, Plan, Policy, make_policy
from tests.policies.naive import walked_peak, walked_steady

pytestmark = pytest.mark.filterwarnings("ignore:.*never thins the sample")
HUGE = 2**31 - 1


@dataclass(frozen=True)
class Zigzag(Policy):
    """A policy that writes no more than it must: in state i, above limits[i] slots, keeps[i] stay."""

    limits: tuple[int, ...] = (5,)
    keeps: tuple[int, ...] = (3,)

    name: ClassVar[str] = "zigzag"

    def plan(self, length: int, sampled: int = 0) -> Plan | None:
        if length <= self.limits[sampled]:
            return None
        return Plan(self.keeps[sampled], (sampled + 1) % len(self.limits) or len(self.limits) // 2)

    def select(self, held: Held, length: int, sampled: int = 0) -> torch.Tensor:
        return torch.arange(self.keeps[sampled])[None, None]


@dataclass(frozen=True)
class Counting(Policy):
    """Its states never come back."""

    name: ClassVar[str] = "counting"

    def plan(self, length: int, sampled: int = 0) -> Plan | None:
        return Plan(10, sampled + 1) if length > 10 else None


@dataclass(frozen=True)
class Mistaken(Policy):
    """Says that it is bounded, and is not."""

    name: ClassVar[str] = "mistaken"

    def plan(self, length: int, sampled: int = 0) -> Plan | None:
        return None


@settings(max_examples=300, deadline=None)
@given(st.lists(st.tuples(st.integers(0, 40), st.integers(0, 40)), min_size=1, max_size=6), st.integers(0, 60))
def test_a_policy_need_write_only_plan_and_select(table, prompt):
    limits, drops = zip(*table, strict=True)
    keeps = tuple(max(1, limit + 1 - drop) if limit else 1 for limit, drop in zip(limits, drops, strict=True))
    policy = Zigzag(limits=limits, keeps=keeps)
    state = policy.advance(prompt)
    assert policy.peak(*state) == walked_peak(policy, *state)
    assert policy.steady() == walked_steady(policy)


@pytest.mark.parametrize(
    "policy",
    [
        *(make_policy(name) for name in POLICIES),
        make_policy("local", sink=HUGE, window=HUGE),
        make_policy("streaming", window=10**6),
        make_policy("streaming", sink=HUGE, window=HUGE),
        make_policy("h2o", heavy=HUGE, window=HUGE),
        make_policy("tova", capacity=HUGE),
        make_policy("random", capacity=HUGE, window=10**6, seed=2**63 - 1),
        *(make_policy("buzz", window=w, stride=s, threshold=t)
          for w in (1, HUGE) for s in (3, 4, 5, 10**6, HUGE) for t in (0, 1, 10**6, HUGE)),
        Zigzag(limits=(10**12, 10**11, 10**6), keeps=(10**11, 7, 10**5)),
        Zigzag(limits=(2**62,), keeps=(1,)),
    ],
    ids=repr,
)  # fmt: skip
def test_figures_take_no_time(policy):
    start = time.perf_counter()
    steady, peak = policy.steady(), policy.peak(0, 0)
    for prompt in (1, 10**6, 10**12):
        policy.peak(*policy.advance(prompt))
    assert time.perf_counter() - start < 0.5  # some tens of microseconds each, on an idle machine
    if steady is not None:
        assert steady.mean <= steady.peak < peak


def test_huge_figures_are_right():
    assert make_policy("streaming", window=10**9).steady() == (10**9 + 4, 10**9 + 4)
    assert make_policy("streaming", window=10**9).peak(0) == 10**9 + 5
    assert make_policy("buzz", sink=0, window=1, stride=HUGE, threshold=HUGE).peak(0) == 1 + HUGE + 1
    # Up to 10**12 slots and down to 10**11, for ever: all lengths between them come equally often.
    assert Zigzag(limits=(10**12,), keeps=(10**11,)).steady() == ((10**11 + 10**12) / 2, 10**12)


@settings(max_examples=200, deadline=None)
@given(st.integers(3, HUGE), st.integers(0, HUGE), st.integers(0, HUGE), st.integers(1, 2**40))
def test_a_hive_settles_within_few_evictions(stride, threshold, window, prompt):
    policy = make_policy("buzz", stride=stride, threshold=threshold, window=max(1, window))
    for state in ((0, 0), policy.advance(prompt)):
        rounds, _ = policy._rounds(*state)
        assert len(rounds) < 2 * prompt.bit_length() + 40


def test_what_has_no_figures_says_so():
    with pytest.raises(NotImplementedError, match=r"counting: its states do not repeat .*; write peak and steady"):
        Counting().steady()
    with pytest.raises(NotImplementedError, match="mistaken: is bounded, but evicts nothing of"):
        Mistaken().peak(0)
