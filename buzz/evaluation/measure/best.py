"""Which methods of a run are best by a figure, of those that hold about as much, and which cannot be told apart."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from buzz.evaluation.measure.metric_info import metric_info
from buzz.evaluation.measure.resampling import Resampler, ci95
from buzz.evaluation.measure.summary import ALIKE, Record, Scores

_LEVEL = 0.05  # a p-value below it tells two methods apart
# Figures of the cache without an interval, of which less is better. Speeds are not ranked: what a run measures first
# pays for warming up, which on a GPU is more than methods differ by.
_MEASURED = ("mean_tokens", "mean_mib")


@dataclass(frozen=True)
class Standing:
    """How the methods of a run stand to each other.

    Args:
        reference: the full cache, which is no competitor; None: the run has none with samples.
        groups: the other methods that have samples, those that hold about as much together, the most first.
        best: the best ones of all groups, by metric, and by mean_tokens and mean_mib.
    """

    reference: str | None
    groups: list[list[str]]
    best: Mapping[str, frozenset[str]]


def standing(summary: Mapping[str, Any], records: Mapping[str, Sequence[Record]], seed: int = 0) -> Standing:
    """Find the best methods of a run.

    Methods are compared with those of their group alone. The best of a group by a metric is the one with the best
    figure, and with it every method that cannot be told from it: the 95% interval of the paired difference (bootstrap)
    contains 0, or the p-value of the paired randomisation test is 0.05 or more, as it is with fewer than six samples.
    Of figures that have no interval, those within 10% of the best count as equal to it. Where this leaves no method
    behind, no one is best.

    Args:
        summary: as `summarise` makes it from the records. seed: of the resampling.
    """
    methods = {name: entry for name, entry in summary["methods"].items() if entry["n"] and records.get(name)}
    full = summary["run"].get("full")
    groups = memory_groups({name: entry["cache"]["mean_tokens"] for name, entry in methods.items() if name != full})
    resampler = Resampler(seed)
    scores = {name: Scores(records[name], resampler) for name in methods}
    best = {
        metric: frozenset(name for group in groups for name in _leaders(metric, {n: scores[n] for n in group}))
        for metric in summary["run"]["metrics"]
    }
    for figure in _MEASURED:
        values = {name: entry["cache"].get(figure) for name, entry in methods.items()}
        best[figure] = frozenset(
            name for group in groups for name in _least({n: values[n] for n in group if values[n]})
        )
    return Standing(full if full in methods else None, groups, best)


def memory_groups(mean_tokens: Mapping[str, float]) -> list[list[str]]:
    """Methods that hold about as much (mean cached tokens within 10% of the most) together, the most first.

    Where no two of them do, all are one group: a run of methods at sizes of their own is compared as it is.

    Args:
        mean_tokens: by method, in the order in which the methods of a group are returned.
    """
    groups: list[list[str]] = []
    for name in sorted(mean_tokens, key=lambda name: -mean_tokens[name]):
        if groups and mean_tokens[groups[-1][0]] <= ALIKE * mean_tokens[name]:
            groups[-1].append(name)
        else:
            groups.append([name])
    if groups and all(len(group) == 1 for group in groups):
        groups = [[name for group in groups for name in group]]
    order = list(mean_tokens)
    return [sorted(group, key=order.index) for group in groups]


def _leaders(metric: str, scores: Mapping[str, Scores]) -> Iterable[str]:
    """The best of these methods and all that cannot be told from it; nobody, if these are all."""
    figures = {name: own.figure(metric, ids) for name, own in scores.items() if (ids := own.ids(metric))}
    if len(figures) < 2:
        return []
    best = (max if metric_info(metric).higher_is_better else min)(figures, key=lambda name: figures[name])
    found = [name for name in figures if name == best or not _apart(metric, scores[name], scores[best])]
    return found if len(found) < len(figures) else []


def _apart(metric: str, own: Scores, other: Scores) -> bool:
    """Whether two methods differ, on the samples that both have."""
    ids = own.shared(other, metric)
    if not ids:
        return False
    low, high = ci95(own.resampled(metric, ids) - other.resampled(metric, ids))
    return not low <= 0 <= high and own.p_values(other, metric, ids)[metric] < _LEVEL


def _least(values: Mapping[str, float]) -> Iterable[str]:
    """The least of these values and those within 10% of it; nobody, if these are all."""
    found = [name for name, value in values.items() if value <= ALIKE * min(values.values())]
    return found if len(found) < len(values) else []
