"""A decoding step in static memory: it needs nothing from the host, so that it can be captured and replayed."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import nn

from buzz.cache.stack import Stack
from buzz.kernels.device import runs_triton
from buzz.models.family import Family
from buzz.models.slots import Stages, StaticLayer
from buzz.rows import Rows


def run_layer(layer: nn.Module, hidden: torch.Tensor, slots: StaticLayer, inputs: dict[str, Any]) -> torch.Tensor:
    """One decoder layer on hidden [B, 1, width]."""
    return layer(hidden, past_key_values=slots, use_cache=True, **inputs)


def run_head(
    finish: Callable[..., torch.Tensor], backbone: nn.Module, head: nn.Module, hidden: torch.Tensor
) -> torch.Tensor:
    """Logits float32 [B, vocabulary] of hidden [B, 1, width]."""
    return head(finish(backbone, hidden))[:, -1].float()


PLAIN = Stages(run_layer, run_head)


class StaticStep:
    """The tensors of one-token calls on some stacks, and the call itself.

    ids: int64 [B, 1], the tokens to feed. logits: float32 [B, vocabulary] after the call. live: int32 [1]; 0 makes
    calls change nothing. lengths: int32 [schedules, B]. seen: int64 [B], the position of the next token in the text.

    Args:
        stacks: of each schedule, in the order of the schedules.
        layers: of each layer: its schedule, its index there and its base of the log-n scaling.
        slot_positions: whether a token's position is its slot, and not its place in the text.
        table: cos and sin [at least capacity, D] by which the slots are rotated; None: they are not.
    """

    def __init__(
        self,
        family: Family,
        backbone: Any,
        head: nn.Module,
        stacks: Sequence[Stack],
        layers: Sequence[tuple[int, int, float | None]],
        slot_positions: bool,
        table: tuple[torch.Tensor, torch.Tensor] | None,
    ) -> None:
        self._family, self._backbone, self._head = family, backbone, head
        rows, device = stacks[0].keys.shape[1], stacks[0].keys.device
        cos, sin = (None, None) if table is None else table
        with torch.inference_mode(False):
            self.ids = torch.zeros(rows, 1, dtype=torch.int64, device=device)
            self.logits = torch.zeros(rows, head.weight.shape[0], dtype=torch.float32, device=device)  # type: ignore
            self.live = torch.zeros(1, dtype=torch.int32, device=device)
            self.lengths = torch.zeros(len(stacks), rows, dtype=torch.int32, device=device)
            self.seen = torch.zeros(rows, dtype=torch.int64, device=device)
        self._slot_positions = slot_positions
        self._call_scores = [stack.call_scores for stack in stacks if stack.call_scores is not None]
        self.layers = []
        for schedule, index, base in layers:
            stack = stacks[schedule]
            keys, values, scores = stack.layer(index)
            if stack.call_scores is not None:
                scores = stack.call_scores[index]
            self.layers.append(StaticLayer(keys, values, scores, self.lengths[schedule], self.live, base, cos, sin))

    def __call__(self, stages: Stages = PLAIN) -> None:
        """Feed `ids`: one token per row."""
        for scores in self._call_scores:
            scores.zero_()
        positions = self.lengths[0].long() if self._slot_positions else self.seen
        hidden, inputs = self._family.embed(self._backbone, self.ids, positions[:, None], self._slot_positions)
        for layer, slots in zip(self._backbone.layers, self.layers, strict=False):
            hidden = stages.layer(layer, hidden, slots, inputs)
        self.logits.copy_(stages.head(self._family.finish, self._backbone, self._head, hidden))
        self.lengths += self.live
        self.seen += self.live

    def row_stages(self) -> Stages | None:
        """How the step is best run if it is of one row: without a compiler. None: by a compiler."""
        rotated = self.layers[0].cos is not None
        if len(self.ids) > 1 or not rotated or self._family.row is None or not runs_triton(self.ids):
            return None
        return self._family.row(self._backbone, self._head)

    def set_lengths(self, lengths: Sequence[Sequence[int]]) -> None:
        """Tell the device how many slots every row of every schedule holds; does not wait for it."""
        flat = Rows(length for rows in lengths for length in rows).on(self.lengths.device)
        self.lengths.copy_(flat.view_as(self.lengths))
