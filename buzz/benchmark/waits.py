"""Which calls between two steps wait for the device, counted by PyTorch's profiler."""

from __future__ import annotations

from collections import Counter
from typing import Any

import torch
from torch.profiler import ProfilerActivity, profile, record_function
from transformers import LogitsProcessor

from buzz.benchmark.clocks import Clock

_MARK = "benchmark.step"
# Calls of the CUDA runtime that hold the host up: until the device has done all that it was given, ...
DRAINS = ("cudaStreamSynchronize", "cudaDeviceSynchronize", "cudaMemcpy")
# ... or what it was given before a certain point, such as the step before.
EVENT_WAITS = ("cudaEventSynchronize",)
# What brings a value to the host; each causes one of the above, unless it is a copy to pinned memory.
READS = ("aten::item", "aten::_local_scalar_dense", "aten::is_nonzero", "aten::nonzero", "Memcpy DtoH")


class Watched(LogitsProcessor):
    """Given to generate(): profiles so many steps after some that do not count. It changes nothing and stops nothing.

    A stopping criterion would make every answer one whose end the host does not know; this one leaves that to the
    generation config.

    Args:
        warm: steps after the prompt that do not count. steps: those that are profiled.
    """

    def __init__(self, clock: Clock, warm: int, steps: int) -> None:
        self.clock, self.warm, self.steps = clock, warm, steps
        activities = [ProfilerActivity.CPU] + ([ProfilerActivity.CUDA] if clock.device.type == "cuda" else [])
        self._profile = profile(activities=activities)
        self._seen = 0

    @property
    def tokens(self) -> int:
        """New tokens that generate() must make; one more than are watched, so that it ends after the profile."""
        return self.warm + self.steps + 2

    def __call__(self, input_ids: torch.Tensor, scores: torch.Tensor) -> torch.Tensor:
        step, self._seen = self._seen, self._seen + 1
        if step == self.warm:
            self.clock.wait()
            self._profile.start()
        if self.warm <= step <= self.warm + self.steps:
            with record_function(_MARK):
                pass
        if step == self.warm + self.steps:
            self._profile.stop()
        return scores

    def calls(self) -> dict[str, Any]:
        """`drains_per_step`, `event_waits_per_step`, and `calls`: every kind of wait and read by name, a step.

        Raises:
            RuntimeError: generate() ended before the last step.
        """
        if self._seen <= self.warm + self.steps:
            raise RuntimeError(f"generate() ended after {self._seen} tokens, before the profile did")
        events = self._profile.events() or []
        at = [event.time_range.start for event in events if event.name == _MARK]
        counts = count_calls([(e.name, e.time_range.start) for e in events], min(at), max(at))
        return {
            "drains_per_step": sum(counts[name] for name in DRAINS) / self.steps,
            "event_waits_per_step": sum(counts[name] for name in EVENT_WAITS) / self.steps,
            "calls": {name: count / self.steps for name, count in sorted(counts.items())},
        }


def count_calls(events: list[tuple[str, float]], begin: float, end: float) -> Counter[str]:
    """How often each wait and read occurs among events (name, start) that start between begin and end."""
    counts: Counter[str] = Counter()
    for name, start in events:
        if begin <= start <= end:
            if name in (*DRAINS, *EVENT_WAITS, *READS):
                counts[name] += 1
            elif name.startswith("Memcpy DtoH"):  # its full name says from where to where
                counts["Memcpy DtoH"] += 1
    return counts
