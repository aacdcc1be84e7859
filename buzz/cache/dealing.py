"""Evictions of heads that share: the slots that stay are dealt out anew."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import torch

from buzz.cache.compaction import Block
from buzz.cache.pool import Pool
from buzz.kernels.device import runs_triton
from buzz.policies import Asked, HeadShares, Held, Places, Policy
from buzz.rows import Rows, brought


class Source(NamedTuple):
    """What the heads of some units hold that share.

    parts: of equal heads those of each layer, keys and values [B, H, L, D] and scores [B, H, L]; or one of a pool,
    [B, P, D] and [B, P]. Scores may be None. places: of all parts, one after another, of each unit. rows: which of B
    each of the U units is; None: all of them, in turn. asked: of all parts, what policies ask of the
    call.
    """

    parts: Sequence[Block]
    places: Places
    rows: Rows | None = None
    asked: Asked | None = None

    @classmethod
    def equal(cls, parts: Sequence[Block], lengths: Rows) -> Source:
        """Of layers that hold lengths[u] slots in every head of unit u, of L."""
        _, heads, slots, _ = parts[0].keys.shape
        places = Places.equal(heads * len(parts), len(parts), slots, parts[0].keys.device)
        held = lengths.on(parts[0].keys.device)[:, None].expand(-1, heads * len(parts))
        return cls(parts, places._replace(length=held.contiguous()))

    @classmethod
    def pooled(cls, pool: Pool) -> Source:
        """Of a pool."""
        scores = pool.scores if pool.call_scores is None else pool.call_scores
        return cls([Block(pool.keys, pool.values, scores)], pool.places())

    def units(self, units: Rows) -> Source:
        """Of some units alone."""
        assert self.rows is None
        if units == tuple(range(len(self.parts[0].keys))):
            return self
        index = units.on(self.places.length.device)
        begin, length = (
            t if len(t) == 1 else t.index_select(0, index) for t in (self.places.begin, self.places.length)
        )
        asked = None if self.asked is None else self.asked.rows(index)
        return Source(self.parts, self.places._replace(begin=begin, length=length), units, asked)

    def rows_on(self, device: torch.device) -> torch.Tensor:
        """Which of B each unit is, int64 [U]."""
        return torch.arange(len(self.parts[0].keys), device=device) if self.rows is None else self.rows.on(device)

    @property
    def firsts(self) -> list[int]:
        """The first place of each part."""
        return [index * (self.places.size // len(self.parts)) for index in range(len(self.parts))]

    def held(self, policy: Policy, shares: HeadShares | None = None) -> Held:
        """What a policy is shown of it: [U, P] and [U, P, D], or [U, H, L, D] of one part of equal heads.

        Args:
            shares: of the heads that share.
        """
        alone = len(self.parts) == 1
        keys, values = (
            None if name not in policy.reads else getattr(self.parts[0], name) if alone else self.whole(name)
            for name in ("keys", "values")
        )
        held = Held(self.whole("scores"), keys, values, self.asked, shares)
        if self.rows is None:
            return held
        index = self.rows.on(self.places.length.device)
        return held.each(lambda t: t.index_select(0, index))

    def whole(self, name: str) -> torch.Tensor | None:
        """Keys, values or scores of all parts, [B, P, D] or [B, P]."""
        parts = [getattr(part, name) for part in self.parts]
        if parts[0] is None:
            return None
        if self.parts[0].keys.dim() == 4:
            parts = [part.flatten(1, 2) for part in parts]
        return parts[0] if len(parts) == 1 else torch.cat(parts, dim=1)


def deal(
    target: Pool, source: Source, stay: torch.Tensor, lengths: Rows, units: Rows,
    decays: Sequence[float] | None = None, layer: int | None = None,
) -> None:  # fmt: skip
    """Bring the places that stay to a pool, in their order, and tell it which head has what.

    Args:
        target: may be what the source is of.
        stay: bool [U, P].
        lengths: slots a head in the mean that stay of each of the U units.
        units: of the target, those that are dealt.
        decays: what the scores of each unit are multiplied by; None: nothing.
        layer: the source is of this layer of the target alone, which has held nothing of it so far.
    """
    heads, device = source.places.heads, stay.device
    free = Rows(target.capacity - length for length in lengths).on(device)[:, None]  # places behind each head
    base = 0 if layer is None else layer * heads * target.capacity  # all layers have as many places
    stay, rows = stay.contiguous(), units.on(device)
    order, goal, begin, length = _dealt(source.places, stay, free, base, lengths)
    if source.parts[0].keys is target.keys and runs_triton(target.keys):
        from buzz.kernels.shift import shift_slots

        goals = torch.full(stay.shape, -1, device=device).scatter_(1, order, goal)
        shift_slots(target.keys, target.values, goals, rows)
    else:
        for name in ("keys", "values"):
            _bring([getattr(part, name) for part in source.parts], order, source, getattr(target, name), goal, rows)
    scores = source.whole("scores")
    if target.scores is not None and scores is not None:  # which are zero where no slot is
        new = scores[source.rows_on(device)[:, None], order]
        if layer is None:
            target.scores.index_fill_(0, rows, 0)
        if decays is not None and len(set(decays)) > 1:
            new = new * brought(decays, torch.float32, device)[:, None]
        elif decays is not None:
            new = new * decays[0]
        target.scores[rows[:, None], goal] = new
    target.deal(rows, begin, length, layer)


def moved(pool: Pool, capacity: int, lengths: Rows) -> Pool:
    """Another pool of its kind with what a pool holds, lengths[b] slots a head of row b in the mean."""
    other, source = pool.another(capacity), Source.pooled(pool)
    units = other.units_of(Rows(range(len(lengths))))
    deal(other, source, source.places.taken, Rows(lengths * (len(units) // len(lengths))), units)
    return other


def _dealt(
    places: Places, stay: torch.Tensor, free: torch.Tensor, base: int, lengths: Rows
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor, torch.Tensor]:
    """The places that stay, ascending, and where they go, int64 [U, K]; and each head's new begin and length.

    K is what most of the units keep; the others have their first place once more at the end.
    """
    most, device = max(lengths) * places.heads, stay.device
    kernels = runs_triton(stay)
    if kernels:
        from buzz.kernels.deal import count_stays, list_stays

        length = count_stays(stay, places.begin, places.length)
    else:
        length = places.counted(stay)
    before = length.cumsum(dim=1) - length
    begin = before + torch.arange(places.heads, device=device) * free + base
    if kernels:
        order, goal = list_stays(stay, places.begin, places.length, before, begin, most)
    else:
        here = torch.arange(stay.shape[1], device=device).expand_as(stay)
        rank = torch.where(stay, stay.cumsum(dim=1) - 1, most)
        order = torch.zeros(len(stay), most + 1, dtype=torch.int64, device=device).scatter_(1, rank, here)[:, :most]
        goal = torch.arange(most, device=device) + places.head.expand_as(stay).gather(1, order) * free + base
    if min(lengths) < max(lengths):
        held = lengths.on(device)[:, None] * places.heads
        past = torch.arange(most, device=device) >= held
        order, goal = (torch.where(past, t[:, :1], t) for t in (order, goal))
    return order, goal, begin, length


def _bring(
    parts: Sequence[torch.Tensor], order: torch.Tensor, source: Source,
    target: torch.Tensor, goal: torch.Tensor, into: torch.Tensor,
) -> None:  # fmt: skip
    """Write the places `order` of a source's keys or values to the places `goal` of the target's rows `into`."""
    rows = source.rows_on(order.device)
    if not runs_triton(target):
        new = target.new_empty(*order.shape, target.shape[2])
        for part, first in zip(parts, source.firsts, strict=True):
            flat = part.flatten(1, -2)  # [B, P, D]
            if len(parts) == 1:
                new = flat[rows[:, None], order]
            else:
                unit, rank = ((order >= first) & (order < first + flat.shape[1])).nonzero(as_tuple=True)
                new[unit, rank] = flat[rows[unit], order[unit, rank] - first]
        target[into[:, None], goal] = new
        return
    from buzz.kernels.deal import move_slots

    for part, first in zip(parts, source.firsts, strict=True):
        part = part if part.dim() == 4 else part[:, None]
        part = part if part.stride(-1) == 1 else part.contiguous()
        move_slots(part, order, rows, target, goal, into, first)


def slots_that_stay(places: Places, stay: torch.Tensor) -> torch.Tensor:
    """The slots of each head that stay, ascending: int64 [U, heads, W], -1 past a head's end. Waits for the device."""
    of = places.head.expand(len(stay), -1)
    length = places.counted(stay)
    rank = stay.long().cumsum(dim=1) - 1 - (length.cumsum(dim=1) - length).gather(1, of)
    slots = torch.full((len(stay), places.heads, int(length.max())), -1, device=stay.device)
    unit, place = stay.nonzero(as_tuple=True)
    slots[unit, of[unit, place], rank[unit, place]] = places.slot.expand_as(of)[unit, place]
    return slots


__all__ = ["Source", "deal", "moved", "slots_that_stay"]
