"""What a cache holds, head by head, wherever it keeps it."""

from __future__ import annotations

import torch

from buzz.cache import BeehiveCache

Head = tuple[torch.Tensor, torch.Tensor, torch.Tensor | None]


def heads_of(cache: BeehiveCache, layer: int, row: int) -> list[Head]:
    """Keys and values [length, D] and scores [length] (or None) of each head of a row, oldest slot first."""
    store = cache.layers[layer]
    if store.pool is None:
        end = cache.layer_lengths(layer)[row]
        heads = range(store.keys.shape[1])
        return [tuple(None if t is None else t[row, head, :end] for t in store.tensors) for head in heads]
    spans = store.pool.layer(store.member)
    ranges = zip(spans.begin[row].tolist(), spans.length[row].tolist(), strict=True)
    tensors = (spans.keys, spans.values, spans.scores)
    return [tuple(None if t is None else t[row, begin : begin + n] for t in tensors) for begin, n in ranges]
