"""The answers that report.html shows side by side, and how far each is from the full cache's."""

from __future__ import annotations

import math
import re
from collections.abc import Mapping
from typing import Any

from buzz.evaluation.measure.summary import MIB
from buzz.evaluation.metrics import likeness
from buzz.evaluation.show.report.folders import Record, Run
from buzz.evaluation.show.table import metric_label, shown, shown_mib

MOST_SAMPLES = 100  # of a run, whose answers a page holds
MOST_TEXT = 4_000_000  # characters of answers and references of a run, about
_KL = "fidelity_kl"


def answers_of(run: Run) -> dict[str, Any]:
    """A run's part of the page's data: its `samples`, each with the answers of all methods that have it.

    An answer's `distance` from the full cache's is its KL divergence, where that was measured, else 1 minus the ROUGE-L
    of the two texts; the full cache's own has none. `measure` says which, None if there is no full cache. Of more than
    100 samples the page has the 50 that are furthest from it by KL, the mean over the methods, and the first 50 of the
    others; without KL the first 100. `total` is the number of all. Samples are in the order of their ids.
    """
    by_id: dict[str, dict[str, Record]] = {}
    full = run.summary["run"].get("full")
    for method, records in run.records.items():
        for record in records:
            if "output" in record and not record.get("blocks"):
                by_id.setdefault(record["id"], {})[method] = record
    # Records stand in the order in which they were finished.
    names = sorted(by_id, key=_by_number)
    measured = any(_kl(record) is not None for of in by_id.values() for name, record in of.items() if name != full)
    samples: list[dict[str, Any]] = []
    length = 0
    for name in _chosen(names, by_id, full):
        of_method = by_id[name]
        reference = next(iter(of_method.values())).get("reference")
        given = reference if isinstance(reference, list) else [reference]
        texts = [str(text) for text in given if text is not None]
        answers = [_answer(method, record, of_method.get(full), measured) for method, record in of_method.items()]
        length += sum(map(len, texts)) + sum(len(answer["output"]) for answer in answers)
        if samples and length > MOST_TEXT:
            break
        samples.append({"id": name, "reference": texts, "answers": answers})
    far = any(answer["distance"] is not None for sample in samples for answer in sample["answers"])
    measure = metric_label(_KL if measured else "fidelity_rougeL") if far else None
    return {"samples": samples, "total": len(names), "measure": measure}


def _by_number(name: str) -> list[tuple[int, str]]:
    """A key that sorts s9 before s10."""
    return [(int(part) if part.isdecimal() else -1, part) for part in re.split(r"(\d+)", name)]


def _kl(record: Record) -> float | None:
    value = record["metrics"].get(_KL)
    return value if value is not None and math.isfinite(value) else None


def _chosen(names: list[str], by_id: Mapping[str, Mapping[str, Record]], full: str | None) -> list[str]:
    """The samples to show, in order."""
    if len(names) <= MOST_SAMPLES:
        return names
    distances = {}
    for name in names:
        found = [kl for method, record in by_id[name].items() if method != full and (kl := _kl(record)) is not None]
        if found:
            distances[name] = sum(found) / len(found)
    far = set(sorted(distances, key=lambda name: -distances[name])[: MOST_SAMPLES // 2])
    near = [name for name in names if name not in far][: MOST_SAMPLES - len(far)]
    return [name for name in names if name in far or name in near]


def _answer(method: str, record: Record, full: Record | None, measured: bool) -> dict[str, Any]:
    """One answer.

    Args:
        full: the full cache's record of the sample. measured: the run has KL divergences.
    """
    metrics = {name: shown(name, value) for name, value in record["metrics"].items() if value is not None}
    distance = None
    if record is not full:
        distance = _kl(record)
        if full is not None and not measured:
            near = likeness(str(record["output"]), str(full["output"]))
            distance, metrics["fidelity_rougeL"] = 1 - near, shown("fidelity_rougeL", near)
    return {
        "method": method,
        "full": record is full,
        "output": str(record["output"]),
        "tokens": record["new_tokens"],
        "cached": f"{record['cache']['mean_tokens']:.1f}",
        "mib": shown_mib(record["cache"]["mean_bytes"] / MIB) if "mean_bytes" in record["cache"] else None,
        "metrics": [[metric_label(name), value] for name, value in metrics.items()],
        "distance": distance,
    }
