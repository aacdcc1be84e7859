"""The policy of each request."""

from __future__ import annotations

import pytest

from buzz.evaluation.config.methods import parse_method
from buzz.evaluation.errors import ConfigError
from buzz.harness.fitting import Fitting


def fitting(**method) -> Fitting:
    return Fitting(parse_method(method, "model_args"), 2)


def test_a_share_is_one_of_the_text_that_is_read_at_once():
    found = fitting(policy="streaming", budget=0.5)
    assert found.policy(80, 3).trace(80, 3) == [40, 40, 40, 40]
    assert not found.is_least(found.policy(80, 3))
    assert found.policy(1, 99).steady().mean == pytest.approx(51 / 2, abs=0.5)  # read token by token: of the mean


def test_a_text_that_is_too_short_gets_the_smallest_cache():
    found = fitting(policy="streaming", budget=0.1)
    assert found.is_least(found.policy(20, 3))
    assert found.policy(20, 3).trace(20, 0) == [5]  # four of the sink, and one
    assert not found.is_least(found.policy(60, 3))
    held = fitting(policy="h2o", budget=0.1, window=16)
    assert held.policy(20, 3).trace(30, 0) == [17]  # and one heavy one
    reduced = fitting(policy="buzz", reduction=50.0)
    assert reduced.is_least(reduced.policy(20, 3))


def test_tokens_are_the_same_for_all():
    found = fitting(policy="h2o", budget=20)
    assert found.policy(80, 3) == found.policy(30, 9)
    assert not found.is_least(found.policy(4, 1))


def test_a_policy_that_has_nothing_to_fit_is_refused():
    with pytest.raises(ConfigError, match=r"model_args.budget: no budget fits streaming .*leaves nothing to fit"):
        fitting(policy="streaming", budget=0.4, window=16)
