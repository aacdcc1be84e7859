"""Run folders made by hand, without a model."""

from __future__ import annotations

import base64
import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import yaml

from buzz.evaluation.measure.records import hive_path
from tests.evaluation.synthetic import record, summary_of

# Texts as a page may meet them.
NASTY = "</script><script>alert(1)</script> & <b>\u2028 'quoted' \"twice\" -->\n🐝 {{x}} ${y}"
TOKENS = ["<bos>", " the", " hive", "\n", " hums", "</script>", " 🐝", "", " now", " end"]
# Four heads: layer 0 with heads 0 and 1, then layer 1. Six tokens are the prompt, and three calls follow.
EVICTED_AT = {
    "full": np.full((2, 2, 10), -1),
    "buzz": np.array(
        [
            [[-1, 0, 0, 1, -1, -1, -1, -1, -1, -1], [-1, 0, -1, 0, 1, -1, -1, -1, -1, -1]],
            [[-1, 0, 0, 2, 2, -1, -1, -1, -1, -1], [-1, 0, 3, 0, 3, -1, -1, -1, -1, -1]],
        ]
    ),
}


def answers(policy: str, outputs: Sequence[str], cached: float = 100.0) -> list[dict[str, Any]]:
    """Records of a generation, s0 and so on."""
    rows = []
    for i, output in enumerate(outputs):
        row = record(f"s{i}", policy, {"rouge1": 0.1 * i, "rougeL": 0.2 + 0.1 * i}, cached)
        row |= {"output": output, "output_ids": [1, 2, 3], "reference": f"reference {i}", "prompt_tokens": 6}
        row["cache"]["curve"] = [[call, cached + call] for call in range(1, 10)]
        rows.append(row)
    return rows


def near(policy: str, distances: Sequence[float], cached: float = 100.0) -> list[dict[str, Any]]:
    """Answers that are so far, in KL, from those of the full cache."""
    rows = answers(policy, [f"The hive of {policy} hums {i}." for i in range(len(distances))], cached)
    for row, distance in zip(rows, distances, strict=True):
        row["metrics"]["fidelity_kl"] = distance
    return rows


def texts(policy: str, blocks: Sequence[Sequence[tuple[int, float]]], cached: float = 100.0) -> list[dict[str, Any]]:
    """Records of texts that were read, each with its blocks of tokens and nats."""
    rows = []
    for i, parts in enumerate(blocks):
        weight, nats = (sum(part[column] for part in parts) for column in (0, 1))
        more = {"output": "", "reference": None, "weight": weight, "blocks": [list(part) for part in parts]}
        rows.append(record(f"t{i}", policy, {"perplexity": nats / weight}, cached, **more))
    return rows


def hive_data(method: str, sample: str = "s0") -> dict[str, Any]:
    """What `record_hive` writes."""
    numbers = EVICTED_AT[method].astype("<i2").tobytes()
    return {
        "sample": sample,
        "policy": {"name": method, "sink": 4},
        "tokens": TOKENS,
        **{"prompt_tokens": 6, "calls": 3, "layers": 2, "heads": 2},
        "evicted_at": base64.b64encode(numbers).decode(),
    }


def write_run(
    folder: Path,
    methods: Mapping[str, list[dict[str, Any]]],
    task: str = "xsum",
    hives: Sequence[str] = (),
    finished: bool = True,
    name: str = "made",
) -> Path:
    """A run folder with these records."""
    (folder / "samples").mkdir(parents=True)
    listed = [
        {"name": method, "policy": rows[0]["policy"]["name"] if rows else method} for method, rows in methods.items()
    ]
    config = {"name": name, "model": {"id": "some/model-1.5"}, "task": {"name": task}, "methods": listed, "seed": 0}
    (folder / "config.yaml").write_text(yaml.safe_dump(config, sort_keys=False))
    environment = {"versions": {"buzz": "0.1.0"}, "device_name": "a <machine>", "model": {"dtype": "float32"}}
    (folder / "environment.json").write_text(json.dumps(environment))
    for method, rows in methods.items():
        lines = "".join(json.dumps(row) + "\n" for row in rows)
        (folder / "samples" / f"{method}.jsonl").write_text(lines, encoding="utf-8")
    for method in hives:
        path = hive_path(folder, method, 0)
        path.parent.mkdir(exist_ok=True)
        path.write_text(json.dumps(hive_data(method)), encoding="utf-8")
    if finished:
        (folder / "summary.json").write_text(json.dumps(summary_of(methods, name=name, task=task)))
    return folder


def near_run(folder: Path, **more: Any) -> Path:
    """Four methods with their distances from the full cache, two hives; the best of them are buzz and h2o."""
    methods = {
        "full": near("full", [1e-8] * 8, 400.0),
        "h2o": near("h2o", [0.2, 0.5, *[0.2 + i / 100 for i in range(6)]]),
        "buzz": near("buzz", [0.1, 0.6, *[0.1 + i / 100 for i in range(6)]]),
        "streaming": near("streaming", [0.6 + i / 100 for i in range(8)], 104.0),
    }
    return write_run(folder, methods, hives=["full", "buzz"], **more)


def needle_run(folder: Path, **more: Any) -> Path:
    """Passkeys in two lengths at two depths."""
    ids = [f"length{length}-depth{depth}-{i}" for length in (500, 1000) for depth in ("0", "0.5") for i in (0, 1)]
    methods = {
        policy: [record(name, policy, {"recall": float(found(i))}, cached) for i, name in enumerate(ids)]
        for policy, cached, found in (("full", 400.0, lambda i: 1), ("buzz", 100.0, lambda i: i % 3 == 0))
    }
    return write_run(folder, methods, "passkey", **more)


def quick_run(folder: Path, **more: Any) -> Path:
    """Two methods, three samples, a hive each; texts with everything that could break a page."""
    methods = {
        "full": answers("full", ["The hive hums at night.", NASTY, ""], 400.0),
        "buzz": answers("buzz", ["The hive is full.", NASTY, "x"]),
    }
    return write_run(folder, methods, hives=["full", "buzz"], **more)
