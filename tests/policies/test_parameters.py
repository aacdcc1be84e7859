"""Parameters are checked where they are given, and budgets are met."""

from __future__ import annotations

import dataclasses
import itertools
import json
import time
import warnings
from decimal import Decimal
from fractions import Fraction

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from buzz.policies import POLICIES, make_policy

SIZED = [name for name in POLICIES if make_policy(name).sizable]
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
        ("comb", {"capacity": 35, "window": 32}, ValueError, "comb: capacity must be at least sink .* got capacity 35"),
        ("comb", {"lazy": -1}, ValueError, "comb: lazy must be at least 0, got -1"),
        ("comb", {"lazy": 2.5}, TypeError, r"comb: lazy must be an integer, got 2\.5"),
        ("comb", {"decay": 1.5}, ValueError, r"comb: decay must be at most 1, got 1\.5"),
        ("comb", {"decay": float("nan")}, ValueError, "decay must be at least 0, got nan"),
        ("comb", {"decay": True}, TypeError, "decay must be a number, got True"),
        ("comb", {"floor": "0.5"}, TypeError, r"floor must be a number, got '0\.5'"),
        ("comb", {"ceiling": 0.9}, ValueError, r"ceiling must be at least 1, got 0\.9"),
        ("comb", {"ceiling": float("inf")}, ValueError, "ceiling must be at most 2147483647, got inf"),
        ("comb", {"afar": -1}, ValueError, "afar must be at least 0, got -1"),
        ("comb", {"afar": 10**400}, ValueError, "afar must be at most 2147483647, got 1000"),
        ("comb", {"echo": 1}, TypeError, "comb: echo must be True or False, got 1"),
        ("comb", {"echo": None}, TypeError, "echo must be True or False, got None"),
        ("comb", {"values": torch.ones(2, dtype=torch.bool)}, TypeError, "values must be True or False"),
        ("comb", {"scope": "layers"}, ValueError, r"scope must be one of head, layer, model, got 'layers' \(did you "),
        ("comb", {"scope": None}, TypeError, "scope must be one of head, layer, model, got None"),
        # Too much: more than 2**31 - 1 tokens fit nowhere.
        ("buzz", {"window": 2**31}, ValueError, "buzz: window must be at most 2147483647, got 2147483648"),
        ("buzz", {"stride": 10**12}, ValueError, "stride must be at most 2147483647"),
        ("snapkv", {"kernel": 2**31 + 1}, ValueError, "kernel must be at most 2147483647"),
        ("pyramidkv", {"beta": 2**31}, ValueError, "beta must be at most 2147483647"),
        ("pyramidkv", {"capacity": 2**30 + 1}, ValueError, "capacity must be at most 1073741824"),
        ("random", {"seed": 2**63}, ValueError, "random: seed must be at most 9223372036854775807"),
        ("random", {"seed": -1}, ValueError, "seed must be at least 0"),
        # Of the wrong kind.
        ("buzz", {"window": "5"}, TypeError, "buzz: window must be an integer, got '5'"),
        ("buzz", {"window": None}, TypeError, "window must be an integer, got None"),
        ("buzz", {"window": float("nan")}, TypeError, "window must be an integer, got nan"),
        ("buzz", {"window": 5.0}, TypeError, r"window must be an integer, got 5\.0"),
        ("buzz", {"window": np.bool_(True)}, TypeError, "window must be an integer"),
        ("buzz", {"window": torch.tensor(True)}, TypeError, "window must be an integer"),
        ("buzz", {"window": torch.ones(3, 3)}, TypeError, "window must be an integer"),
        ("buzz", {"logn_base": float("nan")}, ValueError, "logn_base must be above 1, got nan"),
        ("buzz", {"logn_base": 1e400}, ValueError, "logn_base must be finite, got inf"),
        ("buzz", {"logn_base": 10**400}, ValueError, "logn_base must be finite, got 1000"),
        ("buzz", {"logn_base": -512}, ValueError, "logn_base must be above 1, got -512"),
        ("buzz", {"logn_base": True}, TypeError, "logn_base must be a number, got True"),
        ("buzz", {"logn_base": 2j}, TypeError, "logn_base must be a number, got 2j"),
        # Of another name.
        ("buzz", {"windw": 5}, TypeError, r"buzz: unknown parameter 'windw' \(did you mean 'window'\?\), it takes"),
        ("buzz", {"Window": 5, "strde": 3, "x": 1, "sink": 2}, TypeError,
         r"buzz: unknown parameters 'Window' \(did you .* 'window'\?\), 'strde' \(did .* 'stride'\?\), 'x', it takes"),
        ("full", {"window": 5}, TypeError, "full: unknown parameter 'window', it takes logn_base"),
        ("bux", {}, ValueError, "choose one of full, comb, local, streaming, h2o, buzz, buzz_fast, buzz_no_max"),
        ("buz", {}, ValueError, r"^unknown policy 'buz' \(did you mean 'buzz'\?\), choose one of full, comb"),
        ("BUZZ", {}, ValueError, "did you mean 'buzz'"),
        ("buzz-fast", {}, ValueError, "did you mean 'buzz_fast'"),
        ("snap_kv", {}, ValueError, "did you mean 'snapkv'"),
        (None, {}, TypeError, "make_policy takes the name of a policy, got None"),
        (["buzz"], {}, TypeError, r"make_policy takes the name of a policy, got \['buzz'\]"),
        (POLICIES["tova"], {}, TypeError, "make_policy takes the name of a policy, got <class"),
        (make_policy("tova"), {}, TypeError, r"got a policy: use TovaPolicy\(capacity=512\) as it is"),
    ],
)  # fmt: skip
def test_bad_parameters_are_named(name, params, error, says):
    with pytest.raises(error, match=says) as caught:
        make_policy(name, **params)
    assert "\n" not in str(caught.value)
    assert len(str(caught.value)) < 250


