"""What the attention forwards of all families end in."""

from __future__ import annotations

import math

import torch

from buzz.attention import attend
from buzz.attention.step import attend_step
from buzz.cache import BeehiveCache, Slots
from buzz.models.slots import StaticLayer


def attend_cached(cache: BeehiveCache, layer: int, q: torch.Tensor, keys: torch.Tensor, slots: Slots, scale: float):
    """Attend to the slots of a layer and tell the cache what they received; output [B, L, Hq * D].

    q [B, Hq, L, D] and keys [B, Hkv, S, D] are as the model multiplies them, rotated where it rotates.
    """
    base = cache.logn_base(layer)
    if base is not None:  # one factor for all queries of a row: its number of keys in this call
        factors = [
            math.log(max(1, start + count)) / math.log(base)
            for start, count in zip(slots.starts, slots.counts, strict=True)
        ]
        if len(set(factors)) == 1:
            scale *= factors[0]
        else:
            q = q * torch.tensor(factors, dtype=q.dtype, device=q.device)[:, None, None, None]
    output, scores = attend(
        q, keys, slots.values, starts=slots.starts, counts=slots.counts, scale=scale, spec=slots.spec
    )
    cache.observe(scores, layer)
    return output.transpose(1, 2).flatten(2)


def attend_static(q: torch.Tensor, k: torch.Tensor, v: torch.Tensor, slots: StaticLayer, scale: float) -> torch.Tensor:
    """Take in one token per row, k and v [B, Hkv, D], and attend to all; output [B, 1, Hq * D] of q [B, Hq, D]."""
    output = attend_step(
        q, k, v, slots.keys, slots.values, slots.scores, slots.lengths,
        scale=scale, logn_base=slots.logn_base, cos=slots.cos, sin=slots.sin, live=slots.live,
    )  # fmt: skip
    return output.flatten(1)[:, None]
