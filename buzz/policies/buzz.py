"""BUZZ: a beehive of segments, one heavy hitter each (arXiv 2410.23079)."""

from __future__ import annotations

import dataclasses
import warnings
from dataclasses import dataclass
from typing import ClassVar

import torch
import torch.nn.functional as F

from buzz.policies.base import LONGEST, Policy
from buzz.policies.held import Held
from buzz.policies.lengths import Plan, near
from buzz.policies.ranking import worst_if_undefined
from buzz.policies.specs import ScoreSpec


@dataclass(frozen=True, repr=False)
class BuzzPolicy(Policy):
    """Attention sinks, a window, and between them one heavy hitter per segment of tokens (arXiv 2410.23079).

    A cache is sink | sample | fresh | window, oldest first. Once more than `threshold` slots lie between sink and
    window, the sample is thinned to every c-th slot, c = (stride + 1) // 2, and of every `stride` consecutive fresh
    slots each head keeps the one that received most attention, the first one on a tie.

    With stride 1 or 2 the sample is never thinned, so an endless stream grows without bound: a warning says so.

    Args:
        sink: slots at the start that always stay, in tokens.
        window: most recent slots that always stay, in tokens. At least 1: the authors' code silently never evicts at 0.
        stride: tokens per segment.
        threshold: most slots between sink and window that are left alone, in tokens.
    """

    sink: int = 4
    window: int = 160
    stride: int = 5
    threshold: int = 400

    name: ClassVar[str] = "buzz"
    least: ClassVar[dict[str, int]] = {"sink": 0, "window": 1, "stride": 1, "threshold": 0}

    def __post_init__(self) -> None:
        super().__post_init__()
        if not self.bounded:
            warnings.warn(
                f"{self.name}: stride {self.stride} never thins the sample, so the cache of a long stream grows by a "
                "token per call; use stride 3 or more for bounded memory",
                stacklevel=3,
            )

    @property
    def bounded(self) -> bool:
        return self.thinning > 1

    @property
    def thinning(self) -> int:
        """An eviction keeps every c-th slot of the sample; this is c."""
        return (self.stride + 1) // 2

    @property
    def score_spec(self) -> ScoreSpec | None:
        return ScoreSpec(accumulate=True, queries=None)

    def plan(self, length: int, sampled: int = 0) -> Plan | None:
        other = length - self.sink - self.window
        if other <= 0 or other <= self.threshold:
            return None
        # Ceiling divisions: a last, shorter run keeps one slot too.
        sample = -(-sampled // self.thinning) - (-(other - sampled) // self.stride)
        return Plan(self.sink + sample + self.window, sample)

    def select(self, held: Held, length: int, sampled: int = 0) -> torch.Tensor:
        first = self.sink + sampled  # the first fresh slot
        fresh = self._pick(held, first, length - self.window)  # [B, H, segments]
        slots = [
            torch.arange(self.sink, device=fresh.device),
            torch.arange(self.sink, first, self.thinning, device=fresh.device),
            torch.arange(length - self.window, length, device=fresh.device),
        ]
        sink, sample, window = (s.expand(*fresh.shape[:2], -1) for s in slots)
        return torch.cat([sink, sample, fresh, window], dim=-1)

    def _pick(self, held: Held, start: int, stop: int) -> torch.Tensor:
        """The slot kept of each segment of the fresh slots start .. stop - 1: int64 [B, H, segments]."""
        scores = held.scored(self.name)
        fresh = worst_if_undefined(scores[..., start:stop])
        # The last segment may be shorter: fill it with places that never win.
        padded = F.pad(fresh, (0, -(stop - start) % self.stride), value=float("-inf"))
        winner = padded.unflatten(-1, (-1, self.stride)).argmax(dim=-1)  # [B, H, segments], first one on a tie
        return winner + torch.arange(start, stop, self.stride, device=scores.device)

    def _due(self, length: int, sampled: int) -> int:
        """As for every policy, but at once: every new prompt asks, and budgets ask often.

        The evictions that `peak` and `steady` walk through are few. A sample of s > threshold becomes one of
        ceil(s / c) + 1, about half or less. Below the threshold, two samples d apart become two less than d / 4 + 2
        apart, since 1 / c - 1 / stride is at most 1 / 4 where c > 1. So after some log2 of the length the samples lie
        within a few slots of each other, and soon one of them comes again.
        """
        return max(length, self.sink + self.window + self.threshold) + 1

    def _fit(self, tokens: float, fixed: frozenset[str]) -> Policy:
        if not self.bounded:
            raise ValueError(f"{self.name}: stride {self.stride} has no steady cache length; use stride 3 or more")
        free = sorted({"window", "threshold"} - fixed)
        if not free:
            return self._as_held(tokens, _mean(self), ("sink", "window", "stride", "threshold"))
        # A single size can grow from 0; two keep their proportion.
        sizes = {name: max(2 - len(free), getattr(self, name)) for name in free}

        def scaled(factor: float) -> BuzzPolicy:
            """Window and threshold stretched together, so that the hive keeps its proportions."""
            stretched = {name: round(size * factor) for name, size in sizes.items()}
            return dataclasses.replace(
                self, **{name: min(max(self.least[name], size), LONGEST) for name, size in stretched.items()}
            )

        low, high = 0.0, 1.0
        while _mean(scaled(high)) < tokens:
            low, high = high, 2 * high
            if high > 2 * LONGEST:
                raise ValueError(f"{self.name}: {' and '.join(free)} cannot reach a budget of {tokens:g} tokens")
        while max(sizes.values()) * (high - low) > 0.5:
            middle = (low + high) / 2
            low, high = (middle, high) if _mean(scaled(middle)) < tokens else (low, middle)
        best = min((scaled(low), scaled(high)), key=lambda p: abs(_mean(p) - tokens))
        # The mean moves in small jumps with either size, so look around for the closest.
        name = "threshold" if "threshold" in free else "window"
        size = getattr(best, name)
        around = range(max(self.least[name], size - 4), min(size + 4, LONGEST) + 1)
        best = min((dataclasses.replace(best, **{name: n}) for n in around), key=lambda p: abs(_mean(p) - tokens))
        if not near(_mean(best), tokens):  # every length can be reached but the shortest ones
            held = ", ".join(f"{n}={getattr(self, n)}" for n in ("sink", "window", "threshold") if n not in free)
            raise ValueError(f"{self.name}: a budget of {tokens:g} tokens is too small for {held}")
        return best


def _mean(policy: Policy) -> float:
    steady = policy.steady()
    return float("inf") if steady is None else steady.mean


@dataclass(frozen=True, repr=False)
class BuzzFastPolicy(BuzzPolicy):
    """BUZZ with the attention of the current call alone as the score of an eviction.

    Ours: query heads are grouped as the model groups them; the authors add up interleaved heads in groups of 8.
    """

    name: ClassVar[str] = "buzz_fast"

    @property
    def score_spec(self) -> ScoreSpec | None:
        return ScoreSpec(accumulate=False, queries=None)


@dataclass(frozen=True, repr=False)
class BuzzNoMaxPolicy(BuzzPolicy):
    """BUZZ that keeps the first slot of every segment. Reads no scores, so it needs no attention weights at all."""

    name: ClassVar[str] = "buzz_no_max"

    @property
    def score_spec(self) -> ScoreSpec | None:
        return None

    def _pick(self, held: Held, start: int, stop: int) -> torch.Tensor:
        return torch.arange(start, stop, self.stride, device=held.device)[None, None]
