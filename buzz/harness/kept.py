"""What is told of every request's cache, so that nobody measures the full cache without knowing it."""

from __future__ import annotations

import json
import warnings
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from buzz.evaluation.measure.batch import FullMeans, Held, cache_figures, describe
from buzz.policies import Policy


@dataclass(frozen=True)
class Kept:
    """Of one request.

    Args:
        policy: its own. is_least: it is the smallest that a share or a reduction can come to.
        first, steps: tokens of the first call, and later calls of one token.
        evicted: whether anything was predicted from less than the whole text.
        cache: figures over the one-token calls (`buzz.evaluation.measure.batch.cache_figures`).
    """

    policy: Policy
    is_least: bool
    positions: str | None
    first: int
    steps: int
    evicted: bool
    cache: dict[str, Any]

    @classmethod
    def of(cls, policy: Policy, is_least: bool, first: int, steps: int, held: Held, full: FullMeans) -> Kept:
        """What a row's `held` says of it, which may have calls after its last one."""
        # The last call's own eviction comes after the last prediction.
        evicted = any(length < first + call for call, length in enumerate(held.lengths[:steps]))
        figures = cache_figures(held, first, steps + 1, full)
        return cls(policy, is_least, held.positions, first, steps, evicted, figures)


@dataclass
class _Tally:
    documents: set[Any] = field(default_factory=set)
    requests: int = 0
    evicted: int = 0
    least: int = 0
    tokens: float = 0.0
    full: float = 0.0
    peak: float = 0.0

    def figures(self) -> dict[str, Any]:
        return {
            "documents": len(self.documents),
            "requests": self.requests,
            "evicted": self.evicted,
            "smallest": self.least,
            "mean_tokens": self.tokens / self.requests,
            "peak_tokens": self.peak,
            "full_mean_tokens": self.full / self.requests,
            "reduction": self.full / self.tokens if self.tokens else 1.0,
        }


class Book:
    """Keeps figures of each task, and a line of each request in a file.

    Args:
        log: the file, to which lines are appended; None: none.
    """

    def __init__(self, log: Path | None) -> None:
        self.log = log
        self._tallies: dict[str, _Tally] = {}

    def lines(self, requests: Sequence[Any], kept: Sequence[Sequence[Kept]]) -> list[dict[str, Any]]:
        """A line for each text that was read: of a request one, of a long text to be read one a window.

        Args:
            requests: lm-eval's. kept: of each of them.
        """
        return [
            {
                "task": request.task_name,
                "doc_id": request.doc_id,
                "request": request.request_type,
                "index": request.idx,
                "repeats": request.repeats,
                **({"window": window} if len(parts) > 1 else {}),
                "first_tokens": part.first,
                "steps": part.steps,
                "policy": describe(part.policy),
                "positions": part.positions,
                "evicted": part.evicted,
                "smallest": part.is_least,
                "cache": part.cache,
            }
            for request, parts in zip(requests, kept, strict=True)
            for window, part in enumerate(parts)
        ]

    def add(self, lines: Iterable[Mapping[str, Any]], full: bool) -> None:
        """Take in lines, of all processes, once lm-eval has had its answers; warns of tasks that say nothing.

        Args:
            full: the policy is one that never evicts.
        """
        tallies: dict[str, _Tally] = {}
        own = _without_filling(lines)
        for line in own:
            for tally in (
                tallies.setdefault(line["task"], _Tally()),
                self._tallies.setdefault(line["task"], _Tally()),
            ):
                tally.documents.add(line["doc_id"])
                tally.requests += 1
                tally.evicted += line["evicted"]
                tally.least += line["smallest"]
                tally.tokens += line["cache"]["mean_tokens"]
                tally.full += line["cache"]["full_mean_tokens"]
                tally.peak = max(tally.peak, line["cache"]["peak_tokens"])
        self._write(own)
        for task, tally in tallies.items():
            if not full and not tally.evicted:
                what = f"the policy let go of nothing in any of {tally.requests} requests: this is the full cache"
                warnings.warn(f"{task}: {what}", stacklevel=4)
            elif tally.least:
                what = f"{tally.least} of {tally.requests} requests had the smallest cache that the policy can have"
                warnings.warn(f"{task}: {what}: they are short for the memory that was asked for", stacklevel=4)

    def summary(self) -> dict[str, Any]:
        """Figures of each task so far, over its requests."""
        return {task: tally.figures() for task, tally in self._tallies.items()}

    def _write(self, lines: Sequence[Mapping[str, Any]]) -> None:
        if self.log is None:
            return
        try:
            with self.log.open("a", encoding="utf-8") as file:
                file.writelines(json.dumps(line) + "\n" for line in lines)
        except OSError as error:  # no reason to lose lm-eval's results
            warnings.warn(f"{self.log} cannot be written ({error.strerror}), and is not tried again", stacklevel=5)
            self.log = None


def _without_filling(lines: Iterable[Mapping[str, Any]]) -> list[Mapping[str, Any]]:
    """Without what lm-eval adds to give several processes equally many requests: repetitions beyond `repeats`."""
    seen: Counter[tuple[Any, ...]] = Counter()
    own = []
    for line in lines:
        key = tuple(line.get(name) for name in ("task", "doc_id", "request", "index", "window"))
        seen[key] += 1
        if seen[key] <= (line["repeats"] or 1):
            own.append(line)
    return own
