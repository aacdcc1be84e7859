"""The methods of a config: parameters, budgets, names."""

from __future__ import annotations

import re
import warnings
from pathlib import Path
from typing import Any

import pytest

from buzz.evaluation.config.methods import MethodConfig, default_name
from buzz.evaluation.errors import ConfigError
from buzz.evaluation.run.config import comparisons, load_config
from buzz.policies import POLICIES


def methods(path: Path, text: str) -> list[MethodConfig]:
    return load_config(path, [f"methods={text}"]).methods


def test_method_parameters(base: Path) -> None:
    (method,) = methods(base, "[{policy: buzz, window: 64, stride: 7, logn_base: 512, positions: original}]")
    assert method.name == "buzz-logn_base512-positions-original-stride7-window64"
    assert method.params == {"sink": 4, "window": 64, "stride": 7, "threshold": 400}
    policy = method.make_policy()
    assert (policy.window, policy.stride, policy.logn_base) == (64, 7, 512)
    assert type(policy) is POLICIES["buzz"]


def test_parameters_of_every_kind(base: Path) -> None:
    (method,) = methods(base, "[{policy: comb, scope: layer, lazy: null, decay: 1, echo: true, budget: 0.4}]")
    assert method.params == {"scope": "layer", "lazy": None, "decay": 1.0, "echo": True}
    assert method.make_policy().scope == "layer"
    for wrong, says in [
        ("scope: layers", "is 'layers'"), ("echo: 1", "is 1"), ("lazy: 2.5", "is 2.5"),
        ("decay: 2", "is 2.0, must be at most 1"), ("floor: many", "is 'many'"),
        ("capacity: 4", "must be at least sink + window"),
    ]:  # fmt: skip
        with pytest.raises(ConfigError, match=re.escape(says)):
            methods(base, f"[{{policy: comb, {wrong}}}]")


def test_budget_and_match(base: Path) -> None:
    a, b, c, d = methods(
        base,
        "[{policy: buzz, stride: 7}, {policy: h2o, match: buzz}, {policy: streaming, budget: 9},"
        " {policy: local, budget: 1.0, sink: 2, name: x}]",
    )
    assert (a.name, a.match, a.budget) == ("buzz-stride7", None, None)
    assert (b.name, b.match, b.params) == ("h2o-match-buzz", "buzz-stride7", {})  # the policy's name resolved
    assert c.budget == 9
    assert isinstance(c.budget, int)
    assert d.budget == 1.0
    assert isinstance(d.budget, float)
    assert d.params == {"sink": 2}  # only what is fixed: the rest is for from_budget to fit


def test_what_a_budget_decides_is_not_held_against_what_is_fixed(base: Path) -> None:
    """A window above the capacity that a policy has by default, and so on."""
    for fixed in ("comb, window: 600", "snapkv, window: 300", "kvzip, sink: 300", "random, sink: 500"):
        for sized in ("budget: 3000", "budget: 0.5", "reduction: 2.0", "match: full"):
            (_, found) = methods(base, f"[full, {{policy: {fixed}, {sized}}}]")
            assert len(found.params) == 1
        with pytest.raises(ConfigError, match="a budget of 100 tokens is too small"):
            methods(base, f"[{{policy: {fixed}, budget: 100}}]")
        with pytest.raises(ConfigError, match=r"\.capacity: is "):
            methods(base, f"[{{policy: {fixed}}}]")


def test_what_methods_are_compared_with(base: Path) -> None:
    text = (
        "[full, {policy: h2o, name: h2o-reduction2.5, reduction: 2.5}, {policy: h2o, reduction: 4},"
        " {policy: tova, reduction: 4}, {policy: buzz, reduction: 2.5}, {policy: snapkv, reduction: 8}, streaming]"
    )
    config = load_config(base, [f"methods={text}", "compare=[h2o, streaming, h2o]"])
    assert config.compare == ["h2o", "streaming"]
    found = comparisons(config)
    assert found["h2o"] == {"tova-reduction4": "h2o-reduction4", "buzz-reduction2.5": "h2o-reduction2.5"}
    assert found["streaming"] == {method.name: "streaming" for method in config.methods if method.name != "streaming"}
    assert load_config(base, ["compare=null"]).compare == []
    assert load_config(base, ["methods=[full, h2o]", "compare=h2o"]).compare == ["h2o"]


def test_every_policy_can_be_named(base: Path) -> None:
    assert [method.policy for method in methods(base, f"[{', '.join(POLICIES)}]")] == list(POLICIES)


def test_checking_a_config_does_not_use_up_the_policys_warning(base: Path) -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        (method,) = methods(base, "[{policy: buzz, stride: 2}]")
    with pytest.warns(UserWarning, match="stride 2"):
        method.make_policy()


@pytest.mark.parametrize(
    ("values", "name"),
    [
        ({"reduction": 1e9}, "buzz-reduction1e09"),
        ({"reduction": 2.5}, "buzz-reduction2.5"),
        ({"budget": 1e-5}, "buzz-budget1e-05"),
        ({"match": "h2o", "window": 64}, "buzz-match-h2o-window64"),
        ({"echo": True, "values": False}, "buzz-echo-true-values-false"),
    ],
)
def test_names_say_what_was_given(values: dict[str, Any], name: str) -> None:
    assert default_name("buzz", values) == name
