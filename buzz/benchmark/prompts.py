"""Sections `prefill` and `throughput`: prompts alone, and prompts with their answers in as many rows as fit."""

from __future__ import annotations

import itertools
import statistics
from collections.abc import Callable, Sequence
from typing import Any

import torch

from buzz.benchmark.bench import Bench, new_cache
from buzz.benchmark.clocks import Marks, Memory, attempt, cache_mib, generate, timed
from buzz.benchmark.config import Prefill, Throughput
from buzz.benchmark.contenders import Contender
from buzz.benchmark.decoding import WARM
from buzz.evaluation.memory import release_memory
from buzz.models.cache_argument import as_argument

_FINE = 16  # the largest batch is found to one part in so many
_JUMP = 8  # and never tried at more than so many times what is known to fit


def prefill(bench: Bench, config: Prefill, contenders: Sequence[Contender]) -> None:
    """Time and memory of the first call, one row, by contender and length."""
    for length in config.lengths:
        # One after the other: a GPU that is hot runs slower. Each has new lengths of its own.
        for contender, below in zip(contenders, itertools.count(length, -config.new_lengths), strict=False):
            if contender.takes(length, 1):

                def measure(contender=contender, length=length, below=below) -> dict[str, Any]:
                    ids = bench.ids(1, length)
                    memory = Memory(bench.device)
                    caches: list[Any] = []

                    def once(tokens: int = length) -> None:
                        caches.clear()  # before the next one is made: one cache at a time
                        caches.append(new_cache(contender, bench.model.config, tokens + 1))
                        _read(bench, ids[:, :tokens], caches[0], config.prefill_chunk_size)

                    taken = timed(once, bench.clock, config.repeats, config.seconds)
                    held = cache_mib(caches[0])
                    return {
                        "ms": 1e3 * statistics.median(taken),
                        "ms_fastest": 1e3 * min(taken),
                        "ms_slowest": 1e3 * max(taken),
                        "repeats": len(taken),
                        "peak_gib": memory.peak_gib,
                        "cache_mib": held,
                        **_new_lengths(bench, once, range(below - config.new_lengths, below)),
                    }

                bench.contender_point("prefill", contender, {"length": length}, measure)


def _new_lengths(bench: Bench, read: Callable[[int], None], lengths: Sequence[int]) -> dict[str, Any]:
    """Times of prompts that are read once each."""
    taken = []
    for length in lengths:
        if length < 1:
            continue
        start = bench.clock.mark()
        read(length)
        taken += bench.clock.seconds([start, bench.clock.mark()])
    if not taken:
        return {}
    return {"ms_new": 1e3 * statistics.median(taken), "ms_new_slowest": 1e3 * max(taken), "new_lengths": len(taken)}


def _read(bench: Bench, ids: torch.Tensor, cache: Any, chunk: int | None) -> None:
    """A prompt into a cache; in chunks as generate() cuts them."""
    with torch.no_grad():
        if chunk is None:
            bench.model(ids, **as_argument(cache), logits_to_keep=1)
        else:
            mask = torch.ones_like(ids)
            options = {**as_argument(cache), "do_sample": False, "max_new_tokens": 1, "prefill_chunk_size": chunk}
            bench.model.generate(ids, attention_mask=mask, **options)


def throughput(bench: Bench, config: Throughput, contenders: Sequence[Contender]) -> None:
    """Prompts with their answers: in given batches, and in the largest one."""
    for contender in contenders:
        for batch in config.batches or []:
            if contender.takes(config.prompt, batch):

                def measure(contender=contender, batch=batch) -> dict[str, Any]:
                    return {"rows": batch, **_answered(bench, config, contender, batch)}

                bench.contender_point("throughput", contender, {"batch": batch}, measure)
        if config.largest and contender.takes(config.prompt, 1):

            def measure_largest(contender=contender) -> dict[str, Any]:
                return _largest_answered(bench, config, contender)

            bench.contender_point("throughput", contender, {"batch": "largest"}, measure_largest)


def _answered(bench: Bench, config: Throughput, contender: Contender, batch: int) -> dict[str, Any]:
    """Tokens a second of a batch: its new tokens over its prompt and as many mean steps.

    What is compiled and captured is so by a short answer before. The first steps do not enter the mean; it is over
    fewer steps if the time is short.
    """
    room, ids = config.prompt + config.new_tokens, bench.ids(batch, config.prompt)
    warm = min(WARM, config.new_tokens - 2)
    memory = Memory(bench.device)
    first = Marks(bench.clock, warm, 1)
    generate(bench.model, ids, new_cache(contender, bench.model.config, room), first.tokens, first)
    release_memory()
    cache = new_cache(contender, bench.model.config, room)
    marks = Marks(bench.clock, warm, config.new_tokens - 1 - warm, config.seconds)
    start = bench.clock.mark()
    generate(bench.model, ids, cache, marks.tokens, marks)
    prompt = bench.clock.seconds([start, marks.marks[0]])[0]
    times = marks.times()
    step = statistics.mean(times)
    return {
        "tokens_per_s": batch * config.new_tokens / (prompt + (config.new_tokens - 1) * step),
        "prefill_s": prompt,
        "ms_mean": 1e3 * step,
        "steps": len(times),
        "peak_gib": memory.peak_gib,
        "cache_mib": cache_mib(cache),
    }


def _largest_answered(bench: Bench, config: Throughput, contender: Contender) -> dict[str, Any]:
    trials: list[list[Any]] = []  # [rows, why not or "fits"]

    def fits(batch: int) -> tuple[bool, float | None]:
        """Whether the prompts of a batch can be read, and the share of the free memory that it takes."""

        def read() -> dict[str, Any]:
            bench.stage.set(contender)
            cache = new_cache(contender, bench.model.config, config.prompt + config.new_tokens)
            ids = bench.ids(batch, config.prompt)
            memory = Memory(bench.device)
            _read(bench, ids, cache, None)
            bench.clock.wait()
            return {"usage": memory.usage}

        result = attempt(read)
        trials.append([batch, result.get("failed", "fits")])
        return "failed" not in result, result.get("usage")

    most = min(config.limit, contender.limits.max_batch or config.limit)
    batch = largest(fits, min(config.start, most), most)
    while batch:
        bench.stage.clear()  # what a smaller trial left behind, such as a captured graph
        bench.stage.set(contender)
        size = batch
        result = attempt(lambda size=size: _answered(bench, config, contender, size))  # type: ignore[misc]
        if "failed" not in result:
            return {"rows": batch, **result, "trials": trials}
        trials.append([batch, result["failed"]])
        batch -= max(1, batch // _FINE)  # the answers need memory too
    return {"failed": trials[-1][1], "trials": trials}


def largest(fits: Callable[[int], tuple[bool, float | None]], start: int, limit: int) -> int:
    """The largest number up to a limit that fits, to one part in sixteen; 0 if not even 1 does.

    Args:
        fits: whether a number fits, and the share of what there is that it takes, None if unknown. Known shares lead
            to the next number to try; otherwise it is doubled. Between one that fits and one that does not: bisection.
    """
    good, bad, batch = 0, limit + 1, start
    while True:
        fitted, usage = fits(batch)
        good, bad = (batch, bad) if fitted else (good, batch)
        if bad - good <= max(1, good // _FINE):
            return good
        if bad <= limit:
            batch = (good + bad) // 2
            continue
        batch = 2 * good if not usage else min(int(0.97 * good / usage), _JUMP * good)
        if batch <= good + good // _FINE:
            return good
        batch = min(batch, limit)
