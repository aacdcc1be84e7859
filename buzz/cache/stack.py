"""Buffers that several layers share, so that all of them are evicted by the same few kernels."""

from __future__ import annotations

import torch

from buzz.cache.compaction import Block, Watch, compact
from buzz.cache.schedule import Step


class Stack:
    """Keys and values [layers, B, H, capacity, D] and scores float32 [layers, B, H, capacity] of several layers.

    Args:
        layers, rows, heads, capacity, dim: the sizes.
        dtype, device: of keys and values.
        scores: "kept": they add up over calls; "call": those of the last call alone; None: nobody reads any.
    """

    def __init__(
        self,
        layers: int,
        rows: int,
        heads: int,
        capacity: int,
        dim: int,
        *,
        dtype: torch.dtype,
        device: torch.device,
        scores: str | None,
    ) -> None:
        shape = (layers, rows, heads, capacity)
        # Normal tensors even under inference mode, and zeros: as in a layer's own buffers.
        with torch.inference_mode(False):
            self.keys, self.values = (torch.zeros(*shape, dim, dtype=dtype, device=device) for _ in range(2))
            received = None if scores is None else torch.zeros(shape, dtype=torch.float32, device=device)
        self.scores = received if scores == "kept" else None
        self.call_scores = received if scores == "call" else None

    @property
    def layers(self) -> int:
        return self.keys.shape[0]

    @property
    def rows(self) -> int:
        return self.keys.shape[1]

    @property
    def capacity(self) -> int:
        """Slots per row and head."""
        return self.keys.shape[3]

    @property
    def nbytes(self) -> int:
        """Allocated bytes."""
        tensors = (self.keys, self.values, self.scores, self.call_scores)
        return sum(t.numel() * t.element_size() for t in tensors if t is not None)

    def layer(self, index: int) -> Block:
        """The keys, values [B, H, capacity, D] and accumulated scores [B, H, capacity] of one layer, as views."""
        return Block(self.keys[index], self.values[index], None if self.scores is None else self.scores[index])

    def block(self, first: int, layers: int) -> Block:
        """Those of consecutive layers as [layers * B, H, capacity, D] and [layers * B, H, capacity], as views."""
        whole = Block(self.keys, self.values, self.scores)
        return Block(*(None if t is None else t[first : first + layers].flatten(0, 1) for t in whole))

    def fits(self, like: torch.Tensor, slots: int, scored: bool) -> bool:
        """Whether keys like [B, H, any, D] have room here for so many slots, with scores or without."""
        same = (*like.shape[:2], like.shape[3]) == (*self.keys.shape[1:3], self.keys.shape[4])
        kind = (like.dtype, like.device, scored) == (self.keys.dtype, self.keys.device, self.scores is not None)
        return same and kind and slots <= self.capacity

    def evict(self, step: Step, received: torch.Tensor | None, watch: Watch | None) -> None:
        """Run the evictions of a call in all layers, in place.

        Args:
            received: float32 [layers * B, H, S], what the slots received in this call if that is what is read.
            watch: called for every layer, by its index in the stack.
        """
        block = self.block(0, self.layers)
        compact(block, block, received, step, self.layers, watch)
