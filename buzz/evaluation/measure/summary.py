"""From a run's samples to summary.json: means with intervals, paired comparisons, cache lengths, seconds."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from buzz.evaluation.measure.metric_info import FIDELITY_METRICS, metric_info
from buzz.evaluation.measure.parts import part_scores
from buzz.evaluation.measure.resampling import Resampler, ci95, p_below

Record = Mapping[str, Any]
MIB = 2**20
_LEAST = 1.01  # a reduction below this is none
ALIKE = 1.1  # up to this factor between their mean cache lengths, two methods hold about as much


class Scores:
    """One method's metrics over its samples, as they are and resampled.

    A metric's figure is sum(parts) / sum(weights) over units: the mean over samples. Of a pooled metric it is exp of
    the token-weighted mean over documents; where there is one document alone, over its blocks.

    Args:
        records: the method's records.
        resampler: the same for all methods of a run, so that their draws are paired.
    """

    def __init__(self, records: Sequence[Record], resampler: Resampler) -> None:
        self.records = {record["id"]: record for record in records}
        self._resampler = resampler
        self._resampled: dict[tuple[str, tuple[str, ...]], np.ndarray] = {}

    @property
    def policy(self) -> str | None:
        """The policy's name; None without a record."""
        return next((record["policy"]["name"] for record in self.records.values()), None)

    @property
    def variant_of(self) -> str | None:
        """The policy that this one is, or is a variant of: the first word of the name."""
        return None if self.policy is None else self.policy.split("_")[0]

    @property
    def mean_tokens(self) -> float:
        """Mean cached tokens over the samples."""
        return float(np.mean([record["cache"]["mean_tokens"] for record in self.records.values()]))

    def ids(self, metric: str) -> tuple[str, ...]:
        """The samples that have the metric."""
        return tuple(name for name, record in self.records.items() if record["metrics"].get(metric) is not None)

    def shared(self, other: Scores, metric: str) -> tuple[str, ...]:
        """The samples that have the metric here and in the other method."""
        there = set(other.ids(metric))
        return tuple(name for name in self.ids(metric) if name in there)

    def units(self, metric: str, ids: Sequence[str]) -> np.ndarray:
        """Parts and weights of the metric, float64 [units, 2]."""
        records = [self.records[name] for name in ids]
        if not metric_info(metric).pooled:
            return np.array([[record["metrics"][metric], 1.0] for record in records])
        if len(records) == 1 and records[0].get("blocks"):
            return np.array([[nll, tokens] for tokens, nll in records[0]["blocks"]], dtype=np.float64)
        return np.array([[record["metrics"][metric] * record["weight"], record["weight"]] for record in records])

    def figure(self, metric: str, ids: Sequence[str]) -> float:
        """The metric over these samples."""
        return float(_figures(metric, self.units(metric, ids).sum(axis=0)))

    def resampled(self, metric: str, ids: tuple[str, ...]) -> np.ndarray:
        """The metric over each resample of these samples: float64 [resamples]."""
        if (metric, ids) not in self._resampled:
            names = self._alike(metric, ids)  # together they take little longer than one
            sums = self._resampler.sums(np.hstack([self.units(name, ids) for name in names]))
            for i, name in enumerate(names):
                self._resampled[name, ids] = _figures(name, sums[:, 2 * i : 2 * i + 2])
        return self._resampled[metric, ids]

    def p_values(self, other: Scores, metric: str, ids: tuple[str, ...]) -> dict[str, float]:
        """Of the differences to the other method over these samples, see `Resampler.p_values`.

        For a pooled metric the two negative log-likelihoods of each document, or block, are swapped at random.

        Returns:
            By metric: for the given one, and for others that come with it.
        """
        names = [name for name in self._alike(metric, ids) if name in other._alike(metric, ids)]
        parts = [self.units(name, ids)[:, 0] - other.units(name, ids)[:, 0] for name in names]
        return dict(zip(names, self._resampler.p_values(np.stack(parts, axis=1)).tolist(), strict=True))

    def _alike(self, metric: str, ids: Sequence[str]) -> list[str]:
        """The metrics that these samples have, with units as those of the given one."""
        pooled = metric_info(metric).pooled
        first = self.records[ids[0]]["metrics"]
        names = [name for name in first if metric_info(name).pooled == pooled]
        return [name for name in names if set(ids) <= set(self.ids(name))]


