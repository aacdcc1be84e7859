"""Buffers of heads that hold unequal numbers of slots: one pool a row, dealt out unevenly."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import torch

from buzz.policies import Places, ScoreSpec
from buzz.rows import Rows


class Spans(NamedTuple):
    """Where the slots of one layer's heads are: head h of row b has the places begin[b, h] .. begin + length - 1.

    keys, values: [B, P, D]. scores: float32 [B, P], or None. begin, length: int32 [B, H]. All are views of a pool.
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

    keys, values: [groups * B, P, D], P = together * H * capacity, group after group of the layers that share. scores:
    float32 [groups * B, P], or None. begin, length: int32 [groups, B, together * H], written in place. received: as
    scores, what places received in the open call alone, if that is what is read. nbytes: allocated.

    Args:
        layers, together: their number, and how many of them share: one, or all.
        rows, heads: of the batch and of a layer.
        capacity: slots of a head in the mean.
        like: a tensor of the keys' width, dtype and device.
        scored: whether scores are kept.
    """

    def __init__(
        self, layers: int, together: int, rows: int, heads: int, capacity: int, like: torch.Tensor, scored: bool
    ) -> None:
        self.layers, self.together, self.heads, self.capacity = layers, together, heads, capacity
        units, places = layers // together * rows, together * heads * capacity
        # Normal tensors even under inference mode, and zeros: as in a layer's own buffers.
        with torch.inference_mode(False):
            self.keys, self.values = (like.new_zeros(units, places, like.shape[-1]) for _ in range(2))
            self.scores = like.new_zeros(units, places, dtype=torch.float32) if scored else None
            begin = torch.arange(together * heads, dtype=torch.int32, device=like.device) * capacity
            self.begin = begin.repeat(layers // together, rows, 1)
            self.length = torch.zeros_like(self.begin)
        self._lengths: list[list[list[int]]] | None = self.length.tolist()
        self.received: torch.Tensor | None = None
        self._count()

    def _count(self) -> None:
        tensors = (self.keys, self.values, self.scores, self.begin, self.length)
        self.nbytes = sum(t.numel() * t.element_size() for t in tensors if t is not None)

    @property
    def rows(self) -> int:
        return self.begin.shape[1]

    def layer(self, index: int) -> Spans:
        """One layer's part."""
        group, member = divmod(index, self.together)
        units = self._units(index)
        heads = slice(member * self.heads, (member + 1) * self.heads)
        scores = None if self.scores is None else self.scores[units]
        return Spans(
            self.keys[units], self.values[units], scores, self.begin[group, :, heads], self.length[group, :, heads]
        )

    def _units(self, index: int) -> slice:
        """The rows of the buffers that a layer is in."""
        group = index // self.together
        return slice(group * self.rows, (group + 1) * self.rows)

    def lengths(self, index: int) -> list[list[int]]:
        """Slots of each row's heads in one layer. Waits for the device once after an eviction."""
        if self._lengths is None:
            self._lengths = self.length.tolist()
        group, member = divmod(index, self.together)
        heads = slice(member * self.heads, (member + 1) * self.heads)
        return [row[heads] for row in self._lengths[group]]

    def dealt(self) -> None:
        """The device alone knows the lengths now."""
        self._lengths = None

    def places(self) -> Places:
        """Which slot of which head each place holds, of every unit (row of keys)."""
        begin, length = (t.flatten(0, 1).long() for t in (self.begin, self.length))  # [units, together * H]
        place = torch.arange(self.keys.shape[1], device=begin.device).expand(len(begin), -1).contiguous()
        head = torch.searchsorted(begin, place, right=True) - 1  # [U, P]
        return Places(begin.shape[1], self.together, head, place - begin.gather(1, head), length)

    # A call: append, seen, receive in every layer, and advance once.

    def append(self, index: int, k: torch.Tensor, v: torch.Tensor, counts: Sequence[int]) -> None:
        """Write a layer's new tokens, [B, H, L, D], the first counts[b] of row b, behind what its heads hold."""
        spans = self.layer(index)
        at = (spans.begin + spans.length).long()[..., None] + torch.arange(k.shape[2], device=k.device)  # [B, H, L]
        groups = [(slice(None), counts[0])] if len(set(counts)) == 1 else [
            (slice(row, row + 1), count) for row, count in enumerate(counts)
        ]  # fmt: skip
        for rows, count in groups:
            places = at[rows, :, :count].flatten(1)[..., None].expand(-1, -1, k.shape[3])  # [rows, H * count, D]
            spans.keys[rows].scatter_(1, places, k[rows, :, :count].flatten(1, 2))
            spans.values[rows].scatter_(1, places, v[rows, :, :count].flatten(1, 2))

    def seen(self, index: int, counts: Sequence[int]) -> tuple[torch.Tensor, torch.Tensor, Rows]:
        """What the queries of a call may see in a layer, every head of every row as a row of its own.

        Returns:
            keys, values: [B * H, 1, S, D], S the slots of the longest, the call's own included; and the slots that each
            held before.
        """
        starts = self.lengths(index)
        places = self._padded(index, counts)
        spans = self.layer(index)
        keys, values = (
            t.gather(1, places.flatten(1)[..., None].expand(-1, -1, t.shape[2])).view(
                -1, 1, places.shape[2], t.shape[2]
            )
            for t in (spans.keys, spans.values)
        )
        return keys, values, Rows(length for row in starts for length in row)

    def receive(self, index: int, scores: torch.Tensor, spec: ScoreSpec, counts: Sequence[int]) -> None:
        """Take in what a layer's slots received in a call, float32 [B * H, 1, S] in the order of `seen`."""
        if spec.accumulate:
            own = self.layer(index).scores
        else:
            if self.received is None:
                self.received = torch.zeros(self.keys.shape[:2], dtype=torch.float32, device=self.keys.device)
            own = self.received[self._units(index)]
        assert own is not None
        places = self._padded(index, counts).flatten(1)  # [B, H * S]
        received = scores.view(places.shape)  # nothing past a head's end, where places belong to the next one
        if spec.of == "largest":
            own.scatter_reduce_(1, places, received, "amax")
        else:
            own.scatter_add_(1, places, received)

    def _padded(self, index: int, counts: Sequence[int]) -> torch.Tensor:
        """Places int64 [B, H, S] of a layer's slots in a call; past a head's end: any place."""
        longest = max(length + count for row, count in zip(self.lengths(index), counts, strict=True) for length in row)
        begin = self.layer(index).begin.long()
        return (begin[..., None] + torch.arange(longest, device=begin.device)).clamp_(max=self.keys.shape[1] - 1)

    def advance(self, counts: Rows) -> None:
        """The call is over: every head of row b holds counts[b] slots more."""
        self.length += counts.on(self.length.device)[:, None].int()
        if self._lengths is not None:
            self._lengths = [
                [[n + count for n in row] for row, count in zip(group, counts, strict=True)] for group in self._lengths
            ]

    # What changes them besides calls.

    def grow(self, capacity: int) -> None:
        """Make room for so many slots a head in the mean."""
        places, more = self.places(), capacity - self.capacity
        moved = torch.arange(self.keys.shape[1], device=self.keys.device) + places.head * more  # [units, P]
        size = self.together * self.heads * capacity
        with torch.inference_mode(False):
            self.keys, self.values = (_spread(t, moved, size) for t in (self.keys, self.values))
            self.scores = None if self.scores is None else _spread(self.scores, moved, size)
            self.begin += torch.arange(self.begin.shape[2], dtype=torch.int32, device=self.begin.device) * more
        self.capacity = capacity
        self._count()

    def take(self, rows: torch.Tensor) -> None:
        """Make row i what row rows[i] was; the number of rows may change."""
        groups, rows = self.layers // self.together, rows.to(self.keys.device)
        units = (torch.arange(groups, device=rows.device)[:, None] * self.rows + rows).flatten()
        with torch.inference_mode(False):
            self.keys, self.values = (t.index_select(0, units) for t in (self.keys, self.values))
            self.scores = None if self.scores is None else self.scores.index_select(0, units)
            self.begin, self.length = (t.index_select(1, rows) for t in (self.begin, self.length))
        self._count()
        if self._lengths is not None:
            self._lengths = [[list(group[row]) for row in rows.tolist()] for group in self._lengths]


def _spread(tensor: torch.Tensor, places: torch.Tensor, size: int) -> torch.Tensor:
    """Each place p of tensor [U, P, ...] at places[u, p] of a new one with `size` places."""
    new = tensor.new_zeros(tensor.shape[0], size, *tensor.shape[2:])
    return new.scatter_(1, places if tensor.dim() == 2 else places[..., None].expand_as(tensor), tensor)


__all__ = ["Pool", "Spans"]
