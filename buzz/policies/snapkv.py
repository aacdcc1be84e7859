"""SnapKV and PyramidKV: a prompt is compressed once, by what its last queries look at."""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass
from typing import ClassVar

import torch
import torch.nn.functional as F

from buzz.policies.base import LONGEST, Plan, Policy, ScoreSpec
from buzz.policies.held import Held
from buzz.policies.ranking import ranked


@dataclass(frozen=True, repr=False)
class SnapKVPolicy(Policy):
    """The slots that the prompt's last queries attend to most, and those queries' own (Li et al., arXiv 2404.14469).

    The first call is compressed to `capacity` slots: the last `window`, and those before them whose attention from
    the last `window` queries, averaged over `kernel` neighbouring slots, is highest. On equal scores the older slot
    stays. What comes later is never evicted, so the cache grows with the answer, and a text that is read token by
    token is not compressed at all. `sampled` marks a row whose first call is over.

    Ours: the attention of the query heads of a group is added up (the paper's release repeats K and V first), and a
    prompt that fits is left alone for good.

    Args:
        capacity: slots that the prompt is compressed to, in tokens; above `window`.
        window: the last queries, whose attention counts and whose slots stay, in tokens.
        kernel: slots that a score is averaged over; odd.
    """

    capacity: int = 256
    window: int = 32
    kernel: int = 5

    name: ClassVar[str] = "snapkv"
    least: ClassVar[dict[str, int]] = {"capacity": 2, "window": 1, "kernel": 1}

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.kernel % 2 == 0:
            raise ValueError(f"{self.name}: kernel must be odd, got {self.kernel}")
        if self.capacity <= self.window:
            raise ValueError(
                f"{self.name}: capacity must be above window, got capacity {self.capacity}, window {self.window}"
            )

    @property
    def bounded(self) -> bool:
        return False

    @property
    def sizable(self) -> bool:
        return True

    @property
    def score_spec(self) -> ScoreSpec | None:
        return ScoreSpec(accumulate=False, queries=self.window)

    def plan(self, length: int, sampled: int = 0) -> Plan | None:
        if sampled or not length:
            return None
        kept = min(length, self.capacity)
        return Plan(kept, kept)

    def select(self, held: Held, length: int, sampled: int = 0) -> torch.Tensor:
        scores = held.scored(self.name)
        window = torch.arange(max(0, length - self.window), length, device=scores.device)
        window = window.expand(*scores.shape[:2], -1)
        if length <= self.capacity:
            return torch.arange(length, device=scores.device).expand(*scores.shape[:2], -1)
        history = scores[..., : length - self.window]  # [B, H, length - window]
        # Zeros beside the ends take part in the average, as in the paper's release.
        pooled = F.avg_pool1d(history, self.kernel, stride=1, padding=self.kernel // 2)
        heavy = ranked(pooled)[..., : self.capacity - self.window].sort(dim=-1).values
        return torch.cat([heavy, window], dim=-1)

    def _widest(self) -> dict[str, int]:
        return {"capacity": self.most.get("capacity", LONGEST)}

    def _fit(self, tokens: float, fixed: frozenset[str]) -> Policy:
        if "capacity" in fixed:
            return self._as_held(tokens, self.capacity, ("capacity",))
        capacity = max(2, round(tokens))
        window = self.window if "window" in fixed else min(self.window, max(1, capacity // 2))
        if capacity <= window:
            raise ValueError(f"{self.name}: a budget of {tokens:g} tokens is too small for window={window}")
        return dataclasses.replace(self, capacity=capacity, window=window)


@dataclass(frozen=True, repr=False)
class PyramidKVPolicy(SnapKVPolicy):
    """SnapKV with more room in lower layers, as attention narrows towards the top (Cai et al., arXiv 2406.02069).

    `capacity` is the mean over layers. Beside the window, of `k` tokens on average, the top layer gets k / beta and the
    bottom layer 2 k - k / beta; layers in between lie on a line. Ours: the line does not depend on the prompt, so
    where a lower layer has room for all of a prompt, the rest of its share stays unused.

    Args:
        capacity: slots that the prompt is compressed to, mean over layers, in tokens; above `window`.
        window, kernel: as in SnapKV.
        beta: how steep the pyramid is; 1 gives every layer the same.
    """

    window: int = 8  # the paper's number of instruction tokens
    beta: int = 20

    name: ClassVar[str] = "pyramidkv"
    least: ClassVar[dict[str, int]] = {**SnapKVPolicy.least, "beta": 1}
    most: ClassVar[dict[str, int]] = {"capacity": 2**30}  # the bottom layer gets up to twice as much

    def per_layer(self, layers: int) -> list[Policy]:
        mean = self.capacity - self.window
        top = mean / self.beta if layers > 1 else mean
        bottom = 2 * mean - top
        return [
            SnapKVPolicy(
                # At least one slot beside the window, where the share of a layer would be less.
                capacity=self.window + max(1, round(bottom + (top - bottom) * i / max(1, layers - 1))),
                window=self.window,
                kernel=self.kernel,
                logn_base=self.logn_base,
            )
            for i in range(layers)
        ]