def test_values_too_long_to_show_are_shown_in_short():
    with pytest.raises(ValueError, match="buzz: sink must be at most 2147483647, got <int>"):
        make_policy("buzz", sink=10**5000)
    with pytest.raises(ValueError, match="tova: a budget must be at most 2147483647 tokens, got <int>"):
        POLICIES["tova"].from_budget(10**5000)
    with pytest.raises(ValueError, match=r"^unknown policy '[\\n]{56}\.\.\., choose one of"):
        make_policy("\n" * 9000)


@pytest.mark.parametrize("kind", [int, np.int64, np.uint8, np.array, torch.tensor])
def test_integers_of_every_kind_are_held_as_pythons_own(kind):
    policy = make_policy("buzz", window=kind(64), logn_base=kind(100))
    assert policy == make_policy("buzz", window=64, logn_base=100)
    assert (type(policy.window), type(policy.logn_base)) == (int, int)
    assert json.loads(json.dumps(dataclasses.asdict(policy)))["window"] == 64


@pytest.mark.parametrize("kind", [float, np.float32, np.float64, torch.tensor, Fraction, Decimal])
def test_a_base_of_every_kind_is_held_as_pythons_own(kind):
    policy = make_policy("buzz", logn_base=kind(2.5))
    assert (policy.logn_base, type(policy.logn_base)) == (2.5, float)


@pytest.mark.parametrize("kind", [np.float32, np.float64, torch.tensor, Fraction, Decimal, float])
def test_numbers_of_every_kind_are_held_as_pythons_own(kind):
    policy = make_policy("comb", floor=kind(0.5), afar=kind(2), lazy=None)
    assert policy == make_policy("comb", floor=0.5, afar=2)
    assert (type(policy.floor), type(policy.afar)) == (float, float)