def _figures(metric: str, sums: np.ndarray) -> np.ndarray:
    """Summed parts and weights [..., 2] as figures [...]."""
    means = sums[..., 0] / sums[..., 1]
    return np.exp(means) if metric_info(metric).pooled else means


def summarise(
    records: Mapping[str, Sequence[Record]],
    metrics: Sequence[str],
    failures: Mapping[str, str],
    run: Mapping[str, Any],
    seed: int = 0,
    compare: Mapping[str, Mapping[str, str]] | None = None,
) -> dict[str, Any]:
    """summary.json.

    Every method but the full cache is compared with the full cache (`full`) and with its best rival (`rival`), on the
    samples that both have. The rival of a method is the best, by the headline metric, of the other methods whose
    policy is not `full`: of those with another policy, if there are any (buzz, buzz_fast and buzz_no_max are variants
    of one policy, and so is a policy with other parameters); among these, of those that hold about as much (mean cache
    lengths within 10% of the method's), if there are any. p-values are not corrected for the number of comparisons.

    Args:
        records: sample records by method, in the order of the config.
        metrics: the run's metrics, in the order of its tables. A method whose records lack one has no entry for it.
        failures: why a method did not finish, by method; becomes its key `failed`.
        run: facts about the run, kept as they are under `run`. Its `headline` (default: the first metric) chooses the
            rivals, its `full` names the full cache.
        seed: of the resampling.
        compare: what else to compare with, by a name for it: for each method the other one. Under `paired` it has the
            key `against NAME`; of losses also the ratio of the two means.
    """
    resampler = Resampler(seed)
    scores = {name: Scores(known, resampler) for name, known in records.items()}
    headline, full = run.get("headline") or metrics[0], run.get("full")
    methods = {name: _entry(own, metrics) for name, own in scores.items()}
    for name, own in scores.items():
        if not own.records or name == full:
            continue
        others = {"full": full, "rival": _rival(name, scores, headline)}
        methods[name]["paired"] = {
            key: {"method": other, "metrics": found}
            for key, other in others.items()
            if other in scores and (found := _differences(own, scores[other], metrics))
        }
        if full in scores:
            methods[name] |= _retention(own, scores[full], metrics)
    for label, baselines in (compare or {}).items():
        _compare(methods, scores, label, baselines, metrics)
    for name, reason in failures.items():
        methods[name]["failed"] = reason
    return {"run": dict(run), "methods": methods, "nearest": nearest(scores, metrics, headline)}


def nearest(scores: Mapping[str, Scores], metrics: Sequence[str], headline: str) -> dict[str, Any]:
    """Who is best at which memory, and by how much: what a verdict on the run may rest on.

    The metric is the KL divergence to the full cache where it was measured, else the headline. Methods that hold about
    as much (mean cache lengths within 10% of the largest of them) are a group; the full cache is in none, nor is a
    method that let go of nothing. In each group the best is compared with the best of another policy, or, if all have
    the same one, with the next, on the samples that both have.

    Returns:
        `metric`, and `groups`, the largest memory first, each with `method`, its `mean`, `reduction` and, if all
        samples tell, `mean_mib` and `full_mib`; `among`, the methods of the group; and if there is another one `other`,
        `samples` (that both have), `units` (of the test: these samples, or of a single text its blocks), `better`
        (units in which the method is better), and the paired `difference`, `ci95` and `p`, of losses also `ratio` and
        `ratio_ci95`.
    """
    measured = any(own.policy != "full" and own.ids(FIDELITY_METRICS[0]) for own in scores.values())
    metric = FIDELITY_METRICS[0] if measured and FIDELITY_METRICS[0] in metrics else headline
    entries = {name: _entry(own, [metric]) for name, own in scores.items() if own.records}
    reduced = [name for name, entry in entries.items() if metric in entry["metrics"] and _reduces(entry)]
    groups: list[list[str]] = []
    for name in sorted(reduced, key=lambda name: -scores[name].mean_tokens):
        if groups and scores[groups[-1][0]].mean_tokens <= ALIKE * scores[name].mean_tokens:
            groups[-1].append(name)
        else:
            groups.append([name])
    return {"metric": metric, "groups": [_best(group, scores, entries, metric) for group in groups]}


def _reduces(entry: Mapping[str, Any]) -> bool:
    """Whether a method let go of anything worth the name."""
    return entry["policy"] != "full" and entry["cache"]["reduction"] >= _LEAST


