"""How far a method is: a bar on a terminal, one line elsewhere."""

from __future__ import annotations

import sys
import time
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

from tqdm import tqdm


class Figures(NamedTuple):
    """What a process did for a method: samples, new tokens, summed mean cache lengths, seconds."""

    samples: int
    tokens: int
    cached: float
    seconds: float


class Progress:
    """A bar for one method on a terminal; elsewhere one line once the method is done.

    Args:
        total, done: samples of this process, and how many of them were there before.
        shown: False in a process that keeps quiet.
    """

    def __init__(self, name: str, total: int, done: int, shown: bool = True) -> None:

        self._name, self._tokens, self._cached, self._samples = name, 0, 0.0, 0
        self._started = time.perf_counter()
        self._shown = shown
        self._line = shown and not sys.stderr.isatty()
        self._bar = tqdm(
            total=total, initial=done, desc=name, unit="sample", dynamic_ncols=True, disable=self._line or not shown
        )

    def __enter__(self) -> Progress:
        return self

    def __exit__(self, *_: object) -> None:
        self._bar.close()

    def add(self, records: Sequence[Mapping[str, Any]]) -> None:
        """Take in a finished batch."""
        self._samples += len(records)
        self._tokens += sum(record["new_tokens"] for record in records)
        self._cached += sum(record["cache"]["mean_tokens"] for record in records)
        self._bar.set_postfix_str(_said([self.figures()]), refresh=False)
        self._bar.update(len(records))

    def figures(self) -> Figures:
        """So far."""
        return Figures(self._samples, self._tokens, self._cached, time.perf_counter() - self._started)

    def finish(self, everybody: Sequence[Figures]) -> None:
        """The method is done: the line, of all processes together, where there is no bar."""
        samples = sum(figures.samples for figures in everybody)
        if self._line and samples:
            print(f"{self._name}: {samples} samples, {_said(everybody)}", file=sys.stderr)


def _said(everybody: Sequence[Figures]) -> str:
    samples, tokens, cached = (sum(column) for column in list(zip(*everybody, strict=True))[:3])
    seconds = max(figures.seconds for figures in everybody)
    return f"{tokens / seconds:.1f} tokens/s, {cached / samples:.0f} cached"
