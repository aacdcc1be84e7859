"""The data inside report.html, which its scripts show: answers side by side, and the hive view."""

from __future__ import annotations

import base64
import binascii
import json
import re
import zlib
from collections.abc import Sequence
from typing import Any

import numpy as np

from buzz.evaluation.errors import ConfigError
from buzz.evaluation.measure.summary import MIB
from buzz.evaluation.show.report.folders import Hive, Run
from buzz.evaluation.show.table import metric_label, shown, shown_mib

MOST_SAMPLES = 100  # of a run, whose answers a page holds
MOST_TEXT = 4_000_000  # characters of answers and references of a run, about


def page_data(runs: Sequence[Run]) -> str:
    """JSON for the inside of a script element: no text in it can end the element.

    Raises:
        ConfigError: a recording of evictions is damaged.
    """
    data = {"runs": [{"name": run.name, "samples": _samples(run), "hives": _hives(run)} for run in runs]}
    text = json.dumps(data, ensure_ascii=False, separators=(",", ":"), allow_nan=False)
    # Only strings can hold these; \u003c in a JSON string is <.
    return text.replace("<", "\\u003c").replace(">", "\\u003e").replace("&", "\\u0026")


def _samples(run: Run) -> list[dict[str, Any]]:
    """The first samples, each with the answers of all methods that have it."""
    by_id: dict[str, dict[str, Any]] = {}
    full = run.summary["run"].get("full")
    for method, records in run.records.items():
        for record in records:
            if "output" in record and not record.get("blocks"):
                by_id.setdefault(record["id"], {})[method] = record
    samples: list[dict[str, Any]] = []
    length = 0
    # Records stand in the order in which they were finished.
    for name, of_method in sorted(by_id.items(), key=lambda item: _by_number(item[0]))[:MOST_SAMPLES]:
        reference = next(iter(of_method.values())).get("reference")
        given = reference if isinstance(reference, list) else [reference]
        texts = [str(text) for text in given if text is not None]
        answers = [_answer(method, record, method == full) for method, record in of_method.items()]
        length += sum(map(len, texts)) + sum(len(answer["output"]) for answer in answers)
        if samples and length > MOST_TEXT:
            break
        samples.append({"id": name, "reference": texts, "answers": answers})
    return samples


def _by_number(name: str) -> list[tuple[int, str]]:
    """A key that sorts s9 before s10."""
    return [(int(part) if part.isdecimal() else -1, part) for part in re.split(r"(\d+)", name)]


def _answer(method: str, record: dict[str, Any], full: bool) -> dict[str, Any]:
    metrics = {name: value for name, value in record["metrics"].items() if value is not None}
    return {
        "method": method,
        "full": full,
        "output": str(record["output"]),
        "tokens": record["new_tokens"],
        "cached": f"{record['cache']['mean_tokens']:.1f}",
        "mib": shown_mib(record["cache"]["mean_bytes"] / MIB) if "mean_bytes" in record["cache"] else None,
        "metrics": [[metric_label(name), shown(name, value)] for name, value in metrics.items()],
    }


def _hives(run: Run) -> list[dict[str, Any]]:
    read = {record["id"] for records in run.records.values() for record in records if record.get("blocks")}
    return [_hive(run, hive, hive.data["sample"] in read) for hive in run.hives]


def _hive(run: Run, hive: Hive, read: bool) -> dict[str, Any]:
    """A recording with its numbers compressed: heads and layers agree in much."""
    data = hive.data
    try:
        numbers = base64.b64decode(data["evicted_at"], validate=True)
    except (ValueError, binascii.Error):
        numbers = b""
    if len(numbers) != 2 * data["layers"] * data["heads"] * len(data["tokens"]) or not numbers:
        raise ConfigError(f"{run.path}/hive: {hive.method}", "evicted_at is damaged", "delete the file and run again")
    packed = base64.b64encode(zlib.compress(numbers, 9)).decode("ascii")
    kept = ("sample", "tokens", "prompt_tokens", "calls", "layers", "heads")
    policy = data.get("policy") or {}
    return {
        "method": hive.method,
        "policy": ", ".join(f"{key} {value}" for key, value in policy.items() if key != "name"),
        "read": read,
        "late": bool((np.frombuffer(numbers, dtype="<i2") > 0).any()),  # something was let go of after the first call
        **{key: data[key] for key in kept},
        "evicted_at": packed,
    }
