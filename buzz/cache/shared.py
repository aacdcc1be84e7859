"""The layers of a schedule whose heads share: when they go into pools, and what happens to these."""

from __future__ import annotations

from collections.abc import Sequence

import torch

from buzz.cache.compaction import Block, Watch
from buzz.cache.dealing import Source, deal, moved, slots_that_stay
from buzz.cache.layer import BeehiveLayer
from buzz.cache.pool import Pool
from buzz.cache.schedule import Eviction, Step
from buzz.policies import Asked, HeadShares
from buzz.rows import Rows


class SharedLayers:
    """Layers hold equal heads, in buffers of their own, until the first eviction; then pools: one of each, or of all.

    A prompt that is evicted from where all layers share waits for the last of them. If it is read once, a layer is cut
    to its shortlist meanwhile.

    Args:
        layers: of the schedule.
        together: whether they share with each other.
        least: slots of a head to allocate at least.
        measured: whether their policy needs the shares of the layers' heads.

    Attributes:
        shares: of the layers' heads, where they have been measured.
    """

    def __init__(self, layers: Sequence[BeehiveLayer], together: bool, least: int, measured: bool = False) -> None:
        self._layers, self._together, self._least = layers, together, least
        self._offers: list[tuple[Pool, list[int]]] = []
        self.measured = measured
        self.shares: HeadShares | None = None
        self.clear()

    def clear(self) -> None:
        """No call is open."""
        self._shortlist: Pool | None = None  # of all layers that are done with the open call, of one after another
        self._new: list[Pool] = []  # that slots came to in the open call

    @property
    def pools(self) -> list[Pool]:
        """Those in use."""
        return list(dict.fromkeys(layer.pool for layer in self._layers if layer.pool is not None))

    # A call.

    def make_room(self, index: int, step: Step, least: int) -> None:
        """Before a layer in a pool appends the tokens of a call: room for them, and for so many slots at least."""
        pool, end = self._layers[index].pool, max(least, *step.ends)
        if pool is not None and end > pool.capacity:
            self._move(pool, max(end, step.capacity), step.starts)

    def layer_done(self, index: int, step: Step, watch: Watch | None) -> None:
        """A layer is done with a call of several tokens after which an eviction is due: it lets go of what it can."""
        if self._layers[index].pool is not None:
            return
        if not self._together:
            self._enter([index], self._equal([index], Rows(step.ends)), step, watch)
            return
        held = _listed(step)
        if watch is not None or held is None:
            return  # who watches is told of slots as they were in the call
        part, ends = self._part(index, max(step.ends)), Rows(step.ends)
        if self._shortlist is None:
            layers, scores = len(self._layers), None if part.scores is None else "kept"
            self._shortlist = Pool(layers, layers, len(held), part.keys.shape[1], max(held), part.keys, scores)
        if held == ends:
            self._shortlist.fill(index, part, held)
        else:
            source, rows = self._equal([index], ends), Rows(range(len(held)))
            source = source._replace(places=source.places._replace(first=index * source.places.heads))
            deal(self._shortlist, source, self._stays(source, step, held), held, rows, layer=index)
        self._layers[index].enter(self._shortlist, index)

    def end(self, step: Step, watch: Watch | None, served: bool) -> None:
        """All layers have passed a call: run the evictions that are still due.

        Args:
            served: a step in static memory, of which the device knows already that it is over.
        """
        if self._shortlist is not None:
            self._enter(self._sharing[0], Source.pooled(self._shortlist), step, watch)
        elif not self.pools and step.evictions:
            for members in self._sharing:
                self._enter(members, self._equal(members, Rows(step.ends)), step, watch)
        for pool in self.pools:
            if pool not in self._new:
                pool.advance(step.counts, told=served)
                self._evict(pool, step, watch)
        for layer in self._layers:
            layer.close_call()
        self.clear()

    @property
    def _sharing(self) -> list[list[int]]:
        """The layers that share with each other."""
        everybody = list(range(len(self._layers)))
        return [everybody] if self._together else [[index] for index in everybody]

    def _equal(self, members: Sequence[int], lengths: Rows) -> Source:
        """What layers hold in buffers of their own, lengths[b] slots in every head of row b, and the scores to read."""
        parts = [self._part(index, max(lengths)) for index in members]
        asked = Asked.joined([self._layers[index].asked for index in members], dim=1)
        return Source.equal(parts, lengths)._replace(asked=asked)

    def _part(self, index: int, end: int) -> Block:
        """What a layer holds in buffers of its own, up to a slot."""
        layer = self._layers[index]
        scores = layer.scores if layer.call_scores is None else layer.call_scores
        return Block(*(None if t is None else t[:, :, :end] for t in (layer.keys, layer.values, scores)))

    def _enter(self, members: Sequence[int], source: Source, step: Step, watch: Watch | None) -> None:
        """Run the evictions of a call on the way from buffers, or shortlists, into a pool."""
        lengths, spec = Rows(length for length, _ in step.after), step.score_spec
        stay = self._stays(source, step, lengths)
        for eviction in step.evictions:
            rows = _rows(eviction, step)
            if watch is not None:
                self._tell(watch, members, source.units(rows), stay[list(rows)], eviction)
        decays = [
            policy.decay if length < end else 1.0
            for policy, length, end in zip(step.policies, lengths, step.ends, strict=True)
        ]
        scored = spec is not None and spec.accumulate
        self._bring(members, source, stay, lengths, max(*lengths, self._least, step.capacity), scored, decays)

    def _stays(self, source: Source, step: Step, held: Sequence[int]) -> torch.Tensor:
        """Which places stay if row b holds held[b] slots a head in the mean, bool [B, P]."""
        due = [eviction for eviction in step.evictions if held[_rows(eviction, step)[0]] < eviction.length]
        stay = None if any(len(_rows(eviction, step)) == len(held) for eviction in due) else source.places.taken
        stay = None if stay is None else stay.expand(len(held), -1).clone()
        for eviction in due:
            rows, policy = _rows(eviction, step), eviction.policy
            part = source.units(rows)
            new = policy.share(
                part.held(policy, self.shares), part.places, eviction.kept, eviction.length, eviction.sampled,
                held[rows[0]],
            )  # fmt: skip
            stay = new if stay is None else stay.index_copy_(0, rows.on(new.device), new)
        assert stay is not None
        return stay

    def _bring(
        self, members: Sequence[int], source: Source, stay: torch.Tensor, lengths: Rows, capacity: int, scored: bool,
        decays: Sequence[float] | None = None,
    ) -> None:  # fmt: skip
        """Bring layers that share, or a single one, to the pool that was offered, or to one of their own."""
        like, batch = source.parts[0].keys, len(lengths)
        heads = source.places.heads // source.places.layers
        pool, places = self._offered(members)
        if pool is None or not pool.fits(like, batch, heads, max(lengths), scored):
            scores = "kept" if scored else None
            pool = Pool(len(members), len(members), batch, heads, capacity, like, scores)
            places = list(range(len(members)))
        deal(pool, source, stay, lengths, pool.units_of_layers(places), decays)
        self._new.append(pool)
        for index, place in zip(members, places, strict=True):
            self._layers[index].enter(pool, place)

    def _evict(self, pool: Pool, step: Step, watch: Watch | None) -> None:
        """Run the evictions of a call in a pool, in place unless much of it can go."""
        due = [eviction for eviction in step.evictions if eviction.kept < eviction.length]
        members = [index for index, layer in enumerate(self._layers) if layer.pool is pool]
        if due:
            whole = Source.pooled(pool)._replace(asked=self._asked(pool))
            for eviction in due:
                units, policy = pool.units_of(_rows(eviction, step)), eviction.policy
                source = whole if eviction.rows is None else whole.units(units)
                stay = policy.share(
                    source.held(policy, self.shares), source.places, eviction.kept, eviction.length, eviction.sampled
                )
                if watch is not None:
                    self._tell(watch, members, source, stay, eviction)
                deal(pool, source, stay, Rows([eviction.kept] * len(units)), units, [policy.decay] * len(units))
        pool.close_call()
        lengths = Rows(length for length, _ in step.after)
        needed = max(*lengths, self._least)
        spare = 1 if step.echoes else 2  # the room for a copy goes at once
        if due and not self._is_offered(pool) and pool.capacity > spare * max(needed, step.bound):
            self._move(pool, max(needed, step.capacity), lengths)

    def _asked(self, pool: Pool) -> Asked | None:
        """What policies ask of the call, of the units of a pool."""
        layers = sorted((layer for layer in self._layers if layer.pool is pool), key=lambda layer: layer.member)
        groups = [layers[i : i + pool.together] for i in range(0, len(layers), pool.together)]
        return Asked.joined([Asked.joined([layer.asked for layer in group], dim=1) for group in groups], dim=0)

    def _tell(
        self, watch: Watch, members: Sequence[int], source: Source, stay: torch.Tensor, eviction: Eviction
    ) -> None:
        """Tell who watches of an eviction in these units, layer by layer."""
        slots = slots_that_stay(source.places, stay)  # [U, heads, W]
        groups = len(members) // source.places.layers
        by_layer = (
            slots.unflatten(0, (groups, -1)).unflatten(2, (source.places.layers, -1)).transpose(1, 2).flatten(0, 1)
        )
        for index, part in zip(members, by_layer, strict=True):  # [R, H, W]
            watch(index, eviction, part)

    # Other pools.

    def _move(self, pool: Pool, capacity: int, lengths: Rows) -> None:
        """Bring a pool's slots to another one of its kind."""
        self._replace(pool, moved(pool, capacity, lengths))

    def _replace(self, pool: Pool, other: Pool) -> None:
        for layer in self._layers:
            if layer.pool is pool:
                layer.enter(other, layer.member)

    def take(self, rows: Rows) -> None:
        """Make row i what row rows[i] was; the number of rows may change."""
        for pool in self.pools:
            self._replace(pool, pool.taken(rows))

    def offer(self, offers: Sequence[tuple[Pool, list[int]]]) -> None:
        """From now on slots are dealt to these pools, each of some layers, wherever they have the room."""
        self._offers = list(offers)

    def _offered(self, members: Sequence[int]) -> tuple[Pool | None, list[int]]:
        """The pool that layers which share were offered, and their places in it."""
        for pool, layers in self._offers:
            if members[0] in layers:
                return pool, [layers.index(index) for index in members]
        return None, []

    def _is_offered(self, pool: Pool) -> bool:
        return any(pool is offered for offered, _ in self._offers)

    def move_in(self, lengths: Rows) -> None:
        """Bring all layers, which hold lengths[b] slots a head of row b in the mean, to the pools that were offered."""
        found: list[tuple[list[int], Source]] = []
        for own in self.pools:
            held = [index for index, layer in enumerate(self._layers) if layer.pool is own]
            for _, offered in self._offers if not self._is_offered(own) else []:
                if members := [index for index in held if index in offered]:
                    units = own.units_of_layers([self._layers[index].member for index in members])
                    found.append((members, Source.pooled(own).units(units)))
        if not self.pools:
            found = [(members, self._equal(members, lengths)) for members in self._sharing]
        for members, source in found:
            pool, places = self._offered(members)
            assert pool is not None
            copies = len(members) // source.places.layers
            stay = source.places.taken.expand(copies * len(lengths), -1)
            deal(pool, source, stay, Rows(lengths * copies), pool.units_of_layers(places))
            for index, place in zip(members, places, strict=True):
                self._layers[index].enter(pool, place)

    def leave(self) -> None:
        """Leave the pools that were offered for the layers' own, and forget the offers."""
        offers, self._offers = self._offers, []
        with torch.inference_mode(False):
            for pool, _ in offers:
                if pool in self.pools:
                    self._replace(pool, pool.taken(Rows(range(pool.rows))))


def _listed(step: Step) -> Rows | None:
    """Slots a head of each row that a layer holds once it is done with a call; None: all, until the last is done."""
    held = list(step.ends)
    for eviction in step.evictions:
        most = eviction.policy.shortlist(eviction.length, eviction.sampled)
        if most is None:
            return None
        for row in _rows(eviction, step):
            held[row] = min(eviction.length, eviction.kept * most)
    return Rows(held)


def _rows(eviction: Eviction, step: Step) -> Rows:
    """The rows of an eviction."""
    return Rows(range(len(step.ends))) if eviction.rows is None else eviction.rows


__all__ = ["SharedLayers"]
