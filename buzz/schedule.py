"""When rows evict: Python integers only, so that nothing waits for a device."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import cached_property

import torch

from buzz.policies import Plan, Policy, ScoreSpec


@dataclass(frozen=True)
class Eviction:
    """One eviction of the rows that are in the same state: `rows` are batch indices, None means all of them."""

    rows: list[int] | None
    length: int
    sampled: int
    plan: Plan


@dataclass(frozen=True)
class Step:
    """What one call means for the layers of one policy, known before any tensor is touched.

    starts: cached slots of each row before the call. counts: tokens that each row appends.
    """

    policy: Policy
    starts: list[int]
    counts: list[int]
    sampled: list[int]
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
        groups: dict[tuple[int, int], list[int]] = {}
        for row, (state, count) in enumerate(zip(zip(self.ends, self.sampled, strict=True), self.counts, strict=True)):
            if count:
                groups.setdefault(state, []).append(row)
        due = []
        for (length, sampled), rows in groups.items():
            if (plan := self.policy.plan(length, sampled)) is not None:
                due.append(Eviction(None if len(rows) == len(self.ends) else rows, length, sampled, plan))
        return due

    @cached_property
    def after(self) -> list[tuple[int, int]]:
        """`(length, sampled)` of each row after the call."""
        states = list(zip(self.ends, self.sampled, strict=True))
        for eviction in self.evictions:
            for row in range(len(states)) if eviction.rows is None else eviction.rows:
                states[row] = (eviction.plan.kept, eviction.plan.sampled)
        return states

    @cached_property
    def spec(self) -> ScoreSpec | None:
        """The scores that this call must give: those of a single call are wanted only when an eviction reads them."""
        spec = self.policy.score_spec
        return spec if spec is None or spec.accumulate or self.evictions else None

    @cached_property
    def capacity(self) -> int:
        """Slots a buffer needs from here on: the policy's bound, or room to grow where there is none."""
        longest = max(length for length, _ in self.after)
        peaks = [self.policy.peak(length, sampled) for length, sampled in set(self.after)]
        bounded = [peak for peak in peaks if peak is not None]
        return max(bounded) if len(bounded) == len(peaks) else longest + max(128, longest // 8)

    def positions(self, columns: int, device: torch.device) -> torch.Tensor:
        """Slot that each query of the call sits in: int64 [1, columns] if the rows agree, else [B, columns].

        Queries past a row's end get any slot that the call has.
        """
        key = (device, columns)
        if key not in self._positions:
            starts = torch.tensor(self.starts[:1] if self.uniform else self.starts, device=device)[:, None]
            slots = starts + torch.arange(columns, device=device)
            self._positions[key] = slots.clamp(max=max(1, *self.ends) - 1)
        return self._positions[key]


class Schedule:
    """The states of all rows in the layers that share one policy."""

    def __init__(self, policy: Policy, rows: int) -> None:
        self.policy = policy
        self.states: list[tuple[int, int]] = [(0, 0)] * rows
        self.evictions = [0] * rows

    def open(self, counts: Sequence[int]) -> Step:
        """The step of a call that appends counts[b] tokens to row b."""
        return Step(self.policy, [s[0] for s in self.states], list(counts), [s[1] for s in self.states])

    def close(self, step: Step) -> None:
        """The call is over in every layer."""
        self.states = step.after
        for eviction in step.evictions:
            for row in range(len(self.states)) if eviction.rows is None else eviction.rows:
                self.evictions[row] += 1

    def take(self, rows: Sequence[int]) -> None:
        """Make row i what row rows[i] was."""
        self.states = [self.states[row] for row in rows]
        self.evictions = [self.evictions[row] for row in rows]
