"""Static buffers with the step that runs on them, and a cache that is fed there."""

from __future__ import annotations

import weakref
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Protocol

import torch

from buzz.cache import BeehiveCache
from buzz.cache.offer import Offer
from buzz.decoding.step import StaticStep


class Run(Protocol):
    """How steps are run."""

    def usable(self, device: torch.device) -> bool:
        """Whether it can on this device."""

    def prepare(self, step: StaticStep) -> Callable[[], None]:
        """A function without arguments that does what `step()` does, on the same tensors; nothing is fed yet."""


class Uncaptured:
    """Runs a step as it stands, on any device."""

    def usable(self, device: torch.device) -> bool:
        return True

    def prepare(self, step: StaticStep) -> Callable[[], None]:
        return step


class Off:
    """Runs no steps: all decoding goes through the model's own forward."""

    def usable(self, device: torch.device) -> bool:
        return False

    def prepare(self, step: StaticStep) -> Callable[[], None]:
        raise RuntimeError("nothing is decoded in static memory")


@dataclass
class Arena:
    """Buffers with the step that runs on them. `holder` is the cache that lives there."""

    offers: Sequence[Offer]
    step: StaticStep
    run: Callable[[], None]
    holder: weakref.ref[BeehiveCache] | None = None

    def is_in_use(self, cache: BeehiveCache) -> bool:
        """Whether another cache than this one is in the middle of a call here, in another thread."""
        holder = None if self.holder is None else self.holder()
        return holder is not None and holder is not cache and holder.is_in_call

    @property
    def nbytes(self) -> int:
        """On the device that has most of it."""
        of = Counter[torch.device]()
        for buffers, _ in self.offers:
            of[buffers.keys.device] += buffers.nbytes
        return max(of.values())


class Session:
    """One cache in its arena, being fed token after token."""

    def __init__(self, arena: Arena, cache: BeehiveCache, known_positions: int | None) -> None:
        self._arena, self._cache, self._known = arena, cache, known_positions
        self._due = False
        self._ahead = 0  # of the tokens that rows have seen, where positions were given
        self._schedules = list(cache.integers.groups)
        self.logits = arena.step.logits

    def begin(self, positions: torch.Tensor | None) -> None:
        """Tell the device what the cache holds, which has moved in.

        Args:
            positions: int64 [1 or B], of the next token in the text; None: as many as the row has seen.
        """
        step = self._arena.step
        self._tell_lengths()
        if self._known is not None and positions is not None and self._cache.positions == "original":
            self._ahead = int(positions.max()) - max(self._cache.tokens)
        step.begin(torch.tensor(self._cache.tokens) if positions is None else positions)

    def _tell_lengths(self) -> None:
        self._arena.step.set_lengths([self._lengths(schedule) for schedule in self._schedules])

    def _lengths(self, schedule: int) -> list[int]:
        """Cached tokens of each row in the layers of a schedule."""
        return [length for length, _ in self._cache.integers.states(schedule)]

    def has_room(self) -> bool:
        """Whether one more token fits, and its position is known to the model."""
        schedule_of = self._cache.integers.schedule_of
        for buffers, layers in self._arena.offers:
            if max(self._lengths(schedule_of[layers[0]])) >= buffers.capacity:
                return False
        if self._known is None:
            return True
        positions = self._cache.lengths if self._cache.positions == "cache" else self._cache.tokens
        return max(positions) + self._ahead < self._known

    def feed(self, tokens: torch.Tensor, live: torch.Tensor | None) -> bool:
        """Start a step: int64 [B] tokens, and on the device whether they count (None: they do).

        Returns:
            Whether evictions are due after it. `finish()` must follow, once it is known that the tokens counted.
        """
        call = self._cache.begin(len(tokens), 1)
        step = self._arena.step
        step.ids.copy_(tokens[:, None])
        if live is not None:
            step.live.copy_(live)
        self._arena.run()
        self._due = any(call.steps[schedule].evictions for schedule in self._schedules)
        return self._due

    def finish(self) -> None:
        """End the step: all layers evict together, and the device learns what is left."""
        self._cache.finish()
        if self._due:
            self._tell_lengths()
