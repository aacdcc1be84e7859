"""Sections `decode`, `stream` and `evictions`: what one token costs, and what of it the evictions do."""

from __future__ import annotations

import statistics
from collections.abc import Sequence
from typing import Any

import torch

import buzz
from buzz.benchmark.bench import Bench, new_cache
from buzz.benchmark.clocks import Marks, Memory, cache_mib, generate
from buzz.benchmark.config import Decode, Evictions, Stream
from buzz.benchmark.contenders import Contender
from buzz.benchmark.model import weight_bytes
from buzz.benchmark.waits import Watched
from buzz.cache import Curve, Shape
from buzz.evaluation.memory import token_bytes
from buzz.models.cache_argument import as_argument

WARM = 8  # steps that compile, capture and allocate
# Options of generate(): no token ends an answer. A generation config without one would get the model's.
ENDLESS: dict[str, Any] = {"eos_token_id": None}
_EVICTIONS = 3  # at least so many are in the measured steps
_MOST = 4096
_APART = 4  # evictions closer together than so many steps cannot be told from the steps


def decode(bench: Bench, config: Decode, contenders: Sequence[Contender]) -> None:
    """Every contender at every context and batch."""
    for contender in contenders:
        for batch in config.batches:
            for context in config.contexts:
                if contender.takes(context, batch):

                    def measure(contender=contender, context=context, batch=batch) -> dict[str, Any]:
                        steps = steps_to_measure(contender.policy(), [context], config.steps)
                        cache = new_cache(contender, bench.model.config, context + WARM + steps + 1)
                        ids = bench.ids(batch, context)
                        return _decoded(bench, ids, cache, steps, config.seconds, config.prefill_chunk_size)

                    key = {"batch": batch, "context": context}
                    bench.contender_point("decode", contender, key, measure)


