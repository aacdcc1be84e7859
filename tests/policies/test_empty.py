"""Calls in which rows have no tokens, or hardly any, against the naive reference."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from buzz.cache.schedule import Schedule
from buzz.policies import POLICIES, Asked, Held, make_policy
from tests.policies.naive import LATEST, NAMES, NaiveHead, shared_scores
from tests.policies.strategies import settings_of

pytestmark = pytest.mark.filterwarnings("ignore:.*never thins the sample")

ALIKE = torch.ones(1, 1, 1, 1)  # values, and their norms


@pytest.mark.parametrize("name", POLICIES)
def test_nothing_becomes_of_nothing(name):
    policy = make_policy(name)
    for sampled in (0, 1, 7):
        assert policy.plan(0, sampled) is None
        assert policy.advance(0, sampled) == (0, sampled)
    assert policy.trace(0, 3) == [0, 1, 2, 3]
    assert policy.trace(0, 0) == [0]


@settings(max_examples=200, deadline=None)
@given(settings_of(NAMES), st.data())
def test_rows_without_tokens_are_not_called(setting, data):
    """A row's first call is the first one in which it has tokens, whatever its neighbours had before."""
    name, params = setting
    rows = data.draw(st.integers(1, 3), label="rows")
    some = st.integers(0, 3) | st.just(0) | st.integers(10, 40)
    schedule = Schedule(make_policy(name, **params), rows)
    heads = [NaiveHead(name, params) for _ in range(rows)]
    generator = torch.Generator().manual_seed(data.draw(st.integers(0, 2**16)))
    for _ in range(data.draw(st.integers(1, 12), label="calls")):
        step = schedule.open([data.draw(some) for _ in range(rows)])
        received = [torch.randint(0, 4, (1, 1, end), generator=generator).float() for end in step.ends]
        scores = []
        for head, count, got in zip(heads, step.counts, received, strict=True):
            old = torch.zeros(got.shape[2])
            old[: len(head.slots)] = torch.tensor(head.scores)
            together = torch.maximum(old, got) if name == "comb" and not params["sums"] else old + got
            scores.append(got if name in LATEST else together)
            if count:
                head.slots = list(range(len(head.slots)))
                head.call(list(range(len(head.slots), got.shape[2])), got[0, 0].tolist())
        for eviction in step.evictions:
            for row in range(rows) if eviction.rows is None else eviction.rows:
                slots = eviction.policy.select(
                    Held(
                        shared_scores(name, scores[row]),
                        values=ALIKE,
                        asked=Asked(projected=torch.ones(1, 1, eviction.length)),
                    ),
                    eviction.length,
                    eviction.sampled,
                )
                assert slots[0, 0].tolist() == heads[row].slots
        schedule.close(step)
        assert schedule.states == [(len(head.slots), head.sampled) for head in heads]
        assert step.capacity >= max(len(head.slots) for head in heads)


@pytest.mark.parametrize("kernel", [1, 5, 99])
def test_a_prompt_shorter_than_the_window_is_kept_whole(kernel):
    policy = make_policy("snapkv", capacity=12, window=8, kernel=kernel)
    for length in range(1, 13):
        assert policy.plan(length) == (length, length)
        assert policy.select(Held(torch.rand(2, 3, length)), length).tolist() == [[list(range(length))] * 3] * 2
    assert policy.select(Held(torch.rand(2, 3, 13)), 13).shape == (2, 3, 12)
