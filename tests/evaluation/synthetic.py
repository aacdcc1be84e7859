"""Records and summaries without a model."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from buzz.evaluation.measure.summary import summarise


def record(sample: str, policy: str, metrics: Mapping[str, float | None], cached: float = 100.0, **more: Any) -> dict:
    return {
        "id": sample,
        "prompt_hash": f"of {sample}",
        "policy": {"name": policy},
        "metrics": dict(metrics),
        "cache": {
            **{"mean_tokens": cached, "peak_tokens": cached + 20, "full_mean_tokens": 400.0},
            **{"mean_bytes": 12800 * cached, "peak_bytes": 16000 * cached, "full_mean_bytes": 400 * 12800.0},
        },
        "seconds": 0.5,
        "new_tokens": 10,
        **more,
    }


def method(policy: str, cached: float = 100.0, **columns: Sequence[float | None]) -> list[dict]:
    """Records s0, s1, ... whose metrics are the columns."""
    rows = zip(*columns.values(), strict=True)
    return [record(f"s{i}", policy, dict(zip(columns, row, strict=True)), cached) for i, row in enumerate(rows)]


def summary_of(
    methods: Mapping[str, list[dict]],
    failures: Mapping[str, str] | None = None,
    headline: str | None = None,
    compare: Mapping[str, Mapping[str, str]] | None = None,
    **facts: Any,
) -> dict[str, Any]:
    """The summary of a run whose metrics are those of its first record."""
    rows = [row for records in methods.values() for row in records]
    metrics = list(rows[0]["metrics"])
    full = next((name for name, records in methods.items() if records and records[0]["policy"]["name"] == "full"), None)
    run = {
        "name": "made", "model": "model", "task": "task", "samples": max(map(len, methods.values())), "truncated": 0,
        "metrics": metrics, "headline": headline or metrics[0], "full": full,
    }  # fmt: skip
    return summarise(methods, metrics, failures or {}, run | facts, compare=compare)
