"""What every eviction policy is: integers in, slot indices out."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any, ClassVar, NamedTuple

import torch

from buzz.policies.numbers import finite, integer, number
from buzz.rows import Rows
from buzz.words import hint, shown

LONGEST = 2**31 - 1  # tokens: the lengths of static memory are int32
_LONGEST_STREAM = 2**63  # slots: a policy that has not evicted by then never will
_ROUNDS = 2**16  # evictions after which a stream must have repeated itself


class Plan(NamedTuple):
    """What one eviction leaves: `kept` slots, the first `sampled` of those after the sink being the new sample."""

    kept: int
    sampled: int


class ScoreSpec(NamedTuple):
    """Which attention a policy wants to see.

    accumulate: scores add up over all calls since a slot was appended; False: the current call alone. A slot's sum is
        float32, of 24 bits: at 2**17 it no longer notices attention below 2**-7, and at 2**24 (a sink, after about as
        many queries) it stops growing. A policy that reads the scores of old slots, such as H2O, has this limit in an
        endless stream; BUZZ reads those of fresh slots alone.
    queries: how many of a call's last queries count; None: all of them. (One number per batch row where the rows'
    policies differ in it.)
    """

    accumulate: bool
    queries: int | tuple[int, ...] | None


class Steady(NamedTuple):
    """Cache length of an endless stream of one-token calls, in tokens: after a call on average, and at the most."""

    mean: float
    peak: int


class _Round(NamedTuple):
    """One-token calls up to an eviction: slots before the first, during the last, and those that the last one kept."""

    start: int
    during: int
    kept: int


def near(mean: float, tokens: float) -> bool:
    """Whether a mean cache length is what a budget asks for."""
    return abs(mean - tokens) <= max(1.0, 0.02 * tokens)


class _BoundOrDefault:
    """A method that also works on the class, where it acts on an instance with default parameters."""

    def __init__(self, function: Any) -> None:
        self.function = function
        self.__doc__ = function.__doc__

    def __get__(self, instance: Any, owner: type) -> Any:
        return self.function.__get__(owner() if instance is None else instance, owner)


@dataclass(frozen=True, repr=False)
class Policy:
    """Which slots of a KV cache stay. Frozen, hashable, free of state: all state is `(length, sampled)`.

    A cache of one head holds `length` slots, oldest first; `sampled` is what the last eviction left in its plan: for
    BUZZ how many slots, right after the sink, were kept by earlier evictions (most others pass 0). Every head of a
    layer keeps the same number of slots.

    Integers and numbers may be of numpy or torch as well; a policy holds Python's own. A bool is no integer.

    Args:
        logn_base: if given, attention logits are multiplied by ln(n) / ln(logn_base), n the number of keys in the
            row's cache during the call (the log-n scaling of the BUZZ paper). Must be finite and above 1.

    Raises:
        TypeError: a parameter is not of its type. ValueError: a parameter is out of its range.
    """

    logn_base: float | None = dataclasses.field(default=None, kw_only=True)

    name: ClassVar[str]
    # Whether what a head keeps depends on the scores of the layer's other heads: `select` must then see them all.
    across_heads: ClassVar[bool] = False
    # Smallest legal value of each integer parameter, and the largest one where that is not `LONGEST`.
    least: ClassVar[dict[str, int]] = {}
    most: ClassVar[dict[str, int]] = {}

    def __post_init__(self) -> None:
        for name, low in self.least.items():
            value, high = integer(getattr(self, name)), self.most.get(name, LONGEST)
            if value is None:
                raise TypeError(f"{self.name}: {name} must be an integer, got {shown(getattr(self, name))}")
            if value < low:
                raise ValueError(f"{self.name}: {name} must be at least {low}, got {shown(value)}")
            if value > high:
                raise ValueError(f"{self.name}: {name} must be at most {high}, got {shown(value)}")
            object.__setattr__(self, name, value)
        if self.logn_base is None:
            return
        base = number(self.logn_base)
        if base is None:
            raise TypeError(f"{self.name}: logn_base must be a number, got {shown(self.logn_base)}")
        if not base > 1:
            raise ValueError(f"{self.name}: logn_base must be above 1, got {shown(base)}")
        if not finite(base):
            raise ValueError(f"{self.name}: logn_base must be finite, got {shown(base)}")
        object.__setattr__(self, "logn_base", base)

    def __repr__(self) -> str:
        fields = {field.name: getattr(self, field.name) for field in dataclasses.fields(self)}
        base = fields.pop("logn_base")
        fields |= {} if base is None else {"logn_base": base}
        return f"{type(self).__name__}({', '.join(f'{name}={value!r}' for name, value in fields.items())})"

    @property
    def score_spec(self) -> ScoreSpec | None:
        """The attention that `select` reads, or None: then attention weights are never computed."""
        return None

    def per_layer(self, layers: int) -> list[Policy]:
        """The policy of each of so many layers, the lowest first; one for all unless the policy says otherwise."""
        return [self] * layers

    def plan(self, length: int, sampled: int = 0) -> Plan | None:
        """The eviction due after a call that left `length` slots, or None. Integers only; never looks at scores.

        Nothing is due at length 0; what is due at a length is due, with the same `sampled`, at every greater length;
        and a `bounded` policy has something due at some length. `peak` and `steady` jump to the next eviction by this.
        """
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

        State after state, with all rows of it together. A family whose rows seldom share a state can do better.

        Args:
            policies, lengths, sampled: of each of the R rows.
            scores: float32 [R, H, L], L at least the longest row; may be None if `score_spec` is None.

        Returns:
            int64 [R, H or 1, K], K the most slots that a row keeps. Row r's slots are the first `plan(...).kept`,
            ascending; what follows them is any slot.
        """
        states: dict[tuple[Policy, int, int], list[int]] = {}
        for row, state in enumerate(zip(policies, lengths, sampled, strict=True)):
            states.setdefault(state, []).append(row)
        chosen: list[tuple[torch.Tensor, torch.Tensor]] = []
        for (policy, length, sample), rows in states.items():
            index = Rows(rows).on(torch.device("cpu") if scores is None else scores.device)
            seen = None if scores is None else scores.index_select(0, index)[..., :length]
            chosen.append((index, policy.select(seen, length, sample)))
        first, heads = chosen[0][1], 1 if scores is None else scores.shape[1]
        together = first.new_zeros(len(policies), heads, max(slots.shape[2] for _, slots in chosen))
        for index, slots in chosen:
            together[index, :, : slots.shape[2]] = slots.expand(len(index), heads, -1)
        return together

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
        rounds, _ = self._rounds(length, sampled)
        return max(one.during for one in rounds)  # the first of them is longer than `length`

    def steady(self) -> Steady | None:
        """Mean and peak length after a call once an endless stream has settled; None: it never does."""
        if not self.bounded:
            return None
        rounds, again = self._rounds(0, 0)
        cycle = rounds[again:]
        # The calls of a round leave start + 1, start + 2, ..., during - 1 slots, and the last one what it keeps.
        total = sum((one.during - one.start - 1) * (one.start + one.during) // 2 + one.kept for one in cycle)
        return Steady(total / sum(one.during - one.start for one in cycle), max(one.during - 1 for one in cycle))

    def _rounds(self, length: int, sampled: int) -> tuple[list[_Round], int]:
        """One-token calls, from eviction to eviction, until a state comes back: the rounds, and the first that repeats.

        Raises:
            NotImplementedError: they do not repeat, as where `sampled` counts on: the policy must say its own figures.
        """
        rounds: list[_Round] = []
        seen: dict[tuple[int, int], int] = {}
        while (length, sampled) not in seen:
            if len(rounds) == _ROUNDS:
                raise NotImplementedError(
                    f"{self.name}: its states do not repeat within {_ROUNDS} evictions; write peak and steady for it"
                )
            seen[length, sampled] = len(rounds)
            during = self._due(length, sampled)
            plan = self.plan(during, sampled)
            assert plan is not None
            rounds.append(_Round(length, during, plan.kept))
            length, sampled = plan
        return rounds, seen[length, sampled]

    def _due(self, length: int, sampled: int) -> int:
        """Slots in the call that evicts next, if one-token calls follow from this state.

        The least length above this one with a plan: doubled steps until there is one, then halved ones.
        """
        step = 1
        while self.plan(length + step, sampled) is None:
            step *= 2
            if step > _LONGEST_STREAM:
                raise NotImplementedError(f"{self.name}: is bounded, but evicts nothing of {length + step} slots")
        low, high = length + step // 2, length + step  # no plan, unless it is the state itself; a plan
        while high - low > 1:
            middle = (low + high) // 2
            low, high = (middle, high) if self.plan(middle, sampled) is None else (low, middle)
        return high

    @_BoundOrDefault
    def from_budget(self, tokens: float, **params: Any) -> Policy:
        """The policy whose steady mean cache length is closest to a budget.

        Called on an instance, the parameters that are not fitted stay as they are; called on the class, they have
        their defaults.

        Args:
            tokens: wanted mean number of cached tokens per head, after a call.
            params: parameters to hold fixed at these values.

        Raises:
            ValueError: no parameters come near: the budget is below what the fixed parameters need, or they leave
                nothing to fit. TypeError: no number, or no such parameter.
        """
        self.refuse_unknown(params)
        wanted = number(tokens)
        if wanted is None:
            raise TypeError(f"{self.name}: a budget must be a number of tokens, got {shown(tokens)}")
        if not wanted >= 1:
            raise ValueError(f"{self.name}: a budget must be at least 1 token, got {shown(wanted)}")
        if wanted > LONGEST:
            raise ValueError(f"{self.name}: a budget must be at most {LONGEST} tokens, got {shown(wanted)}")
        return dataclasses.replace(self, **{**self._widest(), **params})._fit(wanted, frozenset(params))

    def _widest(self) -> dict[str, int]:
        """Parameters that a budget decides, so that those held beside them are not checked against their old values."""
        return {}

    def _fit(self, tokens: float, fixed: frozenset[str]) -> Policy:
        """`from_budget` for one family; parameters named in `fixed` must not change."""
        raise NotImplementedError

    def _as_held(self, tokens: float, mean: float, held: Iterable[str]) -> Policy:
        """The policy itself, where all that could be fitted is fixed: if its mean is what the budget asks for."""
        if not near(mean, tokens):
            what = ", ".join(f"{name}={getattr(self, name)}" for name in held)
            raise ValueError(
                f"{self.name}: a budget of {tokens:g} tokens leaves nothing to fit: {what} holds {mean:g} tokens"
            )
        return self

    @classmethod
    def refuse_unknown(cls, params: Iterable[str]) -> None:
        """Raises TypeError for names that are no parameters: all of them, each with the nearest one that is."""
        known = [field.name for field in dataclasses.fields(cls)]
        wrong = [f"{shown(param)}{hint(param, known)}" for param in params if param not in known]
        if wrong:
            noun = "parameter" if len(wrong) == 1 else "parameters"
            raise TypeError(f"{cls.name}: unknown {noun} {', '.join(wrong)}, it takes {', '.join(known)}")


class RowPolicies(tuple[Policy, ...]):
    """One policy per row, all of one family."""

    def column(self, name: str, device: torch.device) -> torch.Tensor:
        """A parameter of each row's policy as int64 [R, 1, 1], brought to the device once."""
        known: dict[str, Rows] = self.__dict__.setdefault("_columns", {})
        if name not in known:
            known[name] = Rows(getattr(policy, name) for policy in self)
        return known[name].on(device)[:, None, None]
