"""Chooses a policy per sample: for a budget, for a reduction, or for another method's memory."""

from __future__ import annotations

import contextlib
import dataclasses
import math
from collections.abc import Iterator, Mapping
from functools import lru_cache
from typing import Any

from buzz.evaluation.errors import ConfigError
from buzz.evaluation.measure.batch import describe
from buzz.policies import Policy
from buzz.policies.sizes import full_mean, mean_cached, prompt_calls

TOLERANCE = 0.02  # of a mean cache length, for `reduction` and `match`
_TRIES = 16  # adjustments of a budget
_STEP = 1.25  # factor between budgets until the target lies between two
_CLOSE = 0.5  # tokens: near enough
_ENOUGH = 0.005  # of a target: near enough, where the mean jumps to and fro
_WINDOWS = 4  # windows tried for a budget
_BUDGETS = [2**power for power in range(3, 17)]  # tokens: some of all sizes
_FINE = 0.005  # of a target: between the budgets tried there


def policy_for(
    method: Any,
    first: int,
    calls: int,
    target: Mapping[str, Any] | None,
    layers: int,
    chunk: int | None = None,
    context: int = 0,
) -> Policy:
    """The policy of a method for one sample.

    Parameters that the config names are held; the others follow. `budget` is a length in the long run (for policies
    that compress prompts alone: of a compressed prompt), a share being one of the prompt, or, for a text read
    token by token, of the full cache's mean length. `reduction` and `match` fit the mean over these very calls.

    Args:
        method: a method of the config.
        first: tokens of the sample's prompt.
        calls: one-token calls after it, as many as are expected; with a target, its own number counts.
        target: this sample's record under the method named by `match`; None without `match`.
        layers: of the model, those that policies decide over.
        chunk: tokens of a call that reads the prompt; None: it is read in one call.
        context: of the prompt, tokens that calls of their own read before the others.

    Raises:
        ConfigError: no parameters of this policy come near the budget.
    """
    base = method.make_policy()
    try:
        if target is not None:
            calls = min(calls, target["new_tokens"] - 1)
            wanted = target["cache"]["mean_tokens"]
            return _fitted(base, method.params, first, calls, wanted, layers, chunk, context)
        if method.reduction is not None:
            wanted = full_mean(first, calls) / method.reduction
            return _fitted(base, method.params, first, calls, wanted, layers, chunk, context)
        if method.budget is not None:
            whole = first if first > 1 else full_mean(first, calls)
            share = isinstance(method.budget, float)
            return base.from_budget(max(1, round(method.budget * whole)) if share else method.budget, **method.params)
    except ValueError as error:
        what = f"{error} (a text of {first + calls} tokens)" if first == 1 else f"{error} (a prompt of {first} tokens)"
        larger = "a smaller reduction" if method.reduction else "a larger budget"
        if target is not None:
            larger = f"another method than {method.match} to match"
        raise ConfigError(f"methods: {method.name}", what, f"{larger} is wanted") from error
    return base


def in_bytes(method: Any) -> bool:
    """Whether a method is matched with another in bytes."""
    return method.match is not None and method.match_by == "bytes"


def off_target(method: Any, record: Mapping[str, Any], target: Mapping[str, Any] | None) -> float:
    """How far a sample's memory is from what `match` or `reduction` asks for, as a share; 0.0: near enough.

    Memory is the mean cache length in tokens or, matched in bytes, the mean of what was allocated. An answer may be
    shorter than was expected, and its mean another for that. `policy_for` with the record's own number of calls, and
    another try, may come nearer.

    Args:
        record: the sample's record under this method.
        target: its record under the method named by `match`; None without.
    """
    cache, unit = record["cache"], "mean_bytes" if in_bytes(method) else "mean_tokens"
    if target is not None:
        wanted = target["cache"][unit]
    elif method.reduction is not None:
        wanted = cache["full_mean_tokens"] / method.reduction
    else:
        return 0.0
    off = abs(cache[unit] - wanted) / wanted
    return off if off > TOLERANCE else 0.0


def otherwise(method: Any, record: Mapping[str, Any]) -> str | None:
    """What a sample's policy has otherwise than the method would have it now, as `decay is 0.5 there and 0.7 now`.

    Of a method whose parameters follow from a budget, a folder's config names those alone that the user fixed. The
    others that a budget leaves alone have their defaults, which were others in other versions.

    Args:
        record: the sample's record under this method.
    """
    base = method.make_policy()
    now, there = describe(base), record["policy"]
    fitted = [now]
    for budget in _BUDGETS:
        with contextlib.suppress(ValueError):  # below what this policy can do
            fitted.append(describe(_sized(base, budget, tuple(method.params.items()))))
    changed = {key for one in fitted[1:] for key in one if one[key] != fitted[1].get(key)} | {"window"} & now.keys()
    for key in [*now, *(key for key in there if key not in now)]:
        if key not in changed - method.params.keys() and now.get(key) != there.get(key):
            return f"{key} is {there.get(key, 'not given')} there and {now.get(key, 'not given')} now"
    return None


def _fitted(
    base: Policy,
    held: Mapping[str, Any],
    first: int,
    calls: int,
    target: float,
    layers: int,
    chunk: int | None,
    context: int,
) -> Policy:
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
            mean = mean_cached(policy, first, calls, layers, chunk, context)
            if abs(mean - target) < least:
                best, least = policy, abs(mean - target)
            low, high = (budget, high) if mean < target else (low, budget)
        if least <= _CLOSE or high - low == 1 or budget >= first + calls + 1:
            break
        budget = math.ceil(_STEP * low) if not high else (low + high) // 2 if low else max(1, int(high / _STEP))
    if best is None:
        raise problem
    if len(prompt_calls(first, chunk, context)) == 1:
        return best
    # Evictions between the calls that read a prompt leave the length after it anywhere in the policy's cycle: it goes
    # up and down with the budget, and a bisection may end at a jump. So look at budgets farther and farther from the
    # target, and where all of them jump past it, also change the window by what each is off.
    for tries in (1, _WINDOWS):
        for policy in _near(base, held, target):
            for _ in range(tries):
                if least <= max(_CLOSE, _ENOUGH * target):
                    return best
                mean = mean_cached(policy, first, calls, layers, chunk, context)
                if abs(mean - target) < least:
                    best, least = policy, abs(mean - target)
                window = getattr(policy, "window", None)
                if window is None or "window" in held or window + round(target - mean) < 1:
                    break
                policy = dataclasses.replace(policy, **{"window": window + round(target - mean)})
    return best


def _near(base: Policy, held: Mapping[str, Any], target: float) -> Iterator[Policy]:
    """The policies for budgets from a quarter of a target to four times it, the nearest first."""
    factors = [1 + _FINE * i for i in range(int(3 / _FINE) + 1)]
    budgets = [max(1, round(budget)) for factor in factors for budget in (target * factor, target / factor)]
    for budget in dict.fromkeys(budgets):
        with contextlib.suppress(ValueError):  # below what this policy can do
            yield _sized(base, budget, tuple(held.items()))


@lru_cache(maxsize=4096)
def _sized(base: Policy, budget: int, held: tuple[tuple[str, Any], ...]) -> Policy:
    """`from_budget`, remembered: the samples of a run ask for the same budgets again and again."""
    return base.from_budget(budget, **dict(held))
