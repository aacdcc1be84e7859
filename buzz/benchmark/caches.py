"""Sections `one_row` and `many_rows`: prompts with their answers, in one row at growing contexts, and in as many rows
as fit into the same memory."""

from __future__ import annotations

import contextlib
import statistics
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import torch

import buzz
from buzz.benchmark.agreement import decoding
from buzz.benchmark.bench import Bench, new_cache
from buzz.benchmark.clocks import OUT_OF_MEMORY, Marks, Memory, attempt, cache_mib, generate
from buzz.benchmark.config import ManyRows, OneRow
from buzz.benchmark.contenders import Contender, Paged
from buzz.benchmark.decoding import WARM, cached_lengths, step_figures, steps_to_measure
from buzz.benchmark.paged import serving
from buzz.cache import Curve, Shape
from buzz.decoding.arena import Uncaptured
from buzz.evaluation.memory import release_memory, token_bytes

_FINE = 16  # a batch that does not fit is made smaller by one part in so many
_PROBES = (1, 3)  # rows whose peaks say what a row takes
_SAFE = 0.95  # of the memory that the first try aims at: steps, graphs and gaps between allocations take some as well
_FIRST = 3  # steps after which all is compiled; what is captured for the length of a text is so in the eight later ones
_SPREAD = (0.1, 0.9)  # shares of the steps that are faster


@dataclass(frozen=True)
class Answered:
    """A prompt and the beginning of its answer.

    Args:
        first_s: seconds until every row has its first token. times: of the steps that count.
        lengths: cached tokens of a row, before the first of these steps and after each.
        cache_mib: allocated for keys, values and scores, at the end.
        told: what else the results say.
    """

    first_s: float
    times: list[float]
    lengths: list[float]
    cache_mib: float
    told: dict[str, Any]


@dataclass(frozen=True)
class Steps:
    """Of an answer after its first token: `warm` steps that do not count, then `counted`, none later than `seconds`."""

    warm: int = 0
    counted: int = 0
    seconds: float = float("inf")


# An answer to ids [B, L], which are read in chunks (None: in one call).
Answer = Callable[[torch.Tensor, int | None, Steps], Answered]


@contextlib.contextmanager
def _answering(bench: Bench, contender: Contender, rows: int, context: int, new: int) -> Iterator[Answer]:
    """What answers up to so many rows of so many tokens and as many new ones."""
    if isinstance(contender.settings, Paged):
        with _serving(bench, contender.settings, rows, context, new) as served:
            yield served
        return

    def generated(ids: torch.Tensor, chunk: int | None, steps: Steps) -> Answered:
        cache = new_cache(contender, bench.model.config, context + new)
        if isinstance(cache, buzz.BeehiveCache):
            cache.curve = Curve()
        marks = Marks(bench.clock, steps.warm, steps.counted, steps.seconds)
        options = {} if chunk is None or ids.shape[1] <= chunk else {"prefill_chunk_size": chunk}
        start = bench.clock.mark()
        generate(bench.model, ids, cache, marks.tokens, marks, **options)
        first_s = bench.clock.seconds([start, marks.marks[0]])[0]
        times = marks.times()
        lengths = cached_lengths(cache, len(times), ids.shape[1]) if times else []
        return Answered(first_s, times, lengths, cache_mib(cache), {})

    yield generated


