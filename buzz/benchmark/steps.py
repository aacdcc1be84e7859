"""Section `steps`: single forward calls of several caches by turns, so that a drifting machine drifts for all of them.

What a patched step costs at equal cache length, and a full cache against BUZZ after a long prompt. Made for the CPU.
"""

from __future__ import annotations

import statistics
from collections.abc import Iterator, Sequence
from typing import Any

import torch
from transformers import Cache, DynamicCache

import buzz
from buzz.benchmark.bench import Bench
from buzz.benchmark.clocks import Clock, cache_mib
from buzz.benchmark.config import Steps
from buzz.models.cache_argument import as_argument

_BLOCK = 8  # steps between two changes of cache
_POLICIES = ("buzz", "buzz_no_max")
FULL = "DynamicCache"


class _Timed:
    """A cache whose calls are timed."""

    def __init__(self, name: str, cache: Cache, clock: Clock) -> None:
        self.name, self.cache, self._clock = name, cache, clock
        self.prefill_s, self.steps, self.lengths = 0.0, list[float](), list[float]()

    def prefill(self, model: Any, ids: torch.Tensor) -> None:
        self.prefill_s = self._seconds(model, ids)

    def decode(self, model: Any, token: torch.Tensor, steps: int) -> None:
        for _ in range(steps):
            self.steps.append(self._seconds(model, token))
            evicting = isinstance(self.cache, buzz.BeehiveCache)
            self.lengths.append(self.cache.lengths[0] if evicting else self.cache.get_seq_length())

    def _seconds(self, model: Any, ids: torch.Tensor) -> float:
        start = self._clock.mark()
        model(ids, **as_argument(self.cache), logits_to_keep=1)
        return self._clock.seconds([start, self._clock.mark()])[0]

    def row(self, batch: int) -> dict[str, Any]:
        """Times are of decode steps: the median, and all of them together, evictions included."""
        return {
            "method": self.name,
            "mean_length": statistics.mean(self.lengths),
            "cache_mib": cache_mib(self.cache),
            "prefill_s": self.prefill_s,
            "ms_median": 1e3 * statistics.median(self.steps),
            "tokens_per_s": len(self.steps) * batch / sum(self.steps),
        }


def steps(bench: Bench, config: Steps) -> None:
    """A group of rows for every length, and one for every batch after the long prompt."""
    ids = bench.text(max(config.prompt, *config.lengths))
    bench.stage.clear()
    with torch.inference_mode():
        bench.model(ids[:, : max(config.lengths)], logits_to_keep=1)  # first calls pack weights and start threads
    for length in config.lengths:
        title = f"{length} cached tokens, then {config.steps} steps"
        if bench.book.find("steps", {"group": title}) is None:
            bench.book.check_time()
            _keep(bench, title, _equal_length(bench, ids[:, :length], config.steps))
    titles = [f"{config.prompt} prompt tokens, then {config.steps} steps, batch {n}" for n in config.batches]
    if any(bench.book.find("steps", {"group": title}) is None for title in titles):
        bench.book.check_time()
        for title, rows in zip(titles, _long_prompt(bench, ids[:, : config.prompt], config), strict=True):
            if bench.book.find("steps", {"group": title}) is None:
                _keep(bench, title, rows)


def _keep(bench: Bench, title: str, rows: Sequence[dict[str, Any]]) -> None:
    for row in rows:
        bench.book.rows("steps").append({"group": title, **row})
    bench.book.save()  # a group at once: its rows were measured by turns
    bench.say(f"steps: {title}")


@torch.inference_mode()
def _long_prompt(bench: Bench, ids: torch.Tensor, config: Steps) -> Iterator[list[dict[str, Any]]]:
    """The unpatched model's DynamicCache against policies at their defaults, after the same prompt ids [1, L].

    A larger batch goes on from the caches of the smaller one, their rows repeated.
    """
    timed = [_Timed(FULL, DynamicCache(config=bench.model.config), bench.clock)]
    timed[0].prefill(bench.model, ids)
    with buzz.patch_model(bench.model):
        for name in _POLICIES:
            cache = buzz.BeehiveCache(buzz.make_policy(name), bench.model.config)
            timed.append(_Timed(name, cache, bench.clock))
            timed[-1].prefill(bench.model, ids)
    rows = 1
    for batch in config.batches:
        for t in timed:
            t.cache.batch_repeat_interleave(batch // rows)
            t.steps, t.lengths = [], []
        rows *= batch // rows
        _interleave(bench.model, ids[:, :1].repeat(rows, 1), timed, config.steps)
        yield [t.row(rows) for t in timed]


@torch.inference_mode()
def _equal_length(bench: Bench, ids: torch.Tensor, steps: int) -> list[dict[str, Any]]:
    """Steps at the same cache length: unpatched, patched without scores, patched with scores. Nothing is evicted."""
    room = ids.shape[1] + steps
    policies = {
        "patched, no scores": buzz.make_policy("streaming", window=room),
        "patched, scores": buzz.make_policy("h2o", heavy=room, window=1),
    }
    config = bench.model.config
    timed = [_Timed(FULL, DynamicCache(config=config), bench.clock)]
    for name, policy in policies.items():
        timed.append(_Timed(name, buzz.BeehiveCache(policy, config, capacity=room), bench.clock))
    timed[0].prefill(bench.model, ids)
    with buzz.patch_model(bench.model):
        for t in timed[1:]:
            t.prefill(bench.model, ids)
    _interleave(bench.model, ids[:, :1], timed, steps)
    return [t.row(1) for t in timed]


def _interleave(model: Any, token: torch.Tensor, timed: Sequence[_Timed], steps: int) -> None:
    """The same number of steps for every cache, a block each in turn; the DynamicCache's on the unpatched model."""
    for done in range(0, steps, _BLOCK):
        for t in timed:
            n = min(_BLOCK, steps - done)
            if t.name == FULL:
                t.decode(model, token, n)
            else:
                with buzz.patch_model(model):
                    t.decode(model, token, n)
