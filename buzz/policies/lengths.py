"""How many slots a policy holds, by integers alone: after a call, at the most, and in the long run."""

from __future__ import annotations

from typing import ClassVar, NamedTuple

_LONGEST_STREAM = 2**63  # slots: a policy that has not evicted by then never will
_ROUNDS = 2**16  # evictions after which a stream must have repeated itself


class Plan(NamedTuple):
    """What one eviction leaves: `kept` slots, and an integer that the next one is told.

    sampled: of BUZZ, the first so many slots after the sink are the new sample; other policies keep a state of theirs.
    """

    kept: int
    sampled: int


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


class Lengths:
    """What follows from `plan`."""

    name: ClassVar[str]

    def plan(self, length: int, sampled: int = 0) -> Plan | None:
        """The eviction due after a call that left `length` slots, or None. Integers only; never looks at scores.

        Nothing is due at length 0; what is due at a length is due, with the same `sampled`, at every greater length;
        and a `bounded` policy has something due at some length. `peak` and `steady` jump to the next eviction by this.
        """
        raise NotImplementedError

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


__all__ = ["Lengths", "Plan", "Steady", "near"]
