"""The slots of one layer: buffers that grow with need, written and compacted in place."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NoReturn

import torch
from transformers.cache_utils import CacheLayerMixin

from buzz.cache.columns import Columns
from buzz.cache.compaction import Block
from buzz.cache.pool import Pool
from buzz.cache.schedule import Step
from buzz.cache.stack import Stack
from buzz.policies import Asked, ScoreSpec
from buzz.rows import Rows

UNPATCHED = "a BeehiveCache needs a patched model: call buzz.patch_model(model) first"


class Memory:
    """Bytes that the layers of a cache have allocated: one number that they share."""

    def __init__(self) -> None:
        self.nbytes = 0


class BeehiveLayer(CacheLayerMixin):
    """Keys, values and scores of one layer; rows are left-aligned, memory past a row's end is finite but meaningless.

    keys, values: [B, H, capacity, D] in the model's dtype. scores: float32 [B, H, capacity], zero past a row's end,
    or None where the policy accumulates none. call_scores: float32 [B, H, S], what the slots received in the open call
    alone. asked: what else an eviction asks of the open call. borrowed: keys and values are the
    model's own, of a first prompt that is still to be settled. home: the stack that these are views of, None for
    buffers of its own. offered: a stack and a place in it for buffers to come. pool: what it shares with other heads,
    in place of all buffers; it is number `member` of the layers in there.
    """

    keys: Any  # a tensor once `is_initialized`
    values: Any
    scores: Any
    pool: Pool | None
    is_compileable = False
    is_croppable = False

    def __init__(self, columns: Columns, memory: Memory) -> None:
        super().__init__()
        self._columns, self._memory, self._nbytes = columns, memory, 0
        self.offered: tuple[Stack, int] | None = None
        self.reset()

    def reset(self) -> None:
        """Give all memory back."""
        self.pool, self.member = None, 0
        self.adopt(Block(None, None, None), None)
        self.close_call()
        self.is_initialized = False

    def close_call(self) -> None:
        """Forget what was known of the open call."""
        self.call_scores: torch.Tensor | None = None
        self.asked: Asked | None = None

    @property
    def capacity(self) -> int:
        """Allocated slots per row and head."""
        return 0 if self.keys is None else self.keys.shape[2]

    @property
    def dtype(self) -> torch.dtype:
        """Of the keys, once there are some."""
        return (self.keys if self.pool is None else self.pool.keys).dtype

    @property
    def device(self) -> torch.device:
        """Of the keys, once there are some."""
        return (self.keys if self.pool is None else self.pool.keys).device

    @property
    def tensors(self) -> Block:
        """Keys, values and scores, as they are."""
        return Block(self.keys, self.values, self.scores)

    def append(
        self, k: torch.Tensor, v: torch.Tensor, step: Step, least: int, borrow: bool = True
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """Take in a call's keys and values; give back all that its queries may see, [B, H, longest row, D].

        A first prompt is not copied: it is compacted into buffers once its own attention is done (`settle`).

        Args:
            k, v: [B, H, L, D]; row b's tokens are the first step.counts[b] columns.
            least: slots to allocate at least.
            borrow: whether that can be; else it is written to buffers like any other call.
        """
        k, v, end = k.detach(), v.detach(), max(step.ends)
        if borrow and not self.is_initialized and k.shape[2] > 1:
            self.keys, self.values, self.borrowed = k, v, True
        else:
            if end > self.capacity or not self.is_initialized:
                old, used = self.tensors, max(step.starts)
                allocate([self], k, max(end, least), step)
                for new, before in zip(self.tensors, old, strict=True):
                    if before is not None:
                        new[:, :, :used] = before[:, :, :used]
            self._write(k, v, step)
        self.is_initialized = True
        return self.keys[:, :, :end], self.values[:, :, :end]

    def append_to_pool(self, k: torch.Tensor, v: torch.Tensor, step: Step) -> tuple[torch.Tensor, torch.Tensor, Rows]:
        """`append` of a layer in a pool; what its queries may see as of `Pool.seen`."""
        pool = self.pool
        assert pool is not None
        pool.append(self.member, k.detach(), v.detach(), step.counts)
        return pool.seen(self.member, step.counts)

    def ends(self, step: Step) -> Rows:
        """Slots of each row in a call; in a pool those of each head of each row."""
        if self.pool is None:
            return Rows(step.ends)
        held = zip(self.pool.lengths(self.member), step.counts, strict=True)
        return Rows(length + count for row, count in held for length in row)

    def nothing(self, step: Step) -> torch.Tensor:
        """Zeros as `observe` takes them."""
        ends, (heads, like) = self.ends(step), (1, self.pool.keys) if self.pool else (self.keys.shape[1], self.keys)
        return like.new_zeros(len(ends), heads, max(ends), dtype=torch.float32)

    def observe(self, scores: torch.Tensor | None, step: Step) -> None:
        """Take in what the slots received in the call; None if nobody asked.

        Args:
            scores: float32 [B, H, longest row]; in a pool [B * H, 1, longest head].
        """
        if scores is None or not step.scores:
            return
        spec = step.score_spec or ScoreSpec(False, None)
        if self.pool is not None:
            self.pool.receive(self.member, scores, spec, step.counts)
        elif not spec.accumulate:
            self.call_scores = scores
        elif self.borrowed:
            self.scores = scores
        else:
            old = self.scores[:, :, : scores.shape[2]]
            if spec.of == "largest":
                torch.maximum(old, scores, out=old)
            else:
                old += scores

    def adopt(self, block: Block, home: Stack | None) -> None:
        """From now on these are the layer's buffers, views of the stack `home` if that is given."""
        self.keys, self.values, self.scores = block
        self.borrowed, self.home = False, home
        if home is not None:
            nbytes = home.nbytes // home.layers  # scores of the last call included
        else:
            nbytes = sum(t.numel() * t.element_size() for t in block if t is not None)
        self._memory.nbytes += nbytes - self._nbytes
        self._nbytes = nbytes

    def enter(self, pool: Pool, member: int) -> None:
        """From now on the layer's slots are in a pool, and its buffers are given back."""
        self.adopt(Block(None, None, None), None)
        self.pool, self.member = pool, member

    # Life in a stack.

    def offer(self, stack: Stack, index: int) -> None:
        """Buffers allocated from now on are layer `index` of a stack, wherever that has the room."""
        self.offered = (stack, index)

    def move_in(self, used: int) -> None:
        """Move to the stack that was offered; `used` slots are copied, and the old buffers given back."""
        assert self.offered is not None
        stack, index = self.offered
        if self.home is stack:
            return
        new = stack.layer(index)
        for target, source in zip(new, self.tensors, strict=True):
            if target is not None:
                target[:, :, :used] = source[:, :, :used]
        if new.scores is not None:
            new.scores[:, :, used:] = 0
        self.adopt(new, stack)

    def move_out(self) -> None:
        """Leave the stack, if the layer lives in one, for buffers of its own of the same size; forget the offer."""
        self.offered = None
        if self.home is not None:
            with torch.inference_mode(False):
                self.adopt(Block(*(None if t is None else t.clone() for t in self.tensors)), None)

    # What CacheLayerMixin asks for; storage goes through append, observe and settle instead.

    def get_seq_length(self) -> int:
        return self._columns.seen

    def get_mask_sizes(self, query_length: int) -> tuple[int, int]:
        return self._columns.seen + query_length, 0

    def get_max_length(self) -> int:
        return -1

    def lazy_initialization(self, key_states: torch.Tensor, value_states: torch.Tensor) -> NoReturn:
        raise RuntimeError("buffers are made by append()")

    def update(self, *args: Any, **kwargs: Any) -> NoReturn:
        raise RuntimeError(UNPATCHED)

    def take(self, rows: Rows) -> None:
        """Make row i what row rows[i] was; the number of rows may change."""
        if self.is_initialized and self.pool is None:
            index = rows.on(self.keys.device)
            with torch.inference_mode(False):  # normal tensors, as in `allocate`
                self.adopt(Block(*(None if t is None else t.index_select(0, index) for t in self.tensors)), None)

    def _write(self, k: torch.Tensor, v: torch.Tensor, step: Step) -> None:
        """Put each row's tokens behind its slots."""
        if step.uniform:
            place, n = slice(step.starts[0], step.ends[0]), step.counts[0]
            if n < k.shape[2]:
                k, v = k[:, :, :n], v[:, :, :n]
            self.keys[:, :, place] = k
            self.values[:, :, place] = v
        elif k.shape[2] == 1 and min(step.counts) == 1:
            rows, slots = torch.arange(k.shape[0], device=k.device), step.positions(1, k.device)[:, 0]
            self.keys[rows, :, slots] = k[:, :, 0]
            self.values[rows, :, slots] = v[:, :, 0]
        else:
            for row, (start, end) in enumerate(zip(step.starts, step.ends, strict=True)):
                self.keys[row, :, start:end] = k[row, :, : end - start]
                self.values[row, :, start:end] = v[row, :, : end - start]


