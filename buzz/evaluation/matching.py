"""Chooses a policy per sample: a share of its prompt, a number of tokens, or another method's mean cache length."""

from __future__ import annotations

import dataclasses
from typing import Any

from buzz.evaluation.errors import ConfigError
from buzz.policies import Policy

_TRIES = 16  # adjustments of a budget
_STEP = 1.25  # factor between budgets until the target lies between two
_CLOSE = 0.5  # tokens: near enough


def mean_cached(policy: Policy, prompt_tokens: int, decode_calls: int) -> float:
    """Mean cache length in tokens over the decode calls of a sample; after the prompt, if it has none."""
    lengths = policy.trace(prompt_tokens, decode_calls)
    return sum(lengths[1:]) / decode_calls if decode_calls else float(lengths[0])


def policy_for(method: Any, prompt_tokens: int, target: dict[str, Any] | None) -> Policy:
    """The policy of a method for one sample.

    Parameters that the config names are held; the others follow from the budget.

    Args:
        method: a method of the config.
        prompt_tokens: the sample's prompt, in tokens.
        target: this sample's record under the method named by `match`; None without `match`.

    Raises:
        ConfigError: no parameters of this policy come near the budget.
    """
    base = method.make_policy()
    where = f"methods: {method.name}"
    try:
        if target is not None:
            return _match(base, method.params, prompt_tokens, target["new_tokens"] - 1, target["cache"]["mean_tokens"])
        if method.budget is not None:
            share = isinstance(method.budget, float)
            tokens = max(1, round(method.budget * prompt_tokens)) if share else method.budget
            return base.from_budget(tokens, **method.params)
    except ValueError as error:
        raise ConfigError(
            where, f"{error} (a prompt of {prompt_tokens} tokens)", "a larger budget is wanted"
        ) from error
    return base


def _match(base: Policy, held: dict[str, Any], prompt_tokens: int, decode_calls: int, target: float) -> Policy:
    """The policy whose mean over these very calls is nearest the target, by bisection over budgets.

    A budget is a steady mean, while a short answer sees a part of the policy's cycle only. The mean over these calls
    may also jump from one budget to the next (BUZZ evicts once a call); then the better side of the jump is taken.
    """
    best: Policy | None = None
    least, low, high, budget = float("inf"), 0.0, float("inf"), float(max(1, round(target)))
    problem = ValueError(f"{base.name}: cannot match {target:g} tokens")
    for _ in range(_TRIES):
        try:
            policy = base.from_budget(budget, **held)
        except ValueError as error:  # below what this policy can do
            problem, low = error, budget
        else:
            mean = mean_cached(policy, prompt_tokens, max(0, decode_calls))
            if abs(mean - target) < least:
                best, least = policy, abs(mean - target)
            low, high = (budget, high) if mean < target else (low, budget)
        if least <= _CLOSE or high - low <= _CLOSE:
            break
        budget = _STEP * low if high == float("inf") else high / _STEP if low == 0 else (low + high) / 2
    if best is None:
        raise problem
    return best


def describe(policy: Policy) -> dict[str, Any]:
    """A policy's name and parameters, for the records; parameters that are None are left out."""
    parameters = {name: value for name, value in dataclasses.asdict(policy).items() if value is not None}
    return {"name": policy.name, **parameters}
