"""A stretch of a decoding step: layers one after another on one device, and what reaches them from the one before."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch

from buzz.cache.pool import Pool
from buzz.cache.stack import Stack
from buzz.models.positions import Table

Inputs = list[dict[str, Any]]  # keyword arguments of every layer: of each kind of layers, the angles of the tokens


class Stretch:
    """What the layers of a stretch read and write, beside what they cache.

    live: int32 [1]; 0: nothing may change. lengths: int32 [schedules, B], the cached tokens before the step. left: for
    the next stretch, hidden [B, 1, width] and the inputs of all layers; of the last one logits, if they are wanted on
    another device.

    Args:
        layers: their numbers, perhaps none.
        buffers: of these layers, and of no others.
    """

    def __init__(
        self,
        device: torch.device,
        layers: Sequence[int],
        buffers: Sequence[Stack | Pool],
        schedules: int,
        rows: int,
    ) -> None:
        self.device, self.layers = device, layers
        with torch.inference_mode(False):
            self.live = torch.zeros(1, dtype=torch.int32, device=device)
            self.lengths = torch.zeros(schedules, rows, dtype=torch.int32, device=device)
        self._call_scores = [each.call_scores for each in buffers if each.call_scores is not None]
        self._lengths = [self.lengths, *(each.length for each in buffers if isinstance(each, Pool))]
        self.left: tuple[torch.Tensor, Inputs] | None = None
        self._hidden: torch.Tensor | None = None  # from the stretch before, as all that follows
        self._tables: list[Table] = []
        self._kinds: list[int | None] = []  # of each layer: which of the tables is its own

    def open(self) -> None:
        """A call begins."""
        for scores in self._call_scores:
            scores.zero_()

    def close(self, left: tuple[torch.Tensor, Inputs] | None) -> None:
        """The layers are done with it."""
        self.left = left
        for lengths in self._lengths:
            lengths += self.live

    def receive(self, before: Stretch) -> None:
        """Take over what the stretch before has left, always in the same memory. Nothing waits on the host."""
        assert before.left is not None
        hidden, inputs = before.left
        given = [each.get("position_embeddings") for each in inputs]
        tables = list({id(table): table for table in given if table is not None}.values())
        if self._hidden is None:
            with torch.inference_mode(False):
                self._hidden = self._like(hidden)
                self._tables = [(self._like(cos), self._like(sin)) for cos, sin in tables]
            order = {id(table): kind for kind, table in enumerate(tables)}
            self._kinds = [None if table is None else order[id(table)] for table in given]
        copies = [(self._hidden, hidden), (self.live, before.live)]
        for own, table in zip(self._tables, tables, strict=True):
            copies += zip(own, table, strict=True)
        for target, source in copies:
            target.copy_(source, non_blocking=True)

    def _like(self, tensor: torch.Tensor) -> torch.Tensor:
        return torch.empty_like(tensor, device=self.device)

    def arrived(self) -> tuple[torch.Tensor, Inputs]:
        """Hidden and the inputs of all layers, as the stretch before has left them."""
        assert self._hidden is not None
        # New pairs in every call: what is made of a pair is remembered by it (`Rotation`).
        tables = [(cos, sin) for cos, sin in self._tables]
        return self._hidden, [{} if k is None else {"position_embeddings": tables[k]} for k in self._kinds]
