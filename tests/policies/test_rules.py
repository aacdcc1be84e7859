"""plan and select against the naive reference, over thousands of drawn states."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from buzz.policies import Asked, Held, RowPolicies, make_policy
from buzz.rows import Rows
from tests.policies.naive import NAMES, NaiveHead, shared_scores
from tests.policies.strategies import settings_of

pytestmark = pytest.mark.filterwarnings("ignore:.*never thins the sample")


@settings(max_examples=1500, deadline=None)
@given(settings_of(NAMES), st.data())
def test_plan_and_select_equal_the_reference(setting, data):
    name, params = setting
    policy = make_policy(name, **params)
    length = data.draw(st.integers(1, 60), label="length")
    room = max(0, length - params.get("sink", 0) - (params.get("window") or 0))
    stateful = name.startswith("buzz") or name in ("random", "snapkv", "kvzip")
    sampled = data.draw(st.integers(0, room), label="sampled") if stateful else 0
    rows, heads = data.draw(st.integers(1, 2)), data.draw(st.integers(1, 3))
    seed = data.draw(st.integers(0, 2**16))
    # Few distinct values, so that ties are common.
    generator = torch.Generator().manual_seed(seed)
    scores = torch.randint(0, 4, (rows, heads, length), generator=generator).float()
    values = torch.randint(0, 3, (rows, heads, length, 1), generator=generator).float()  # whose norms are exact

    plan = policy.plan(length, sampled)
    for row in range(rows):
        for head in range(heads):
            naive = NaiveHead(
                name, params, list(range(length)), shared_scores(name, scores)[row, head].tolist(), sampled
            )
            naive.norms = values[row, head, :, 0].tolist()
            kept, new_sampled = naive.kept()
            if plan is None:
                assert kept == list(range(length))
                assert new_sampled == sampled
                continue
            slots = policy.select(Held(scores, values=values, asked=Asked(projected=values[..., 0])), length, sampled)
            assert slots.dtype == torch.int64
            assert slots.shape in [(rows, heads, plan.kept), (1, 1, plan.kept)]
            assert slots.expand(rows, heads, -1)[row, head].tolist() == kept
            assert (plan.kept, plan.sampled) == (len(kept), new_sampled)


@settings(max_examples=200, deadline=None)
@given(st.sampled_from(["comb", "h2o", "buzz", "buzz_fast", "snapkv", "tova", "kvzip"]), st.data())
def test_undefined_scores_count_as_the_least(name, data):
    """A score that is not a number must not win against one that is; infinite ones are ordered as numbers are."""
    _, params = data.draw(settings_of([name]))
    if "values" in params:  # which weigh scores: infinite ones are no numbers then
        params["values"] = False
    policy, length = make_policy(name, **params), data.draw(st.integers(1, 40), label="length")
    while policy.plan(length) is None:
        length += 1
    # Infinities cannot be averaged over neighbours of the other sign, so SnapKV gets those of one sign.
    values = [0.0, 1.0, 2.0, float("nan"), float("inf")] + [float("-inf")] * (name not in ("snapkv", "tova"))
    one_head = st.lists(st.sampled_from(values), min_size=length, max_size=length)
    scores = torch.tensor([[data.draw(one_head), data.draw(one_head)]])

    expected = []
    for head in shared_scores(name, scores)[0]:
        naive = NaiveHead(name, params, list(range(length)), head.tolist())
        if name != "snapkv":  # which averages first: an average with a number that is none is none
            naive.scores = [float("-inf") if score != score else score for score in naive.scores]
        expected.append(naive.kept()[0])
    assert policy.select(Held(scores), length)[0].tolist() == expected
    rows = RowPolicies([policy, policy])
    together = type(policy).select_rows(rows, Held(scores.repeat(2, 1, 1)), Rows([length] * 2), Rows([0, 0]))
    assert together.expand(2, 2, -1).tolist() == [expected, expected]


@settings(max_examples=300, deadline=None)
@given(settings_of(NAMES), st.integers(1, 80), st.integers(0, 60))
def test_trace_is_what_the_reference_holds(setting, prompt, steps):
    name, params = setting
    head = NaiveHead(name, params)
    lengths = []
    for count in [prompt] + [1] * steps:
        head.call(list(range(count)), [1.0] * (len(head.slots) + count))
        lengths.append(len(head.slots))
    assert make_policy(name, **params).trace(prompt, steps) == lengths


def test_defaults_swing_as_the_paper_says():
    policy = make_policy("buzz")
    stream = policy.trace(0, 20_000)[5000:]
    assert (min(stream), max(stream)) in [(257, 564), (258, 564)]
    assert abs(sum(stream) / len(stream) - 411) < 1
    assert policy.steady().peak == 564
    assert policy.steady().mean == pytest.approx(sum(stream) / len(stream), abs=1)


def test_a_long_prompt_is_thinned_one_eviction_a_call():
    # other 3836 -> 768 kept of the fresh slots; then every third of the sample and the slot that left the window.
    assert make_policy("buzz").trace(4000, 3) == [932, 421, 422, 423]


def test_equality_does_not_evict():
    policy = make_policy("buzz", sink=2, window=3, stride=3, threshold=4)
    assert policy.plan(2 + 3 + 4) is None
    assert policy.plan(2 + 3 + 5) == (2 + 2 + 3, 2)


def test_first_slot_of_the_sample_is_never_dropped():
    policy = make_policy("buzz", sink=1, window=2, stride=5, threshold=3)
    _, sampled = policy.advance(30)
    scores = torch.rand(1, 1, 30)
    first = policy.select(Held(scores), 30)[0, 0, 1].item()
    slots = list(range(30))
    held = [slots[i] for i in policy.select(Held(scores), 30)[0, 0].tolist()]
    for t in range(30, 90):
        held.append(t)
        if policy.plan(len(held), sampled):
            keep = policy.select(Held(torch.rand(1, 1, len(held))), len(held), sampled)[0, 0].tolist()
            _, sampled = policy.advance(len(held), sampled)
            held = [held[i] for i in keep]
        assert held[1] == first
