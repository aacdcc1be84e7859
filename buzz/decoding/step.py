"""A decoding step in static memory: it needs nothing from the host, so that it can be captured and replayed."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple

import torch
from torch import nn

from buzz.cache.pool import Pool
from buzz.cache.stack import Stack
from buzz.decoding.sizes import Received
from buzz.kernels.device import HALF, runs_triton
from buzz.models.family import Family
from buzz.models.positions import Learned, Rotary
from buzz.models.row import has_kernels, row_stages
from buzz.models.rows import rows_stages
from buzz.models.slots import Stages, StaticLayer
from buzz.models.tensor_parallel import has_spread
from buzz.rows import Rows


def run_layer(layer: nn.Module, hidden: torch.Tensor, slots: StaticLayer, inputs: dict[str, Any]) -> torch.Tensor:
    """One decoder layer on hidden [B, 1, width]."""
    return layer(hidden, past_key_values=slots, use_cache=True, **inputs)


def run_head(family: Family, backbone: Any, head: nn.Module, hidden: torch.Tensor) -> torch.Tensor:
    """Logits float32 [B, vocabulary] of hidden [B, 1, width]."""
    return family.logits(backbone.config, head(family.finish(backbone, hidden)))[:, -1].float()


MODULES = Stages(run_layer, run_head)


class Place(NamedTuple):
    """A layer: its schedule, its number in the stack of that, its window and base of the log-n scaling if it has them,
    the rotation of its slots: cos and sin [at least longest, D], None where none is to be rotated; what its scores are
    made of, if it has any; and the most slots of one of its heads."""

    schedule: int
    member: int
    window: int | None
    logn_base: float | None
    table: tuple[torch.Tensor, torch.Tensor] | None
    received: Received | None
    longest: int


class StaticStep:
    """The tensors of one-token calls on some stacks, and the call itself.

    ids: int64 [B, 1], the tokens to feed. logits: float32 [B, vocabulary] after the call. live: int32 [1]; 0 makes
    calls change nothing. lengths: int32 [schedules, B]. seen: int64 [B], the position of the next token in the text.

    Args:
        stacks: of each schedule, in the order of the schedules.
        layers: where the buffers of each layer are, and what its attention does with them.
        slot_positions: whether the positions of tokens are their slots, and not those of the text.
    """

    def __init__(
        self,
        family: Family,
        positions: Rotary | Learned,
        backbone: Any,
        head: nn.Module,
        stacks: Sequence[Stack | Pool],
        layers: Sequence[Place],
        slot_positions: bool,
    ) -> None:
        self._family, self._positions, self._backbone, self._head = family, positions, backbone, head
        rows, device = stacks[0].rows, stacks[0].keys.device
        with torch.inference_mode(False):
            self.ids = torch.zeros(rows, 1, dtype=torch.int64, device=device)
            self.logits = torch.zeros(rows, head.weight.shape[0], dtype=torch.float32, device=device)  # type: ignore
            self.live = torch.zeros(1, dtype=torch.int32, device=device)
            self.lengths = torch.zeros(len(stacks), rows, dtype=torch.int32, device=device)
            self.seen = torch.zeros(rows, dtype=torch.int64, device=device)
        self._slot_positions = slot_positions
        self._call_scores = [stack.call_scores for stack in stacks if stack.call_scores is not None]
        self._lengths = [self.lengths, *(stack.length for stack in stacks if isinstance(stack, Pool))]
        self.layers = [self._layer(stacks[place.schedule], place) for place in layers]

    def _layer(self, stack: Stack | Pool, place: Place) -> StaticLayer:
        how: dict[str, Any] = {} if place.received is None else place.received._asdict()
        cos, sin = (None, None) if place.table is None else place.table
        rest = (self.live, place.window, place.logn_base, cos, sin)
        if isinstance(stack, Pool):
            keys, values, scores, begin, length = stack.layer(place.member)
            return StaticLayer(keys, values, scores, length, *rest, **how, begin=begin, longest=place.longest)
        keys, values, scores = stack.layer(place.member)
        if stack.call_scores is not None:
            scores = stack.call_scores[place.member]
        return StaticLayer(keys, values, scores, self.lengths[place.schedule], *rest, **how)

    def __call__(self, stages: Stages = MODULES) -> None:
        """Feed `ids`: one token per row."""
        for scores in self._call_scores:
            scores.zero_()
        positions = self.lengths[0].long() if self._slot_positions else self.seen
        hidden = self._family.embed(self._backbone, self.ids)
        hidden, inputs = self._positions.step_inputs(hidden, positions[:, None], self._slot_positions)
        for layer, slots, more in zip(self._backbone.layers, self.layers, inputs, strict=True):
            hidden = stages.layer(layer, hidden, slots, more)
        self.logits.copy_(stages.head(self._family, self._backbone, self._head, hidden))
        for lengths in self._lengths:
            lengths += self.live
        self.seen += self.live

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

    def set_lengths(self, lengths: Sequence[Sequence[int]]) -> None:
        """Tell the device how many slots every row of every schedule holds; does not wait for it."""
        flat = Rows(length for rows in lengths for length in rows).on(self.lengths.device)
        self.lengths.copy_(flat.view_as(self.lengths))