@pytest.mark.parametrize("kind", [bool, np.bool_, torch.tensor])
def test_bools_of_every_kind_are_held_as_pythons_own(kind):
    policy = make_policy("comb", echo=kind(True), values=kind(False))
    assert (policy.echo, policy.values) == (True, False)
    assert (type(policy.echo), type(policy.values)) == (bool, bool)


@pytest.mark.parametrize("name", POLICIES)
def test_the_largest_parameters_are_legal(name):
    """All at once, where they do not contradict each other."""
    policy = POLICIES[name]
    sizes = {field: policy.most.get(field, 2**31 - 1) for field in policy.least}
    sizes |= {field: 1 for field in ("sink", "window") if "capacity" in sizes and field in sizes}
    made = make_policy(name, **sizes)
    made.per_layer(40)
    made.advance(2**40)
    for field, value in sizes.items():
        with pytest.raises(ValueError, match=f"{field} must be at most"):
            make_policy(name, **{field: policy.most.get(field, 2**31 - 1) + 1})
        assert getattr(made, field) == value


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


@pytest.mark.parametrize("name", POLICIES)
@pytest.mark.parametrize(
    ("tokens", "error", "says"),
    [
        (float("nan"), ValueError, "at least 1 token, got nan"), (-5, ValueError, "at least 1 token, got -5"),
        (float("inf"), ValueError, "at most 2147483647 tokens, got inf"), (1e21, ValueError, "at most .* got 1e\\+21"),
        (2**64, ValueError, "at most"), (0, ValueError, "at least 1"),
        (True, TypeError, "a number of tokens, got True"), ("300", TypeError, "a number of tokens, got '300'"),
        (None, TypeError, "got None"), ([300], TypeError, "a number of tokens"),
    ],
)  # fmt: skip
def test_absurd_budgets_say_so_in_a_line(name, tokens, error, says):
    with pytest.raises(error, match=f"^{name}: a budget must be .*{says}") as caught:
        POLICIES[name].from_budget(tokens)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("name", SIZED)
@pytest.mark.parametrize("tokens", [10**6, 10**9, 2**30, 2**31 - 1, np.float32(1e6), torch.tensor(1000)])
def test_huge_budgets_are_met_at_once(name, tokens):
    start = time.perf_counter()
    if name == "pyramidkv" and tokens > 2**30:
        with pytest.raises(ValueError, match="pyramidkv: capacity must be at most 1073741824"):
            POLICIES[name].from_budget(tokens)
        return
    policy = POLICIES[name].from_budget(tokens)
    assert time.perf_counter() - start < 1.0  # some milliseconds, on an idle machine
    assert (policy.steady().mean if policy.bounded else policy.capacity) == pytest.approx(int(tokens), rel=1e-3)


def test_what_is_held_beside_a_budget_is_not_checked_against_what_it_replaces():
    assert POLICIES["snapkv"].from_budget(1000, window=300) == make_policy("snapkv", capacity=1000, window=300)
    assert POLICIES["pyramidkv"].from_budget(1000, window=300).capacity == 1000
    assert POLICIES["random"].from_budget(1000, window=600) == make_policy("random", capacity=1000, window=600)
    assert POLICIES["comb"].from_budget(1000, window=600, lazy=0) == make_policy(
        "comb", capacity=1000, window=600, lazy=0
    )
    assert POLICIES["random"].from_budget(5) == make_policy("random", capacity=5, window=1)  # all that its sink leaves
    assert POLICIES["buzz"].from_budget(300, window=50, stride=5).threshold > 0
    assert make_policy("buzz", threshold=0).from_budget(300, window=50).steady().mean == pytest.approx(300, abs=0.5)