def _best(
    group: Sequence[str], scores: Mapping[str, Scores], entries: Mapping[str, Any], metric: str
) -> dict[str, Any]:
    sign = 1 if metric_info(metric).higher_is_better else -1
    ordered = sorted(group, key=lambda name: -sign * entries[name]["metrics"][metric]["mean"])
    best = ordered[0]
    cache = entries[best]["cache"]
    told = {"method": best, "mean": entries[best]["metrics"][metric]["mean"], "reduction": cache["reduction"]}
    told["among"] = len(group)
    if "mean_mib" in cache:
        told |= {"mean_mib": cache["mean_mib"], "full_mib": cache["mean_mib"] * cache["reduction_bytes"]}
    own = scores[best]
    others = [name for name in ordered[1:] if own.shared(scores[name], metric)]
    others = [name for name in others if scores[name].variant_of != own.variant_of] or others
    if not others:
        return told
    other = scores[others[0]]
    ids = own.shared(other, metric)
    apart = sign * (own.units(metric, ids)[:, 0] - other.units(metric, ids)[:, 0])
    pair = _differences(own, other, [metric])[metric] | _ratio(own, other, metric)
    counts = {"samples": len(ids), "units": len(apart), "better": int((apart > 0).sum())}
    return {**told, "other": others[0], **counts, **pair}


def compared_with(
    summary: Mapping[str, Any], records: Mapping[str, Sequence[Record]], other: str, seed: int = 0
) -> dict[str, Any]:
    """A summary in which every method is compared with one more: its `paired` has the key `against OTHER`.

    Args:
        summary: as `summarise` makes it from the records. other: a method that has records. seed: of the resampling.
    """
    resampler = Resampler(seed)
    scores = {name: Scores(known, resampler) for name, known in records.items()}
    methods = dict(summary["methods"])
    _compare(methods, scores, other, {name: other for name in records if name != other}, summary["run"]["metrics"])
    return {**summary, "methods": methods}


def _compare(
    methods: dict[str, Any],
    scores: Mapping[str, Scores],
    label: str,
    baselines: Mapping[str, str],
    metrics: Sequence[str],
) -> None:
    """Compare methods with others, and put it into their entries: under the key `against LABEL` of `paired`."""
    for name, other in baselines.items():
        own, theirs = scores[name], scores[other]
        found = _differences(own, theirs, metrics)
        for metric, pair in found.items():
            pair |= _ratio(own, theirs, metric)
        if found:
            pairs = {**methods[name].get("paired", {}), f"against {label}": {"method": other, "metrics": found}}
            methods[name] = {**methods[name], "paired": pairs}


def _entry(own: Scores, metrics: Sequence[str]) -> dict[str, Any]:
    """What one method's records say by themselves. Without a record only `n` is given.

    `peak_tokens` is the highest of all samples. `reduction` is the mean cache length of a cache that never evicts
    over the measured one, over the decode calls of the same samples. `mean_mib`, `peak_mib` and `reduction_bytes` are
    the same for bytes; they are left out if a sample of an older run does not have them. `longest_head` and
    `shortest_head`, where heads are unequal: the most and the fewest slots that a head of any sample held in the end.
    `answer_tokens`, where answers are generated: the mean length of an answer, the token that ends it included.
    `parts`, where samples are of several kinds: the scores of each (see `part_scores`).
    """
    records = list(own.records.values())
    if not records:
        return {"n": 0}
    full = float(np.mean([record["cache"]["full_mean_tokens"] for record in records]))
    seconds = sum(record["seconds"] for record in records)
    return {
        "n": len(records),
        "policy": own.policy,
        "metrics": {
            metric: {"mean": own.figure(metric, ids), "ci95": _interval(own.resampled(metric, ids))}
            for metric in metrics
            if (ids := own.ids(metric))
        },
        **_answers(records, metrics),
        "cache": {
            "mean_tokens": own.mean_tokens,
            "peak_tokens": max(record["cache"]["peak_tokens"] for record in records),
            "reduction": full / own.mean_tokens,
            **_bytes([record["cache"] for record in records]),
            **_heads([record["cache"] for record in records]),
        },
        "seconds": {
            "total": seconds,
            "per_sample": seconds / len(records),
            "tokens_per_second": sum(record["new_tokens"] for record in records) / seconds if seconds else None,
        },
        **({"parts": parts} if (parts := part_scores(records, metrics)) else {}),
    }


def _answers(records: Sequence[Record], metrics: Sequence[str]) -> dict[str, float]:
    """How long the answers are; nothing where texts are read."""
    if any(metric_info(metric).pooled for metric in metrics):
        return {}
    return {"answer_tokens": float(np.mean([record["new_tokens"] for record in records]))}


