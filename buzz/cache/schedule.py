"""When rows evict: Python integers only, so that nothing waits for a device."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from typing import ClassVar

import torch

from buzz.cache.heads import Heads
from buzz.cache.per_row import PerRow, policies_of_rows
from buzz.policies import Held, Plan, Policy, RowPolicies, ScoreSpec
from buzz.rows import Rows

_ROOM = 16  # buffers that grow have room for one part in so many more slots than they hold,
_LEAST_ROOM = 16  # and for so many at least
_OF_CALL = {"queries", "projected"}  # what policies read of the call that evicts, not of what slots hold


@dataclass(frozen=True)
class Eviction:
    """One eviction of the rows of one policy in one state: `rows` are batch indices, None means all of them."""

    policy: Policy
    rows: Rows | None
    length: int
    sampled: int
    plan: Plan

    ends: ClassVar[None] = None  # slots that each row keeps, where they differ

    @property
    def kept(self) -> int:
        """Slots that a row keeps."""
        return self.plan.kept

    def select(self, held: Held, device: torch.device, layers: int = 1) -> torch.Tensor:
        """The slots that stay, on the device, for so many layers at once: int64 [layers * R, H, kept] or [1, 1, kept].

        Args:
            held: of [layers * R, H, length], layer by layer.
        """
        return self.policy.select(held, self.length, self.sampled).to(device, non_blocking=True)

    def apart(self, slots: torch.Tensor, layers: int) -> Iterator[tuple[int, Eviction, torch.Tensor]]:
        """Of what `select` gave: a layer, this eviction, and its slots int64 [R or 1, H or 1, kept] there."""
        for layer in range(layers):
            yield layer, self, slots if len(slots) == 1 else slots.unflatten(0, (layers, -1))[layer]


@dataclass(frozen=True)
class Ragged:
    """Several evictions of one call as one, in the order of the rows; None means all of them.

    Attributes:
        length: slots of the longest row. kept: slots that a row keeps, at the most. ends: of each row.
    """

    evictions: Sequence[Eviction]
    rows: Rows | None
    policies: RowPolicies
    lengths: Rows
    sampled: Rows
    ends: Rows
    _slots: dict[torch.device, torch.Tensor] = field(default_factory=dict)

    @classmethod
    def of(cls, evictions: Sequence[Eviction], batch: int) -> Ragged:
        """Of evictions in different rows of a batch."""
        items = sorted(((row, e) for e in evictions for row in e.rows or []), key=lambda item: item[0])
        return cls(
            evictions,
            None if len(items) == batch else Rows(row for row, _ in items),
            RowPolicies(e.policy for _, e in items),
            Rows(e.length for _, e in items),
            Rows(e.sampled for _, e in items),
            Rows(e.plan.kept for _, e in items),
        )

    @property
    def length(self) -> int:
        return max(self.lengths)

    @property
    def kept(self) -> int:
        return max(self.ends)

    def select(self, held: Held, device: torch.device, layers: int = 1) -> torch.Tensor:
        """`Policy.select_rows` on the device, for so many layers at once: int64 [layers * R, H or 1, kept].

        Args:
            held: of [layers * R, H, length], layer by layer.
        """
        policies, lengths, sampled = self.policies, self.lengths, self.sampled
        select = type(policies[0]).select_rows
        if policies[0].is_blind:  # all layers share one answer
            if device not in self._slots:
                self._slots[device] = select(policies, Held(), lengths, sampled).to(device, non_blocking=True)
            return self._slots[device].repeat(layers, 1, 1) if layers > 1 else self._slots[device]
        if layers > 1:
            policies, lengths, sampled = RowPolicies(policies * layers), Rows(lengths * layers), Rows(sampled * layers)
        return select(policies, held, lengths, sampled).to(device)

    def apart(self, slots: torch.Tensor, layers: int) -> Iterator[tuple[int, Eviction, torch.Tensor]]:
        """Of what `select` gave: a layer, an eviction, and its slots int64 [rows of it, H or 1, kept] there."""
        rows = self.rows or range(len(self.lengths))
        for layer, part in enumerate(slots.unflatten(0, (layers, -1))):
            for eviction in self.evictions:
                own = [index for index, row in enumerate(rows) if row in (eviction.rows or [])]
                yield layer, eviction, part[own][:, :, : eviction.kept]


def as_one(evictions: Sequence[Eviction], batch: int) -> Eviction | Ragged | None:
    """What is done in one go, of evictions in different rows of a batch; None: nothing."""
    if len(evictions) > 1:
        return Ragged.of(evictions, batch)
    return evictions[0] if evictions else None


@dataclass(frozen=True)
class Step:
    """What one call means for the layers of one schedule, known before any tensor is touched.

    policies: of each row. starts: cached slots of each row before the call. counts: tokens that each row appends.
    heads: those that choose slots together, where other processes have some of them. several: whether a row has
    several.
    """

    policies: list[Policy]
    starts: Rows
    counts: Rows
    sampled: list[int]
    heads: Heads | None = None
    several: bool = False
    _positions: dict[tuple[torch.device, int], torch.Tensor] = field(default_factory=dict)

    @cached_property
    def ends(self) -> list[int]:
        """Slots of each row during the call."""
        return [start + count for start, count in zip(self.starts, self.counts, strict=True)]

    @cached_property
    def uniform(self) -> bool:
        """Whether all rows hold and append equally many tokens."""
        return len(set(zip(self.starts, self.counts, strict=True))) == 1

    @cached_property
    def evictions(self) -> list[Eviction]:
        """The evictions due after the call, at most one a row. A row that appended nothing was not called."""
        groups: dict[tuple[Policy, int, int], list[int]] = {}
        for row, state in enumerate(zip(self.policies, self.ends, self.sampled, strict=True)):
            if self.counts[row]:
                groups.setdefault(state, []).append(row)
        due = []
        for (policy, length, sampled), rows in groups.items():
            if (plan := policy.plan(length, sampled)) is not None:
                due.append(Eviction(policy, None if len(rows) == len(self.ends) else Rows(rows), length, sampled, plan))
        return due

    @cached_property
    def staying(self) -> list[int]:
        """Rows without an eviction."""
        gone = {row for eviction in self.evictions for row in eviction.rows or range(len(self.ends))}
        return [row for row in range(len(self.ends)) if row not in gone]

    @cached_property
    def moves(self) -> Eviction | Ragged | None:
        """All evictions as one: what is moved where the slots that stay get other buffers."""
        return as_one(self.evictions, len(self.ends))

    @cached_property
    def drops(self) -> Eviction | Ragged | None:
        """Those that let go of anything as one: what is moved in place."""
        dropping = [eviction for eviction in self.evictions if eviction.kept < eviction.length]
        return self.moves if len(dropping) == len(self.evictions) else as_one(dropping, len(self.ends))

    @cached_property
    def after(self) -> list[tuple[int, int]]:
        """`(length, sampled)` of each row after the call."""
        states = list(zip(self.ends, self.sampled, strict=True))
        for eviction in self.evictions:
            for row in range(len(states)) if eviction.rows is None else eviction.rows:
                states[row] = (eviction.plan.kept, eviction.plan.sampled)
        return states

    @cached_property
    def echoes(self) -> bool:
        """Whether the call's scores are what policies make of two readings (`Policy.heard`)."""
        return self.several and self.policies[0].echo_chunk is not None

    @cached_property
    def steps(self) -> Rows | None:
        """Rows of a single token beside longer texts that get other scores than a one-token call: they get those."""
        alike = not self.echoes and self.spec == self.score_spec
        if alike or not self.several or not self.scores or self.score_spec is None:
            return None
        return Rows(row for row, count in enumerate(self.counts) if count == 1) or None

    @cached_property
    def scores(self) -> bool:
        """Whether the call's scores are wanted: those of a single call are only when an eviction reads them."""
        spec = self.score_spec
        if spec is not None and spec.accumulate:
            return True
        return (spec is not None or self.echoes) and bool(self.evictions)

    @cached_property
    def reads_of_call(self) -> frozenset[str]:
        """What evictions read of the call itself, beside what slots hold (`buzz.policies.held.Asked`)."""
        return self.policies[0].reads & _OF_CALL if self.drops is not None else frozenset()

    @cached_property
    def spec(self) -> ScoreSpec | None:
        """The scores that attention must give in this call, or in the first reading of one that is read twice."""
        if not self.scores:
            return None
        return _of_rows([policy.prompt_spec for policy in self.policies]) if self.several else self.score_spec

    @cached_property
    def score_spec(self) -> ScoreSpec | None:
        """What the rows' policies want to see in one-token calls; `queries` is one number a row where they differ."""
        return _of_rows([policy.score_spec for policy in self.policies])

    @cached_property
    def bound(self) -> int:
        """Most slots of a row in one-token calls from here on, for ever; where there is no bound, those to allocate."""
        states = {(policy, *state) for policy, state in zip(self.policies, self.after, strict=True)}
        peaks = [policy.peak(length, sampled) for policy, length, sampled in states]
        bounded = [peak for peak in peaks if peak is not None]
        return max(bounded) if len(bounded) == len(peaks) else self._grown

    @cached_property
    def capacity(self) -> int:
        """Slots to allocate: a share more than there are, so that a growing cache is rarely copied, up to the bound."""
        return min(self._grown, self.bound)

    @property
    def _grown(self) -> int:
        longest = max(length for length, _ in self.after)
        return longest + max(_LEAST_ROOM, longest // _ROOM)

    def positions(self, columns: int, device: torch.device) -> torch.Tensor:
        """Slot that each query of the call sits in: int64 [1, columns] if the rows agree, else [B, columns].

        Queries past a row's end get any slot that the call has.
        """
        key = (device, columns)
        if key not in self._positions:
            starts = self.starts.on(device)[: 1 if self.uniform else None, None]
            slots = starts + torch.arange(columns, device=device)
            self._positions[key] = slots.clamp(max=max(1, *self.ends) - 1)
        return self._positions[key]


def _of_rows(specs: Sequence[ScoreSpec | None]) -> ScoreSpec | None:
    """What the rows of a call ask for, which differ in `queries` at the most."""
    if specs[0] is None or len(set(specs)) == 1:
        return specs[0]
    return specs[0]._replace(queries=tuple(spec.queries for spec in specs))  # type: ignore[union-attr, misc]


class Schedule:
    """The states of all rows in the layers that share their policies.

    Raises:
        ValueError: as many policies as rows are needed.
    """

    def __init__(self, policy: Policy | PerRow, rows: int) -> None:
        self.policies = policies_of_rows(policy, rows)
        if len(self.policies) != rows:
            raise ValueError(f"the call has {rows} rows, got policies for {len(self.policies)}")
        self.states: list[tuple[int, int]] = [(0, 0)] * rows
        self.evictions = [0] * rows

    def open(self, counts: Sequence[int], heads: Heads | None = None, several: bool = False) -> Step:
        """The step of a call that appends counts[b] tokens to row b.

        Args:
            heads: how they are spread over processes.
            several: whether a row has several tokens.
        """
        lengths, sampled = Rows(s[0] for s in self.states), [s[1] for s in self.states]
        together = heads if self.policies[0].across_heads else None
        return Step(self.policies, lengths, Rows(counts), sampled, together, several)

    def close(self, step: Step) -> None:
        """The call is over in every layer."""
        self.states = step.after
        for eviction in step.evictions:
            for row in range(len(self.states)) if eviction.rows is None else eviction.rows:
                self.evictions[row] += eviction.plan.kept < eviction.length

    def take(self, rows: Sequence[int]) -> None:
        """Make row i what row rows[i] was."""
        self.policies = [self.policies[row] for row in rows]
        self.states = [self.states[row] for row in rows]
        self.evictions = [self.evictions[row] for row in rows]
