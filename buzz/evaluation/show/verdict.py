"""What a run has shown, in a sentence that is true of it: who is nearest to the full cache, by how much, and for what.

A claim is made where a paired test carries it, corrected for the number of methods that each best one was picked from,
at all memory sizes. Where it does not, the sentence says so: a handful of samples is no result, however large a factor.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from itertools import groupby
from typing import Any

from buzz.evaluation.measure.metric_info import metric_info
from buzz.evaluation.show.plot import series
from buzz.evaluation.show.table import shown, shown_interval, shown_mib, shown_p

LEVEL = 0.05  # of all claims of a run together
_TIE = 1e-9  # of a mean: methods no further apart differ by rounding
_KL = "fidelity_kl"

Group = Mapping[str, Any]


def verdict(summary: Mapping[str, Any]) -> str:
    """What a run has shown, for a terminal and the top of a report; empty for summaries of older versions.

    Args:
        summary: as in summary.json. Its `nearest` (see `measure.summary.nearest`) has what is compared, its `speed`
            what decoding after a long prompt took, if that was measured.
    """
    found = summary.get("nearest")
    if found is None:
        return ""
    parts = [_quality(found["metric"], found["groups"]), _memory(found["groups"]), _speed(summary.get("speed"))]
    return " ".join(filter(None, parts))


def verdicts(summaries: Mapping[str, Mapping[str, Any]]) -> list[str]:
    """The verdicts of several runs, each with its name before it; that of a single one alone."""
    told = {name: text for name, summary in summaries.items() if (text := verdict(summary))}
    return list(told.values()) if len(summaries) == 1 else [f"{name}: {text}" for name, text in told.items()]


def least_p(units: int) -> float:
    """The smallest p that a two-sided paired randomisation test of so many units can give."""
    return 2.0 ** (1 - units)


# --- quality ---------------------------------------------------------------------------------------------------------


def _quality(metric: str, groups: Sequence[Group]) -> str:
    if not groups:
        return "No method let go of anything, so nothing is compared."
    compared = [group for group in groups if "other" in group]
    if not compared:
        alone = ", ".join(f"{shown(metric, g['mean'])} for {g['method']} with {_less(g)}" for g in groups)
        return f"{metric_info(metric).label} is {alone}; no other method holds about as much, so there is no winner."
    clauses = [
        _clause(metric, name, list(alike), tied)
        for (name, tied), alike in groupby(compared, key=lambda group: (_name(group["method"]), _tied(group)))
    ]
    return f"{_best(metric)}: {'; '.join(clauses)}. {_decided(compared)}"


def _best(metric: str) -> str:
    info = metric_info(metric)
    return "Nearest to the full cache" if metric == _KL else f"Best {info.label} among about equal memory"


def _name(method: str) -> str:
    """A method without its size, which is told beside it."""
    return series(method) or method


def _clause(metric: str, name: str, groups: Sequence[Group], tied: bool) -> str:
    """The sizes at which a method is best, one after the other."""
    if tied:
        return ", ".join(f"with {_less(group)} {name} and {_name(group['other'])} alike" for group in groups)
    sizes = (f"with {_less(group)} ({_margin(metric, group)})" for group in groups)
    return f"{name} {', '.join(sizes)}"


def _margin(metric: str, group: Group) -> str:
    """By how much and in how many samples: `4.1x [2.2, 6.0] nearer than h2o, in 4 of 4`; of any metric but KL the
    difference, as `-0.31 [-0.52, -0.10] to h2o, in 9 of 12`."""
    share = f"in {group['better']} of {group['units']}"
    if group["units"] == 1:  # no interval is one
        return f"{_alone(metric, group)} {_name(group['other'])}"
    if metric == _KL and group.get("ratio", 0) > 0 and group["ratio_ci95"][0] > 0:
        low, high = (1 / end for end in reversed(group["ratio_ci95"]))
        return f"{1 / group['ratio']:.3g}x [{low:.3g}, {high:.3g}] nearer than {_name(group['other'])}, {share}"
    apart = f"{shown(metric, group['difference'], sign=True)} {shown_interval(metric, group['ci95'], sign=True)}"
    return f"{apart} to {_name(group['other'])}, {share}"


def _alone(metric: str, group: Group) -> str:
    if metric == _KL and group.get("ratio", 0) > 0:
        return f"{1 / group['ratio']:.3g}x nearer than"
    return f"{shown(metric, group['difference'], sign=True)} to"


def _tied(group: Group) -> bool:
    return bool(abs(group["difference"]) <= _TIE * abs(group["mean"]))


def _decided(groups: Sequence[Group]) -> str:
    """What the samples of a run can and cannot decide."""
    level = LEVEL / sum(group["among"] - 1 for group in groups)
    units = min(group["units"] for group in groups)
    what = "sample" if all(group["units"] == group["samples"] for group in groups) else "block of a text"
    counted = f"{units} {what}" if units == 1 else f"{units} {what.replace(what.split()[0], what.split()[0] + 's', 1)}"
    if least_p(units) >= level:
        p = f"a paired test of {counted} has no p below {shown_p(least_p(units))}, {shown_p(level)} is wanted"
        return f"That is a look and no result: {p}." if units > 1 else f"That is a look and no result: {counted}."
    sure = [group for group in groups if not _tied(group) and group["p"] < level]
    test = f"a paired test of {counted}"
    if len(sure) == len(groups):
        return f"All of it is decided by {test} ({_p(max(group['p'] for group in groups))})."
    if not sure:
        return f"None of it is decided by {test} ({_p(min(group['p'] for group in groups))} at best)."
    return f"Decided by {test} is it with {', '.join(map(_less, sure))} alone."


def _p(p: float) -> str:
    return f"p{'' if p < 0.001 else '='}{shown_p(p)}"


# --- memory and speed ------------------------------------------------------------------------------------------------


def _less(group: Group) -> str:
    return f"{group['reduction']:.3g}x less cache"


def _memory(groups: Sequence[Group]) -> str:
    """What the best one at the smallest memory holds; nothing where nobody is compared, or bytes are not known."""
    compared = [group for group in groups if "other" in group and "mean_mib" in group]
    if not compared:
        return ""
    least = compared[-1]
    held, full = shown_mib(least["mean_mib"]), shown_mib(least["full_mib"])
    return f"With {_less(least)} {_name(least['method'])} has {held} MiB allocated a sample, for a full cache's {full}."


def _speed(rows: Sequence[Mapping[str, Any]] | None) -> str:
    """What decoding after a long prompt took beside transformers' own cache, if that was measured."""
    if not rows:
        return ""
    full, *others = rows
    told = [f"{_rate(full)} with transformers' own cache ({shown_mib(full['mib'])} MiB)"]
    for row in others:
        faster = row["tokens_per_second"] / full["tokens_per_second"]
        prompt = row["prompt_seconds"] / full["prompt_seconds"]
        took = f"{faster:.2g} times as many, after a prompt that takes {prompt:.2g} times as long"
        told.append(f"{_rate(row)} with {row['method']} ({shown_mib(row['mib'])} MiB), {took}")
    return f"After {full['prompt_tokens']} tokens of prompt: {'; '.join(told)}."


def _rate(row: Mapping[str, Any]) -> str:
    return f"{row['tokens_per_second']:.3g} tokens/s"
