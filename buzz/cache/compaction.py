"""Evictions on tensors: bring the slots that stay to the front, for one layer or for a stack of layers at once."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import torch

from buzz.cache.heads import Heads
from buzz.cache.schedule import Eviction, Ragged, Step
from buzz.kernels.device import runs_triton
from buzz.policies import Asked, Held, Policy
from buzz.rows import Rows, brought

# Called as watch(layer of the block, eviction, slots) before anything moves.
Watch = Callable[[int, Eviction, torch.Tensor], None]


class Block(NamedTuple):
    """Keys, values [N * B, H, C, D] and scores float32 [N * B, H, C] (or None) of N layers, layer by layer."""

    keys: Any
    values: Any
    scores: Any


def compact(
    target: Block, source: Block, received: torch.Tensor | None, step: Step, layers: int, watch: Watch | None = None,
    asked: Asked | None = None,
) -> None:  # fmt: skip
    """Run the evictions of a call: bring what stays from `source` to the front of `target`.

    Nothing waits for a device, and the number of kernels does not depend on the number of layers.

    Args:
        target: may be `source` itself. Otherwise its scores are zero, and rows without an eviction are copied.
        received: float32 [N * B, H, S], the scores of this call alone if that is what the policy reads; None: those
            of the block.
        layers: N.
        asked: of N * B rows, what the policy asks of the call.
    """
    in_place = target.keys is source.keys
    scores = source.scores if received is None else received
    due, batch = step.drops if in_place else step.moves, len(step.ends)
    if due is not None:
        _compact(target, source, scores, due, step, layers, in_place, watch, asked)
    if in_place:
        return
    for row in step.staying:
        end = step.ends[row]
        for new, old in zip(target, source, strict=True):
            if new is not None:
                new[row::batch, :, :end] = old[row::batch, :, :end]


def _compact(
    target: Block, source: Block, scores: torch.Tensor | None, due: Eviction | Ragged, step: Step, layers: int,
    in_place: bool, watch: Watch | None, asked: Asked | None,
) -> None:  # fmt: skip
    rows, kept, device = _in_all_layers(due.rows, layers, len(step.ends)), due.kept, target.keys.device
    held = _held(source, scores, step.policies, rows, due.length)
    if asked is not None:
        held = held._replace(asked=asked if rows is None else asked.rows(rows.on(device)))
    slots = _chosen(lambda held: due.select(held, device, layers), held, step.heads)
    if watch is not None:
        for layer, eviction, stay in due.apart(slots, layers):
            watch(layer, eviction, stay)
    for new, old in zip(target, source, strict=True):
        if new is None:
            continue
        if (in_place or rows is None) and new.dim() == 4 and old.stride(-1) == 1 and runs_triton(new):
            from buzz.kernels.gather import gather_slots, pack_slots

            if in_place:
                pack_slots(new, slots, torch.arange(len(new), device=device) if rows is None else rows.on(device))
            else:
                gather_slots(old, slots, new[:, :, :kept])
            continue
        packed = _gather(_rows(old, rows)[:, :, : due.length], slots)
        index = _index(rows, new)
        if new is target.scores:  # a slot's score starts at zero
            packed = _faded(packed, step.policies if rows is None else [step.policies[row] for row in due.rows or []])
            if due.ends is not None:
                ends = due.ends.on(packed.device).repeat(layers)[:, None, None]
                packed.masked_fill_(torch.arange(kept, device=packed.device) >= ends, 0)
            if in_place and rows is None:
                new[:, :, kept : due.length] = 0
            elif in_place:  # setting an index to 0 would bring the 0 to the device, and wait
                new[:, :, kept : due.length].index_fill_(0, index, 0)
        new[index, :, :kept] = packed


def _held(
    source: Block, scores: torch.Tensor | None, policies: Sequence[Policy], rows: Rows | None, length: int
) -> Held:
    """What policies are shown of the rows of a block: its first `length` slots."""
    keys, values = (getattr(source, name) if name in policies[0].reads else None for name in ("keys", "values"))
    return Held(scores, keys, values).each(lambda t: _rows(t, rows)[:, :, :length])


def _chosen(choose: Callable[[Held], torch.Tensor], held: Held, heads: Heads | None) -> torch.Tensor:
    """The slots that stay: int64 [N * R, H or 1, kept], or [1, 1, kept]."""
    if heads is None or held.scores is None:
        return choose(held)
    return heads.select(lambda scores: choose(held._replace(scores=scores)), held.scores)


def _faded(scores: torch.Tensor, policies: Sequence[Policy]) -> torch.Tensor:
    """Scores [N * R, H, K] of N layers times the decays of R rows' policies."""
    decays = [policy.decay for policy in policies]
    if len(set(decays)) == 1:
        return scores if decays[0] == 1 else scores.mul_(decays[0])
    factors = brought(decays * (len(scores) // len(decays)), torch.float32, scores.device)
    return scores.mul_(factors[:, None, None])


def _in_all_layers(rows: Rows | None, layers: int, batch: int) -> Rows | None:
    """Rows of the batch as rows of a block; None means all of them."""
    if rows is None or layers == 1:
        return rows
    return Rows(layer * batch + row for layer in range(layers) for row in rows)


def _rows(tensor: torch.Tensor, rows: Rows | None) -> torch.Tensor:
    return tensor if rows is None else tensor.index_select(0, rows.on(tensor.device))


def _index(rows: Rows | None, tensor: torch.Tensor) -> slice | torch.Tensor:
    """Rows as an index into a tensor; not a list, which would be copied to the device each time."""
    return slice(None) if rows is None else rows.on(tensor.device)


def _gather(tensor: torch.Tensor, slots: torch.Tensor) -> torch.Tensor:
    """The slots [B, H or 1, kept] (or [1, 1, kept]: the same everywhere) of [B, H, L] or [B, H, L, D]."""
    if slots.shape[:2] == (1, 1):
        return tensor.index_select(2, slots[0, 0])
    slots = slots.expand(*tensor.shape[:2], -1)
    return tensor.gather(2, slots if tensor.dim() == 3 else slots[..., None].expand(-1, -1, -1, tensor.shape[3]))
