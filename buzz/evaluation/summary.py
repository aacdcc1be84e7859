"""From a run's samples to summary.json: means with bootstrap intervals, cache lengths, seconds."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

RESAMPLES = 2000
_BLOCK = 2_000_000  # resampled values held at a time


def bootstrap_ci95(values: Any, seed: int = 0, resamples: int = RESAMPLES) -> np.ndarray:
    """95% percentile bootstrap intervals of column means.

    Args:
        values: [n, columns] floats, n >= 1. Rows are resampled, so the columns share their resamples.
        seed: of numpy's generator.

    Returns:
        float64 [2, columns]: lower and upper ends.
    """
    values = np.asarray(values, dtype=np.float64)
    n = len(values)
    generator = np.random.default_rng(seed)
    block = max(1, _BLOCK // n)
    means = []
    for start in range(0, resamples, block):
        # How often each row is drawn is all that a mean needs.
        counts = generator.multinomial(n, np.full(n, 1 / n), size=min(block, resamples - start))  # [block, n]
        means.append(counts @ values / n)
    return np.percentile(np.concatenate(means), [2.5, 97.5], axis=0)


def summarise_method(rows: Sequence[Mapping[str, Any]], metrics: Sequence[str], seed: int = 0) -> dict[str, Any]:
    """One method's entry of summary.json, from its sample records.

    `peak_tokens` is the highest of all samples. `reduction` is the mean cache length of a cache that never evicts
    over the measured one, over the decode calls of the same samples. Without a record only `n` is given.
    """
    if not rows:
        return {"n": 0}
    values = np.array([[row["metrics"][name] for name in metrics] for row in rows])  # [n, metrics]
    low, high = bootstrap_ci95(values, seed)
    mean = float(np.mean([row["cache"]["mean_tokens"] for row in rows]))
    full = float(np.mean([row["cache"]["full_mean_tokens"] for row in rows]))
    seconds = sum(row["seconds"] for row in rows)
    return {
        "n": len(rows),
        "metrics": {
            name: {"mean": float(values[:, i].mean()), "ci95": [float(low[i]), float(high[i])]}
            for i, name in enumerate(metrics)
        },
        "cache": {
            "mean_tokens": mean,
            "peak_tokens": max(row["cache"]["peak_tokens"] for row in rows),
            "reduction": full / mean,
        },
        "seconds": {
            "total": seconds,
            "per_sample": seconds / len(rows),
            "tokens_per_second": sum(row["new_tokens"] for row in rows) / seconds if seconds else None,
        },
    }


def summarise(
    records: Mapping[str, Sequence[Mapping[str, Any]]],
    metrics: Sequence[str],
    failures: Mapping[str, str],
    run: Mapping[str, Any],
    seed: int = 0,
) -> dict[str, Any]:
    """summary.json.

    Args:
        records: sample records by method, in the order of the config.
        metrics: the task's metrics, in the order of its tables.
        failures: why a method did not finish, by method; becomes its key `failed`.
        run: facts about the run, kept as they are under `run`.
    """
    methods = {name: summarise_method(rows, metrics, seed) for name, rows in records.items()}
    for name, reason in failures.items():
        methods[name]["failed"] = reason
    return {"run": dict(run), "methods": methods}
