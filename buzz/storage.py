"""The slots of one layer: preallocated buffers, written and compacted in place."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, NoReturn

import torch
from transformers.cache_utils import CacheLayerMixin

from buzz.rows import Rows
from buzz.schedule import Eviction, Step

UNPATCHED = "a BeehiveCache needs a patched model: call buzz.patch_model(model) first"


class BeehiveLayer(CacheLayerMixin):
    """Keys, values and scores of one layer; rows are left-aligned, memory past a row's end is finite but meaningless.

    keys, values: [B, H, capacity, D] in the model's dtype. scores: float32 [B, H, capacity], zero past a row's end,
    or None where the policy accumulates none.
    """

    keys: Any  # a tensor once `is_initialized`
    values: Any
    scores: Any
    is_compileable = False
    is_croppable = False

    def __init__(
        self, seen: Callable[[], int], watch: Callable[[], Callable[[Eviction, torch.Tensor], None] | None]
    ) -> None:
        super().__init__()
        self._seen, self._watch = seen, watch
        self.reset()

    def reset(self) -> None:
        """Give all memory back."""
        self.keys = self.values = self.scores = None
        self._call_scores: torch.Tensor | None = None
        self._borrowed = False  # keys and values are the model's own tensors of a first prompt
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
    def _tensors(self) -> tuple[Any, Any, Any]:
        return self.keys, self.values, self.scores

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
                self._allocate(k, max(end, step.capacity, least), step)
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
            self._call_scores = scores
        elif self._borrowed:
            self.scores = scores
        else:
            self.scores[:, :, : scores.shape[2]] += scores

    def settle(self, step: Step, least: int) -> None:
        """Run the evictions of a call: in place, unless a first prompt needs its buffers or much memory can go."""
        kept = max(length for length, _ in step.after)
        wasteful = step.evictions and self.capacity > 2 * max(kept, least)
        if self._borrowed or (wasteful and self.capacity > 2 * max(step.capacity, least)):
            old = self._tensors
            self._allocate(old[0], max(step.capacity, kept, least), step)
            self._move(old, step, in_place=False)
        elif step.evictions:
            self._move(self._tensors, step, in_place=True)
        self._call_scores = None

    # What CacheLayerMixin asks for; storage goes through append, observe and settle instead.

    def get_seq_length(self) -> int:
        return self._seen()

    def get_mask_sizes(self, query_length: int) -> tuple[int, int]:
        return self._seen() + query_length, 0

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
            taken = (None if t is None else t.index_select(0, rows) for t in self._tensors)
            self.keys, self.values, self.scores = taken

    def _allocate(self, like: torch.Tensor, capacity: int, step: Step) -> None:
        """New, empty buffers of `capacity` slots."""
        B, H, _, D = like.shape
        spec = step.score_spec
        # Normal tensors even under inference mode, so that a later call outside of it may write to them. Zeros,
        # since what lies past a row's end takes part in matrix products, with weight 0.
        with torch.inference_mode(False):
            self.keys, self.values = (like.new_zeros(B, H, capacity, D) for _ in range(2))
            self.scores = like.new_zeros(B, H, capacity, dtype=torch.float32) if spec and spec.accumulate else None
        self._borrowed = False

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

    def _move(self, old: Sequence[Any], step: Step, in_place: bool) -> None:
        """Bring the slots that stay from the old keys, values and scores to the front of the buffers."""
        scores = old[2] if self._call_scores is None else self._call_scores
        due = [e for e in step.evictions if not in_place or e.plan.kept < e.length]
        if len(due) == 1:
            self._compact(old, scores, due[0], in_place)
        elif due:
            self._compact_ragged(old, scores, step, due, in_place)
        if in_place:
            return
        for row in step.staying:
            for target, source in zip(self._tensors, old, strict=True):
                if target is not None:
                    target[row, :, : step.ends[row]] = source[row, :, : step.ends[row]]

    def _compact(self, old: Sequence[Any], scores: torch.Tensor | None, eviction: Eviction, in_place: bool) -> None:
        """One eviction of rows in the same state."""
        rows, length, kept = eviction.rows, eviction.length, eviction.plan.kept
        seen = None if scores is None else _rows(scores, rows)[:, :, :length]
        slots = eviction.policy.select(seen, length, eviction.sampled).to(self.keys.device)
        if (watch := self._watch()) is not None:
            watch(eviction, slots)
        for target, source in zip(self._tensors, old, strict=True):
            if target is None:
                continue
            packed = _gather(_rows(source, rows)[:, :, :length], slots)
            target[_index(rows, target), :, :kept] = packed
            if target is self.scores and in_place:  # a slot's score starts at zero
                target[_index(rows, target), :, kept:length] = 0

    def _compact_ragged(
        self, old: Sequence[Any], scores: torch.Tensor | None, step: Step, due: Sequence[Eviction], in_place: bool
    ) -> None:
        """Evictions of rows in states of their own, together: as few kernels as for one."""
        ragged = step.ragged(due)
        length, kept = max(ragged.lengths), max(ragged.kept)
        seen = None if scores is None else _rows(scores, ragged.rows)[:, :, :length]
        slots = ragged.select(seen, self.keys.device)  # [R, H or 1, kept]
        if (watch := self._watch()) is not None:
            for eviction in due:
                watch(eviction, slots[ragged.places(eviction)][:, :, : eviction.plan.kept])
        for target, source in zip(self._tensors, old, strict=True):
            if target is None:
                continue
            packed = _gather(_rows(source, ragged.rows)[:, :, :length], slots)
            if target is self.scores:  # a slot's score starts at zero
                ends = ragged.kept.on(packed.device)[:, None, None]
                packed.masked_fill_(torch.arange(kept, device=packed.device) >= ends, 0)
                if in_place:
                    target[_index(ragged.rows, target), :, kept:length] = 0
            target[_index(ragged.rows, target), :, :kept] = packed


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
