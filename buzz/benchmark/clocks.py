"""Clocks, memory, and generate() watched step by step. On a CUDA device events measure, and nothing waits for them."""

from __future__ import annotations

import itertools
import time
from collections.abc import Callable
from typing import Any

import torch
from transformers import LogitsProcessorList, QuantizedCache, StoppingCriteria, StoppingCriteriaList

from buzz.benchmark.quantized import quantized_bytes
from buzz.evaluation.memory import is_out_of_memory, release_memory
from buzz.models.cache_argument import as_argument
from buzz.words import one_line

OUT_OF_MEMORY = "out of memory"


class Clock:
    """Points in time of a device's work."""

    def __init__(self, device: torch.device) -> None:
        self.device = device

    def mark(self) -> Any:
        """Now: on a CUDA device, when the work that is queued is done."""
        if self.device.type != "cuda":
            return time.perf_counter()
        event = torch.cuda.Event(enable_timing=True)
        event.record(torch.cuda.current_stream(self.device))
        return event

    def wait(self) -> None:
        """Until the device has nothing left to do."""
        if self.device.type == "cuda":
            torch.cuda.synchronize(self.device)

    def seconds(self, marks: list[Any]) -> list[float]:
        """From each mark to the next."""
        self.wait()
        pairs = itertools.pairwise(marks)
        return [1e-3 * a.elapsed_time(b) if self.device.type == "cuda" else b - a for a, b in pairs]


def timed(
    call: Callable[[], Any], clock: Clock, repeats: int, seconds: float = float("inf"), inner: float = 0.0
) -> list[float]:
    """Seconds of a call, several times, after one that does not count.

    Args:
        seconds: no repetition begins after this long, but for the first three.
        inner: make so many calls in a row that they take about this many seconds; their mean is one measurement.
    """
    call()
    clock.wait()
    calls = 1
    if inner:
        marks = [clock.mark(), call(), clock.mark()]
        calls = max(1, round(inner / max(1e-6, clock.seconds(marks[::2])[0])))
    taken: list[float] = []
    begin = time.perf_counter()
    while len(taken) < repeats and (len(taken) < 3 or time.perf_counter() - begin < seconds):
        start = clock.mark()
        for _ in range(calls):
            call()
        taken += [t / calls for t in clock.seconds([start, clock.mark()])]
    return taken


def captured(call: Callable[[], Any], device: torch.device) -> Callable[[], Any]:
    """The call as a CUDA graph, so that launches cost next to nothing; on other devices the call itself."""
    if device.type != "cuda":
        return call
    stream = torch.cuda.Stream(device)
    stream.wait_stream(torch.cuda.current_stream(device))
    with torch.cuda.stream(stream):  # what a first call does (compiling, allocating) cannot be captured
        call()
        call()
    torch.cuda.current_stream(device).wait_stream(stream)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        call()
    return graph.replay


class Memory:
    """Peak memory of a CUDA device above what is allocated when this is made; None elsewhere."""

    def __init__(self, device: torch.device) -> None:
        self.device = device
        if device.type == "cuda":
            release_memory()
            torch.cuda.reset_peak_memory_stats(device)
            self._before = torch.cuda.memory_allocated(device)

    @property
    def peak(self) -> int | None:
        """Bytes."""
        return torch.cuda.max_memory_allocated(self.device) - self._before if self.device.type == "cuda" else None

    @property
    def peak_gib(self) -> float | None:
        return None if self.peak is None else self.peak / 2**30

    @property
    def usage(self) -> float | None:
        """The peak as a share of what was free before."""
        if self.peak is None:
            return None
        free = torch.cuda.mem_get_info(self.device)[1] - self._before
        return self.peak / free


def attempt(call: Callable[[], dict[str, Any]]) -> dict[str, Any]:
    """The call's result, or `{"failed": reason}`: a contender that cannot do something is a result as well.

    Raises:
        RuntimeError: the device is lost, so that nothing after it could be measured.
    """
    try:
        return call()
    except Exception as error:
        out = isinstance(error, RuntimeError) and is_out_of_memory(error)
        reason = OUT_OF_MEMORY if out else f"{type(error).__name__}: {one_line(error)[:160]}"
    # Here, where the error no longer holds the frames that hold the memory.
    release_memory()
    if torch.cuda.is_available():
        torch.cuda.synchronize()  # raises again if the error was the device's own
    return {"failed": reason}


class Marks(StoppingCriteria):
    """Given to generate(): marks when every token is there, and ends it. It never waits for the device.

    Args:
        warm: steps after the prompt that do not count: they compile, capture and allocate.
        steps: steps that count; `seconds`: none begins after this long, but for the first.
    """

    def __init__(self, clock: Clock, warm: int, steps: int, seconds: float = float("inf")) -> None:
        self.clock, self.warm, self.steps, self.limit = clock, warm, steps, seconds
        self.marks: list[Any] = []
        self._begin = 0.0
        self._over = False
        self._answers: dict[bool, torch.Tensor] = {}

    @property
    def tokens(self) -> int:
        """New tokens that generate() may make at most."""
        return 1 + self.warm + self.steps

    def __call__(self, input_ids: torch.Tensor, scores: Any, **kwargs: Any) -> torch.Tensor:
        if not self._answers:  # made once: no kernel runs between steps
            shape = input_ids.shape[:1]
            self._answers = {v: torch.full(shape, v, device=input_ids.device) for v in (False, True)}
        if not self._over:  # a loop that looks at the answer one step late comes once more
            self.marks.append(self.clock.mark())
            done = len(self.marks) - 1 - self.warm
            if done == 0:
                self._begin = time.perf_counter()
            late = done > 0 and time.perf_counter() - self._begin > self.limit
            self._over = late or done >= self.steps
        return self._answers[self._over]

    def times(self) -> list[float]:
        """Seconds of the steps that count."""
        return self.clock.seconds(self.marks[self.warm :])


def generate(model: Any, ids: torch.Tensor, cache: Any, tokens: int, watch: Any, **options: Any) -> None:
    """Greedy decoding of at most so many tokens after ids [B, L].

    Args:
        watch: a stopping criterion or a logits processor that sees every step.
    """
    if isinstance(watch, StoppingCriteria):
        options["stopping_criteria"] = StoppingCriteriaList([watch])
    else:
        options["logits_processor"] = LogitsProcessorList([watch])
    model.generate(
        ids,
        attention_mask=torch.ones_like(ids),
        **as_argument(cache),
        do_sample=False,
        max_new_tokens=tokens,
        **options,
    )


def cache_mib(cache: Any) -> float:
    """Allocated MiB of a cache's keys, values and scores."""
    size = quantized_bytes(cache) if isinstance(cache, QuantizedCache) else getattr(cache, "nbytes", None)
    if size is None:
        layers = [t for layer in cache.layers for t in (layer.keys, layer.values) if t is not None]
        size = sum(t.numel() * t.element_size() for t in layers)
    return size / 2**20
