"""Budgets as they may be given to a cache: tokens, which fit a policy at once, or a share of prompts still to come."""

from __future__ import annotations

import warnings
from collections.abc import Sequence
from typing import Any, NamedTuple

from buzz.cache.per_row import PerRow
from buzz.policies import Policy, make_policy
from buzz.policies.numbers import integer, number
from buzz.words import shown


class ShareOfPrompt(NamedTuple):
    """A policy, and the share of each row's prompt that its mean cache length shall be, between 0 and 1.

    Of a short prompt that may be less than the policy can hold at all: its sink and a slot, say. Such a row gets the
    smallest cache that the policy can have, and a warning says so.
    """

    policy: Policy
    share: float

    def fitted(self, tokens: Sequence[int]) -> Policy | PerRow:
        """The policy for rows whose prompts have so many tokens; of each row its own, where these differ.

        Raises:
            ValueError: a row has no prompt (names it), or there is no budget that the policy can be fitted to.
                TypeError: these are not numbers of tokens.
        """
        given = list(tokens) if isinstance(tokens, Sequence) and not isinstance(tokens, str) else []
        tokens = [n for n in map(integer, given) if n is not None and n >= 0]
        if not given or len(tokens) < len(given):
            raise TypeError("the tokens of each row's prompt are wanted, such as [500, 300]")
        rows = [self._of(row, n) for row, n in enumerate(tokens)]
        return rows[0] if len(set(rows)) == 1 else PerRow(rows)

    def _of(self, row: int, tokens: int) -> Policy:
        if not tokens:
            raise ValueError(
                f"budget={self.share:g} is a share of the prompt, and row {row} of the first call has no token: "
                "give a number of tokens (docs/limits.md)"
            )
        try:
            return self.policy.from_budget(max(1, round(self.share * tokens)))
        except ValueError:
            least = self.policy.least_budget()
        # Neither row nor tokens are named: Python then shows it once, however many prompts are short.
        warnings.warn(
            f"budget={self.share:g} of so short a prompt is less than {self.policy.name} can hold: the cache has "
            f"{least} tokens a head, the least; give a number of tokens where more text follows (docs/limits.md)",
            stacklevel=2,
        )
        return self.policy.from_budget(least)


def with_budget(policy: Any, budget: Any) -> tuple[Any, ShareOfPrompt | None]:
    """A policy fitted to a budget in tokens; or as it is, with the share of prompts that it is to be fitted to.

    Args:
        policy: one, or its name; without a budget anything, which is given back.
        budget: tokens, or a share of the prompt; None: there is none.

    Raises:
        TypeError: it is no number, or goes with no single policy. ValueError: it is neither; no such policy; the policy
            cannot be fitted to it.
    """
    if isinstance(policy, str):
        policy = make_policy(policy)
    if budget is None:
        return policy, None
    if not isinstance(policy, Policy):
        raise TypeError("budget= goes with one policy or its name; fit others with Policy.from_budget")
    wanted = number(budget)
    if wanted is None:
        raise TypeError(f"budget must be {_ALLOWED}, got {shown(budget)}")
    if isinstance(wanted, float) and 0 < wanted < 1:
        return policy, ShareOfPrompt(policy, wanted)
    if not (wanted > 1 or (wanted == 1 and isinstance(wanted, int))):
        raise ValueError(f"budget must be {_ALLOWED}, got {shown(budget)}")
    return policy.from_budget(wanted), None


_ALLOWED = "a number of tokens, 1 or more, or a share of the prompt between 0 and 1"

__all__ = ["ShareOfPrompt", "with_budget"]
