"""Policies of a batch whose rows have parameters of their own."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from buzz.policies import Policy, Scope

_ALIKE = ("logn_base", "scope", "measured", "positions", "echo_chunk", "reads")  # what the policies of a batch agree in


@dataclass(frozen=True)
class PerRow:
    """One policy per batch row, all of one family, so that rows with budgets of their own share a batch.

    Raises:
        TypeError: not policies, or of several families. ValueError: none, or rows differ in what a batch has in common:
            log-n base, scope, measured shares, positions, a second reading, what is read, the attention for scores.
    """

    policies: tuple[Policy, ...]

    def __init__(self, policies: Sequence[Policy]) -> None:
        given = tuple(policies) if isinstance(policies, Iterable) else (None,)
        if not given:
            raise ValueError("PerRow needs a policy for every row, got none")
        if not all(isinstance(policy, Policy) for policy in given):
            raise TypeError("PerRow takes a list of buzz policies; build them with buzz.make_policy")
        object.__setattr__(self, "policies", given)
        if len({type(policy) for policy in self.policies}) > 1:
            names = ", ".join(sorted({policy.name for policy in self.policies}))
            raise TypeError(f"the rows of a batch need policies of one family, got {names}")
        for name in _ALIKE:
            if len({getattr(policy, name) for policy in self.policies}) > 1:
                what = "kind of budgets, measured or by worth" if name == "measured" else name
                raise ValueError(f"the rows of a batch need the same {what}")
        for name in ("score_spec", "prompt_spec"):
            specs = [getattr(policy, name) for policy in self.policies]
            if len({spec and spec._replace(queries=None) for spec in specs}) > 1:
                raise ValueError(f"the rows of a batch need the same attention for scores ({name})")

    @property
    def name(self) -> str:
        """Of the family."""
        return self.policies[0].name

    @property
    def logn_base(self) -> float | None:
        """Of all rows."""
        return self.policies[0].logn_base

    @property
    def scope(self) -> Scope:
        """Of all rows."""
        return self.policies[0].scope

    @property
    def measured(self) -> bool:
        """Whether any needs the shares of the model's heads."""
        return self.policies[0].measured

    @property
    def positions(self) -> str | None:
        """Of all rows."""
        return self.policies[0].positions

    @property
    def reads(self) -> frozenset[str]:
        """What all of them look at beside scores."""
        return self.policies[0].reads

    def per_layer(self, layers: int) -> list[PerRow]:
        """The policies of each of so many layers, the lowest first."""
        rows = [policy.per_layer(layers) for policy in self.policies]
        return [PerRow([row[layer] for row in rows]) for layer in range(layers)]


def policies_of_rows(policy: Policy | PerRow, rows: int) -> list[Policy]:
    """The policy of each of so many rows, if one is for all; else of as many as there are."""
    return list(policy.policies) if isinstance(policy, PerRow) else [policy] * rows
