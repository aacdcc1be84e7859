"""Chooses a policy per sample: for a budget, for a reduction, or for another method's mean cache length."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Mapping
from functools import lru_cache
from typing import Any

from buzz.evaluation.errors import ConfigError
from buzz.policies import Policy

TOLERANCE = 0.02  # of a mean cache length, for `reduction` and `match`
_TRIES = 16  # adjustments of a budget
_STEP = 1.25  # factor between budgets until the target lies between two
_CLOSE = 0.5  # tokens: near enough


def mean_cached(policy: Policy, first: int, calls: int, layers: int = 1) -> float:
    """Mean cache length in tokens, over layers and over the one-token calls that follow a first call.

    Args:
        first: tokens of the first call.
        calls: one-token calls; without any, the length after the first call.
        layers: of the model; matters for policies that differ by layer.
    """
    means = {}
    by_layer = policy.per_layer(layers)
    for layer in set(by_layer):
        lengths = layer.trace(first, calls)
        means[layer] = sum(lengths[1:]) / calls if calls else float(lengths[0])
    return sum(means[layer] for layer in by_layer) / layers


def full_mean(first: int, calls: int) -> float:
    """`mean_cached` of a cache that never evicts."""
    return first + (calls + 1) / 2 if calls else float(first)


def policy_for(method: Any, first: int, calls: int, target: Mapping[str, Any] | None, layers: int) -> Policy:
    """The policy of a method for one sample.

    Parameters that the config names are held; the others follow. `budget` is a length in the long run (for policies
    that compress prompts alone: of a compressed prompt), a share being one of the first call, or, for a text read
    token by token, of the full cache's mean length. `reduction` and `match` fit the mean over these very calls.

    Args:
        method: a method of the config.
        first: tokens of the sample's first call.
        calls: one-token calls after it, as many as are expected; with a target, its own number counts.
        target: this sample's record under the method named by `match`; None without `match`.
        layers: of the model.

    Raises:
        ConfigError: no parameters of this policy come near the budget.
    """
    base = method.make_policy()
    try:
        if target is not None:
            calls = min(calls, target["new_tokens"] - 1)
            return _fitted(base, method.params, first, calls, target["cache"]["mean_tokens"], layers)
        if method.reduction is not None:
            return _fitted(base, method.params, first, calls, full_mean(first, calls) / method.reduction, layers)
        if method.budget is not None:
            whole = first if first > 1 else full_mean(first, calls)
            share = isinstance(method.budget, float)
            return base.from_budget(max(1, round(method.budget * whole)) if share else method.budget, **method.params)
    except ValueError as error:
        what = f"{error} (a text of {first + calls} tokens)" if first == 1 else f"{error} (a prompt of {first} tokens)"
        raise ConfigError(f"methods: {method.name}", what, "a larger budget is wanted") from error
    return base


def off_target(method: Any, record: Mapping[str, Any], target: Mapping[str, Any] | None) -> float:
    """How far a sample's mean cache length is from what `match` or `reduction` asks for, as a share; 0.0: near enough.

    An answer may be shorter than was expected, and its mean another for that. `policy_for` with the record's own
    number of calls, and another try, may come nearer.

    Args:
        record: the sample's record under this method.
        target: its record under the method named by `match`; None without.
    """
    cache = record["cache"]
    if target is not None:
        wanted = target["cache"]["mean_tokens"]
    elif method.reduction is not None:
        wanted = cache["full_mean_tokens"] / method.reduction
    else:
        return 0.0
    off = abs(cache["mean_tokens"] - wanted) / wanted
    return off if off > TOLERANCE else 0.0


def _fitted(base: Policy, held: Mapping[str, Any], first: int, calls: int, target: float, layers: int) -> Policy:
    """The policy whose mean over these very calls is nearest the target, by bisection over budgets.

    A budget is a steady mean, while a short answer sees a part of the policy's cycle only. The mean over these calls
    may also jump from one budget to the next (BUZZ evicts once a call); then the better side of the jump is taken.
    """
    best: Policy | None = None
    least, low, high, budget = float("inf"), 0, 0, max(1, round(target))  # high 0: none yet
    problem = ValueError(f"{base.name}: cannot match {target:g} tokens")
    for _ in range(_TRIES):
        try:
            policy = _sized(base, budget, tuple(held.items()))
        except ValueError as error:  # below what this policy can do
            problem, low = error, budget
        else:
            mean = mean_cached(policy, first, calls, layers)
            if abs(mean - target) < least:
                best, least = policy, abs(mean - target)
            low, high = (budget, high) if mean < target else (low, budget)
        if least <= _CLOSE or high - low == 1 or budget >= first + calls + 1:
            break
        budget = math.ceil(_STEP * low) if not high else (low + high) // 2 if low else max(1, int(high / _STEP))
    if best is None:
        raise problem
    return best


@lru_cache(maxsize=4096)
def _sized(base: Policy, budget: int, held: tuple[tuple[str, Any], ...]) -> Policy:
    """`from_budget`, remembered: the samples of a run ask for the same budgets again and again."""
    return base.from_budget(budget, **dict(held))


def describe(policy: Policy) -> dict[str, Any]:
    """A policy's name and parameters, for the records; parameters that are None are left out."""
    parameters = {name: value for name, value in dataclasses.asdict(policy).items() if value is not None}
    return {"name": policy.name, **parameters}
