"""What a cache offers to those who serve its one-token calls themselves, in buffers that its layers share."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING, Any

import torch

from buzz.cache.compaction import Watch
from buzz.cache.schedule import Eviction, PerRow, Schedule
from buzz.cache.stack import Stack
from buzz.policies import Policy

if TYPE_CHECKING:
    from buzz.cache.call import Call
    from buzz.cache.columns import Columns
    from buzz.cache.figures import Curve, Figures
    from buzz.cache.layer import BeehiveLayer


class StackedCalls:
    """The part of a `BeehiveCache` that knows stacks.

    A call served elsewhere is `begin`, whatever writes its tokens and scores into the stacks, and `finish`. The
    cache's own calls work on stacks too.
    """

    layers: list[BeehiveLayer]
    on_evict: Callable[[int, Eviction, torch.Tensor], None] | None
    curve: Curve | None
    _owner: list[int]
    _policies: list[Policy | PerRow]
    _schedules: dict[int, Schedule]
    _stacks: Mapping[int, Stack]
    _columns: Columns
    _tokens: list[int]
    _figures: Figures
    _call: Call | None
    _passed: int

    def layer_lengths(self, layer: int) -> list[int]:
        """Cached tokens of each row in one layer."""
        raise NotImplementedError

    def _end(self, call: Call) -> None:
        """All layers have passed the call."""
        raise NotImplementedError

    def _watch(self, layers: Sequence[int]) -> Watch | None:
        """Who watches the evictions of these layers."""
        watch = self.on_evict
        return None if watch is None else lambda index, eviction, slots: watch(layers[index], eviction, slots)

    def _evict_stacks(self, call: Call) -> set[int]:
        """The evictions of a one-token call in the schedules whose layers live in one stack; gives their names."""
        done = set()
        for owner, layers in self.groups.items():
            stack = self._stacks[owner]
            members = [self.layers[layer] for layer in layers]
            if all(member.home is stack for member in members):
                received = stack.call_scores
                observed = [member.call_scores for member in members if member.call_scores is not None]
                if observed:  # not written to the stack by whoever served the call
                    received = torch.stack(observed)
                if call.steps[owner].evictions:
                    scores = None if received is None else received.flatten(0, 1)
                    stack.evict(call.steps[owner], scores, self._watch(layers))
                for member in members:
                    member.call_scores = None
                done.add(owner)
        return done

    @property
    def groups(self) -> dict[int, list[int]]:
        """The layers of each schedule, named by the first of them."""
        groups: dict[int, list[int]] = {}
        for layer, owner in enumerate(self._owner):
            groups.setdefault(owner, []).append(layer)
        return groups

    def row_policies(self, owner: int, rows: int) -> list[Policy]:
        """The policy of each row in one schedule, for a cache of so many rows."""
        policy = self._policies[owner]
        return list(policy.policies) if isinstance(policy, PerRow) else [policy] * rows

    def states(self, owner: int) -> list[tuple[int, int]]:
        """`(length, sampled)` of each row in one schedule."""
        return list(self._schedules[owner].states)

    @property
    def tokens(self) -> list[int]:
        """Tokens that each row has seen, pads not counted."""
        return list(self._tokens)

    def offer(self, stacks: Mapping[int, Stack]) -> None:
        """Let new buffers be allocated in the stack of each schedule; those in use stay where they are."""
        self._stacks = dict(stacks)
        for owner, layers in self.groups.items():
            for index, layer in enumerate(layers):
                self.layers[layer].offer(stacks[owner], index)

    def move_in(self) -> None:
        """Bring all layers to the stacks that were offered, which must have the room."""
        for layer, store in enumerate(self.layers):
            store.move_in(max(self.layer_lengths(layer)))

    def leave(self) -> None:
        """Bring the layers that live in stacks to buffers of their own."""
        for layer in self.layers:
            layer.move_out()
        self._stacks = {}

    def finish(self) -> None:
        """End the open one-token call: its tokens are in the stacks, and so is what the slots received."""
        assert self._call is not None
        self._end(self._call)

    def mark(self) -> Any:
        """The state of everything but the tensors, for `rewind`."""
        states = {owner: schedule.states for owner, schedule in self._schedules.items()}
        return states, self._columns.seen, self._tokens, self._figures, 0 if self.curve is None else len(self.curve)

    def rewind(self, mark: Any) -> None:
        """Forget the calls since `mark()`: those wrote nothing that counts, and nothing was evicted."""
        states, self._columns.seen, self._tokens, self._figures, recorded = mark
        for owner, schedule in self._schedules.items():
            schedule.states = states[owner]
        if self.curve is not None:
            self.curve.cut(recorded)
        self._call, self._passed = None, 0
