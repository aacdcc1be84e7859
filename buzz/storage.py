"""The slots of one layer: preallocated buffers, written and compacted in place."""

from __future__ import annotations

from typing import Any, NoReturn

import torch
from transformers.cache_utils import CacheLayerMixin

from buzz.compaction import Block, Watch, compact
from buzz.schedule import Step
from buzz.stack import Stack

UNPATCHED = "a BeehiveCache needs a patched model: call buzz.patch_model(model) first"


class Seen:
    """Columns that a cache has seen, pads included: one number that the cache and its layers share."""

    def __init__(self) -> None:
        self.columns = 0


class BeehiveLayer(CacheLayerMixin):
    """Keys, values and scores of one layer; rows are left-aligned, memory past a row's end is finite but meaningless.

    keys, values: [B, H, capacity, D] in the model's dtype. scores: float32 [B, H, capacity], zero past a row's end,
    or None where the policy accumulates none. home: the stack that these are views of, None for buffers of its own.
    """

    keys: Any  # a tensor once `is_initialized`
    values: Any
    scores: Any
    is_compileable = False
    is_croppable = False

    def __init__(self, seen: Seen) -> None:
        super().__init__()
        self._seen = seen
        self._offer: tuple[Stack, int] | None = None
        self.reset()

    def reset(self) -> None:
        """Give all memory back."""
        self.keys = self.values = self.scores = None
        self.call_scores: torch.Tensor | None = None  # what the slots received in the open call alone
        self._borrowed = False  # keys and values are the model's own tensors of a first prompt
        self.home: Stack | None = None
        self.is_initialized = False

    @property
    def capacity(self) -> int:
        """Allocated slots per row and head."""
        return 0 if self.keys is None else self.keys.shape[2]

    @property
    def nbytes(self) -> int:
        """Allocated bytes."""
        return sum(t.numel() * t.element_size() for t in self._tensors if t is not None)

    @property
    def _tensors(self) -> Block:
        return Block(self.keys, self.values, self.scores)

    def append(self, k: torch.Tensor, v: torch.Tensor, step: Step, least: int) -> tuple[torch.Tensor, torch.Tensor]:
        """Take in a call's keys and values; give back all that its queries may see, [B, H, longest row, D].

        A first prompt is not copied: it is compacted into buffers once its own attention is done (`settle`).

        Args:
            k, v: [B, H, L, D]; row b's tokens are the first step.counts[b] columns.
            least: slots to allocate at least.
        """
        k, v, end = k.detach(), v.detach(), max(step.ends)
        if not self.is_initialized and k.shape[2] > 1:
            self.keys, self.values, self._borrowed = k, v, True
        else:
            if end > self.capacity or not self.is_initialized:
                old, used = self._tensors, max(step.starts)
                self._allocate(k, max(end, least), step)
                for new, before in zip(self._tensors, old, strict=True):
                    if before is not None:
                        new[:, :, :used] = before[:, :, :used]
            self._write(k, v, step)
        self.is_initialized = True
        return self.keys[:, :, :end], self.values[:, :, :end]

    def observe(self, scores: torch.Tensor | None, step: Step) -> None:
        """Take in what the slots received in the call, float32 [B, H, longest row]; None if nobody asked."""
        if scores is None or step.spec is None:
            return
        if not step.spec.accumulate:
            self.call_scores = scores
        elif self._borrowed:
            self.scores = scores
        else:
            self.scores[:, :, : scores.shape[2]] += scores

    def settle(self, step: Step, least: int, watch: Watch | None = None) -> None:
        """Run the evictions of a call: in place, unless a first prompt needs its buffers or much memory can go."""
        kept = max(length for length, _ in step.after)
        wasteful = step.evictions and self.home is None and self.capacity > 2 * max(kept, least)
        if self._borrowed or (wasteful and self.capacity > 2 * max(step.capacity, least)):
            old = self._tensors
            self._allocate(old.keys, max(kept, least), step)
            compact(self._tensors, old, self.call_scores, step, 1, watch)
        elif step.evictions:
            compact(self._tensors, self._tensors, self.call_scores, step, 1, watch)
        self.call_scores = None

    # Life in a stack.

    def offer(self, stack: Stack, index: int) -> None:
        """Buffers allocated from now on are layer `index` of a stack, wherever that has the room."""
        self._offer = (stack, index)

    def move_in(self, used: int) -> None:
        """Move to the stack that was offered; `used` slots are copied, and the old buffers given back."""
        assert self._offer is not None
        stack, index = self._offer
        if self.home is stack:
            return
        old = self._tensors
        self.keys, self.values, self.scores = new = stack.layer(index)
        for target, source in zip(new, old, strict=True):
            if target is not None:
                target[:, :, :used] = source[:, :, :used]
        if self.scores is not None:
            self.scores[:, :, used:] = 0
        self.home = stack

    def move_out(self) -> None:
        """Leave the stack, if the layer lives in one, for buffers of its own of the same size; forget the offer."""
        self._offer = None
        if self.home is not None:
            with torch.inference_mode(False):
                self.keys, self.values, self.scores = (None if t is None else t.clone() for t in self._tensors)
            self.home = None

    # What CacheLayerMixin asks for; storage goes through append, observe and settle instead.

    def get_seq_length(self) -> int:
        return self._seen.columns

    def get_mask_sizes(self, query_length: int) -> tuple[int, int]:
        return self._seen.columns + query_length, 0

    def get_max_length(self) -> int:
        return -1

    def lazy_initialization(self, key_states: torch.Tensor, value_states: torch.Tensor) -> NoReturn:
        raise RuntimeError("buffers are made by append()")

    def update(self, *args: Any, **kwargs: Any) -> NoReturn:
        raise RuntimeError(UNPATCHED)

    def take(self, rows: torch.Tensor) -> None:
        """Make row i what row rows[i] was; the number of rows may change."""
        if self.is_initialized:
            rows = rows.to(self.keys.device)
            self.keys, self.values, self.scores = (
                None if t is None else t.index_select(0, rows) for t in self._tensors
            )
            self.home = None

    def _allocate(self, like: torch.Tensor, needed: int, step: Step) -> None:
        """New, empty buffers of `needed` slots at least, and as many as later calls will want."""
        B, H, _, D = like.shape
        spec = step.score_spec
        scored = spec is not None and spec.accumulate
        self._borrowed = False
        if self._offer is not None and self._offer[0].fits(like, needed, scored):
            stack, index = self._offer
            self.keys, self.values, self.scores = stack.layer(index)
            if self.scores is not None:
                self.scores.zero_()
            self.home = stack
            return
        # Normal tensors even under inference mode, so that a later call outside of it may write to them. Zeros,
        # since what lies past a row's end takes part in matrix products, with weight 0.
        capacity = max(needed, step.capacity)
        with torch.inference_mode(False):
            self.keys, self.values = (like.new_zeros(B, H, capacity, D) for _ in range(2))
            self.scores = like.new_zeros(B, H, capacity, dtype=torch.float32) if scored else None
        self.home = None

    def _write(self, k: torch.Tensor, v: torch.Tensor, step: Step) -> None:
        """Put each row's tokens behind its slots."""
        if step.uniform:
            place = slice(step.starts[0], step.ends[0])
            n = step.counts[0]
            self.keys[:, :, place] = k[:, :, :n]
            self.values[:, :, place] = v[:, :, :n]
        elif k.shape[2] == 1 and min(step.counts) == 1:
            rows, slots = torch.arange(k.shape[0], device=k.device), step.positions(1, k.device)[:, 0]
            self.keys[rows, :, slots] = k[:, :, 0]
            self.values[rows, :, slots] = v[:, :, 0]
        else:
            for row, (start, end) in enumerate(zip(step.starts, step.ends, strict=True)):
                self.keys[row, :, start:end] = k[row, :, : end - start]
                self.values[row, :, start:end] = v[row, :, : end - start]