@contextlib.contextmanager
def _serving(bench: Bench, settings: Paged, rows: int, context: int, new: int) -> Iterator[Answer]:
    """The same by continuous batching, which reads prompts in calls of its own size and cannot be stopped by a clock.

    Rows that are read first go on while the others are read; steps count once all rows decode.
    """
    ahead = -(-(rows - 1) * context // settings.batch_tokens) + 1 if rows > 1 else 0  # tokens, of the first row
    pace: list[float] = []  # seconds of a step
    with serving(bench.model, settings, rows, context + new + ahead) as server:

        def served(ids: torch.Tensor, chunk: int | None, steps: Steps) -> Answered:
            counted = steps.counted
            if pace and steps.seconds < counted * pace[-1]:
                counted = max(1, int(steps.seconds / pace[-1]))
            tokens = 1 + steps.warm + counted
            done = server.answer(ids, tokens + ahead if tokens > 1 else 1)
            times = done.steps(steps.warm, counted)
            pace.extend(times[-1:])
            lengths = [float(ids.shape[1] + steps.warm + i) for i in range(len(times) + 1)]
            held = server.tokens * token_bytes(bench.model) / 2**20
            return Answered(done.first_s, times, lengths, held, {"attention": server.attention})

        yield served


def _needed(bench: Bench, contender: Contender, tokens: int, room: int | None) -> str | None:
    """Why keys and values alone of so many tokens cannot fit into so many bytes; None: they can, or it is unknown.

    Found without reading a long prompt up to where the memory ends. Nothing is said of a quantised cache, and of a
    policy that evicts.
    """
    policy = contender.policy()
    if room is None or contender.kind == "quantized" or (policy is not None and policy.bounded):
        return None
    windows = Shape.of(bench.model.config).windows
    held = sum(tokens if window is None else min(window, tokens) for window in windows) / len(windows)
    wanted = held * token_bytes(bench.model)
    if wanted <= room:
        return None
    return f"{OUT_OF_MEMORY}: {wanted / 2**30:.1f} GiB of keys and values, there are {room / 2**30:.1f}"


def _free(bench: Bench) -> int | None:
    """Bytes of a CUDA device that are not the weights'; None elsewhere."""
    if bench.device.type != "cuda":
        return None
    return torch.cuda.mem_get_info(bench.device)[1] - torch.cuda.memory_allocated(bench.device)


# --- one row ---------------------------------------------------------------------------------------------------------


def one_row(bench: Bench, config: OneRow, contenders: Sequence[Contender]) -> None:
    """Every contender at every context: the first token, the steps after it, and the peak memory."""
    for contender in contenders:
        for context in config.contexts:
            if contender.takes(context, 1):

                def measure(contender=contender, context=context) -> dict[str, Any]:
                    bench.stage.clear()  # what a shorter context left behind, such as a captured graph
                    bench.stage.set(contender)
                    return _one_row(bench, config, contender, context)

                bench.contender_point("one_row", contender, {"context": context}, measure)


def _one_row(bench: Bench, config: OneRow, contender: Contender, context: int) -> dict[str, Any]:
    chunk = None if context <= (contender.limits.whole or config.whole) else config.prefill_chunk_size
    read = [context] if chunk is None else [min(chunk, context - at) for at in range(0, context, chunk)]
    policy = contender.policy()
    counted = steps_to_measure(policy, read, config.steps)
    new = 1 + WARM + counted
    if why := _needed(bench, contender, context + new, _free(bench)):
        return {"failed": why}
    ids = bench.ids(1, context)
    memory = Memory(bench.device)
    with _answering(bench, contender, 1, context, new) as answer:
        # What is compiled, captured and tuned; of a long prompt two chunks do.
        enough = context if context <= config.whole else 2 * config.prefill_chunk_size
        evicts = policy is not None and policy.bounded  # while it decodes, by kernels that are compiled then
        answer(ids[:, :enough], chunk, Steps(_FIRST, counted if evicts else 1, config.seconds))
        begin = time.perf_counter()
        answered = answer(ids, chunk, Steps(WARM, counted, config.seconds))
        first = [answered.first_s]
        while len(first) < config.repeats and time.perf_counter() - begin + first[0] < 2 * config.seconds:
            first.append(answer(ids, chunk, Steps()).first_s)
    figures = step_figures(answered.times, answered.lengths)
    return {
        "first_ms": 1e3 * statistics.median(first),
        "first_ms_fastest": 1e3 * min(first),
        "first_ms_slowest": 1e3 * max(first),
        "repeats": len(first),
        **figures,
        **_spread(answered.times),
        "tokens_per_s": 1e3 / figures["ms_mean"],
        "peak_gib": memory.peak_gib,
        "cache_mib": answered.cache_mib,
        **answered.told,
    }


def _spread(times: Sequence[float]) -> dict[str, float]:
    """Milliseconds that a tenth, and nine tenths, of the steps stay below."""
    ordered = sorted(times)
    low, high = (1e3 * ordered[round(share * (len(ordered) - 1))] for share in _SPREAD)
    return {"ms_low": low, "ms_high": high}


# --- many rows -------------------------------------------------------------------------------------------------------


def many_rows(bench: Bench, config: ManyRows, contenders: Sequence[Contender]) -> None:
    """Every contender at every context, in as many rows as fit into the memory that all of them are given."""
    for contender in contenders:
        for context in config.contexts:
            if contender.takes(context, 1):

                def measure(contender=contender, context=context) -> dict[str, Any]:
                    return _many_rows(bench, config, contender, context)

                bench.contender_point("many_rows", contender, {"context": context}, measure)


def _many_rows(bench: Bench, config: ManyRows, contender: Contender, context: int) -> dict[str, Any]:
    """The batch that the peaks of a few rows lead to, made smaller until it fits."""
    room = int(config.memory_gib * 2**30) if bench.device.type == "cuda" else None
    if why := _needed(bench, contender, context + config.new_tokens, room):
        return {"failed": why}
    trials: list[list[Any]] = []  # [rows, why not or "fits"]

    def tried(rows: int, call: Callable[[Bench, ManyRows, Contender, int, int], dict[str, Any]]) -> dict[str, Any]:
        bench.stage.clear()  # what another batch left behind
        bench.stage.set(contender)
        with _within(bench, config.memory_gib):
            result = attempt(lambda: call(bench, config, contender, context, rows))
        trials.append([rows, result.get("failed", "fits")])
        return result

    most = min(config.limit, contender.limits.max_batch or config.limit)
    peaks = {}
    for rows in (rows for rows in _PROBES if rows <= most):
        result = tried(rows, _probed)
        if "failed" in result:
            break
        peaks[rows] = result["peak"]
    if not peaks:
        return {"failed": trials[-1][1], "trials": trials}
    rows = min(most, rows_within(peaks, room, most) if len(peaks) > 1 else 2)
    while rows:
        result = tried(rows, _answered)
        if "failed" not in result:
            return {"rows": rows, **result, "trials": trials}
        rows -= max(1, rows // _FINE)
    return {"failed": trials[-1][1], "trials": trials}


def rows_within(peaks: dict[int, int | None], room: int | None, most: int) -> int:
    """How many rows fit into so many bytes, a little left over, if each takes as much as the next; at least one.

    Args:
        peaks: bytes, by rows, of two batches; None on a device that does not tell. most: rows where nothing is told.
    """
    (few, low), (more, high) = sorted(peaks.items())
    if low is None or high is None or room is None:
        return most
    each = (high - low) / (more - few)
    if each <= 0:
        return most
    return max(1, min(most, int((_SAFE * room - (low - few * each)) / each)))


@contextlib.contextmanager
def _within(bench: Bench, gib: float) -> Iterator[None]:
    """Inside the block PyTorch allocates no more than so many GiB above what is allocated now; nothing off a GPU."""
    if bench.device.type != "cuda":
        yield
        return
    release_memory()
    total = torch.cuda.get_device_properties(bench.device).total_memory
    share = (torch.cuda.memory_allocated(bench.device) + gib * 2**30) / total
    torch.cuda.set_per_process_memory_fraction(min(1.0, share), bench.device)
    try:
        yield
    finally:
        torch.cuda.set_per_process_memory_fraction(1.0, bench.device)


def _probed(bench: Bench, config: ManyRows, contender: Contender, context: int, rows: int) -> dict[str, Any]:
    """The peak of a batch's prompts and of a step, in bytes. No step is compiled: it would be anew for every batch."""
    memory = Memory(bench.device)
    with (
        decoding(bench.model, Uncaptured()) if contender.patched else contextlib.nullcontext(),
        _answering(bench, contender, rows, context, config.new_tokens) as answer,
    ):
        answer(bench.ids(rows, context), config.prefill_chunk_size, Steps(counted=1))
        bench.clock.wait()
    return {"peak": memory.peak}


def _answered(bench: Bench, config: ManyRows, contender: Contender, context: int, rows: int) -> dict[str, Any]:
    """Tokens a second of a batch: with its prompts (its new tokens over these and as many mean steps), and without."""
    chunk, new = config.prefill_chunk_size, config.new_tokens
    warm = min(WARM, new - 2)
    ids = bench.ids(rows, context)
    memory = Memory(bench.device)
    with _answering(bench, contender, rows, context, new) as answer:
        answer(ids[:, : 2 * chunk], chunk, Steps(min(_FIRST, warm), 1))  # compiles and captures what is
        answered = answer(ids, chunk, Steps(warm, min(config.steps, new - 1 - warm), config.seconds))
    step = statistics.mean(answered.times)
    return {
        "tokens_per_s": rows * new / (answered.first_s + (new - 1) * step),
        "decoding_tokens_per_s": rows / step,
        "prefill_s": answered.first_s,
        "ms_median": 1e3 * statistics.median(answered.times),
        "ms_mean": 1e3 * step,
        **_spread(answered.times),
        "steps": len(answered.times),
        "peak_gib": memory.peak_gib,
        "cache_mib": answered.cache_mib,
        **answered.told,
    }
