"""Parameters are checked where they are given, and budgets are met."""

from __future__ import annotations

import itertools
import warnings

import pytest

from buzz.policies import POLICIES, make_policy

SIZED = [name for name in POLICIES if name != "full"]
STREAMING = [name for name in SIZED if make_policy(name).bounded]


@pytest.mark.parametrize(
    ("name", "params", "error", "says"),
    [
        ("buzz", {"sink": -1}, ValueError, "sink must be at least 0"),
        ("buzz", {"window": 0}, ValueError, "window must be at least 1"),
        ("buzz", {"stride": 0}, ValueError, "stride must be at least 1"),
        ("buzz", {"threshold": -1}, ValueError, "threshold must be at least 0"),
        ("h2o", {"heavy": 0}, ValueError, "heavy must be at least 1"),
        ("streaming", {"window": 0}, ValueError, "window must be at least 1"),
        ("buzz", {"window": 2.5}, TypeError, "window must be an integer"),
        ("buzz", {"window": True}, TypeError, "window must be an integer"),
        ("buzz", {"logn_base": 1}, ValueError, "logn_base must be above 1"),
        ("full", {"logn_base": "512"}, TypeError, "logn_base must be a number"),
        ("snapkv", {"kernel": 4}, ValueError, "kernel must be odd"),
        ("snapkv", {"capacity": 32}, ValueError, "capacity must be above window"),
        ("pyramidkv", {"beta": 0}, ValueError, "beta must be at least 1"),
        ("random", {"capacity": 35}, ValueError, "capacity must be at least sink"),
        ("tova", {"capacity": 0}, ValueError, "capacity must be at least 1"),
        ("buzz", {"windw": 5}, TypeError, "did you mean 'window'"),
        ("bux", {}, ValueError, "choose one of full, local, streaming, h2o, buzz, buzz_fast, buzz_no_max"),
    ],
)
def test_bad_parameters_are_named(name, params, error, says):
    with pytest.raises(error, match=says) as caught:
        make_policy(name, **params)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("stride", [1, 2])
def test_strides_that_never_thin_warn_once(stride):
    with pytest.warns(UserWarning, match="never thins the sample") as caught:
        policy = make_policy("buzz", stride=stride, threshold=10)
    assert len(caught) == 1
    assert not policy.bounded
    assert policy.steady() is None
    growth = policy.trace(500, 50)
    assert [b - a for a, b in itertools.pairwise(growth)] == [1] * 50


def test_ordinary_strides_do_not_warn():
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        make_policy("buzz", stride=3)


@pytest.mark.parametrize("name", STREAMING)
@pytest.mark.parametrize("tokens", [20, 57, 164, 300, 411, 1000])
def test_budgets_are_met(name, tokens):
    policy = POLICIES[name].from_budget(tokens)
    assert policy.name == name
    stream = policy.trace(0, 12 * tokens)[6 * tokens :]
    assert sum(stream) / len(stream) == pytest.approx(tokens, rel=0.02, abs=0.6)


@pytest.mark.parametrize("name", [name for name in SIZED if name not in STREAMING])
@pytest.mark.parametrize("tokens", [20, 57, 300])
def test_a_budget_of_a_prompt_compressor_is_what_a_prompt_leaves(name, tokens):
    assert POLICIES[name].from_budget(tokens).trace(5000, 3) == [tokens, tokens + 1, tokens + 2, tokens + 3]


@pytest.mark.parametrize("name", SIZED)
def test_budget_keeps_the_other_parameters(name):
    policy = make_policy(name, logn_base=512).from_budget(300)
    assert policy.logn_base == 512
    if name.startswith("buzz"):
        assert make_policy(name, stride=7, sink=2).from_budget(300).stride == 7
        assert POLICIES[name].from_budget(300, window=50).window == 50
    if name == "h2o":
        assert POLICIES[name].from_budget(300, window=50) == make_policy("h2o", heavy=250, window=50)
    if name in ("snapkv", "pyramidkv"):
        with pytest.raises(ValueError, match="too small for window=50"):
            POLICIES[name].from_budget(50, window=50)


def test_full_has_nothing_to_fit():
    assert POLICIES["full"].from_budget(100) == make_policy("full")


@pytest.mark.parametrize(
    ("name", "tokens"), [("streaming", 4), ("h2o", 1), ("buzz", 2), ("streaming", 0), ("random", 4), ("snapkv", 0)]
)
def test_impossible_budgets_say_so(name, tokens):
    with pytest.raises(ValueError, match="budget"):
        POLICIES[name].from_budget(tokens)


@pytest.mark.filterwarnings("ignore:.*never thins the sample")
def test_a_policy_without_a_steady_state_has_no_budget():
    policy = make_policy("buzz", stride=2)
    with pytest.raises(ValueError, match="stride 3 or more"):
        policy.from_budget(100)


def test_policies_are_values():
    assert make_policy("buzz") == make_policy("buzz", window=160)
    assert len({make_policy("buzz"), make_policy("buzz"), make_policy("buzz", stride=7)}) == 2
    with pytest.raises(AttributeError):
        make_policy("buzz").window = 3