def allocate(layers: Sequence[BeehiveLayer], like: torch.Tensor, needed: int, step: Step) -> Block:
    """New, empty buffers for layers that share a schedule, in a stack if one is offered: [layers * B, H, slots, D].

    Args:
        like: keys [B, H, any, D] of one of them.
        needed: slots at least; there are some more, for the calls to come.
    """
    B, H, _, D = like.shape
    spec = step.score_spec
    scored = spec is not None and spec.accumulate
    stack, first = layers[0].offered or (None, 0)
    # Normal tensors even under inference mode, so that a later call outside of it may write to them.
    with torch.inference_mode(False):
        if stack is not None and stack.fits(like, needed, scored):
            parts = [stack.layer(index) for index in range(first, first + len(layers))]
            block = stack.block(first, len(layers))
            if scored:
                block.scores.zero_()
        else:
            # Zeros, since what lies past a row's end takes part in matrix products, with weight 0.
            stack, shape = None, (len(layers) * B, H, max(needed, step.capacity))
            keys, values = (like.new_zeros(*shape, D) for _ in range(2))
            block = Block(keys, values, like.new_zeros(shape, dtype=torch.float32) if scored else None)
            split = [[None] * len(layers) if t is None else t.split(B) for t in block]
            parts = [Block(*part) for part in zip(*split, strict=True)]
        for layer, part in zip(layers, parts, strict=True):
            layer.adopt(part, stack)
    return block
