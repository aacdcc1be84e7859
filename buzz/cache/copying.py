"""A second cache with what a first one holds: buffers of its own, as long as they need be."""

from __future__ import annotations

from collections.abc import Sequence

import torch

from buzz.cache.calls import Calls
from buzz.cache.compaction import Block
from buzz.cache.dealing import moved
from buzz.cache.layer import BeehiveLayer
from buzz.rows import Rows


def refuse_unsettled(calls: Calls, what: str) -> None:
    """Whether what a cache holds is known, so that it can be copied or saved.

    Args:
        what: is to be done, such as "copied".

    Raises:
        RuntimeError: a call is open, or the last one may still be taken back.
    """
    if calls.open is not None:
        raise RuntimeError(f"a call of this cache is open, so layers differ: it can be {what} between two calls")
    if calls.ahead:
        raise RuntimeError(f"generate() is a step ahead of what it has told: the cache can be {what} once it is over")


def room(calls: Calls, layer: int, least: int) -> int:
    """Slots a head that a layer's buffers have between two calls: those it holds and some more, `least` at least."""
    return max(least, *calls.lengths(layer), calls.resting(calls.schedule_of[layer]).capacity)


def copy_layers(calls: Calls, old: Sequence[BeehiveLayer], new: Sequence[BeehiveLayer], least: Sequence[int]) -> None:
    """Let empty layers hold what others do, which stay as they are.

    Args:
        calls: the integers of both.
        least: slots to allocate at least in each layer.
    """
    pools = {}
    # Normal tensors even under inference mode, as in a layer's own buffers.
    with torch.inference_mode(False), torch.no_grad():
        for layer, (own, other) in enumerate(zip(new, old, strict=True)):
            own.is_initialized = other.is_initialized
            if not other.is_initialized:
                continue
            pool = other.pool
            if pool is None:
                own.adopt(_shortened(other.tensors, calls.lengths(layer), room(calls, layer, least[layer])), None)
                continue
            if pool not in pools:
                lengths = Rows(calls.lengths(layer))
                pools[pool] = moved(pool, min(pool.capacity, room(calls, layer, least[layer])), lengths)
            own.enter(pools[pool], other.member)


def _shortened(block: Block, lengths: Sequence[int], capacity: int) -> Block:
    """A copy of buffers with so many slots, or as many as they have, of which the first are held."""
    held, capacity = max(lengths), min(capacity, block.keys.shape[2])
    new = Block(*(None if t is None else t.new_zeros(*t.shape[:2], capacity, *t.shape[3:]) for t in block))
    for own, old in zip(new, block, strict=True):
        if old is not None:
            own[:, :, :held] = old[:, :, :held]
    return new


__all__ = ["copy_layers", "refuse_unsettled", "room"]
