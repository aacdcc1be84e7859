"""What every eviction policy is: integers in, slot indices out."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, ClassVar, NamedTuple

import torch
import torch.nn.functional as F

from buzz.rows import Rows


class Plan(NamedTuple):
    """What one eviction leaves: `kept` slots, the first `sampled` of those after the sink being the new sample."""

    kept: int
    sampled: int


class ScoreSpec(NamedTuple):
    """Which attention a policy wants to see.

    accumulate: scores add up over all calls since a slot was appended; False: the current call alone.
    queries: how many of a call's last queries count; None: all of them. (One number per batch row where the rows'
    policies differ in it.)
    """

    accumulate: bool
    queries: int | tuple[int, ...] | None


class Steady(NamedTuple):
    """Cache length of an endless stream of one-token calls, in tokens: after a call on average, and at the most."""

    mean: float
    peak: int


class _BoundOrDefault:
    """A method that also works on the class, where it acts on an instance with default parameters."""

    def __init__(self, function: Any) -> None:
        self.function = function
        self.__doc__ = function.__doc__

    def __get__(self, instance: Any, owner: type) -> Any:
        return self.function.__get__(owner() if instance is None else instance, owner)


@dataclass(frozen=True)
class Policy:
    """Which slots of a KV cache stay. Frozen, hashable, free of state: all state is `(length, sampled)`.

    A cache of one head holds `length` slots, oldest first; `sampled` is what the last eviction left in its plan: for
    BUZZ how many slots, right after the sink, were kept by earlier evictions (most others pass 0). Every head of a
    layer keeps the same number of slots.

    Args:
        logn_base: if given, attention logits are multiplied by ln(n) / ln(logn_base), n the number of keys in the
            row's cache during the call (the log-n scaling of the BUZZ paper). Must be above 1.

    Raises:
        TypeError: a parameter is not of its type. ValueError: a parameter is out of its range.
    """

    logn_base: float | None = dataclasses.field(default=None, kw_only=True)

    name: ClassVar[str]
    # Whether what a head keeps depends on the scores of the layer's other heads: `select` must then see them all.
    across_heads: ClassVar[bool] = False
    # Smallest legal value of each integer parameter.
    least: ClassVar[dict[str, int]] = {}

    def __post_init__(self) -> None:
        for name, low in self.least.items():
            value = getattr(self, name)
            if isinstance(value, bool) or not isinstance(value, int):
                raise TypeError(f"{self.name}: {name} must be an integer, got {value!r}")
            if value < low:
                raise ValueError(f"{self.name}: {name} must be at least {low}, got {value}")
        base = self.logn_base
        if base is None:
            return
        if isinstance(base, bool) or not isinstance(base, int | float):
            raise TypeError(f"{self.name}: logn_base must be a number, got {base!r}")
        if not base > 1:
            raise ValueError(f"{self.name}: logn_base must be above 1, got {base}")

    @property
    def score_spec(self) -> ScoreSpec | None:
        """The attention that `select` reads, or None: then attention weights are never computed."""
        return None

    def per_layer(self, layers: int) -> list[Policy]:
        """The policy of each of so many layers, the lowest first; one for all unless the policy says otherwise."""
        return [self] * layers

    def plan(self, length: int, sampled: int = 0) -> Plan | None:
        """The eviction due after a call that left `length` slots, or None. Integers only; never looks at scores."""
        raise NotImplementedError

    def select(self, scores: torch.Tensor | None, length: int, sampled: int = 0) -> torch.Tensor:
        """The slots that stay when `plan(length, sampled)` is not None.

        A score that is not a number counts as less than any number: undefined attention keeps no slot.

        Args:
            scores: float32 [B, H, length]; may be None if `score_spec` is None.

        Returns:
            int64, ascending along the last axis: [B, H, kept], or [1, 1, kept] where scores play no part
            (on the device of `scores`, on the CPU without them).
        """
        raise NotImplementedError

    @classmethod
    def select_rows(
        cls, policies: RowPolicies, scores: torch.Tensor | None, lengths: Rows, sampled: Rows
    ) -> torch.Tensor:
        """`select` for rows with policies of this family and states of their own; all of them evict.

        Args:
            policies, lengths, sampled: of each of the R rows.
            scores: float32 [R, H, L], L at least the longest row; may be None if `score_spec` is None.

        Returns:
            int64 [R, H or 1, K], K the most slots that a row keeps. Row r's slots are the first `plan(...).kept`,
            ascending; what follows them is any slot.
        """
        rows = []
        for row, (policy, length, sample) in enumerate(zip(policies, lengths, sampled, strict=True)):
            seen = None if scores is None else scores[row : row + 1, :, :length]
            rows.append(policy.select(seen, length, sample))
        width = max(slots.shape[2] for slots in rows)
        return torch.cat([F.pad(slots, (0, width - slots.shape[2])) for slots in rows])

    def advance(self, length: int, sampled: int = 0) -> tuple[int, int]:
        """`(length, sampled)` once the eviction due at that state, if any, has run."""
        plan = self.plan(length, sampled)
        return (length, sampled) if plan is None else (plan.kept, plan.sampled)

    def trace(self, prompt: int, steps: int) -> list[int]:
        """Cache length after a call with `prompt` tokens, then after each of `steps` one-token calls (1 + steps)."""
        state = self.advance(prompt)
        lengths = [state[0]]
        for _ in range(steps):
            state = self.advance(state[0] + 1, state[1])
            lengths.append(state[0])
        return lengths

    @property
    def bounded(self) -> bool:
        """Whether a stream of one-token calls stays under some length."""
        return True

    @property
    def sizable(self) -> bool:
        """Whether `from_budget` can give the policy another mean cache length."""
        return self.bounded

    def peak(self, length: int, sampled: int = 0) -> int | None:
        """Most slots held during any call if one-token calls follow from this state for ever; None: no bound."""
        if not self.bounded:
            return None
        highest = length
        for _, during, _ in self._stream(length, sampled):
            highest = max(highest, during)
        return highest

    def steady(self) -> Steady | None:
        """Mean and peak length after a call once an endless stream has settled; None: it never does."""
        if not self.bounded:
            return None
        lengths: list[int] = []
        start: dict[tuple[int, int], int] = {}
        for state, _, after in self._stream(0, 0):
            start.setdefault(state, len(lengths))
            lengths.append(after[0])
        cycle = lengths[start[after] :]
        return Steady(sum(cycle) / len(cycle), max(cycle))

    def _stream(self, length: int, sampled: int) -> Iterator[tuple[tuple[int, int], int, tuple[int, int]]]:
        """One-token calls from a state until a state left by an eviction comes back: (state, length during, next)."""
        state, seen = (length, sampled), {(length, sampled)}
        while True:
            grown = (state[0] + 1, state[1])
            after = self.advance(*grown)
            yield state, grown[0], after
            if after[0] < grown[0]:  # only evictions can close a cycle, so only their outcomes are remembered
                if after in seen:
                    return
                seen.add(after)
            state = after

    @_BoundOrDefault
    def from_budget(self, tokens: int, **params: Any) -> Policy:
        """The policy whose steady mean cache length is closest to a budget.

        Called on an instance, the parameters that are not fitted stay as they are; called on the class, they have
        their defaults.

        Args:
            tokens: wanted mean number of cached tokens per head, after a call.
            params: parameters to hold fixed at these values.

        Raises:
            ValueError: no parameters come near: the budget is below what the fixed parameters need.
        """
        fixed = dataclasses.replace(self, **params)
        if isinstance(tokens, bool) or not isinstance(tokens, int | float):
            raise TypeError(f"{self.name}: a budget must be a number of tokens, got {tokens!r}")
        if tokens < 1:
            raise ValueError(f"{self.name}: a budget must be at least 1 token, got {tokens}")
        return fixed._fit(tokens, frozenset(params))

    def _fit(self, tokens: float, fixed: frozenset[str]) -> Policy:
        """`from_budget` for one family; parameters named in `fixed` must not change."""
        raise NotImplementedError


class RowPolicies(tuple[Policy, ...]):
    """One policy per row, all of one family."""

    def column(self, name: str, device: torch.device) -> torch.Tensor:
        """A parameter of each row's policy as int64 [R, 1, 1], brought to the device once."""
        known: dict[str, Rows] = self.__dict__.setdefault("_columns", {})
        if name not in known:
            known[name] = Rows(getattr(policy, name) for policy in self)
        return known[name].on(device)[:, None, None]
