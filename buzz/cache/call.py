"""What is known of one forward pass, and of the models that a cache serves."""

from __future__ import annotations

from dataclasses import dataclass
from typing import NamedTuple

import torch
from transformers import PreTrainedConfig

from buzz.cache.schedule import Step
from buzz.policies import ScoreSpec
from buzz.rows import Rows


class Slots(NamedTuple):
    """What the queries of a call may see in one layer, and what the cache wants to know in return.

    keys, values: [B, H, S, D], S the slots of the longest row. starts, counts: cached slots before the call and
    tokens of the call, per row. spec: the scores to give to `observe`, None for none.
    """

    keys: torch.Tensor
    values: torch.Tensor
    starts: Rows
    counts: Rows
    spec: ScoreSpec | None


@dataclass(frozen=True)
class Call:
    """One forward pass.

    tokens: bool [B, columns], which columns hold tokens; None: all. order: int64 [B, columns], brings these to the
    left of each row; None: they are there.
    """

    columns: int
    counts: list[int]
    steps: dict[int, Step]
    tokens: torch.Tensor | None
    order: torch.Tensor | None

    @property
    def width(self) -> int:
        """Columns that are left once every row's tokens are at its left."""
        return self.columns if self.order is None else max(1, *self.counts)

    @property
    def empty(self) -> bool:
        """Whether no row has a token: then layers have nothing to do."""
        return not any(self.counts)


class Shape(NamedTuple):
    """What a cache and a model must agree in."""

    layers: int
    heads: int
    head_dim: int

    @classmethod
    def of(cls, config: PreTrainedConfig) -> Shape:
        heads = config.num_attention_heads
        kv_heads = getattr(config, "num_key_value_heads", None) or heads
        return cls(config.num_hidden_layers, kv_heads, getattr(config, "head_dim", None) or config.hidden_size // heads)

    def __str__(self) -> str:
        return f"{self.layers} layers of {self.heads} KV heads, {self.head_dim} wide"


__all__ = ["Call", "Shape", "Slots"]
