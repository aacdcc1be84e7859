"""A decoding step in static memory: it needs nothing from the host, so that it can be captured and replayed."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple

import torch
from torch import nn

from buzz.cache.pool import Pool
from buzz.cache.stack import Stack
from buzz.decoding.sizes import Received
from buzz.decoding.stretch import Stretch
from buzz.kernels.device import HALF, runs_triton
from buzz.models.cache_argument import as_argument
from buzz.models.devices import Devices
from buzz.models.family import Family
from buzz.models.positions import Learned, Rotary
from buzz.models.row import has_kernels, row_stages
from buzz.models.rows import rows_stages
from buzz.models.slots import Stages, StaticLayer, as_it_is
from buzz.models.tensor_parallel import has_spread
from buzz.rows import Rows


def run_layer(layer: nn.Module, hidden: torch.Tensor, slots: StaticLayer, inputs: dict[str, Any]) -> torch.Tensor:
    """One decoder layer on hidden [B, 1, width]."""
    return layer(hidden, **as_argument(slots), use_cache=True, **inputs)


def run_head(family: Family, backbone: Any, head: nn.Module, hidden: torch.Tensor) -> torch.Tensor:
    """Logits float32 [B, vocabulary] of hidden [B, 1, width]."""
    return _logits(family, backbone, head, family.finish(backbone, hidden))


def _logits(family: Family, backbone: Any, head: nn.Module, finished: torch.Tensor) -> torch.Tensor:
    return family.logits(backbone.config, head(finished))[:, -1].float()


MODULES = Stages(run_layer, run_head, as_it_is)


class Place(NamedTuple):
    """A layer: its buffers and its number in there, its schedule, its window and base of the log-n scaling if it has
    them, the rotation of its slots: cos and sin [at least longest, D], None where none is to be rotated; what its
    scores are made of, if it has any; and the most slots of one of its heads."""

    buffers: Stack | Pool
    member: int
    schedule: int
    window: int | None
    logn_base: float | None
    table: tuple[torch.Tensor, torch.Tensor] | None
    received: Received | None
    longest: int


class StaticStep:
    """The tensors of one-token calls, and the call itself: one stretch of the model after another, each on one device.

    ids: int64 [B, 1], the tokens to feed. logits: float32 [B, vocabulary] after the call. live: int32 [1]; 0 makes
    calls change nothing. seen: int64 [B], the position of the next token in the text. All are on the first device.

    Args:
        layers: where the buffers of each layer are, and what its attention does with them. No two stretches share any.
        slot_positions: whether the positions of tokens are their slots, and not those of the text.
    """

    def __init__(
        self,
        family: Family,
        positions: Rotary | Learned,
        backbone: Any,
        head: nn.Module,
        devices: Devices,
        layers: Sequence[Place],
        slot_positions: bool,
    ) -> None:
        self._family, self._positions, self._backbone, self._head = family, positions, backbone, head
        self._slot_positions, self._finishes_apart = slot_positions, devices.after != devices.head
        rows, device = layers[0].buffers.rows, devices.before
        self._device = device
        with torch.inference_mode(False):
            self.ids = torch.zeros(rows, 1, dtype=torch.int64, device=device)
            self.logits = torch.zeros(rows, head.weight.shape[0], dtype=torch.float32, device=device)  # type: ignore
            self.seen = torch.zeros(rows, dtype=torch.int64, device=device)
        schedules = 1 + max(place.schedule for place in layers)
        self.stretches: list[Stretch] = []
        for device, numbers in stretches_of(devices):
            buffers = list(dict.fromkeys(layers[number].buffers for number in numbers))
            self.stretches.append(Stretch(device, numbers, buffers, schedules, rows))
        self.live = self.stretches[0].live
        self.layers = [self._layer(stretch, layers[number]) for stretch in self.stretches for number in stretch.layers]

    def _layer(self, stretch: Stretch, place: Place) -> StaticLayer:
        how: dict[str, Any] = {} if place.received is None else place.received._asdict()
        cos, sin = (None, None) if place.table is None else place.table
        rest = (stretch.live, place.window, place.logn_base, cos, sin)
        if isinstance(place.buffers, Pool):
            keys, values, scores, begin, length = place.buffers.layer(place.member)
            return StaticLayer(keys, values, scores, length, *rest, **how, begin=begin, longest=place.longest)
        keys, values, scores = place.buffers.layer(place.member)
        if place.buffers.call_scores is not None:
            scores = place.buffers.call_scores[place.member]
        return StaticLayer(keys, values, scores, stretch.lengths[place.schedule], *rest, **how)

    def __call__(self, stages: Stages = MODULES) -> None:
        """Feed `ids`: one token per row."""
        for index in range(len(self.stretches)):
            self.run(index, stages)
            self.pass_on(index)

    def run(self, index: int, stages: Stages) -> None:
        """The part of one stretch, all on its device."""
        stretch = self.stretches[index]
        stretch.open()
        if index == 0:
            positions = stretch.lengths[0].long() if self._slot_positions else self.seen
            hidden = self._family.embed(self._backbone, self.ids)
            hidden, inputs = self._positions.step_inputs(hidden, positions[:, None], self._slot_positions)
            self.seen += self.live
        else:
            hidden, inputs = stretch.arrived()
        for number in stretch.layers:
            hidden = stages.layer(self._backbone.layers[number], hidden, self.layers[number], inputs[number])
        if stretch is not self.stretches[-1]:
            hidden = stages.plain(hidden)
            if self._finishes_apart and index == len(self.stretches) - 2:
                hidden = self._family.finish(self._backbone, hidden)
            stretch.close((hidden, inputs))
            return
        head = _logits if self._finishes_apart else stages.head
        logits = head(self._family, self._backbone, self._head, hidden)
        here = stretch.device == self._device
        if here:
            self.logits.copy_(logits)
        stretch.close(None if here else (logits, []))

    def pass_on(self, index: int) -> None:
        """Bring what a stretch has left to the next one, or the logits back to the first device."""
        stretch = self.stretches[index]
        if stretch is not self.stretches[-1]:
            self.stretches[index + 1].receive(stretch)
        elif stretch.left is not None:
            self.logits.copy_(stretch.left[0], non_blocking=True)

    def has_hooks(self) -> bool:
        """Whether accelerate has hooks around its modules' forwards."""
        return any("_hf_hook" in vars(module) for module in (*self._backbone.modules(), self._head))

    def is_spread(self) -> bool:
        """Whether it waits for other processes, which run the same step with their parts of the weights."""
        return has_spread(self._backbone, self._head)

    def kernel_stages(self) -> Stages | None:
        """How the step is run by kernels of our own, without a compiler; None: they are not for this step."""
        if not isinstance(self._positions, Rotary) or not runs_triton(self.ids):
            return None
        if not has_kernels(self._family, self._backbone, self._head):
            return None
        if len(self.ids) == 1 and not self.is_spread():
            return row_stages(self._family, self._positions)
        from buzz.kernels.skinny import MOST_ROWS

        few = len(self.ids) <= MOST_ROWS and self._head.weight.dtype in HALF
        return rows_stages(self._family, self._positions) if few else None

    def begin(self, seen: torch.Tensor) -> None:
        """From now on tokens count. seen: int64 [1 or B]."""
        self.seen.copy_(seen)
        self.live.fill_(1)

    def set_lengths(self, lengths: Sequence[Sequence[int]]) -> None:
        """Tell the devices how many slots every row of every schedule holds; does not wait for them."""
        flat = Rows(length for rows in lengths for length in rows)
        for stretch in self.stretches:
            stretch.lengths.copy_(flat.on(stretch.device).view_as(stretch.lengths))


def stretches_of(devices: Devices) -> list[tuple[torch.device, list[int]]]:
    """The stretches of a model that are each on one device, and the layers that each has, if any."""
    parts = devices.in_order
    starts = [0, *(i for i in range(1, len(parts)) if parts[i] != parts[i - 1])]
    ends = [*starts[1:], len(parts)]
    most = len(devices.layers)  # part i is layer i - 1
    return [
        (parts[start], [part - 1 for part in range(start, end) if 0 < part <= most])
        for start, end in zip(starts, ends, strict=True)
    ]
