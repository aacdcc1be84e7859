"""KVzip: of a prompt, what is needed to tell it again."""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass
from typing import ClassVar, Literal, get_args

import torch

from buzz.policies.base import Policy, Scope
from buzz.policies.held import Held
from buzz.policies.prompts import PromptPolicy


@dataclass(frozen=True, repr=False)
class KVzipPolicy(PromptPolicy):
    """The slots that are looked at most while the prompt is told again (KVzip: Kim et al., arXiv 2505.23416).

    The first call is read a second time behind itself, and the score of a slot is the largest probability that a token
    of the copy gives it. One ranking of all slots, over all heads and layers, says which stay; the sink of every head
    does, as in the paper's release.

    Ours: no sentence asks to repeat the text; the probabilities are those over all that is held, not over the chunk
    that is told again; and since the whole prompt is compressed, with the question that the paper appends later, the
    last `window` slots of every head stay too. What comes later is kept, and a prompt that fits is left alone for good.

    Args:
        capacity: slots that a head of a prompt keeps, in the mean over the heads that share, in tokens.
        scope: heads that share their slots out: those of the "model", of a "layer", or none ("head").
        sink, window: first and last slots of every head that always stay, in tokens; part of the capacity.
        chunk: tokens that the second reading reads at once.
    """

    capacity: int = 256
    scope: Scope = "model"
    sink: int = 4
    window: int = 32
    chunk: int = 2048

    name: ClassVar[str] = "kvzip"
    least: ClassVar[dict[str, int]] = {"capacity": 1, "sink": 0, "window": 0, "chunk": 1}
    choices: ClassVar[dict[str, tuple[str, ...]]] = {"scope": get_args(Scope)}

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.capacity < self.sink + self.window:
            raise ValueError(
                f"kvzip: capacity must be at least sink + window, got capacity {self.capacity}, "
                f"sink {self.sink}, window {self.window}"
            )

    @property
    def echo_chunk(self) -> int | None:
        return self.chunk

    @property
    def positions(self) -> Literal["cache", "original"] | None:
        return "original"  # as in the paper

    @property
    def ends(self) -> tuple[int, int]:
        return self.sink, self.window

    def worth(self, held: Held, end: torch.Tensor) -> torch.Tensor:
        return held.scored(self.name)

    def _fit(self, tokens: float, fixed: frozenset[str]) -> Policy:
        if "capacity" in fixed:
            return self._as_held(tokens, self.capacity, ("capacity",))
        capacity, window = round(tokens), self.window
        if "window" not in fixed:
            window = min(window, max(0, min(capacity // 2, capacity - self.sink)))
        if capacity < self.sink + window:
            raise ValueError(f"kvzip: a budget of {tokens:g} tokens is too small for sink={self.sink}, window={window}")
        return dataclasses.replace(self, capacity=capacity, window=window)
