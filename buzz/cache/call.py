"""What is known of one forward pass, and of the models that a cache serves."""

from __future__ import annotations

import inspect
from dataclasses import dataclass
from typing import NamedTuple

import torch
from transformers import PreTrainedConfig

from buzz.cache.schedule import Step
from buzz.policies import ScoreSpec
from buzz.rows import Rows

_FULL, _SLIDING = "full_attention", "sliding_attention"


class Slots(NamedTuple):
    """What the queries of a call may see in one layer, and what the cache wants to know in return.

    keys, values: [B, H, S, D], S the slots of the longest row. starts, counts: cached slots before the call and
    tokens of the call, per row. spec: the scores to give to `observe`, None for none. window: a query sees so many
    slots at most, its own included: the newest up to there; None: all up to there. apart: the KV heads of a layer whose
    heads hold unequal numbers of slots: here each head of each row is a row of its own, [B * H, 1, S, D], and queries,
    output and scores must be so too; None: heads are alike. steps: rows that get other scores, and which; None: none.
    """

    keys: torch.Tensor
    values: torch.Tensor
    starts: Rows
    counts: Rows
    spec: ScoreSpec | None
    window: int | None = None
    apart: int | None = None
    steps: tuple[Rows, ScoreSpec] | None = None

    def fold(self, q: torch.Tensor) -> torch.Tensor:
        """Queries [B, Hq, L, D] for these keys: [B * H, Hq / H, L, D] where heads are apart."""
        return q if self.apart is None else q.reshape(-1, q.shape[1] // self.apart, *q.shape[2:])

    def unfold(self, output: torch.Tensor) -> torch.Tensor:
        """What attention gives for such queries, as [B, Hq, L, D]."""
        return output if self.apart is None else output.reshape(-1, self.apart * output.shape[1], *output.shape[2:])

    def query_slots(self, width: int, device: torch.device) -> slice | torch.Tensor:
        """Slots of a call's queries as an index into a table by slot: a slice where all rows agree, else int64
        [rows, 1, width]. Past a row's end: any slot."""
        if len(set(self.starts)) == 1 == len(set(self.counts)):
            return slice(self.starts[0], self.starts[0] + width)
        slots = self.starts.on(device)[:, None, None] + torch.arange(width, device=device)
        return slots.clamp(max=max(1, self.keys.shape[2]) - 1)


@dataclass(frozen=True)
class Call:
    """One forward pass.

    columns: of the call. counts: tokens of each row. steps: of each schedule. tokens: bool [B, columns], which columns
    hold tokens; None: all. order: int64 [B, columns], brings these to the left of each row; None: they are there.
    first: columns seen before it, pads included. seen: tokens of each row before it. counted: the schedule of the layer
    that a cache's lengths speak of.
    """

    columns: int
    counts: list[int]
    steps: list[Step]
    tokens: torch.Tensor | None
    order: torch.Tensor | None
    first: int
    seen: list[int]
    counted: int

    @property
    def width(self) -> int:
        """Columns that are left once every row's tokens are at its left."""
        return self.columns if self.order is None else max(1, *self.counts)

    @property
    def empty(self) -> bool:
        """Whether no row has a token: then layers have nothing to do."""
        return not any(self.counts)

    # Where the queries are. Past a row's end: any place that the call has.

    def query_columns(self, device: torch.device) -> torch.Tensor:
        """Columns, pads and earlier calls counted: int64 [1 or B, width]."""
        if self.order is None:
            return torch.arange(self.first, self.first + self.width, device=device)[None]
        return self.order[:, : self.width].to(device) + self.first

    def query_positions(self, device: torch.device) -> torch.Tensor:
        """Positions in the text, pads not counted: int64 [1 or B, width]."""
        same = len(set(self.seen)) == 1
        starts = Rows(self.seen[:1] if same else self.seen).on(device)
        return starts[:, None] + torch.arange(self.width, device=device)

    def query_slots(self, device: torch.device) -> torch.Tensor:
        """Slots, in the layer that lengths speak of: int64 [1 or B, width]."""
        return self.steps[self.counted].positions(self.width, device)

    @property
    def last_position(self) -> int:
        """Highest position in the text of a query."""
        return max(seen + count for seen, count in zip(self.seen, self.counts, strict=True)) - 1

    @property
    def last_slot(self) -> int:
        """Highest slot of a query, in the layer that lengths speak of."""
        return max(self.steps[self.counted].ends) - 1


class Shape(NamedTuple):
    """What a cache and a model must agree in.

    windows: of each layer, the tokens that a query sees at most, its own included; None: all before it.
    """

    layers: int
    heads: int
    head_dim: int
    windows: tuple[int | None, ...]

    @classmethod
    def of(cls, config: PreTrainedConfig) -> Shape:
        """The shape of a model by its configuration, or by that of the text model in it.

        Raises:
            ValueError: some of its layers are neither of full nor of sliding attention.
        """
        config = config.get_text_config(decoder=True)
        heads = config.num_attention_heads
        kv_heads = getattr(config, "num_key_value_heads", None) or heads
        head_dim = getattr(config, "head_dim", None) or config.hidden_size // heads
        return cls(config.num_hidden_layers, kv_heads, head_dim, _windows(config))

    @property
    def decided(self) -> list[int]:
        """The layers that a policy decides over: those of full attention, or all if there are none."""
        return [i for i, window in enumerate(self.windows) if window is None] or list(range(self.layers))

    def __str__(self) -> str:
        text = f"{self.layers} layers of {self.heads} KV heads, {self.head_dim} wide"
        sliding = [window for window in self.windows if window is not None]
        if not sliding:
            return text
        sizes = " or ".join(map(str, sorted(set(sliding))))
        which = "all" if len(sliding) == self.layers else len(sliding)
        return f"{text}, {which} with a sliding window of {sizes} tokens"


def _windows(config: PreTrainedConfig) -> tuple[int | None, ...]:
    """The window of each layer, as transformers' DynamicCache reads it.

    But one that the class of the configuration does not know is left from another model: this one looks past it.
    """
    layers, window = config.num_hidden_layers, getattr(config, "sliding_window", None)
    if "sliding_window" not in inspect.signature(type(config).__init__).parameters:
        window = None
    kinds = getattr(config, "layer_types", None)
    if kinds is None and window is None and getattr(config, "attention_chunk_size", None) is not None:
        kinds = ["chunked_attention"]
    elif kinds is None:
        kinds = [_SLIDING] * layers
    for kind in kinds:
        if kind not in (_FULL, _SLIDING):
            raise ValueError(
                f"the model has layers of type {kind!r}, and a BeehiveCache knows {_FULL} and {_SLIDING} only"
            )
    return tuple(window if kind == _SLIDING else None for kind in kinds[:layers])


__all__ = ["Call", "Shape", "Slots"]
