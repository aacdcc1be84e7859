"""What a run has shown, in a sentence that is true of it: who is nearest to the full cache, by how much, and for what.

A claim is made where a paired test carries it, corrected for the number of methods that each best one was picked from,
at all memory sizes. Where it does not, the sentence says so: a handful of samples is no result, however large a factor.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from itertools import groupby
from typing import Any, NamedTuple

from buzz.evaluation.measure.metric_info import metric_info
from buzz.evaluation.show.plot import series
from buzz.evaluation.show.table import shown, shown_interval, shown_mib, shown_p

LEVEL = 0.05  # of all claims of a run together
_TIE = 1e-9  # of a mean: methods no further apart differ by rounding
_KL = "fidelity_kl"

Group = Mapping[str, Any]


class Verdict(NamedTuple):
    """What a run has shown: a sentence, and the figures behind it, which may be none."""

    sentence: str
    figures: str


def verdict(summary: Mapping[str, Any]) -> Verdict | None:
    """What a run has shown, for a terminal and the top of a report; None for summaries of older versions.

    Args:
        summary: as in summary.json. Its `nearest` (see `measure.summary.nearest`) has what is compared, its `speed`
            what decoding after a long prompt took, if that was measured.
    """
    found = summary.get("nearest")
    if found is None:
        return None
    sentence, margins = _quality(found["metric"], found["groups"])
    figures = [margins, _memory(found["groups"]), _speed(summary.get("speed"))]
    return Verdict(sentence, " ".join(filter(None, figures)))


def verdicts(summaries: Mapping[str, Mapping[str, Any]]) -> list[Verdict]:
    """The verdicts of several runs, each with its name before it; that of a single one alone."""
    told = {name: found for name, summary in summaries.items() if (found := verdict(summary))}
    if len(summaries) == 1:
        return list(told.values())
    return [found._replace(sentence=f"{name}: {found.sentence}") for name, found in told.items()]


def least_p(units: int) -> float:
    """The smallest p that a two-sided paired randomisation test of so many units can give."""
    return 2.0 ** (1 - units)


# --- quality ---------------------------------------------------------------------------------------------------------


def _quality(metric: str, groups: Sequence[Group]) -> tuple[str, str]:
    """The sentence, and by how much."""
    if not groups:
        return "No method let go of anything, so nothing is compared.", ""
    compared = [group for group in groups if "other" in group]
    if not compared:
        alone = ", ".join(f"{shown(metric, g['mean'])} for {g['method']} with {_sizes([g])}" for g in groups)
        return "No two methods hold about as much, so there is no winner.", f"{metric_info(metric).label} is {alone}."
    who = ", ".join(
        f"{name} with {_sizes(list(alike))}" for name, alike in groupby(compared, key=lambda group: _winner(group))
    )
    decided, limit = _decided(compared)
    margins = "; ".join(_margin(metric, group) for group in compared if not _tied(group))
    figures = [f"{text}." for text in (margins, limit) if text]
    return f"{_best(metric)}: {who}; {decided}.", " ".join(figures)


def _best(metric: str) -> str:
    best = "Nearest to the full cache" if metric == _KL else f"Best {metric_info(metric).label}"
    return f"{best} at about equal memory"


def _name(method: str) -> str:
    """A method without its size, which is told beside it."""
    return series(method) or method


def _winner(group: Group) -> str:
    name = _name(group["method"])
    return f"{name} and {_name(group['other'])} alike" if _tied(group) else name


def _sizes(groups: Sequence[Group]) -> str:
    """`1.5x, 2.5x and 4x less cache`."""
    *first, last = (f"{group['reduction']:.3g}x" for group in groups)
    return f"{', '.join(first)}{' and ' if first else ''}{last} less cache"


def _margin(metric: str, group: Group) -> str:
    """By how much and in how many samples: `comb is 4.1x [2.2, 6.0] nearer than h2o with 4x less cache, in 4 of 4`; of
    any metric but KL the difference, as `comb -0.31 [-0.52, -0.10] against h2o ..., in 9 of 12`."""
    name, other, interval = _name(group["method"]), _name(group["other"]), ""
    several = group["units"] > 1  # no interval is one of a single unit
    where = f"with {_sizes([group])}, in {group['better']} of {group['units']}"
    if metric == _KL and group.get("ratio", 0) > 0 and group["ratio_ci95"][0] > 0:
        if several:
            interval = " [{:.3g}, {:.3g}]".format(*(1 / end for end in reversed(group["ratio_ci95"])))
        return f"{name} is {1 / group['ratio']:.3g}x{interval} nearer than {other} {where}"
    if several:
        interval = f" {shown_interval(metric, group['ci95'], sign=True)}"
    return f"{name} {shown(metric, group['difference'], sign=True)}{interval} against {other} {where}"


def _tied(group: Group) -> bool:
    return bool(abs(group["difference"]) <= _TIE * abs(group["mean"]))


def _decided(groups: Sequence[Group]) -> tuple[str, str]:
    """What the samples of a run can and cannot decide, and why they cannot."""
    level = LEVEL / sum(group["among"] - 1 for group in groups)
    units = min(group["units"] for group in groups)
    what = "sample" if all(group["units"] == group["samples"] for group in groups) else "block of a text"
    counted = f"1 {what}" if units == 1 else f"{units} {what.replace(what.split()[0], what.split()[0] + 's', 1)}"
    if least_p(units) >= level:
        limit = f"A paired test of {counted} has no p below {shown_p(least_p(units))}, {shown_p(level)} is wanted"
        return f"{counted} {'is' if units == 1 else 'are'} a look and no result", limit if units > 1 else ""
    test = f"decided by a paired test of {counted}"
    sure = [group for group in groups if not _tied(group) and group["p"] < level]
    if len(sure) == len(groups):
        return f"all of it {test} ({_p(max(group['p'] for group in groups))})", ""
    if not sure:
        return f"none of it {test} ({_p(min(group['p'] for group in groups))} at best)", ""
    return f"with {_sizes(sure)} {test}, the rest is not", ""


def _p(p: float) -> str:
    return f"p{'' if p < 0.001 else '='}{shown_p(p)}"


# --- memory and speed ------------------------------------------------------------------------------------------------


def _memory(groups: Sequence[Group]) -> str:
    """What the best one at the smallest memory holds; nothing where nobody is compared, or bytes are not known."""
    compared = [group for group in groups if "other" in group and "mean_mib" in group]
    if not compared:
        return ""
    least = compared[-1]
    held, full = shown_mib(least["mean_mib"]), shown_mib(least["full_mib"])
    return (
        f"With {_sizes([least])} {_name(least['method'])} has {held} MiB allocated a sample, for a full cache's {full}."
    )


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
