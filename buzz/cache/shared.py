"""The layers of a schedule whose heads share: when they go into pools, and what happens to these."""

from __future__ import annotations

from collections.abc import Sequence

import torch

from buzz.cache.compaction import Block, Watch
from buzz.cache.dealing import Source, deal, slots_that_stay
from buzz.cache.layer import BeehiveLayer
from buzz.cache.pool import Pool
from buzz.cache.schedule import Eviction, Step
from buzz.rows import Rows


class SharedLayers:
    """Layers hold equal heads, in buffers of their own, until the first eviction; then pools: one of each, or of all.

    A prompt that is evicted from where all layers share waits for the last of them. If it is read once, a layer is cut
    to its shortlist meanwhile.

    Args:
        layers: of the schedule.
        together: whether they share with each other.
        least: slots of a head to allocate at least.
    """

    def __init__(self, layers: Sequence[BeehiveLayer], together: bool, least: int) -> None:
        self._layers, self._together, self._least = layers, together, least
        self.clear()

    def clear(self) -> None:
        """No call is open."""
        self._shortlists: list[Pool] = []
        self._new: list[Pool] = []  # made in the open call, which they know already

    @property
    def pools(self) -> list[Pool]:
        """Those in use."""
        return list(dict.fromkeys(layer.pool for layer in self._layers if layer.pool is not None))

    def layer_done(self, index: int, step: Step, watch: Watch | None) -> None:
        """A layer is done with a call of several tokens after which an eviction is due: it lets go of what it can."""
        if self._layers[index].pool is not None:
            return
        if not self._together:
            self._enter([index], self._equal([index], step), step, watch)
            return
        if watch is not None or any(eviction.policy.shortlist is None for eviction in step.evictions):
            return  # who watches is told of slots as they were in the call
        source, held = self._equal([index], step), list(step.ends)
        for eviction in step.evictions:
            assert eviction.policy.shortlist is not None
            for row in _rows(eviction, step):
                held[row] = min(eviction.length, eviction.kept * eviction.policy.shortlist)
        pool = self._empty([index], max(held), source)
        deal(pool, source, _stays(source, step, held), Rows(held), [1.0] * len(held), Rows(range(len(held))))
        self._shortlists.append(pool)
        self._layers[index].enter(pool, 0)

    def end(self, step: Step, watch: Watch | None) -> None:
        """All layers have passed a call: run the evictions that are still due."""
        if self._shortlists:
            self._enter(range(len(self._layers)), Source.pooled(self._shortlists), step, watch)
        elif not self.pools and step.evictions:
            everybody = range(len(self._layers))
            for members in [everybody] if self._together else [[index] for index in everybody]:
                self._enter(members, self._equal(members, step), step, watch)
        for pool in self.pools:
            if pool not in self._new:
                pool.advance(step.counts)
                self._evict(pool, step, watch)
        for layer in self._layers:
            layer.call_scores = None
        self.clear()

    def _equal(self, members: Sequence[int], step: Step) -> Source:
        """What layers with equal heads hold, and the scores that are read."""
        end, parts = max(step.ends), []
        for index in members:
            layer = self._layers[index]
            scores = layer.scores if layer.call_scores is None else layer.call_scores
            parts.append(Block(*(None if t is None else t[:, :, :end] for t in (layer.keys, layer.values, scores))))
        return Source.equal(parts, Rows(step.ends))

    def _empty(self, members: Sequence[int], capacity: int, source: Source, scored: bool | None = None) -> Pool:
        """A pool for layers that share, with scores or without; None: as the source has them."""
        part, layers = source.parts[0], source.places.layers
        scored = part.scores is not None if scored is None else scored
        heads = source.places.heads // layers
        return Pool(len(members), len(members), part.keys.shape[0], heads, capacity, part.keys, scored)

    def _enter(self, members: Sequence[int], source: Source, step: Step, watch: Watch | None) -> None:
        """Run the evictions of a call on the way into a new pool."""
        lengths, spec = Rows(length for length, _ in step.after), step.score_spec
        capacity = max(*lengths, self._least, step.capacity)
        pool = self._empty(members, capacity, source, scored=spec is not None and spec.accumulate)
        stay = _stays(source, step, lengths)
        for eviction in step.evictions:
            self._tell(watch, members, source, stay, eviction, _rows(eviction, step))
        decays = [
            policy.decay if length < end else 1.0
            for policy, length, end in zip(step.policies, lengths, step.ends, strict=True)
        ]
        deal(pool, source, stay, lengths, decays, Rows(range(len(lengths))))
        self._replace(members, pool)

    def _evict(self, pool: Pool, step: Step, watch: Watch | None) -> None:
        """Run the evictions of a call in a pool, in place unless much of it can go."""
        members = [index for index, layer in enumerate(self._layers) if layer.pool is pool]
        whole = Source.pooled([pool]) if step.evictions else None
        for eviction in step.evictions:
            if whole is None or eviction.kept == eviction.length:
                continue
            rows = _rows(eviction, step)
            source = whole if eviction.rows is None else whole.units(rows)
            policy = eviction.policy
            stay = policy.share(source.held(policy), source.places, eviction.kept)
            self._tell(watch, members, source, stay, eviction, Rows(range(len(rows))))
            deal(pool, source, stay, Rows([eviction.kept] * len(rows)), [policy.decay] * len(rows), rows)
        pool.received = None
        lengths = Rows(length for length, _ in step.after)
        if whole is not None and pool.capacity > 2 * max(*lengths, self._least):
            capacity = max(*lengths, self._least, step.capacity)
            if pool.capacity > 2 * max(step.bound, capacity):
                source = Source.pooled([pool])
                smaller = self._empty(members, capacity, source)
                deal(smaller, source, source.places.taken, lengths, [1.0] * len(lengths), Rows(range(len(lengths))))
                self._replace(members, smaller)

    def _replace(self, members: Sequence[int], pool: Pool) -> None:
        self._new.append(pool)
        for member, index in enumerate(members):
            self._layers[index].enter(pool, member)

    def _tell(
        self, watch: Watch | None, members: Sequence[int], source: Source, stay: torch.Tensor, eviction: Eviction,
        rows: Rows,
    ) -> None:  # fmt: skip
        """Tell who watches of an eviction in these rows of the source, layer by layer."""
        if watch is not None:
            slots = slots_that_stay(source.units(rows).places, stay[list(rows)])  # [R, heads, W]
            for index, part in zip(members, slots.chunk(len(members), dim=1), strict=True):
                watch(index, eviction, part)


def _rows(eviction: Eviction, step: Step) -> Rows:
    """The rows of an eviction."""
    return Rows(range(len(step.ends))) if eviction.rows is None else eviction.rows


def _stays(source: Source, step: Step, held: Sequence[int]) -> torch.Tensor:
    """Which places stay if row b holds held[b] slots a head in the mean, bool [B, P]."""
    stay = source.places.taken.expand(len(held), -1).clone()
    for eviction in step.evictions:
        rows, policy = _rows(eviction, step), eviction.policy
        if held[rows[0]] < eviction.length:
            part = source.units(rows)
            stay[list(rows)] = policy.share(part.held(policy), part.places, eviction.kept, held[rows[0]])
    return stay


__all__ = ["SharedLayers"]
