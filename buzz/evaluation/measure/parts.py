"""Samples of several kinds in one run: which part each belongs to, and the scores part by part."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from buzz.evaluation.measure.metric_info import FIDELITY_METRICS, metric_info

_LENGTH = re.compile(r"length(\d+)-.*")


@dataclass(frozen=True, order=True)
class Part:
    """Samples of a kind: those of a RULER task and length, or of a data set of LongBench.

    Args:
        length: as the task counts; None: it has no lengths.
    """

    task: str
    length: int | None


def part_of(name: str) -> Part | None:
    """The part that a sample's id names before a slash, and the length behind it if any; None: it names none."""
    task, slash, rest = name.partition("/")
    length = _LENGTH.fullmatch(rest)
    return Part(task, int(length.group(1)) if length else None) if slash else None


def part_scores(records: Sequence[Mapping[str, Any]], metrics: Sequence[str]) -> list[dict[str, Any]]:
    """What summary.json says of a method's parts: how many samples each has, the means of its metrics and answers.

    Nothing if there are no parts, or a single one; nor where texts are read, of which some ids have slashes as well.
    """
    if any(metric_info(metric).pooled for metric in metrics):
        return []
    found: dict[Part, list[Mapping[str, Any]]] = {}
    for record in records:
        part = part_of(record["id"])
        if part is None:
            return []
        found.setdefault(part, []).append(record)
    told = [metric for metric in metrics if metric not in FIDELITY_METRICS]
    return [
        {
            "task": part.task,
            "length": part.length,
            "n": len(rows),
            "answer_tokens": sum(row["new_tokens"] for row in rows) / len(rows),
            "metrics": {metric: mean for metric in told if (mean := _mean(metric, rows)) is not None},
        }
        for part, rows in found.items()
        if len(found) > 1
    ]


def _mean(metric: str, rows: Sequence[Mapping[str, Any]]) -> float | None:
    """Over the samples that have the metric; None if none has."""
    values = [row["metrics"][metric] for row in rows if row["metrics"].get(metric) is not None]
    return sum(values) / len(values) if values else None