def _bytes(caches: Sequence[Mapping[str, Any]]) -> dict[str, float]:
    """Samples' caches in MiB."""
    if not all("mean_bytes" in cache for cache in caches):
        return {}
    mean = float(np.mean([cache["mean_bytes"] for cache in caches]))
    full = float(np.mean([cache["full_mean_bytes"] for cache in caches]))
    peak = max(cache["peak_bytes"] for cache in caches)
    return {"mean_mib": mean / MIB, "peak_mib": peak / MIB, "reduction_bytes": full / mean}


def _heads(caches: Sequence[Mapping[str, Any]]) -> dict[str, float]:
    """The longest and the shortest head of all samples; nothing if the heads of each are equal, or unknown."""
    if not all("longest_head" in cache and "shortest_head" in cache for cache in caches):
        return {}
    if all(cache["longest_head"] == cache["shortest_head"] for cache in caches):
        return {}
    return {
        "longest_head": max(cache["longest_head"] for cache in caches),
        "shortest_head": min(cache["shortest_head"] for cache in caches),
    }


def _interval(resampled: np.ndarray) -> list[float]:
    low, high = ci95(resampled)
    return [float(low), float(high)]


def _rival(name: str, scores: Mapping[str, Scores], headline: str) -> str | None:
    """The method that this one has to beat; None if there is no other."""
    own = scores[name]
    others = [
        other
        for other, theirs in scores.items()
        if other != name and theirs.policy not in (None, "full") and own.shared(theirs, headline)
    ]
    others = [other for other in others if scores[other].variant_of != own.variant_of] or others
    # More memory is no better method.
    near = [other for other in others if 1 / ALIKE <= scores[other].mean_tokens / own.mean_tokens <= ALIKE]
    sign = 1 if metric_info(headline).higher_is_better else -1
    return max(
        near or others,
        key=lambda other: sign * scores[other].figure(headline, own.shared(scores[other], headline)),
        default=None,
    )


def _differences(own: Scores, other: Scores, metrics: Sequence[str]) -> dict[str, dict[str, Any]]:
    """This method minus the other, metric by metric, on the samples that both have."""
    found = {}
    p_values: dict[tuple[str, ...], dict[str, float]] = {}
    for metric in metrics:
        ids = own.shared(other, metric)
        if ids:
            if metric not in p_values.get(ids, {}):
                p_values[ids] = own.p_values(other, metric, ids)
            found[metric] = {
                "difference": own.figure(metric, ids) - other.figure(metric, ids),
                "ci95": _interval(own.resampled(metric, ids) - other.resampled(metric, ids)),
                "p": p_values[ids][metric],
            }
    return found


def _ratio(own: Scores, other: Scores, metric: str) -> dict[str, Any]:
    """Of a loss: this method's figure over the other's on the samples that both have, its paired bootstrap interval,
    and the one-sided p-value of its being below 1. Nothing where the other's is not above 0 in every resample."""
    ids = own.shared(other, metric)
    drawn = other.resampled(metric, ids)
    if metric_info(metric).higher_is_better or not (drawn > 0).all():
        return {}
    ratios = own.resampled(metric, ids) / drawn
    ratio = own.figure(metric, ids) / other.figure(metric, ids)
    return {"ratio": ratio, "ratio_ci95": _interval(ratios), "ratio_p": p_below(ratios, 1)}


def _retention(own: Scores, full: Scores, metrics: Sequence[str]) -> dict[str, dict[str, Any]]:
    """The share of the full cache's mean that a method keeps, and its interval, on the samples that both have.

    For metrics in percent of which more is better; those that compare with the full cache are such a share already.
    There is no share of 0, and no interval if the full cache has a mean of 0 in some resample.
    """
    shares: dict[str, Any] = {}
    intervals: dict[str, Any] = {}
    for metric in metrics:
        info, ids = metric_info(metric), own.shared(full, metric)
        if not (info.percent and info.higher_is_better) or metric in FIDELITY_METRICS or not ids:
            continue
        whole = full.figure(metric, ids)
        if whole > 0:
            shares[metric] = own.figure(metric, ids) / whole
            drawn = full.resampled(metric, ids)
            if (drawn > 0).all():
                intervals[metric] = _interval(own.resampled(metric, ids) / drawn)
    return {"retention": shares, "retention_ci95": intervals}
