"""The calls of a cache in integers: what each row holds in each layer, what was seen, and the call that is open."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict
from typing import Any

import torch

from buzz.cache.call import Call
from buzz.cache.columns import Columns
from buzz.cache.figures import Curve, Figures
from buzz.cache.heads import Heads
from buzz.cache.per_row import PerRow, policies_of_rows
from buzz.cache.schedule import Schedule, Step
from buzz.policies import Policy


class Calls:
    """Layers with equal policies share a schedule; schedules are numbered in the order of their first layers.

    Args:
        policies: of each layer.
        counted: the layers that figures in tokens speak of, the lowest first.

    Attributes:
        schedule_of: the schedule of each layer.
        groups: the layers of each schedule.
        counted: as given.
        columns: that were seen, pads included.
        tokens: that each row has seen, pads not counted; replaced and never changed.
        open: the call that has begun and not ended, if any.
        touched: whether a layer has taken in anything of it.
        ahead: whether calls that are over may still be taken back (`rewind`), as whoever makes them says.
        figures: of the calls so far. curve: all of them, where it is asked for.
    """

    def __init__(self, policies: Sequence[Policy | PerRow], counted: Sequence[int]) -> None:
        self._policies = list(dict.fromkeys(policies))  # of each schedule
        self.schedule_of = [self._policies.index(policy) for policy in policies]
        self.groups: dict[int, list[int]] = {}
        for layer, schedule in enumerate(self.schedule_of):
            self.groups.setdefault(schedule, []).append(layer)
        self.counted = list(counted)
        of_counted = [self.schedule_of[layer] for layer in counted]
        self._shares = [(schedule, of_counted.count(schedule)) for schedule in dict.fromkeys(of_counted)]
        self.columns = Columns()
        self.curve: Curve | None = None
        self.clear()

    def clear(self) -> None:
        """Nothing has been seen."""
        self._schedules: list[Schedule] = []
        self.columns.clear()
        self.tokens: list[int] = []
        self.open: Call | None = None
        self.touched = self.ahead = False
        self._passed = 0  # layers that the open call has passed
        self.figures = Figures()
        if self.curve is not None:
            self.curve = Curve()

    def begin(self, rows: int, columns: int, mask: torch.Tensor | None = None, heads: Heads | None = None) -> Call:
        """Open a call of `columns` tokens per row.

        Args:
            mask: [B or 1, columns], or [B or 1, at least columns seen + columns], nonzero where there is a token; None:
                everywhere. See `Columns.read`.
            heads: how the heads are spread over processes; None: they are not.

        Raises:
            RuntimeError: the call before was interrupted. ValueError: rows or mask do not fit; the mask says of columns
                that were seen something else than was said of them then.
        """
        if self.open is not None:
            raise RuntimeError("the call before was interrupted, so layers differ: reset() the cache and start again")
        if not self._schedules:
            self._schedules = [Schedule(policy, rows) for policy in self._policies]
            self.tokens = [0] * rows
        if rows != len(self.tokens):
            raise ValueError(f"the cache holds {len(self.tokens)} rows, the call has {rows}")
        tokens = None if mask is None else self.columns.read(mask, rows, columns)
        order, counts = None, [columns] * rows
        if tokens is not None:
            order = (~tokens).long().argsort(dim=1, stable=True)
            counts = tokens.sum(dim=1).tolist()
        steps = [schedule.open(counts, heads, max(counts) > 1) for schedule in self._schedules]
        self.touched = False
        first, counted = self.columns.seen, self.schedule_of[self.counted[0]]
        self.open = Call(columns, counts, steps, tokens, order, first, self.tokens, counted)
        return self.open

    def cancel(self) -> None:
        """Forget the open call, if no layer has taken in anything yet."""
        if not self.touched:
            self.open, self._passed = None, 0
            if not self.columns.seen:
                self._schedules, self.tokens = [], []  # the next call may have another number of rows

    def turn(self, call: Call) -> None:
        """Another call takes the place of the open one, of which layers have passed none: a copy of it, or it again."""
        self.open, self._passed = call, 0

    def pass_layer(self) -> bool:
        """One more layer is done with the open call; whether it was the last."""
        self._passed += 1
        return self._passed == len(self.schedule_of)

    def close(self, nbytes: int) -> None:
        """The open call is over in every layer, and so many bytes are allocated after it."""
        call = self.open
        assert call is not None
        for schedule, step in zip(self._schedules, call.steps, strict=True):
            schedule.close(step)
        self.columns.add(len(self.tokens), call.columns, call.tokens)
        self.tokens = [seen + count for seen, count in zip(self.tokens, call.counts, strict=True)]
        self.open, self._passed = None, 0
        lengths = self._mean_lengths()
        self.figures = self.figures.after(lengths, nbytes, step=call.columns == 1)
        if self.curve is not None:
            self.curve.add(lengths, nbytes)

    # What is known between calls.

    @property
    def is_empty(self) -> bool:
        """Whether there was no call yet, so that not even the number of rows is known."""
        return not self._schedules

    def policy(self, layer: int) -> Policy | PerRow:
        """The policy of one layer."""
        return self._policies[self.schedule_of[layer]]

    def row_policies(self, schedule: int, rows: int) -> list[Policy]:
        """The policy of each row in one schedule; before the first call, of a cache that will have so many rows."""
        if self._schedules:
            return list(self._schedules[schedule].policies)  # of the rows that there are now, in their order
        return policies_of_rows(self._policies[schedule], rows)

    def states(self, schedule: int) -> list[tuple[int, int]]:
        """`(length, sampled)` of each row in one schedule."""
        return list(self._schedules[schedule].states)

    def resting(self, schedule: int) -> Step:
        """A call that would append nothing in the layers of a schedule: what they hold, and the room that it needs."""
        return self._schedules[schedule].open([0] * len(self.tokens))

    def lengths(self, layer: int) -> list[int]:
        """Cached tokens of each row in one layer; none before the first call."""
        return [length for length, _ in self._schedules[self.schedule_of[layer]].states] if self._schedules else []

    def _mean_lengths(self) -> list[float]:
        """Cached tokens of each row, the mean over the counted layers (integers where all of them agree)."""
        if len(self._shares) == 1:
            return list(self.lengths(self.counted[0]))
        return self._mean([length for length, _ in schedule.states] for schedule in self._schedules)

    def _mean(self, figures: Iterable[list[int]]) -> list[float]:
        """The mean over the counted layers, of each row, of what each schedule has of each row."""
        by_schedule = list(figures)
        counted = [[layers * figure for figure in by_schedule[schedule]] for schedule, layers in self._shares]
        return [sum(row) / len(self.counted) for row in zip(*counted, strict=True)]

    def stats(self, nbytes: int) -> dict[str, Any]:
        """Figures so far, `nbytes` being allocated now; see `BeehiveCache.stats`."""
        figures = self.figures
        return {
            "mean_tokens": figures.mean_lengths,
            "peak_tokens": figures.peak_lengths,
            "evictions": self._mean(schedule.evictions for schedule in self._schedules) if self._schedules else [],
            "calls": figures.calls,
            "nbytes": nbytes,
            "mean_nbytes": figures.byte_sum / figures.steps if figures.steps else nbytes,
            "peak_nbytes": figures.byte_peak if figures.steps else nbytes,
        }

    # As they are saved.

    def state(self) -> dict[str, Any]:
        """What has been seen and is held, as JSON takes it; the rows' policies apart (`row_policies`)."""
        return {
            "columns": self.columns.state(),
            "tokens": self.tokens,
            "states": [schedule.states for schedule in self._schedules],
            "evictions": [schedule.evictions for schedule in self._schedules],
            "figures": self.figures._asdict(),
            "curve": None if self.curve is None else asdict(self.curve),
        }

    def restore(self, state: Mapping[str, Any], policies: Sequence[Sequence[Policy]]) -> None:
        """Take in a state as `state` gave it; nothing must have been seen.

        Args:
            policies: of each schedule, those of its rows.
        """
        self.columns.restore(state["columns"])
        self.tokens = list(state["tokens"])
        self._schedules = [Schedule(PerRow(rows), len(rows)) for rows in policies]
        for schedule, states, evictions in zip(self._schedules, state["states"], state["evictions"], strict=True):
            schedule.states = [(length, sampled) for length, sampled in states]
            schedule.evictions = list(evictions)
        figures: dict[str, Any] = {k: tuple(v) if isinstance(v, list) else v for k, v in state["figures"].items()}
        self.figures = Figures(**figures)
        self.curve = None if state["curve"] is None else Curve(**state["curve"])

    # What changes them besides calls.

    def take(self, rows: Sequence[int]) -> None:
        """Make row i what row rows[i] was."""
        for schedule in self._schedules:
            schedule.take(rows)
        self.tokens = [self.tokens[row] for row in rows]
        self.columns.take(rows)
        self.figures = self.figures.take(rows)
        if self.curve is not None:
            self.curve.take(rows)

    def mark(self) -> Any:
        """The state as it is, for `rewind`."""
        states = [schedule.states for schedule in self._schedules]
        return states, self.columns.seen, self.tokens, self.figures, 0 if self.curve is None else len(self.curve)

    def rewind(self, mark: Any) -> None:
        """Forget the calls since `mark()`: those wrote nothing that counts, and nothing was evicted."""
        marked, self.columns.seen, self.tokens, self.figures, recorded = mark
        for schedule, states in zip(self._schedules, marked, strict=True):
            schedule.states = states
        if self.curve is not None:
            self.curve.cut(recorded)
        self.open, self._passed = None, 0
