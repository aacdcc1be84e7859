"""Comb: the slots that are looked at from afar, wherever in the model they are."""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass
from typing import ClassVar, Literal, get_args

import torch

from buzz.policies.base import LONGEST, Policy, Scope
from buzz.policies.held import Held
from buzz.policies.lengths import Plan
from buzz.policies.places import Places
from buzz.policies.ranking import by_recency, ends_and_highest
from buzz.policies.sharing import share
from buzz.policies.specs import ScoreSpec

Budgets = Literal["measured", "worth"]

_WINDOW, _WINDOW_OF_STREAMS = 25, 50  # per cent of the capacity, where no window is given
_SLACK = 8  # what collects before the next eviction is such a part of the capacity
# What the mean of a prompt counts beside the largest: with measured budgets, where worth decides within a head; with
# budgets by worth, where it compares heads; beside the second reading.
_AFAR, _AFAR_OF_HEADS, _AFAR_OF_ECHO = 50.0, 5.0, 30.0
# Slots that a layer gets at most, as a multiple of the mean; where shares are measured, which differ more.
_OF_A_LAYER, _OF_A_LAYER_MEASURED = 2, 4


@dataclass(frozen=True, repr=False)
class CombPolicy(Policy):
    """Sink, window, and the slots that queries from afar look at, in heads that have what they need.

    Of this project. How many slots a head keeps is known before any text is read: which heads look far back is a
    property of the model, measured once by reading a text twice (`budgets`, `buzz.head_shares`; that there are such
    heads is from DuoAttention, Xiao et al., arXiv 2410.10819). Or worth decides: probabilities are compared over all
    heads as they are, so that a head whose attention is sharp gets more. Budgets per head are from AdaKV (Feng et al.,
    arXiv 2407.11550), their sharing over a whole model and the second reading (`echo`) from KVzip (Kim et al., arXiv
    2505.23416).

    Once more than `capacity + slack` slots are cached, `capacity` slots a head stay in the mean: the first `sink` and
    the last `window` of every head, and those of highest worth: in each head as many as it has in its budget; what
    heads are too short for, and all where budgets are by worth, goes to the highest worth of all heads that share.

    The worth of a slot is the largest probability that a query of a step more than `near` slots behind it gave it. In a
    prompt, which is any call of several tokens, it is the largest from more than `beyond` slots away, and `afar` times
    the mean from more than `near`. At every eviction it is multiplied by `decay`. After a call that leaves more than
    `capacity + slack + 1` slots, a long prompt, it counts times the norm of the slot's value. Where there was none, in
    a stream, it counts times the place of the slot among its head's, 1 / n of the oldest to 1 of the latest, and the
    window is wider: a text moves on, while an answer is about its prompt. On equal worth the older slot stays (of the
    lower layer and head, where heads share). What was measured for these choices is in docs/comb.md.

    Args:
        capacity: slots that a head keeps at an eviction, in the mean over the heads that share, in tokens.
        sink, window: first and last slots of every head that always stay, in tokens; part of the capacity. No window:
            a quarter of the capacity; in a stream half of it, or what the sink leaves.
        lazy: slots a head that collect beyond the capacity before the next eviction; None: an eighth of it.
        decay: what worth is multiplied by at every eviction, from 0 to 1.
        scope: heads that share their slots out: those of the "model", of a "layer", or none ("head").
        floor: part of the capacity that every head has at least, from 0 to 1; sink and window count.
        ceiling: most slots that a head gets, as a multiple of the capacity; at least 1.
        beyond: how many slots a query of a prompt must be behind a slot to count for the largest.
        near: how many slots a query must be behind a slot to count in a step, and in the mean of a prompt.
        echo: whether prompts are read twice. Then the largest probability is the one that a slot gets when the prompt
            is told again, and the mean is that of the first reading.
        afar: weight of the mean beside the largest; None: 50, with budgets by worth 5, with an echo 30.
        values: whether the norms of values count.
        recency: whether a slot's place among its head's counts in a stream.
        sums: whether what a slot gets from more than `near` slots away adds up, over queries and calls, in place of the
            largest and the mean; for models of which few heads look at the whole text (docs/comb.md, Gemma 3).
        chunk: tokens that the second reading reads at once.
        budgets: what says how many slots each head gets: those "measured" of the model's heads, or "worth", at every
            eviction anew; None: measured, but by worth with an echo or a scope other than the model.
    """

    capacity: int = 512
    sink: int = 4
    window: int | None = None
    lazy: int | None = None
    decay: float = 0.9
    scope: Scope = "model"
    floor: float = 0.2
    ceiling: float = 8.0
    beyond: int = 48
    near: int = 16
    echo: bool = False
    afar: float | None = None
    values: bool = True
    recency: bool = True
    sums: bool = False
    chunk: int = 1024
    budgets: Budgets | None = None

    name: ClassVar[str] = "comb"
    least: ClassVar[dict[str, int]] = {
        "capacity": 1,
        "sink": 0,
        "window": 1,
        "lazy": 0,
        "beyond": 0,
        "near": 0,
        "chunk": 1,
    }
    ranges: ClassVar[dict[str, tuple[float, float]]] = {
        "decay": (0, 1),
        "floor": (0, 1),
        "ceiling": (1, LONGEST),
        "afar": (0, LONGEST),
    }
    choices: ClassVar[dict[str, tuple[str, ...]]] = {"scope": get_args(Scope), "budgets": get_args(Budgets)}

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.capacity < self.sink + self.recent:
            raise ValueError(
                f"comb: capacity must be at least sink + window, got capacity {self.capacity}, "
                f"sink {self.sink}, window {self.recent}"
            )
        if self.budgets == "measured" and self.scope != "model":
            raise ValueError(
                f"comb: measured budgets are those of a model's heads, so scope must be model, got {self.scope}"
            )
        if self.sums and (self.echo or self.afar is not None):
            what = "echo must be False" if self.echo else "afar must be None"
            raise ValueError(f"comb: sums are of one reading, and have no mean beside them: {what}")

    @property
    def recent(self) -> int:
        """The last slots of every head that always stay of a prompt, and after one."""
        return max(1, self.capacity * _WINDOW // 100) if self.window is None else self.window

    @property
    def recent_of_streams(self) -> int:
        """The last slots of every head that always stay where no prompt was compressed."""
        if self.window is not None:
            return self.window
        return max(self.recent, min(self.capacity * _WINDOW_OF_STREAMS // 100, self.capacity - self.sink))

    @property
    def slack(self) -> int:
        """Slots beyond the capacity that a head may hold after a call."""
        return max(1, self.capacity // _SLACK) if self.lazy is None else self.lazy

    @property
    def score_spec(self) -> ScoreSpec | None:
        return ScoreSpec(accumulate=True, queries=None, of="sum" if self.sums else "largest", beyond=self.near)

    @property
    def prompt_spec(self) -> ScoreSpec | None:
        if self.sums:
            return self.score_spec
        if not self.echo:
            return ScoreSpec(True, None, of="largest", beyond=self.beyond, mean=self.weight, near=self.near)
        return ScoreSpec(accumulate=True, queries=None, of="mean", beyond=self.near) if self.weight else None

    @property
    def weight(self) -> float:
        """What the mean from afar in a prompt counts beside the largest."""
        if self.afar is not None:
            return self.afar
        return _AFAR_OF_ECHO if self.echo else _AFAR if self.measured else _AFAR_OF_HEADS

    @property
    def echo_chunk(self) -> int | None:
        return self.chunk if self.echo else None

    def heard(self, first: torch.Tensor | None, echo: torch.Tensor) -> torch.Tensor:
        return echo if first is None else echo + self.weight * first

    @property
    def reads(self) -> frozenset[str]:
        return frozenset({"values"} if self.values else ())

    @property
    def positions(self) -> Literal["cache", "original"] | None:
        return "original"

    def plan(self, length: int, sampled: int = 0) -> Plan | None:
        if length <= self.capacity + self.slack:
            return None
        return Plan(self.capacity, int(sampled or self._is_prompt(length)))  # 1: it holds what is left of a prompt

    def select(self, held: Held, length: int, sampled: int = 0) -> torch.Tensor:
        worth = self._worth(held.each(lambda t: t[:, :, :length]), length, sampled)
        return ends_and_highest(worth, self.capacity, self.sink, self._window_of(length, sampled))

    @property
    def measured(self) -> bool:
        if self.budgets is None:
            return self.scope == "model" and not self.echo
        return self.budgets == "measured"

    @property
    def layer_ceiling(self) -> int | None:
        """Most slots that a layer gets, as a multiple of the mean."""
        if self.scope != "model" or self.echo:
            return None
        return _OF_A_LAYER_MEASURED if self.measured else _OF_A_LAYER

    def shortlist(self, length: int, sampled: int) -> int | None:
        # In a stream a slot's place among all of its head's counts: none may be missing.
        return None if self.recency and self._is_stream(length, sampled) else self.layer_ceiling

    def longest_head(self, mean: int) -> int | None:
        return max(mean, int(self.ceiling * self.capacity) + mean - self.capacity)

    def share(
        self, held: Held, places: Places, kept: int, length: int, sampled: int = 0, chosen: int | None = None
    ) -> torch.Tensor:
        window, budgets = self._window_of(length, sampled), None
        if self.measured:
            if held.shares is None:
                raise ValueError("comb: share needs the shares of the model's heads (buzz.head_shares)")
            least = max(1, self.sink + window, int(self.floor * kept))
            most = int(self.ceiling * kept)
            budgets = held.shares.part(kept, least, most, self.layer_ceiling, places.first, places.heads)
        return share(
            self._worth(held, length, sampled, places), places, kept, chosen, budgets=budgets,
            sink=self.sink, window=window, floor=self.floor, ceiling=self.ceiling, layer_ceiling=self.layer_ceiling,
        )  # fmt: skip

    def _is_prompt(self, length: int) -> bool:
        """Whether a call that leaves so many slots has compressed more than a step would."""
        return length > self.capacity + self.slack + 1

    def _is_stream(self, length: int, sampled: int) -> bool:
        """Whether a call that leaves so many slots is a step, and no prompt was compressed before it."""
        return not sampled and not self._is_prompt(length)

    def _window_of(self, length: int, sampled: int) -> int:
        return self.recent_of_streams if self._is_stream(length, sampled) else self.recent

    def _worth(self, held: Held, length: int, sampled: int, places: Places | None = None) -> torch.Tensor:
        """What slots are ranked by: float32, as the scores."""
        scores = held.scored(self.name)
        if self._is_stream(length, sampled):
            return by_recency(scores, places) if self.recency else scores
        if not self.values or not self._is_prompt(length):
            return scores
        values = held.valued(self.name)
        exact = torch.promote_types(values.dtype, torch.float32)  # without a copy of all values in float32
        norms = torch.linalg.vector_norm(values, dim=-1, dtype=exact).float()
        return scores * (norms if norms.dim() == scores.dim() else norms.flatten(1))  # equal heads of a pool

    def _widest(self) -> dict[str, int]:
        return {"capacity": LONGEST}

    def _fit(self, tokens: float, fixed: frozenset[str]) -> Policy:
        if "capacity" in fixed:
            return self._as_held(tokens, self.capacity + self.slack / 2, ("capacity",))
        if self.lazy is None:
            capacity = round(tokens / (1 + 1 / (2 * _SLACK)))
        else:
            capacity = round(tokens - self.lazy / 2)
        window = self.window
        if window is not None and "window" not in fixed:
            window = min(window, max(1, min(capacity // 2, capacity - self.sink)))
        least = self.sink + (1 if window is None else window)
        if capacity < least:
            raise ValueError(
                f"comb: a budget of {tokens:g} tokens is too small for sink={self.sink}, window={window or 1}"
            )
        return dataclasses.replace(self, capacity=capacity, window=window)
