"""Evictions of heads that share: the slots that stay are dealt out anew."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import torch

from buzz.cache.compaction import Block
from buzz.cache.pool import Pool
from buzz.policies import Asked, Held, Places, Policy
from buzz.rows import Rows, brought


class Source(NamedTuple):
    """What the heads of some units hold that share.

    parts: of equal heads those of each layer, keys and values [U, H, L, D] and scores [U, H, L]; of pools one for all
    layers that share, [U, P, D] and [U, P], or those of each layer. Scores may be None. places: of all parts, one after
    another. asked: of all parts, what policies ask of the call.
    """

    parts: Sequence[Block]
    places: Places
    asked: Asked | None = None

    @classmethod
    def equal(cls, parts: Sequence[Block], lengths: Rows) -> Source:
        """Of layers that hold lengths[u] slots in every head of unit u, of L."""
        _, heads, slots, _ = parts[0].keys.shape
        places = Places.equal(heads * len(parts), len(parts), slots, parts[0].keys.device)
        held = lengths.on(parts[0].keys.device)[:, None].expand(-1, heads * len(parts))
        return cls(parts, places._replace(length=held))

    @classmethod
    def pooled(cls, pools: Sequence[Pool]) -> Source:
        """Of pools, one after another."""
        parts = [
            Block(pool.keys, pool.values, pool.scores if pool.call_scores is None else pool.call_scores)
            for pool in pools
        ]
        whole = pools[0].places()
        heads, layers = whole.heads, whole.layers
        if len(pools) > 1:
            others = [pool.places() for pool in pools]
            whole = Places(
                heads * len(pools),
                layers * len(pools),
                torch.cat([places.head + heads * i for i, places in enumerate(others)], dim=1),
                torch.cat([places.slot for places in others], dim=1),
                torch.cat([places.length for places in others], dim=1),
            )
        return cls(parts, whole)

    def units(self, units: Rows) -> Source:
        """Of some units alone."""
        index = units.on(self.places.head.device)
        parts = [Block(*(None if t is None else t.index_select(0, index) for t in part)) for part in self.parts]
        tensors = {
            name: t if len(t) == 1 else t.index_select(0, index)
            for name in ("head", "slot", "length")
            for t in [getattr(self.places, name)]
        }
        asked = None if self.asked is None else self.asked.rows(index)
        return Source(parts, self.places._replace(**tensors), asked)

    def held(self, policy: Policy) -> Held:
        """What a policy is shown of it: [U, P] and [U, P, D]."""
        equal = self.parts[0].keys.dim() == 4
        scores, keys, values = (
            _whole([getattr(part, name) for part in self.parts], equal) if name in {"scores"} | policy.reads else None
            for name in ("scores", "keys", "values")
        )
        return Held(scores, keys, values, self.asked)


def _whole(tensors: Sequence[torch.Tensor | None], equal: bool) -> torch.Tensor | None:
    if tensors[0] is None:
        return None
    flat = [t.flatten(1, 2) if equal else t for t in tensors if t is not None]
    return flat[0] if len(flat) == 1 else torch.cat(flat, dim=1)


def deal(
    target: Pool, source: Source, stay: torch.Tensor, lengths: Rows, units: Rows, decays: Sequence[float] | None = None
) -> None:
    """Bring the places that stay to a pool, in their order, and tell it which head has what.

    Of several parts each is brought over in turn, and the host waits once to know how much of each.

    Args:
        target: may be what the source is of.
        stay: bool [U, P].
        lengths: slots a head in the mean that stay of each of the U units.
        units: of the target, those that are dealt.
        decays: what the scores of each unit are multiplied by; None: nothing.
    """
    heads, device = source.places.heads, stay.device
    of = source.places.head.expand(len(stay), -1)  # [U, P]
    free = Rows(target.capacity - length for length in lengths).on(device)[:, None]  # places behind each head
    rows = units.on(device)
    factors: float | torch.Tensor = 1.0 if decays is None else decays[0]
    if decays is not None and len(set(decays)) > 1:
        factors = brought(decays, torch.float32, device)[:, None]
    sizes = [part.keys[0, ..., 0].numel() for part in source.parts]
    stays, heads_of = stay.split(sizes, dim=1), of.split(sizes, dim=1)
    counts = [part.sum(dim=1, keepdim=True) for part in stays]  # [U, 1]
    most = [max(lengths) * heads] if len(counts) == 1 else torch.cat(counts, dim=1).amax(dim=0).tolist()
    before = torch.zeros_like(counts[0])  # that came from the parts so far
    for index, part in enumerate(source.parts):
        order = _true_places(stays[index], most[index])
        number, count = torch.arange(order.shape[1], device=device), counts[index]
        goal = before + number + heads_of[index].gather(1, order) * free
        # Past a unit's end: its first place once more, which does no harm.
        order, goal = (torch.where(number < count, t, t[:, :1]) for t in (order, goal))
        before = before + count
        for name in Block._fields:
            own, old = getattr(target, name), getattr(part, name)
            if own is None or old is None:
                continue
            new = _picked(old, order, part.keys.shape[2] if part.keys.dim() == 4 else None)
            if own.dim() == 2:  # scores, which are zero where no slot is
                new = new * (count > 0) * factors
                if not index:
                    own[rows] = 0
            own[rows[:, None], goal] = new
    length = source.places.counted(stay)
    begin = length.cumsum(dim=1) - length + torch.arange(heads, device=device) * free
    target.deal(rows, begin, length)


def _true_places(stay: torch.Tensor, most: int) -> torch.Tensor:
    """The true places of bool [U, P], ascending, int64 [U, most]; then any: counted, which is cheaper than sorting."""
    place = torch.arange(stay.shape[1], device=stay.device).expand_as(stay)
    goal = torch.where(stay, stay.cumsum(dim=1) - 1, most)
    return torch.zeros(len(stay), most + 1, dtype=torch.int64, device=stay.device).scatter_(1, goal, place)[:, :most]


def _picked(tensor: torch.Tensor, places: torch.Tensor, slots: int | None) -> torch.Tensor:
    """The places [U, K] of [U, P, ...], or of [U, H, slots, ...]: a copy [U, K, ...]."""
    rows = torch.arange(len(tensor), device=tensor.device)[:, None]
    return tensor[rows, places] if slots is None else tensor[rows, places // slots, places % slots]


def slots_that_stay(places: Places, stay: torch.Tensor) -> torch.Tensor:
    """The slots of each head that stay, ascending: int64 [U, heads, W], -1 past a head's end. Waits for the device."""
    of = places.head.expand(len(stay), -1)
    length = places.counted(stay)
    rank = stay.long().cumsum(dim=1) - 1 - (length.cumsum(dim=1) - length).gather(1, of)
    slots = torch.full((len(stay), places.heads, int(length.max())), -1, device=stay.device)
    unit, place = stay.nonzero(as_tuple=True)
    slots[unit, of[unit, place], rank[unit, place]] = places.slot.expand_as(of)[unit, place]
    return slots


__all__ = ["Source", "deal", "slots_that_stay"]