def stream(bench: Bench, config: Stream, contenders: Sequence[Contender]) -> None:
    """Every contender after every number of streamed tokens, one row."""
    for contender in contenders:
        for tokens in config.tokens:
            if contender.takes(tokens, 1):

                def measure(contender=contender, tokens=tokens) -> dict[str, Any]:
                    calls = [config.chunk] * ((tokens - 1) // config.chunk)
                    calls += [tokens - 1 - sum(calls), 1]
                    steps = steps_to_measure(contender.policy(), calls, config.steps)
                    cache = new_cache(contender, bench.model.config, tokens + WARM + steps + 1)
                    ids = bench.ids(1, tokens)
                    with torch.no_grad():
                        for chunk in ids[:, :-1].split(config.chunk, dim=1):  # generate() reads the last token itself
                            bench.model(chunk, **as_argument(cache), logits_to_keep=1)
                    return _decoded(bench, ids, cache, steps, config.seconds)

                bench.contender_point("stream", contender, {"tokens": tokens}, measure)


def evictions(bench: Bench, config: Evictions, contenders: Sequence[Contender]) -> None:
    """The evictions' share of many steps, and the calls that wait for the device between steps.

    The calls are counted for answers that an end-of-sequence token might end, and (`fixed_`) for answers of a fixed
    length, whose end the host knows.
    """
    for contender in contenders:
        if contender.takes(config.context, config.batch):

            def measure(contender=contender) -> dict[str, Any]:
                ids = bench.ids(config.batch, config.context)
                room = config.context + WARM + max(config.steps, config.profiled) + 5
                cache = new_cache(contender, bench.model.config, room)
                row = _decoded(bench, ids, cache, config.steps, config.seconds)
                for kind, end in (("", {}), ("fixed_", ENDLESS)):
                    watched = Watched(bench.clock, WARM, config.profiled)
                    cache = new_cache(contender, bench.model.config, room)
                    generate(bench.model, ids, cache, watched.tokens, watched, **end)
                    row |= {kind + name: count for name, count in watched.calls().items()}
                return row

            key = {"batch": config.batch, "context": config.context}
            bench.contender_point("evictions", contender, key, measure)


def steps_to_measure(policy: Any, calls: Sequence[int], least: int) -> int:
    """One-token calls, after the warm-up, with three evictions in them if the policy evicts at all; at least `least`.

    Args:
        policy: None for a baseline. calls: tokens of each call before the first of these.
    """
    if policy is None or not policy.bounded:
        return least
    state, found = (0, 0), 0
    for tokens in calls:
        state = policy.advance(state[0] + tokens, state[1])
    for step in range(1 - WARM, _MOST):
        after = policy.advance(state[0] + 1, state[1])
        found += step > 0 and after[0] <= state[0]
        state = after
        if found == _EVICTIONS:
            return max(least, step)
    return least


def _decoded(
    bench: Bench, ids: torch.Tensor, cache: Any, steps: int, seconds: float, chunk: int | None = None
) -> dict[str, Any]:
    """What generate() takes for each token after ids [B, L]."""
    memory = Memory(bench.device)
    marks = Marks(bench.clock, WARM, steps, seconds)
    if isinstance(cache, buzz.BeehiveCache):
        cache.curve = Curve()
    options = {} if chunk is None else {"prefill_chunk_size": chunk}
    generate(bench.model, ids, cache, marks.tokens, marks, **options)
    times = marks.times()
    figures = step_figures(times, cached_lengths(cache, len(times), ids.shape[1]))
    return {
        **figures,
        **_rates(bench, cache, ids.shape[0], figures),
        "cache_mib": cache_mib(cache),
        "peak_gib": memory.peak_gib,
    }


def step_figures(times: Sequence[float], lengths: Sequence[float]) -> dict[str, Any]:
    """Milliseconds of steps, and the share of the evictions in them.

    The mean is over whole cycles, from eviction to eviction, if there are two or more, since an eviction between two
    steps costs more than the step; without two, over all steps. An eviction's cost is what its step and the next one
    take above two median steps: whether a loop evicts before or after it marks the time makes no difference.

    Args:
        times: seconds of each step. lengths: cached tokens after each step and, first, before them (one more).
    """
    median = statistics.median(times)
    evicted = [i for i in range(len(times)) if lengths[i + 1] <= lengths[i]]
    cycles = times[evicted[0] + 1 : evicted[-1] + 1] if len(evicted) > 1 else times
    figures = {
        "ms_median": 1e3 * median,
        "ms_mean": 1e3 * statistics.mean(cycles),
        "ms_slowest": 1e3 * max(times),
        "steps": len(times),
        "mean_length": statistics.mean(lengths[:-1]) + 1,  # the new token takes part
        "evictions": len(evicted),
        "eviction_ms": None,
        "eviction_share": None,
    }
    if len(evicted) > 1 and evicted[-1] - evicted[0] >= _APART * (len(evicted) - 1):
        counted = [i for i in evicted if i + 1 < len(times)]
        cost = statistics.median(times[i] + times[i + 1] - 2 * median for i in counted)
        each = (evicted[-1] - evicted[0]) / (len(evicted) - 1)  # steps from one to the next
        figures["eviction_ms"] = 1e3 * cost
        figures["eviction_share"] = cost / (statistics.mean(cycles) * each)
    return figures


def cached_lengths(cache: Any, steps: int, prompt: int) -> list[float]:
    """Cached tokens of a row before the first of the last so many steps, and after each of them."""
    if isinstance(cache, buzz.BeehiveCache):
        assert cache.curve is not None
        return [row[0] for row in cache.curve.lengths[-(steps + 1) :]]
    return [prompt + WARM + i for i in range(steps + 1)]


def slots_seen(shape: Shape, mean_length: float, seen: int) -> list[float]:
    """Slots of a row that a step's query sees in each layer: a window at most, where a layer has one.

    Args:
        mean_length: of the layers that the policy decides over, the new token included.
        seen: tokens of the text so far.
    """
    return [mean_length if window is None else min(window, seen) for window in shape.windows]


def _rates(bench: Bench, cache: Any, batch: int, figures: dict[str, Any]) -> dict[str, Any]:
    """Tokens a second, and bytes: the weights once, and all keys, values and scores that the queries of a step see."""
    shape = Shape.of(bench.model.config)
    slots = slots_seen(shape, figures["mean_length"], int(cache.get_seq_length()))
    moved = weight_bytes(bench.model) + batch * sum(slots) * token_bytes(bench.model) / shape.layers
    for layer, seen in zip(cache.layers, slots, strict=True):
        if (scores := getattr(layer, "scores", None)) is not None:  # float32, read and written
            moved += batch * seen * 2 * 4 * scores.shape[1]
    rate, copy = moved / figures["ms_median"] / 1e6, bench.book.copy_bandwidth
    return {
        "gb_per_s": rate,
        "of_copy": None if copy is None else rate / copy,
        "tokens_per_s": 1e3 * batch / figures["ms_mean"],
    }
