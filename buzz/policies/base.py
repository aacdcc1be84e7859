"""What every eviction policy is: integers in, slot indices out."""

from __future__ import annotations

import dataclasses
from bisect import bisect_left
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any, ClassVar, Literal

import torch

from buzz.policies.held import Held
from buzz.policies.lengths import Lengths, near
from buzz.policies.numbers import number
from buzz.policies.parameters import base_of_logs, choice, flag, integer_within, number_within
from buzz.policies.places import Places
from buzz.policies.specs import ScoreSpec
from buzz.rows import Rows
from buzz.words import hint, shown

Scope = Literal["head", "layer", "model"]

LONGEST = 2**31 - 1  # tokens: the lengths of static memory are int32


class _AlsoOfTheClass:
    """A method for instances that can be called on their class too: then on an instance with default parameters.

    What Python has for methods (`classmethod`, plain functions) is bound to one of the two whichever is asked.
    """

    def __init__(self, method: Any) -> None:
        self._method = method
        self.__doc__ = method.__doc__

    def __get__(self, policy: Policy | None, family: type[Policy]) -> Any:
        return self._method.__get__(family() if policy is None else policy)


@dataclass(frozen=True, repr=False)
class Policy(Lengths):
    """Which slots of a KV cache stay. Frozen, hashable, free of state: all state is `(length, sampled)`.

    A cache of one head holds `length` slots, oldest first; `sampled` is what the last eviction left in its plan: for
    BUZZ how many slots, right after the sink, were kept by earlier evictions (most others pass 0). Every head of a
    layer keeps the same number of slots, unless heads share (`scope`).

    Integers, numbers and bools may be of numpy or torch as well; a policy holds Python's own. A bool is no integer.

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
    # Smallest legal value of each integer parameter, and the largest one where that is not `LONGEST`. A parameter whose
    # default is None may be None as well.
    least: ClassVar[dict[str, int]] = {}
    most: ClassVar[dict[str, int]] = {}
    # Smallest and largest legal value of each parameter that is a number; the words that a parameter may be. Parameters
    # whose default is a bool are bools.
    ranges: ClassVar[dict[str, tuple[float, float]]] = {}
    choices: ClassVar[dict[str, tuple[str, ...]]] = {}

    def __post_init__(self) -> None:
        for field in dataclasses.fields(self):
            name, value = field.name, getattr(self, field.name)
            where = f"{self.name}: {name}"
            if name == "logn_base":
                value = value if value is None else base_of_logs(where, value)
            elif name in self.least and not (value is None and field.default is None):
                value = integer_within(where, value, self.least[name], self.most.get(name, LONGEST))
            elif name in self.ranges and not (value is None and field.default is None):
                value = number_within(where, value, *self.ranges[name])
            elif name in self.choices and not (value is None and field.default is None):
                value = choice(where, value, self.choices[name])
            elif isinstance(field.default, bool):
                value = flag(where, value)
            object.__setattr__(self, name, value)

    def __repr__(self) -> str:
        fields = {field.name: getattr(self, field.name) for field in dataclasses.fields(self)}
        base = fields.pop("logn_base")
        fields |= {} if base is None else {"logn_base": base}
        return f"{type(self).__name__}({', '.join(f'{name}={value!r}' for name, value in fields.items())})"

    @property
    def score_spec(self) -> ScoreSpec | None:
        """The attention that `select` reads, or None: then attention weights are never computed."""
        return None

    @property
    def prompt_spec(self) -> ScoreSpec | None:
        """The same of a call of several tokens; a row of one token in it is a step. What it gives accumulates as
        `score_spec` says. None where a policy has no `score_spec`, or hears the second reading alone."""
        return self.score_spec

    @property
    def reads(self) -> frozenset[str]:
        """What else `select` and `share` look at: "keys", "values"; of the call that evicts, which must not be a decode
        step, "queries" and "projected" (`buzz.policies.held.Held` and `Asked`)."""
        return frozenset()

    @property
    def is_blind(self) -> bool:
        """Whether slots are chosen by their places alone."""
        return self.score_spec is None and not self.reads and self.echo_chunk is None

    @property
    def scope(self) -> Scope:
        """Which heads share their slots out: "head": none, all heads keep equally many, and `select` chooses them;
        "layer": those of a layer, "model": those of all layers that the policy decides over; then `share` does."""
        return "head"

    def longest_head(self, mean: int) -> int | None:
        """The most slots of a head while heads hold `mean` in the mean, where heads share; None: there is no bound."""
        return None

    @property
    def echo_chunk(self) -> int | None:
        """Calls of several tokens are read a second time, behind themselves, so many tokens at once (after KVzip,
        arXiv 2505.23416); None: they are read once.

        After a call whose evictions are due, its tokens are fed once more, in chunks, each right behind the call's last
        token; what the copies hold is dropped again. The largest attention that a token of the copy gives a slot says
        whether the slot is needed to tell the text again.
        """
        return None

    @property
    def decay(self) -> float:
        """What accumulated scores are multiplied by in every eviction."""
        return 1.0

    @property
    def positions(self) -> Literal["cache", "original"] | None:
        """The positions that a cache gives keys if it is not told; None: those of the model's family."""
        return None

    def heard(self, first: torch.Tensor | None, echo: torch.Tensor) -> torch.Tensor:
        """The scores of a call that was read twice, float32 as both are; they accumulate as `score_spec` says.

        Args:
            first: what `prompt_spec` asked for, [B, H, S]; None where it asked for nothing.
            echo: the largest attention that a slot got from a token of the copy, [B, H, S].
        """
        return echo

    def per_layer(self, layers: int) -> list[Policy]:
        """The policy of each of so many layers, the lowest first; one for all unless the policy says otherwise."""
        return [self] * layers

    def select(self, held: Held, length: int, sampled: int = 0) -> torch.Tensor:
        """The slots that stay when `plan(length, sampled)` is not None.

        A score that is not a number counts as less than any number: undefined attention keeps no slot.

        Args:
            held: of equal heads, [B, H, length].

        Returns:
            int64, ascending along the last axis: [B, H, kept], or [1, 1, kept] where the policy is blind
            (on the device of `held`, on the CPU where nothing is shown).
        """
        raise NotImplementedError

    @property
    def measured(self) -> bool:
        """Whether `share` needs the shares of the model's heads (`Held.shares`), which are measured beforehand."""
        return False

    def shortlist(self, length: int, sampled: int) -> int | None:
        """With scope "model", the most that `share` leaves a layer of so many slots a head, as a multiple of the mean.

        A layer that is done with such a call is cut to that much at once, so that no more is held until the last one
        is. None: there is no such bound, or what other slots are there makes a slot's worth.
        """
        return None

    def share(
        self, held: Held, places: Places, kept: int, length: int, sampled: int = 0, chosen: int | None = None
    ) -> torch.Tensor:
        """`select` where heads share: the places that stay, with `kept` slots a head in the mean.

        Args:
            held: of the pool of each row, [R, P].
            places: which slot of which head each place holds.
            kept, length: slots that a head keeps, and that it holds, in the mean; fewer than these.
            sampled: as of `plan(length, sampled)`.
            chosen: of one layer, with scope "model": so many are marked, `kept * shortlist` or all that there are, and
                among them are all that would stay of it with any other layers beside it; None: `kept`.

        Returns:
            bool [R, P], true in `(chosen or kept) * places.heads` taken places of a row, some of each head.
        """
        raise NotImplementedError

    @classmethod
    def select_rows(cls, policies: RowPolicies, held: Held, lengths: Rows, sampled: Rows) -> torch.Tensor:
        """`select` for rows with policies of this family and states of their own; all of them evict.

        State after state, with all rows of it together. A family whose rows seldom share a state can do better.

        Args:
            policies, lengths, sampled: of each of the R rows.
            held: of these rows, [R, H, L], L at least the longest row.

        Returns:
            int64 [R, H or 1, K], K the most slots that a row keeps. Row r's slots are the first `plan(...).kept`,
            ascending; what follows them is any slot.
        """
        states: dict[tuple[Policy, int, int], list[int]] = {}
        for row, state in enumerate(zip(policies, lengths, sampled, strict=True)):
            states.setdefault(state, []).append(row)
        chosen: list[tuple[torch.Tensor, torch.Tensor]] = []
        for (policy, length, sample), rows in states.items():
            index = Rows(rows).on(held.device)
            chosen.append((index, policy.select(held.rows(index, length), length, sample)))
        first, heads = chosen[0][1], max(slots.shape[1] for _, slots in chosen)
        together = first.new_zeros(len(policies), heads, max(slots.shape[2] for _, slots in chosen))
        for index, slots in chosen:
            together[index, :, : slots.shape[2]] = slots.expand(len(index), heads, -1)
        return together

    @property
    def sizable(self) -> bool:
        """Whether `from_budget` can give the policy another mean cache length."""
        return self.bounded

    @_AlsoOfTheClass
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
        return self.unfitted(**params)._fit(wanted, frozenset(params))

    @_AlsoOfTheClass
    def least_budget(self, **params: Any) -> int:
        """The smallest whole number of tokens that `from_budget` takes with these parameters; it takes all above, too.

        Raises:
            ValueError: it takes none, or the parameters leave nothing to fit. TypeError: no such parameter.
        """

        def takes(tokens: int) -> bool:
            try:
                self.from_budget(tokens, **params)
            except ValueError:
                return False
            return True

        high = next((tokens for tokens in (2**power for power in range(31)) if takes(tokens)), LONGEST)
        low = high // 2 + 1
        least = low + bisect_left(range(low, high), True, key=takes)
        self.from_budget(least, **params)  # for its error, if none is taken
        return least

    @_AlsoOfTheClass
    def unfitted(self, **params: Any) -> Policy:
        """The policy with these parameters, before a budget has decided those that they would be checked against."""
        return dataclasses.replace(self, **{**self._widest(), **params})

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
