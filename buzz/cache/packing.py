"""What layers hold as flat tensors, head after head and without any room, and back: as it is saved."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import torch

from buzz.cache.calls import Calls
from buzz.cache.compaction import Block
from buzz.cache.copying import room
from buzz.cache.layer import BeehiveLayer
from buzz.cache.pool import Pool
from buzz.rows import Rows


def pack(store: BeehiveLayer, lengths: Sequence[int]) -> dict[str, torch.Tensor]:
    """What a layer holds, on the CPU.

    Args:
        lengths: slots of a head in each row, where heads are alike.

    Returns:
        keys, values [N, D] and scores float32 [N], if there are any: row after row, head after head, slot after slot;
        lengths: int32 [B, H], of each head.
    """
    if store.pool is None:
        held: Block = store.tensors
        counts = torch.tensor(lengths, dtype=torch.int32, device=held.keys.device)[:, None]
        counts = counts.repeat(1, held.keys.shape[1])
        taken = torch.arange(store.capacity, device=counts.device) < counts[..., None]  # [B, H, C]
        flat = [None if t is None else t[taken] for t in held]
    else:
        spans = store.pool.layer(store.member)
        counts = spans.length
        rows, places = _places(spans.begin, counts)
        scores = spans.scores if store.pool.scores is not None else None  # those of a call end with it
        flat = [None if t is None else t[rows, places] for t in (spans.keys, spans.values, scores)]
    found = dict(zip(("keys", "values", "scores", "lengths"), (*flat, counts), strict=True))
    return {name: t.detach().cpu().contiguous() for name, t in found.items() if t is not None}


def unpack(
    calls: Calls, layers: Sequence[BeehiveLayer], packed: Sequence[Mapping[str, torch.Tensor] | None],
    pooled: Sequence[int], least: Sequence[int],
) -> None:  # fmt: skip
    """Let empty layers hold what `pack` gave of others, each on the device where its tensors are.

    Args:
        calls: the integers of the cache.
        packed: of each layer; None: it has seen nothing.
        pooled: schedules whose heads lie in pools.
        least: slots to allocate at least in each layer.

    Raises:
        ValueError: it is not what such layers hold.
    """
    with torch.inference_mode(False), torch.no_grad():
        for layer, (store, held) in enumerate(zip(layers, packed, strict=True)):
            store.is_initialized = held is not None
            if held is not None and calls.schedule_of[layer] not in pooled:
                store.adopt(_buffers(held, calls.lengths(layer), room(calls, layer, least[layer])), None)
        for schedule in pooled:
            group = calls.groups[schedule]
            together = calls.policy(group[0]).scope == "model"
            for members in [group] if together else [[layer] for layer in group]:
                held_by = [held for layer in members if (held := packed[layer]) is not None]
                lengths = Rows(calls.lengths(members[0]))
                pool = _pool(held_by, lengths, room(calls, members[0], least[members[0]]))
                for index, layer in enumerate(members):
                    layers[layer].enter(pool, index)


def _buffers(held: Mapping[str, torch.Tensor], lengths: Sequence[int], capacity: int) -> Block:
    """Buffers of equal heads."""
    counts, flat = held["lengths"], [held["keys"], held["values"], held.get("scores")]
    if counts.tolist() != [[n] * counts.shape[1] for n in lengths]:
        raise ValueError("heads hold other numbers of slots than their rows")
    taken = torch.arange(capacity, device=counts.device) < counts[..., None]
    block = Block(*(None if t is None else t.new_zeros(*counts.shape, capacity, *t.shape[1:]) for t in flat))
    for tensor, own in zip(block, flat, strict=True):
        if tensor is not None:
            tensor[taken] = own
    return block


def _pool(held: Sequence[Mapping[str, torch.Tensor]], lengths: Rows, capacity: int) -> Pool:
    """A pool of layers that share, in which all heads have equally many free places behind them."""
    counts = torch.stack([own["lengths"] for own in held])  # [layers, B, H]
    layers, rows, heads = counts.shape
    if counts.sum(dim=(0, 2)).tolist() != [n * layers * heads for n in lengths]:
        raise ValueError("the heads that share hold other numbers of slots than their rows")
    pool = Pool(layers, layers, rows, heads, capacity, held[0]["keys"], "kept" if "scores" in held[0] else None)
    length = counts.transpose(0, 1).flatten(1).long()  # [B, layers * H]
    free = capacity - lengths.on(length.device)[:, None]
    begin = length.cumsum(dim=1) - length + torch.arange(layers * heads, device=length.device) * free
    pool.deal(torch.arange(rows, device=length.device), begin, length)
    for index, own in enumerate(held):
        spans = pool.layer(index)
        at = _places(spans.begin, spans.length)
        spans.keys[at], spans.values[at] = own["keys"], own["values"]
        if spans.scores is not None:
            spans.scores[at] = own["scores"]
    return pool


def _places(begin: torch.Tensor, length: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """Row and place, int64 [N] each, of every slot of heads that begin and are as long as int32 [B, H] say."""
    slots = torch.arange(int(length.max()), device=begin.device)
    taken = slots < length[..., None]  # [B, H, longest]
    rows = torch.arange(len(begin), device=begin.device)[:, None, None].expand_as(taken)
    return rows[taken], (begin[..., None] + slots).long()[taken]


__all__ = ["pack", "unpack"]
