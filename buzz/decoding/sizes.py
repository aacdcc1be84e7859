"""How much static memory a cache needs, and of which kind."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Literal, NamedTuple

from buzz.cache import BeehiveCache
from buzz.policies import Policy, Scope

_ROUND, _ROUND_UNBOUNDED = 64, 512  # slots; coarse where a cache grows with its text, so that few sizes occur
_AHEAD = 4096  # most steps that such a cache gets room for in advance; a bound above this counts as none


class Received(NamedTuple):
    """What a slot's score is made of; see `ScoreSpec`."""

    of: Literal["sum", "mean", "largest"]
    beyond: int


class Key(NamedTuple):
    """What buffers and a captured step depend on.

    schedules, bases: of each layer: its schedule and its log-n base. capacities, scores: of each schedule: slots, and
    the kind of scores. received: of each schedule, what scores are made of: `of` and `beyond` of its `ScoreSpec`; None
    where there are none. scopes, longest: of each schedule, which heads share, and the most slots of one that does.
    """

    rows: int
    schedules: tuple[int, ...]
    capacities: tuple[int, ...]
    scores: tuple[str | None, ...]
    received: tuple[Received | None, ...]
    bases: tuple[float | None, ...]
    slot_positions: bool
    scopes: tuple[Scope, ...]
    longest: tuple[int, ...]

    def serves(self, other: Key) -> bool:
        """Whether what this one asks for is as good for the other, with room to spare perhaps."""
        alike = self._replace(capacities=(), longest=()) == other._replace(capacities=(), longest=())
        sizes = zip((*self.capacities, *self.longest), (*other.capacities, *other.longest), strict=True)
        return alike and all(a >= b for a, b in sizes)


class Sizes:
    """The keys of caches."""

    def key(
        self, cache: BeehiveCache, rows: int, states: Mapping[int, list[tuple[int, int]]], steps: int, seen: int
    ) -> Key:
        """What a cache needs that will be fed so many tokens more.

        Args:
            states: of each schedule: `(length, sampled)` of each row.
            seen: most tokens that a row has seen.
        """
        capacities: list[int] = []
        scores: list[str | None] = []
        received: list[Received | None] = []
        scopes: list[Scope] = []
        longest: list[int] = []
        for schedule, layers in cache.integers.groups.items():
            policies = cache.integers.row_policies(schedule, rows)
            capacity = self._capacity(policies, states[schedule], steps, cache.storage.least_slots(layers[0]))
            spec = policies[0].score_spec
            if spec is None or (not spec.accumulate and not _evicts(policies, states[schedule], capacity)):
                scores.append(None)
                received.append(None)
            else:
                scores.append("kept" if spec.accumulate else "call")
                received.append(Received(spec.of, spec.beyond))
            capacities.append(capacity)
            scopes.append(policies[0].scope)
            longest.append(_longest(policies, capacity, seen))
        schedules = {layer: schedule for schedule, layers in cache.integers.groups.items() for layer in layers}
        return Key(
            rows=rows,
            schedules=tuple(schedules[layer] for layer in range(len(cache.layers))),
            capacities=tuple(capacities),
            scores=tuple(scores),
            received=tuple(received),
            bases=tuple(cache.logn_base(layer) for layer in range(len(cache.layers))),
            slot_positions=cache.positions == "cache",
            scopes=tuple(scopes),
            longest=tuple(longest),
        )

    def _capacity(self, policies: Sequence[Policy], states: Sequence[tuple[int, int]], steps: int, least: int) -> int:
        settled = [policy.steady() for policy in set(policies)]
        peaks = [steady.peak + 1 for steady in settled if steady is not None]  # during a call
        bound = _rounded(max(*peaks, least), _ROUND) if len(peaks) == len(settled) else None
        if bound is not None and bound <= _AHEAD:
            return bound
        longest = max(length for length, _ in states)
        wanted = _rounded(max(longest + min(steps, _AHEAD), least), _ROUND_UNBOUNDED)
        return wanted if bound is None else min(wanted, bound)


def _evicts(policies: Sequence[Policy], states: Sequence[tuple[int, int]], capacity: int) -> bool:
    """Whether an eviction comes before rows outgrow a capacity by one-token calls."""
    return any(  # what is due at a length is due at every greater one
        policy.bounded or (length < capacity and policy.plan(capacity, sampled) is not None)
        for policy, (length, sampled) in set(zip(policies, states, strict=True))
    )


def _longest(policies: Sequence[Policy], capacity: int, seen: int) -> int:
    """The most slots of a head in buffers of so many in the mean: as policies bound it, or all of its text."""
    if policies[0].scope == "head":
        return capacity
    bounds = [policy.longest_head(capacity) for policy in set(policies)]
    known = [bound for bound in bounds if bound is not None]
    most = max(known) if len(known) == len(bounds) else seen + capacity
    return 1 << (most - 1).bit_length()  # a loose bound costs nothing, and a step is compiled for each of them


def _rounded(slots: int, to: int) -> int:
    return -(-slots // to) * to
