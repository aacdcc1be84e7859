"""SnapKV and PyramidKV: a prompt is compressed once, by what its last queries look at."""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass
from typing import ClassVar, Literal, get_args

import torch
import torch.nn.functional as F

from buzz.policies.base import Policy, Scope
from buzz.policies.held import Held
from buzz.policies.places import Places
from buzz.policies.prompts import PromptPolicy, by_head
from buzz.policies.ranking import kept_slots, ranked
from buzz.policies.specs import ScoreSpec

_EPSILON = 1e-4  # of CriticalKV: what is added to mean attention


@dataclass(frozen=True, repr=False)
class SnapKVPolicy(PromptPolicy):
    """The slots that the prompt's last queries attend to most, and those queries' own (Li et al., arXiv 2404.14469).

    The first call is compressed to `capacity` slots: the last `window`, and those before them whose attention from
    the last `window` queries, averaged over `kernel` neighbouring slots, is highest. On equal scores the older slot
    stays. What comes later is never evicted, so the cache grows with the answer, and a text that is read token by
    token is not compressed at all. `sampled` marks a row whose first call is over.

    With scope "layer" the heads of a layer share their slots out by one ranking, each having `floor` of the capacity
    at least (AdaKV: Feng et al., arXiv 2407.11550); "model" shares over all layers. With `values` half of a head's
    slots, and what its floor gives it, are those of highest attention, and the others those of highest attention times
    how much the slot's value can change the layer's output (CriticalKV: Feng et al., arXiv 2502.03805): the sum of the
    components, without their signs, of what the output projection makes of it, in the mean over the query heads of the
    group. How many slots a head has is decided by attention alone.

    Ours: the attention of the query heads of a group is added up (the paper's release repeats K and V first), and a
    prompt that fits is left alone for good. The window counts as part of a head's floor.

    Args:
        capacity: slots that the prompt is compressed to, in the mean over the heads that share, in tokens; above
            `window`.
        window: the last queries, whose attention counts and whose slots stay, in tokens.
        kernel: slots that a score is averaged over; odd.
        scope: heads that share their slots out: none ("head"), those of a "layer", of the "model".
        floor: part of the capacity that every head has at least where heads share, from 0 to 1.
        values: whether the norms of projected values count.
    """

    capacity: int = 256
    window: int = 32
    kernel: int = 5
    scope: Scope = "head"
    floor: float = 0.2
    values: bool = False

    name: ClassVar[str] = "snapkv"
    least: ClassVar[dict[str, int]] = {"capacity": 2, "window": 1, "kernel": 1}
    ranges: ClassVar[dict[str, tuple[float, float]]] = {"floor": (0, 1)}
    choices: ClassVar[dict[str, tuple[str, ...]]] = {"scope": get_args(Scope)}

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.kernel % 2 == 0:
            raise ValueError(f"{self.name}: kernel must be odd, got {self.kernel}")
        if self.capacity <= self.window:
            raise ValueError(
                f"{self.name}: capacity must be above window, got capacity {self.capacity}, window {self.window}"
            )

    @property
    def score_spec(self) -> ScoreSpec | None:
        # What is added to attention is meant for its mean over queries and heads; else their sum serves as well.
        return ScoreSpec(accumulate=False, queries=self.window, of="mean" if self.values else "sum")

    @property
    def reads(self) -> frozenset[str]:
        return frozenset({"projected"} if self.values else ())

    @property
    def ends(self) -> tuple[int, int]:
        return 0, self.window

    @property
    def least_share(self) -> float:
        return self.floor

    def worth(self, held: Held, end: torch.Tensor) -> torch.Tensor:
        scores = held.scored(self.name)
        history = torch.arange(scores.shape[-1], device=scores.device) < end - self.window
        # Zeros beside the ends take part in the average, as in the paper's release.
        return F.avg_pool1d(scores.where(history, 0), self.kernel, stride=1, padding=self.kernel // 2)

    def select(self, held: Held, length: int, sampled: int = 0) -> torch.Tensor:
        if not self.values or length <= self.capacity:
            return super().select(held, length, sampled)
        end, budgets = (torch.full((), n, device=held.device) for n in (length, self.capacity))
        return kept_slots(self._critical(held, end, budgets, 1), self.capacity)

    def share(
        self, held: Held, places: Places, kept: int, length: int, sampled: int = 0, chosen: int | None = None
    ) -> torch.Tensor:
        mask = super().share(held, places, kept, length, sampled, chosen)
        if not self.values:
            return mask
        budgets = mask.unflatten(1, (places.heads, -1)).sum(dim=-1, keepdim=True)  # [R, heads, 1]
        least = int(self.floor * kept)
        return self._critical(by_head(held, places), places.length[:, :1, None], budgets, least).flatten(1)

    def _critical(self, held: Held, end: torch.Tensor, budgets: torch.Tensor, least: int) -> torch.Tensor:
        """CriticalKV's slots of each head: a mask, bool [R, H, L].

        Args:
            held: of equal heads, [R, H, L]; scores are means.
            end: slots that they hold, as for `worth`.
            budgets: slots that a head keeps, broadcast to [R, H, 1].
            least: slots that attention alone decides at least.
        """
        worth = self.worth(held, end)
        slots = torch.arange(worth.shape[-1], device=worth.device)
        past, window = (slots >= end - n for n in (0, self.window))
        first = (budgets // 2).clamp(min=max(least, self.window))
        by_attention = _best(worth.masked_fill(past, -torch.inf), window & ~past, first)
        return _best(
            ((worth + _EPSILON) * held.projected(self.name)).masked_fill(past, -torch.inf), by_attention, budgets
        )

    def _fit(self, tokens: float, fixed: frozenset[str]) -> Policy:
        if "capacity" in fixed:
            return self._as_held(tokens, self.capacity, ("capacity",))
        capacity = max(2, round(tokens))
        window = self.window if "window" in fixed else min(self.window, max(1, capacity // 2))
        if capacity <= window:
            raise ValueError(f"{self.name}: a budget of {tokens:g} tokens is too small for window={window}")
        return dataclasses.replace(self, capacity=capacity, window=window)


def _best(worth: torch.Tensor, first: torch.Tensor, counts: torch.Tensor) -> torch.Tensor:
    """Mask of a head's `counts` [R, H, 1] slots [R, H, L]: those that come first, then those of highest worth."""
    order = ranked(worth)
    order = order.gather(
        -1, (~first.expand(worth.shape).gather(-1, order)).to(torch.uint8).argsort(dim=-1, stable=True)
    )
    chosen = torch.arange(worth.shape[-1], device=worth.device) < counts
    return torch.zeros_like(worth, dtype=torch.bool).scatter(-1, order, chosen.expand_as(order))


@dataclass(frozen=True, repr=False)
class PyramidKVPolicy(SnapKVPolicy):
    """SnapKV with more room in lower layers, as attention narrows towards the top (Cai et al., arXiv 2406.02069).

    `capacity` is the mean over layers. Beside the window, of `k` tokens on average, the top layer gets k / beta and the
    bottom layer 2 k - k / beta; layers in between lie on a line. Ours: the line does not depend on the prompt, so
    where a lower layer has room for all of a prompt, the rest of its share stays unused.

    Args:
        capacity: slots that the prompt is compressed to, mean over layers, in tokens; above `window`.
        window, kernel, floor, values: as in SnapKV.
        scope: heads that share their slots out: none ("head") or those of a "layer"; each layer has a capacity of its
            own, so there is nothing to share over the model.
        beta: how steep the pyramid is; 1 gives every layer the same.
    """

    window: int = 8  # the paper's number of instruction tokens
    scope: Literal["head", "layer"] = "head"
    beta: int = 20

    name: ClassVar[str] = "pyramidkv"
    least: ClassVar[dict[str, int]] = {**SnapKVPolicy.least, "beta": 1}
    choices: ClassVar[dict[str, tuple[str, ...]]] = {"scope": ("head", "layer")}
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
                scope=self.scope,
                floor=self.floor,
                values=self.values,
                logn_base=self.logn_base,
            )
            for i in range(layers)
        ]
