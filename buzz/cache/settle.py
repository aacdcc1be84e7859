"""What happens to layers that are done with a call: their evictions, alone, with those like them, or in a stack."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch

from buzz.cache.compaction import Block, Watch, compact
from buzz.cache.layer import BeehiveLayer, allocate
from buzz.cache.schedule import Step
from buzz.cache.stack import Stack
from buzz.policies import Asked

_TOGETHER = 6144  # tokens of a first prompt, over all rows and layers, that wait to be compacted together


class Waiting:
    """Layers that are done with a first prompt and wait for those like them: together they cost the host less.

    A long prompt waits for nobody, so that the full-length keys and values of one layer at most exist.
    """

    def __init__(self) -> None:
        self._layers: list[int] = []
        self._kind: Any = None  # what they have in common

    def add(self, layer: int, store: BeehiveLayer, schedule: int, tokens: int, last: bool) -> list[list[int]]:
        """A layer is done with a first prompt; gives the groups of layers that wait no longer, each of its like.

        Args:
            schedule: of the layer.
            tokens: of the prompt in all rows.
            last: no other layer follows.
        """
        stack = None if store.offered is None else id(store.offered[0])
        due, kind = [], (schedule, store.keys.shape, store.keys.device, stack)
        if self._layers and kind != self._kind:
            due.append(self._layers)
            self._layers = []
        self._layers.append(layer)
        self._kind = kind
        room = (len(self._layers) + 1) * tokens <= _TOGETHER  # for one more
        if last or not room:
            due.append(self._layers)
            self._layers = []
        return due

    def rest(self) -> list[int]:
        """The layers that still wait, which wait no longer."""
        rest, self._layers = self._layers, []
        return rest


def settle(layer: BeehiveLayer, step: Step, least: int, watch: Watch | None = None) -> None:
    """Run the evictions of a call in one layer; in place, unless a first prompt needs its buffers or much can go.

    Args:
        least: slots to allocate at least.
        watch: called for layer 0.
    """
    if layer.borrowed:
        settle_prompt([layer], step, least, watch)
    elif step.evictions:
        wasteful = layer.home is None and layer.capacity > 2 * max(_kept(step), least)
        if wasteful and layer.capacity > 2 * max(step.bound, least):
            _into_new_buffers([layer], step, least, watch)
        else:
            compact(layer.tensors, layer.tensors, layer.call_scores, step, 1, watch, layer.asked)
    layer.close_call()


def settle_prompt(layers: Sequence[BeehiveLayer], step: Step, least: int, watch: Watch | None = None) -> None:
    """Run the evictions of a first prompt in layers that are alike, out of the model's own tensors into new buffers.

    Args:
        least: slots to allocate at least.
        watch: called for every layer, by its index among these.
    """
    _into_new_buffers(layers, step, least, watch)
    for layer in layers:
        layer.close_call()


def settle_alike(layers: Sequence[BeehiveLayer], step: Step, least: int, watch: Watch | None = None) -> None:
    """Run the evictions of a prompt in layers that are alike: a first one, or one that was read twice.

    The room for a copy is given back.

    Args:
        least, watch: as of `settle_prompt`.
    """
    if layers[0].borrowed or (layers[0].home is None and layers[0].capacity > max(step.capacity, least)):
        settle_prompt(layers, step, least, watch)
        return
    for index, layer in enumerate(layers):
        settle(layer, step, least, _at(watch, index))


def _at(watch: Watch | None, index: int) -> Watch | None:
    """Who watches one of several layers."""
    return None if watch is None else lambda _, eviction, slots: watch(index, eviction, slots)


def settle_stack(stack: Stack, layers: Sequence[BeehiveLayer], step: Step, watch: Watch | None = None) -> bool:
    """Run the evictions of a one-token call in all layers of a stack at once; whether all of them do live there."""
    if not all(layer.home is stack for layer in layers):
        return False
    received = stack.call_scores
    observed = [layer.call_scores for layer in layers if layer.call_scores is not None]
    if observed:  # not written to the stack by whoever served the call
        received = torch.stack(observed)
    if step.evictions:
        stack.evict(step, None if received is None else received.flatten(0, 1), watch)
    for layer in layers:
        layer.close_call()
    return True


def _into_new_buffers(layers: Sequence[BeehiveLayer], step: Step, least: int, watch: Watch | None) -> None:
    received = _together([layer.call_scores for layer in layers])
    old = Block(*map(_together, zip(*(layer.tensors for layer in layers), strict=True)))
    new = allocate(layers, layers[0].keys, max(_kept(step), least), step)
    asked = Asked.joined([layer.asked for layer in layers], dim=0)
    compact(new, old, received, step, len(layers), watch, asked)


def _kept(step: Step) -> int:
    """Slots of the longest row after the call."""
    return max(length for length, _ in step.after)


def _together(tensors: list[Any] | tuple[Any, ...]) -> Any:
    """Tensors of several layers [B, H, ...] as [layers * B, H, ...] in the same order in memory; None of Nones."""
    if len(tensors) == 1 or tensors[0] is None:
        return tensors[0]
    if tensors[0].transpose(1, 2).is_contiguous():
        return torch.cat([t.transpose(1, 2) for t in tensors]).transpose(1, 2)
    return torch.cat(tensors)