@pytest.mark.parametrize(
    ("name", "held", "tokens"),
    [
        ("streaming", {"window": 50}, 54), ("local", {"window": 50}, 50), ("h2o", {"window": 50, "heavy": 20}, 70),
        ("comb", {"capacity": 50}, 53), ("tova", {"capacity": 50}, 50),
        ("random", {"capacity": 50}, 50), ("snapkv", {"capacity": 50}, 50),
        ("pyramidkv", {"capacity": 50}, 50), ("buzz", {"window": 160, "threshold": 400}, 411),
    ],
)  # fmt: skip
def test_a_budget_with_nothing_left_to_fit_is_met_or_refused(name, held, tokens):
    assert POLICIES[name].from_budget(tokens, **held) == make_policy(name, **held)
    for wrong in (tokens // 2, 2 * tokens):
        with pytest.raises(ValueError, match=f"{name}: a budget of {wrong} tokens leaves nothing to fit: .* holds"):
            POLICIES[name].from_budget(wrong, **held)


@settings(max_examples=60, deadline=None)
@given(
    st.floats(1, 1e5), st.sampled_from([3, 4, 5, 8, 50, 1001, 10**6]), st.sampled_from([0, 4, 30]),
    st.none() | st.integers(1, 300), st.none() | st.integers(0, 300),
)  # fmt: skip
def test_a_hive_of_any_shape_meets_its_budget_or_refuses(tokens, stride, sink, window, threshold):
    held = {"stride": stride, "sink": sink}
    held |= {} if window is None else {"window": window}
    held |= {} if threshold is None else {"threshold": threshold}
    try:
        policy = POLICIES["buzz"].from_budget(tokens, **held)
    except ValueError:
        smallest = make_policy("buzz", **{"window": 1, "threshold": 0, **held})
        assert smallest.steady().mean > tokens + 1 or {"window", "threshold"} <= set(held)
        return
    assert abs(policy.steady().mean - tokens) <= max(1, 0.02 * tokens)


def test_misspelt_parameters_of_a_budget_are_named():
    with pytest.raises(TypeError, match=r"h2o: unknown parameter 'windw' \(did you mean 'window'"):
        POLICIES["h2o"].from_budget(300, windw=50)


def test_full_has_nothing_to_fit():
    assert POLICIES["full"].from_budget(100) == make_policy("full")


@pytest.mark.parametrize(
    ("name", "tokens"),
    [("streaming", 4), ("h2o", 1), ("buzz", 2), ("streaming", 0), ("random", 4), ("snapkv", 0), ("comb", 4)],
)
def test_impossible_budgets_say_so(name, tokens):
    with pytest.raises(ValueError, match="budget"):
        POLICIES[name].from_budget(tokens)


@pytest.mark.filterwarnings("ignore:.*never thins the sample")
def test_a_policy_without_a_steady_state_has_no_budget():
    policy = make_policy("buzz", stride=2)
    with pytest.raises(ValueError, match="stride 3 or more"):
        policy.from_budget(100)
    with pytest.raises(ValueError, match="stride 3 or more"):
        policy.least_budget()


@pytest.mark.parametrize("name", POLICIES)
@pytest.mark.parametrize("sink", [None, 0, 37])
def test_the_least_budget_is_where_budgets_begin_to_be_met(name, sink):
    held = {"sink": sink} if sink is not None and "sink" in POLICIES[name].least else {}
    least = POLICIES[name].least_budget(**held)
    for tokens in range(max(1, least - 9), least):
        with pytest.raises(ValueError, match=f"{name}: "):
            POLICIES[name].from_budget(tokens, **held)
    for tokens in range(least, least + 9):
        POLICIES[name].from_budget(tokens, **held)


def test_the_least_budget_of_what_cannot_be_fitted_says_why():
    assert make_policy("streaming", sink=2**31 - 2).least_budget() == 2**31 - 1
    with pytest.raises(ValueError, match="leaves no window beside 2147483647 sink tokens"):
        make_policy("streaming", sink=2**31 - 1).least_budget()
    with pytest.raises(TypeError, match="unknown parameter 'windw'"):
        POLICIES["h2o"].least_budget(windw=3)
