"""Buffers of heads that hold unequal numbers of slots: one pool a row, dealt out unevenly."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import torch

from buzz.cache.compaction import Block
from buzz.policies import Places, ScoreSpec
from buzz.rows import Rows


class Spans(NamedTuple):
    """Where the slots of one layer's heads are: head h of row b has the places begin[b, h] .. begin + length - 1.

    keys, values: [B, P, D]. scores: float32 [B, P], that add up or are of the last call, or None. begin, length: int32
    [B, H]. All are views of a pool.
    """

    keys: torch.Tensor
    values: torch.Tensor
    scores: torch.Tensor | None
    begin: torch.Tensor
    length: torch.Tensor


class Pool:
    """Slots of layers whose heads share: those of one row, in `together` layers, lie in one pool of places.

    A row's heads hold `length` slots each, oldest first, and have equally many free places behind them. So what all
    of them hold together, and when they are full, follows from the row's mean length, which the host knows; only how
    it is shared out is the device's to know. New tokens go to the front of the free places, where scores are zero.

    A *unit* is a row in the layers that share there: unit g * B + b is row b in the g-th such group of layers.

    keys, values: [units, P, D], P = together * H * capacity. scores: float32 [units, P], or None; call_scores: as
    scores, what places received in the last call alone, if that is what is read. begin, length: int32 [layers, B, H].
    All are written in place, so that a captured step sees what changed. nbytes: allocated for them.

    Args:
        layers, together: their number, and how many of them share: one, or all.
        rows, heads: of the batch and of a layer.
        capacity: slots of a head in the mean.
        like: a tensor of the keys' width, dtype and device.
        scores: "kept": they add up over calls; "call": those of the last call alone; None: nobody reads any.
    """

    def __init__(
        self, layers: int, together: int, rows: int, heads: int, capacity: int, like: torch.Tensor, scores: str | None
    ) -> None:
        self.layers, self.together, self.rows, self.heads, self.capacity = layers, together, rows, heads, capacity
        units, places = layers // together * rows, together * heads * capacity
        # Normal tensors even under inference mode, and zeros: as in a layer's own buffers.
        with torch.inference_mode(False):
            self.keys, self.values = (like.new_zeros(units, places, like.shape[-1]) for _ in range(2))
            received = None if scores is None else like.new_zeros(units, places, dtype=torch.float32)
            begin = torch.arange(together * heads, dtype=torch.int32, device=like.device).view(together, 1, heads)
            self.begin = (begin * capacity).repeat(layers // together, rows, 1)
            self.length = torch.zeros_like(self.begin)
        self.scores = received if scores == "kept" else None
        self.call_scores = received if scores == "call" else None
        self._reads_calls = scores == "call"
        self._lengths: list[list[list[int]]] | None = [[[0] * heads for _ in range(rows)] for _ in range(layers)]
        tensors = (self.keys, self.values, received, self.begin, self.length)
        self.nbytes = sum(t.numel() * t.element_size() for t in tensors if t is not None)

    def fits(self, like: torch.Tensor, rows: int, heads: int, slots: int, scored: bool) -> bool:
        """Whether so many slots a head in the mean have room here, with keys like [..., D] and scores or without."""
        same = (rows, heads, like.shape[-1]) == (self.rows, self.heads, self.keys.shape[2])
        kind = (like.dtype, like.device, scored) == (self.keys.dtype, self.keys.device, self.scores is not None)
        return same and kind and slots <= self.capacity

    def another(self, capacity: int, rows: int | None = None) -> Pool:
        """An empty one of another capacity, or for another number of rows."""
        scores = "kept" if self.scores is not None else "call" if self._reads_calls else None
        return Pool(self.layers, self.together, rows or self.rows, self.heads, capacity, self.keys, scores)

    def layer(self, index: int) -> Spans:
        """One layer's part."""
        units = self._units(index)
        received = self.scores if self.scores is not None else self.call_scores
        scores = None if received is None else received[units]
        return Spans(self.keys[units], self.values[units], scores, self.begin[index], self.length[index])

    def _units(self, index: int) -> slice:
        """The units that a layer is in."""
        group = index // self.together
        return slice(group * self.rows, (group + 1) * self.rows)

    def units_of(self, rows: Rows) -> Rows:
        """The units of some rows of the batch, group after group."""
        groups = self.layers // self.together
        return rows if groups == 1 else Rows(group * self.rows + row for group in range(groups) for row in rows)

    def units_of_layers(self, layers: Sequence[int]) -> Rows:
        """The units that some layers are in: of layers that share, those of any of them."""
        groups = dict.fromkeys(layer // self.together for layer in layers)
        return Rows(group * self.rows + row for group in groups for row in range(self.rows))

    # Lengths: what the host knows of them, and the places that follow.

    def lengths(self, index: int) -> list[list[int]]:
        """Slots of each row's heads in one layer. Waits for the device once after an eviction."""
        if self._lengths is None:
            self._lengths = self.length.tolist()
        return self._lengths[index]

    def forget_lengths(self) -> None:
        """The device alone knows them now."""
        self._lengths = None

    def of_units(self, figures: torch.Tensor) -> torch.Tensor:
        """A view of figures [layers, B, H] by unit, [groups, B, together, H]."""
        return figures.unflatten(0, (-1, self.together)).transpose(1, 2)

    def places(self) -> Places:
        """Which slots of which heads the places hold, of every unit."""
        # Of layers with one head, what is flattened would be a transposed view, on which kernels must not rely.
        begin, length = (
            self.of_units(t).long().contiguous().flatten(2).flatten(0, 1) for t in (self.begin, self.length)
        )
        return Places(begin.shape[1], self.together, self.keys.shape[1], begin, length)

    def deal(self, units: torch.Tensor, begin: torch.Tensor, length: torch.Tensor, layer: int | None = None) -> None:
        """Set begins and lengths, int64 [U, together * H], of some units int64 [U]; or of one layer there, [U, H]."""
        group, row = units // self.rows, units % self.rows
        for own, new in ((self.begin, begin), (self.length, length)):
            if layer is None:
                self.of_units(own)[group, row] = new.view(-1, self.together, self.heads).int()
            else:
                own[layer].index_copy_(0, row, new.int())
        self.forget_lengths()

    def fill(self, index: int, held: Block, lengths: Rows) -> None:
        """Give a layer, which has held nothing so far, what equal heads hold: keys and values [B, H, L, D] and scores
        [B, H, L], zero past a row's end, or None; lengths[b] slots of row b, of L, at most the capacity."""
        heads = slice(index % self.together * self.heads, (index % self.together + 1) * self.heads)
        for own, given in ((self.keys, held.keys), (self.values, held.values), (self.scores, held.scores)):
            if own is not None and given is not None:
                room = own[self._units(index)].unflatten(1, (-1, self.capacity))  # [B, together * H, capacity, ...]
                room[:, heads, : given.shape[2]] = given
        self.length[index] = lengths.on(self.length.device)[:, None].int()
        self.forget_lengths()

    # A call: append, seen, receive in every layer, and advance once.

    def append(self, index: int, k: torch.Tensor, v: torch.Tensor, counts: Sequence[int]) -> None:
        """Write a layer's new tokens, [B, H, L, D], the first counts[b] of row b, behind what its heads hold."""
        spans, alike = self.layer(index), len(set(counts)) == 1
        at = (spans.begin + spans.length).long()[..., None] + torch.arange(k.shape[2], device=k.device)  # [B, H, L]
        for row in range(1 if alike else self.rows):
            rows, count = slice(None) if alike else slice(row, row + 1), counts[row]
            places = at[rows, :, :count].flatten(1)[..., None].expand(-1, -1, k.shape[3])  # [rows, H * count, D]
            spans.keys[rows].scatter_(1, places, k[rows, :, :count].flatten(1, 2))
            spans.values[rows].scatter_(1, places, v[rows, :, :count].flatten(1, 2))

    def seen(self, index: int, counts: Sequence[int]) -> tuple[torch.Tensor, torch.Tensor, Rows]:
        """What the queries of a call may see in a layer, every head of every row as a row of its own.

        Returns:
            keys, values: [B * H, 1, S, D], S the slots of the longest, the call's own included; and the slots that each
            held before.
        """
        spans, places = self.layer(index), self._padded(index, counts)
        # Slots are picked whole: gather, which goes number by number, takes seven times as long on a CPU.
        first = torch.arange(self.rows, device=places.device)[:, None, None] * self.keys.shape[1]
        at, size = (first + places).flatten(), (-1, 1, places.shape[2], self.keys.shape[2])
        keys, values = (t.flatten(0, 1).index_select(0, at).view(size) for t in (spans.keys, spans.values))
        return keys, values, Rows(length for row in self.lengths(index) for length in row)

    def receive(self, index: int, scores: torch.Tensor, spec: ScoreSpec, counts: Sequence[int]) -> None:
        """Take in what a layer's slots received in a call, float32 [B * H, 1, S] in the order of `seen`."""
        if not spec.accumulate and self.call_scores is None:
            self.call_scores = torch.zeros(self.keys.shape[:2], dtype=torch.float32, device=self.keys.device)
        own = self.scores if spec.accumulate else self.call_scores
        assert own is not None
        places = self._padded(index, counts).flatten(1)  # [B, H * S]
        received = scores.view(places.shape)  # nothing past a head's end, where places belong to the next one
        if spec.of == "largest":
            own[self._units(index)].scatter_reduce_(1, places, received, "amax")
        else:
            own[self._units(index)].scatter_add_(1, places, received)

    def _padded(self, index: int, counts: Sequence[int]) -> torch.Tensor:
        """Places int64 [B, H, S] of a layer's slots in a call; past a head's end: any place."""
        longest = max(length + count for row, count in zip(self.lengths(index), counts, strict=True) for length in row)
        slots = torch.arange(longest, device=self.begin.device)
        return (self.begin[index].long()[..., None] + slots).clamp_(max=self.keys.shape[1] - 1)

    def advance(self, counts: Rows, told: bool = False) -> None:
        """The call is over: every head of row b holds counts[b] slots more; told: the device knows already."""
        if not told:
            self.length += counts.on(self.length.device)[:, None].int()
        if self._lengths is not None:
            self._lengths = [
                [[n + count for n in row] for row, count in zip(layer, counts, strict=True)] for layer in self._lengths
            ]

    def close_call(self) -> None:
        """Forget what places received in the call."""
        if self.call_scores is not None:
            self.call_scores = self.call_scores.zero_() if self._reads_calls else None

    # What other pools take over from it.

    def taken(self, rows: Rows) -> Pool:
        """Another one whose row i is what row rows[i] is here."""
        index = rows.on(self.keys.device)
        groups = torch.arange(self.layers // self.together, device=index.device)
        units = (groups[:, None] * self.rows + index).flatten()
        pool = self.another(self.capacity, len(rows))
        for name in ("keys", "values", "scores"):
            own, new = getattr(self, name), getattr(pool, name)
            if own is not None:
                new.copy_(own.index_select(0, units))
        pool.begin.copy_(self.begin.index_select(1, index))
        pool.length.copy_(self.length.index_select(1, index))
        pool.forget_lengths()
        return pool


__all__ = ["Pool", "Spans"]
