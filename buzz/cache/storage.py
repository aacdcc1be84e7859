"""What all layers of a cache hold: in buffers of their own, in stacks, in pools; and what a call does to that."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch

from buzz.cache.call import Call, Slots
from buzz.cache.calls import Calls
from buzz.cache.compaction import Watch
from buzz.cache.echo import Hearing
from buzz.cache.layer import BeehiveLayer, Memory
from buzz.cache.offer import Offer
from buzz.cache.pool import Pool
from buzz.cache.schedule import Eviction, Step
from buzz.cache.settle import Waiting, settle, settle_alike, settle_stack
from buzz.cache.shared import SharedLayers
from buzz.cache.stack import Stack
from buzz.policies import HeadShares, ScoreSpec
from buzz.rows import Rows

OnEvict = Callable[[int, Eviction, torch.Tensor], None]  # called with a layer of the model


class Storage:
    """The layers of a cache, and who shares with whom.

    Args:
        calls: the cache's integers.
        layers: of the model, which have allocated `memory` together.
        least: slots to allocate at least in each layer.

    Attributes:
        on_evict: who watches evictions, if anybody does.
    """

    def __init__(self, calls: Calls, layers: Sequence[BeehiveLayer], memory: Memory, least: Sequence[int]) -> None:
        self._calls, self._layers, self._memory, self._least = calls, layers, memory, least
        self.on_evict: OnEvict | None = None
        self._waiting = Waiting()
        self._stacks: list[tuple[Stack, Sequence[int]]] = []  # that were offered, and to which layers
        self._shared = {
            schedule: SharedLayers(
                [layers[i] for i in group], policy.scope == "model", least[group[0]], policy.measured
            )
            for schedule, group in calls.groups.items()
            if (policy := calls.policy(group[0])).scope != "head"
        }

    @property
    def _pools(self) -> list[Pool]:
        return [pool for shared in self._shared.values() for pool in shared.pools]

    @property
    def nbytes(self) -> int:
        """Bytes allocated for keys, values and scores in all layers."""
        return self._memory.nbytes + sum(pool.nbytes for pool in self._pools)

    def head_lengths(self) -> list[list[int]]:
        """Cached tokens of each row's heads in the counted layers; of one head of a layer, where all have as many."""
        layers = []
        for layer in self._calls.counted:
            store = self._layers[layer]
            alike = [[n] for n in self._calls.lengths(layer)]
            layers.append(alike if store.pool is None else store.pool.lengths(store.member))
        return [[n for heads in row for n in heads] for row in zip(*layers, strict=True)]

    def least_slots(self, layer: int) -> int:
        """Slots to allocate in one layer at least."""
        return self._least[layer]

    @property
    def is_unmeasured(self) -> bool:
        """Whether a policy needs shares of the model's heads that nobody has given."""
        return any(shared.shares is None and shared.measured for shared in self._shared.values())

    def measure(self, shares: HeadShares | None) -> None:
        """Take in the shares of the heads of all counted layers; None: they are not known any more."""
        order = {layer: index for index, layer in enumerate(self._calls.counted)}
        for schedule, shared in self._shared.items():
            members = tuple(order[layer] for layer in self._calls.groups[schedule])
            shared.shares = None if shares is None else shares.of_layers(members)

    # A call.

    def append(
        self, call: Call, layer: int, k: torch.Tensor, v: torch.Tensor, window: int | None, hearing: Hearing | None
    ) -> Slots:
        """Take in the keys and values [B, H, L, D] of a call in one layer, valid columns at the left.

        Args:
            window: of the layer.
            hearing: of a call that is read twice: there is room for a chunk of its copy then.
        """
        store, schedule = self._layers[layer], self._calls.schedule_of[layer]
        step, least = call.steps[schedule], self._least[layer]
        if hearing is not None:
            least = max(least, hearing.slots(schedule))
        if store.pool is None:
            keys, values = store.append(k, v, step, least, borrow=hearing is None)
            steps = _steps(step, 1)
            return Slots(keys, values, step.starts, step.counts, step.spec, window, steps=steps)
        self._shared[schedule].make_room(self._calls.groups[schedule].index(layer), step, least)
        keys, values, starts = store.append_to_pool(k, v, step)
        heads, spec = k.shape[1], step.spec
        if spec is not None and isinstance(spec.queries, tuple):
            spec = spec._replace(queries=tuple(n for n in spec.queries for _ in range(heads)))
        counts = Rows(n for n in step.counts for _ in range(heads))
        return Slots(keys, values, starts, counts, spec, None, heads, _steps(step, heads))

    def pass_layer(self, call: Call, layer: int) -> None:
        """One layer is done with a call, and has observed what it received: a prompt is let go of if it can be."""
        calls, store = self._calls, self._layers[layer]
        schedule = calls.schedule_of[layer]
        step, shared = call.steps[schedule], self._shared.get(schedule)
        if shared is not None and (step.evictions or store.pool is not None):
            if call.columns > 1:
                shared.layer_done(calls.groups[schedule].index(layer), step, self._watch(calls.groups[schedule]))
        elif store.borrowed:
            self._wait(call, layer, len(call.counts) * call.width)
        elif call.columns > 1:
            settle(store, step, self._least[layer], self._watch([layer]))

    def hear(self, hearing: Hearing) -> None:
        """All copies of a call have been read: take in what each layer heard, and let go of what can be."""
        for layer, schedule in enumerate(self._calls.schedule_of):
            store, step = self._layers[layer], hearing.call.steps[schedule]
            store.observe(hearing.scores(layer), step)
            if store.pool is None and not (schedule in self._shared and step.evictions):
                self._wait(hearing.call, layer, len(store.keys) * store.capacity)

    def end(self, call: Call, served: bool) -> None:
        """All layers have passed a call: run the evictions that are still due.

        Args:
            served: a step in static memory, of which the device knows already that it is over.
        """
        if rest := self._waiting.rest():
            self._settle_alike(call, rest)
        groups = self._calls.groups
        done = {layer for schedule in self._shared for layer in groups[schedule]}
        for schedule, shared in self._shared.items():
            shared.end(call.steps[schedule], self._watch(groups[schedule]), served)
        if call.columns > 1:
            return
        for stack, members in self._stacks:
            layers, step = [self._layers[i] for i in members], call.steps[self._calls.schedule_of[members[0]]]
            if settle_stack(stack, layers, step, self._watch(members)):
                done.update(members)
        for layer, schedule in enumerate(self._calls.schedule_of):
            if layer not in done:
                settle(self._layers[layer], call.steps[schedule], self._least[layer], self._watch([layer]))

    def hold(self, hearing: Hearing) -> None:
        """All layers have passed a call that is read twice: in pools its copy comes behind it."""
        self._advance_pools(Rows(hearing.call.counts))
        hearing.is_read = True

    def take_back(self, hearing: Hearing) -> None:
        """Pools hold again what they held before the call."""
        if hearing.is_read:
            self._advance_pools(Rows(-count for count in hearing.call.counts))
        hearing.is_read = False

    def _advance_pools(self, counts: Rows) -> None:
        """In pools, every head of row b holds counts[b] slots more, or fewer."""
        for pool in self._pools:
            pool.advance(counts)

    def _wait(self, call: Call, layer: int, tokens: int) -> None:
        """A layer waits for others like it to let go of a prompt of so many tokens in all rows, or does so."""
        last = layer == len(self._layers) - 1
        for group in self._waiting.add(layer, self._layers[layer], self._calls.schedule_of[layer], tokens, last):
            self._settle_alike(call, group)

    def _settle_alike(self, call: Call, group: list[int]) -> None:
        """Let go of a prompt in layers that are alike."""
        step = call.steps[self._calls.schedule_of[group[0]]]
        settle_alike([self._layers[i] for i in group], step, self._least[group[0]], self._watch(group))

    def _watch(self, layers: Sequence[int]) -> Watch | None:
        """Who watches the evictions of these layers."""
        watch = self.on_evict
        return None if watch is None else lambda index, eviction, slots: watch(layers[index], eviction, slots)

    # What changes it besides calls.

    def offer(self, offers: Sequence[Offer]) -> None:
        """Let new buffers of layers be in what these are offered; those in use stay where they are."""
        self._stacks, pools = [], dict[int, list[tuple[Pool, list[int]]]]()
        for buffers, layers in offers:
            if isinstance(buffers, Pool):
                schedule = self._calls.schedule_of[layers[0]]
                members = [self._calls.groups[schedule].index(layer) for layer in layers]
                pools.setdefault(schedule, []).append((buffers, members))
                continue
            self._stacks.append((buffers, layers))
            for index, layer in enumerate(layers):
                self._layers[layer].offer(buffers, index)
        for schedule, own in pools.items():
            self._shared[schedule].offer(own)

    def move_in(self) -> None:
        """Bring all layers to what was offered, which must have the room."""
        for schedule, shared in self._shared.items():
            shared.move_in(Rows(length for length, _ in self._calls.states(schedule)))
        for layer, store in enumerate(self._layers):
            if store.pool is None:
                store.move_in(max(self._calls.lengths(layer)))

    def leave(self) -> None:
        """Bring the layers that live in stacks or offered pools to buffers of their own."""
        for layer in self._layers:
            layer.move_out()
        for shared in self._shared.values():
            shared.leave()
        self._stacks = []

    def forget_lengths(self) -> None:
        """The device alone knows what heads hold that share."""
        for pool in self._pools:
            pool.forget_lengths()

    def take(self, rows: Rows) -> None:
        """Make row i what row rows[i] was; the number of rows may change."""
        for layer in self._layers:
            layer.take(rows)
        for shared in self._shared.values():
            shared.take(rows)

    def reset(self) -> None:
        """Give all memory back."""
        self._waiting = Waiting()
        for shared in self._shared.values():
            shared.clear()
        for layer in self._layers:
            layer.reset()


def _steps(step: Step, each: int) -> tuple[Rows, ScoreSpec] | None:
    """`Slots.steps` of a call, with so many rows of attention for each of its rows."""
    if step.steps is None:
        return None
    assert step.score_spec is not None
    spec = step.score_spec._replace(queries=None)  # a row's only query is among its last ones, however many count
    return Rows(row * each + i for row in step.steps for i in range(each)), spec


__all__ = ["Storage"]
