"""Policies for a budget, a reduction or another method's mean cache length."""

from __future__ import annotations

import pytest

import buzz
from buzz.evaluation.config.methods import MethodConfig
from buzz.evaluation.errors import ConfigError
from buzz.evaluation.measure.batch import describe
from buzz.evaluation.run.budgets import TOLERANCE, off_target, otherwise, policy_for
from buzz.policies.sizes import full_mean, mean_cached

POLICIES = ["buzz", "buzz_no_max", "h2o", "streaming", "local"]
LAYERS = 4


def matched(policy: str, **params) -> MethodConfig:
    return MethodConfig(name="m", policy=policy, params=params, match="other")


def target(calls: int, mean: float) -> dict:
    return {"new_tokens": calls + 1, "cache": {"mean_tokens": mean}}


@pytest.mark.parametrize("policy", POLICIES)
@pytest.mark.parametrize(
    ("prompt", "calls", "mean"), [(900, 60, 300.0), (900, 60, 411.4), (900, 0, 350.0), (300, 60, 330.5)]
)
def test_matching_over_a_few_calls(policy, prompt, calls, mean):
    found = policy_for(matched(policy), prompt, 99, target(calls, mean), LAYERS)
    assert mean_cached(found, prompt, calls) == pytest.approx(mean, rel=TOLERANCE)


def test_a_mean_that_jumps_is_approached():
    # After 5,000 tokens BUZZ needs several evictions until it fits, so the mean over 7 calls has gaps.
    found = policy_for(matched("buzz"), 5000, 7, target(7, 900.0), LAYERS)
    assert mean_cached(found, 5000, 7) == pytest.approx(900, rel=0.05)


def test_named_parameters_are_held():
    found = policy_for(matched("buzz", window=50), 2000, 99, target(99, 300.0), LAYERS)
    assert found.window == 50
    assert mean_cached(found, 2000, 99) == pytest.approx(300, rel=TOLERANCE)


@pytest.mark.parametrize("policy", POLICIES)
@pytest.mark.parametrize(("first", "calls"), [(900, 60), (900, 7), (1, 900)])
def test_a_reduction_is_of_the_full_cache_over_the_same_calls(policy, first, calls):
    method = MethodConfig(name="m", policy=policy, reduction=2.5)
    found = policy_for(method, first, calls, None, LAYERS)
    assert full_mean(first, calls) / mean_cached(found, first, calls) == pytest.approx(2.5, rel=TOLERANCE)


def test_a_full_cache_grows_by_one_token_a_call():
    assert full_mean(10, 4) == (11 + 12 + 13 + 14) / 4
    assert full_mean(10, 0) == 10


def test_budgets_are_shares_of_the_prompt_or_tokens():
    share = policy_for(MethodConfig(name="m", policy="streaming", budget=0.25), 400, 9, None, LAYERS)
    assert share.sink + share.window == 100
    tokens = policy_for(MethodConfig(name="m", policy="streaming", budget=60), 400, 9, None, LAYERS)
    assert tokens.sink + tokens.window == 60
    with pytest.raises(ConfigError, match=r"^methods: m: .*a prompt of 10 tokens"):
        policy_for(MethodConfig(name="m", policy="streaming", budget=0.1), 10, 9, None, LAYERS)


def test_a_share_of_a_stream_is_one_of_the_full_caches_mean():
    found = policy_for(MethodConfig(name="m", policy="streaming", budget=0.25), 1, 799, None, LAYERS)
    assert found.sink + found.window == round(0.25 * full_mean(1, 799))
    with pytest.raises(ConfigError, match=r"a text of 10 tokens"):
        policy_for(MethodConfig(name="m", policy="streaming", budget=0.1), 1, 9, None, LAYERS)


def test_what_is_off_target_in_bytes():
    method = MethodConfig(name="m", policy="h2o", match="other", match_by="bytes")
    record = {"cache": {"mean_tokens": 100.0, "mean_bytes": 1100.0}}
    other = {"new_tokens": 6, "cache": {"mean_tokens": 100.0, "mean_bytes": 1000.0}}
    assert off_target(method, record, other) == pytest.approx(0.1)
    assert off_target(matched("h2o"), record, other) == 0


def test_what_is_off_target():
    record = {"cache": {"mean_tokens": 110.0, "full_mean_tokens": 300.0}}
    assert off_target(matched("h2o"), record, target(5, 100.0)) == pytest.approx(0.1)
    assert off_target(matched("h2o"), record, target(5, 111.0)) == 0
    assert off_target(MethodConfig(name="m", policy="h2o", reduction=3.0), record, None) == pytest.approx(0.1)
    assert off_target(MethodConfig(name="m", policy="h2o", budget=10), record, None) == 0


@pytest.mark.parametrize("sized", [{"budget": 0.2}, {"budget": 24}, {"reduction": 3.0}, {"match": "other"}], ids=str)
@pytest.mark.parametrize("policy", [name for name in buzz.POLICIES if buzz.make_policy(name).sizable])
def test_what_a_method_asks_for_now_is_not_otherwise(policy, sized):
    """Whatever text a policy was fitted to."""
    method = MethodConfig(name="m", policy=policy, **sized)
    for prompt, calls, chunk in [(900, 60, None), (160, 0, None), (300, 90, 64), (700, 7, 64)]:
        if chunk and not buzz.make_policy(policy).bounded:
            continue
        wanted = target(calls, 0.4 * prompt) if method.match else None
        found = describe(policy_for(method, prompt, calls, wanted, LAYERS, chunk))
        assert otherwise(method, {"policy": found}) is None
        assert otherwise(method, {"policy": {**found, "logn_base": 4.0}}) == "logn_base is 4.0 there and not given now"
