"""The window of a sliding layer: all that a query may see is held, and little more."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from buzz.policies import POLICIES, Held
from buzz.policies.window import SlidingWindow
from tests.policies.naive import walked_peak, walked_steady

WINDOWS = st.integers(1, 70)


@given(WINDOWS, st.lists(st.integers(0, 90), min_size=1, max_size=5), st.integers(0, 100))
def test_what_the_next_query_sees_is_held_and_is_the_newest(window, chunks, steps):
    policy, held, seen = SlidingWindow(window), [], 0
    for tokens in [*chunks, *[1] * steps]:
        held += range(seen, seen + tokens)
        seen += tokens
        if policy.plan(len(held)) is not None:
            slots = policy.select(Held(), len(held))
            assert slots.shape == (1, 1, policy.plan(len(held)).kept)
            held = [held[slot] for slot in slots[0, 0].tolist()]
        assert held == list(range(seen - len(held), seen))
        assert min(seen, window - 1) <= len(held) < window - 1 + policy.slack


@pytest.mark.parametrize(("window", "slack"), [(1, 1), (15, 1), (16, 2), (4096, 512)])
def test_a_stream_is_compacted_once_in_so_many_tokens(window, slack):
    policy = SlidingWindow(window)
    assert policy.slack == slack
    lengths = policy.trace(5 * window, 10 * slack)
    evicted = [call for call, length in enumerate(lengths) if length == window - 1]
    assert evicted == list(range(0, 10 * slack + 1, slack))


@given(WINDOWS, st.integers(0, 200))
def test_it_is_bounded(window, prompt):
    policy = SlidingWindow(window)
    state = policy.advance(prompt)
    assert policy.peak(*state) == walked_peak(policy, *state) <= window - 1 + policy.slack
    assert policy.steady() == walked_steady(policy)


def test_it_reads_no_scores_and_follows_their_device():
    policy = SlidingWindow(4)
    assert policy.score_spec is None
    assert policy.select(torch.zeros(1, 2, 9, device="meta"), 9).device.type == "meta"


def test_it_is_no_policy_for_users():
    assert SlidingWindow not in POLICIES.values()
    assert SlidingWindow.name not in POLICIES
    assert not SlidingWindow(9).sizable
    assert SlidingWindow(9) != POLICIES["local"](window=9)
    with pytest.raises(ValueError, match="sliding_window: window must be at least 1, got 0"):
        SlidingWindow(0)
