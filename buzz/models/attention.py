"""The attention forward of all families: one for calls of a cache, one for steps in static memory."""

from __future__ import annotations

import math
from typing import Any

import torch

from buzz.attention import attend
from buzz.attention.step import attend_step
from buzz.cache import BeehiveCache, Slots
from buzz.models.family import Family
from buzz.models.moments import moments
from buzz.models.outputs import output_projection, projected_norms
from buzz.models.positions import Learned, Rotary, rotate
from buzz.models.slots import StaticLayer
from buzz.policies import Asked
from buzz.rows import Rows, brought


def attend_in_call(
    module: Any,
    family: Family,
    positions: Rotary | Learned,
    hidden: torch.Tensor,
    cache: BeehiveCache,
    kwargs: dict[str, Any],
) -> torch.Tensor:
    """Append a call's tokens to a cache, attend to what is there, and tell the cache what it received.

    With slots for positions, keys are cached as they were projected, and rotated to their slots in every call; else
    they are rotated to their positions in the text, and cached so.

    Args:
        module: an attention module. hidden: [B, L, width], the tokens of every row at the left.
        kwargs: of its forward.

    Returns:
        [B, L, width].
    """
    layer = module.layer_idx
    q, k, v = (x.transpose(1, 2) for x in family.project(family, module, hidden))  # [B, H, L, D]
    if not isinstance(positions, Rotary) or not family.rotates(module):
        asked = _moments(module, family, positions, q, cache, kwargs)
        slots = cache.append(k, v, layer)
        q, keys = slots.fold(q), slots.keys
    else:
        q, k = positions.ordered(module, q), positions.ordered(module, k)
        asked = _moments(module, family, positions, q, cache, kwargs)
        if cache.positions == "cache":
            slots = cache.append(k, v, layer)
            n = slots.keys.shape[2]
            cos, sin = positions.table(module, n, q)
            q = slots.fold(q)
            at = slots.query_slots(q.shape[2], q.device)
            q = rotate(q, cos[at], sin[at])
            keys = rotate(slots.keys, cos[:n], sin[:n])
        else:
            cos, sin = (t[:, None] for t in positions.given(module, kwargs))  # [1 or B, 1, L, D]
            q = rotate(q, cos, sin)
            slots = cache.append(rotate(k, cos, sin), v, layer)
            q, keys = slots.fold(q), slots.keys
    output, scores = _attend(q, keys, slots, family.scale(module), cache.logn_base(layer))
    if "projected" in cache.asked(layer):
        norms = projected_norms(module, slots.values, k.shape[1])
        asked = Asked(projected=norms) if asked is None else asked._replace(projected=norms)
    cache.observe(scores, layer, asked)
    return output_projection(module)(slots.unfold(output).transpose(1, 2).flatten(2))


def _moments(
    module: Any,
    family: Family,
    positions: Rotary | Learned,
    q: torch.Tensor,
    cache: BeehiveCache,
    kwargs: dict[str, Any],
) -> Asked | None:
    """Moments of a call's queries [B, Hq, L, D], not rotated yet, if an eviction reads them."""
    call = cache.integers.open
    if call is None or "queries" not in cache.asked(module.layer_idx):
        return None
    counts, at = Rows(call.counts), kwargs.get("position_ids")
    at = (call.query_columns(q.device) if at is None else at).expand(len(counts), -1)  # [B, L]
    last = at.gather(1, (counts.on(q.device) - 1).clamp(min=0)[:, None])[:, 0]
    rotates = isinstance(positions, Rotary) and family.rotates(module)
    return moments(q, counts, Rows(call.seen), last + 1, family.scale(module), module, positions, rotates)


def _attend(
    q: torch.Tensor, keys: torch.Tensor, slots: Slots, scale: float, base: float | None
) -> tuple[torch.Tensor, torch.Tensor | None]:
    """Output [B, Hq, L, D] and scores of q [B, Hq, L, D] and keys [B, Hkv, S, D], both as they are multiplied."""
    if base is not None:  # one factor for all queries of a row: its number of keys in this call
        factors = [
            math.log(max(1, start + count)) / math.log(base)
            for start, count in zip(slots.starts, slots.counts, strict=True)
        ]
        if len(set(factors)) == 1:
            scale *= factors[0]
        else:
            q = q * brought(factors, q.dtype, q.device)[:, None, None, None]
    output, scores = attend(
        q, keys, slots.values,
        starts=slots.starts, counts=slots.counts, scale=scale, spec=slots.spec, window=slots.window,
    )  # fmt: skip
    if slots.steps is not None:
        rows, spec = slots.steps
        index, starts = rows.on(q.device), Rows(slots.starts[row] for row in rows)
        few = (q[index, :, :1], keys[index], slots.values[index])
        _, some = attend(*few, starts=starts, scale=scale, spec=spec, window=slots.window)
        assert some is not None
        scores = some.new_zeros(len(keys), *some.shape[1:]) if scores is None else scores
        scores[index] = some
    return output, scores


def attend_in_step(
    module: Any,
    family: Family,
    positions: Rotary | Learned,
    hidden: torch.Tensor,
    slots: StaticLayer,
    kwargs: dict[str, Any],
) -> torch.Tensor:
    """The same for one token per row in static memory, where nothing depends on the host knowing a length.

    Args:
        hidden: [B, 1, width].

    Returns:
        [B, 1, width].
    """
    q, k, v = (x[:, 0] for x in family.project(family, module, hidden))  # [B, H, D]
    if isinstance(positions, Rotary) and family.rotates(module):
        q, k = positions.ordered(module, q), positions.ordered(module, k)
        if slots.cos is None:  # not to be rotated by slot
            cos, sin = positions.given(module, kwargs)  # [B, 1, D]
            q, k = rotate(q, cos, sin), rotate(k, cos, sin)
    return output_projection(module)(attend_static(q, k, v, slots, family.scale(module)))


def attend_static(
    q: torch.Tensor,
    k: torch.Tensor,
    v: torch.Tensor,
    slots: StaticLayer,
    scale: float,
    angles: tuple[torch.Tensor, torch.Tensor] | None = None,
) -> torch.Tensor:
    """Take in one token per row, k and v [B, Hkv, D], and attend to all; output [B, 1, Hq * D] of q [B, Hq, D].

    Args:
        angles: cos and sin [B, 1, D] of the tokens' own positions, where q and k are to be rotated by them; keys are
            then cached rotated. None: as `slots` says.
    """
    cos, sin = (slots.cos, slots.sin) if angles is None else (t[:, 0] for t in angles)
    output = attend_step(
        q, k, v, slots.keys, slots.values, slots.scores, slots.lengths,
        scale=scale, window=slots.window, logn_base=slots.logn_base, cos=cos, sin=sin, live=slots.live,
        of=slots.of, beyond=slots.beyond, begin=slots.begin, longest=slots.longest, own=angles is not None,
        ahead=True,  # a step begins with the embedding of its tokens
    )  # fmt: skip
    return output.flatten(1)[:, None]
