"""The data inside report.html, which its scripts show: answers side by side, and the hive view."""

from __future__ import annotations

import base64
import binascii
import json
import zlib
from collections.abc import Sequence
from typing import Any

import numpy as np

from buzz.evaluation.errors import ConfigError
from buzz.evaluation.show.report.answers import answers_of
from buzz.evaluation.show.report.folders import Hive, Run


def page_data(runs: Sequence[Run]) -> str:
    """JSON for the inside of a script element: no text in it can end the element.

    Raises:
        ConfigError: a recording of evictions is damaged.
    """
    data = {"runs": [{"name": run.name, **answers_of(run), "hives": _hives(run)} for run in runs]}
    text = json.dumps(data, ensure_ascii=False, separators=(",", ":"), allow_nan=False)
    # Only strings can hold these; \u003c in a JSON string is <.
    return text.replace("<", "\\u003c").replace(">", "\\u003e").replace("&", "\\u0026")


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
