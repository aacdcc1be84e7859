"""A policy is a value: what it does is what it is made of."""

from __future__ import annotations

import copy
import itertools
import pickle
from dataclasses import dataclass
from typing import ClassVar

import pytest

from buzz.policies import POLICIES, Policy, make_policy

EVERY = [make_policy(name, logn_base=base) for name in POLICIES for base in (None, 512)]


def test_policies_are_values():
    assert make_policy("buzz") == make_policy("buzz", window=160)
    assert len({make_policy("buzz"), make_policy("buzz"), make_policy("buzz", stride=7)}) == 2
    with pytest.raises(AttributeError):
        make_policy("buzz").window = 3


@pytest.mark.parametrize("policy", EVERY, ids=repr)
def test_copies_are_equal(policy):
    for twin in (copy.copy(policy), copy.deepcopy(policy), pickle.loads(pickle.dumps(policy))):
        assert type(twin) is type(policy)
        assert twin == policy
        assert hash(twin) == hash(policy)


def test_policies_of_different_rules_are_never_equal():
    """A cache lets equal policies share a schedule."""

    class Backwards(POLICIES["streaming"]):  # not even a dataclass of its own
        name: ClassVar[str] = "backwards"

    sizes = {"sink": 4, "window": 164}
    for families in (("streaming", "local"), ("buzz", "buzz_fast", "buzz_no_max"), ("snapkv", "pyramidkv")):
        fields = sizes if families[0] != "snapkv" else {"capacity": 256, "window": 8}
        for a, b in itertools.combinations((make_policy(name, **fields) for name in families), 2):
            assert a != b
            assert [a, b].index(b) == 1
            assert len({a, b}) == 2
    assert Backwards(**sizes) != make_policy("streaming", **sizes)
    assert make_policy("streaming", logn_base=512) != make_policy("streaming")


@pytest.mark.parametrize("policy", EVERY, ids=repr)
def test_what_is_printed_makes_the_policy_again(policy):
    text = repr(policy)
    assert ("logn_base" in text) == (policy.logn_base is not None)
    assert eval(text, {type(policy).__name__: type(policy)}) == policy


def test_policies_are_printed_in_short():
    assert repr(make_policy("full")) == "FullPolicy()"
    assert repr(make_policy("buzz")) == "BuzzPolicy(sink=4, window=160, stride=5, threshold=400)"
    assert repr(make_policy("tova", logn_base=512)) == "TovaPolicy(capacity=512, logn_base=512)"


def test_a_policy_of_ones_own_is_checked_and_printed_too():
    @dataclass(frozen=True, repr=False)
    class Half(Policy):
        share: int = 2

        name: ClassVar[str] = "half"
        least: ClassVar[dict[str, int]] = {"share": 1}
        most: ClassVar[dict[str, int]] = {"share": 8}

    assert repr(Half(3)) == "Half(share=3)"
    with pytest.raises(ValueError, match="half: share must be at most 8, got 9"):
        Half(9)
