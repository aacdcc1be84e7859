"""A run to track, without a model: records, their summary, and a surrounding in which W&B knows nobody."""

from __future__ import annotations

import importlib.util
import os
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from buzz.evaluation.measure.summary import summarise
from buzz.evaluation.run.config import parse_config, to_dict
from buzz.evaluation.show.tracking import track
from tests.evaluation.wandb_reader import WandbFile, read_runs

METHODS = ["full", {"policy": "streaming", "window": 20}, {"policy": "streaming", "budget": 0.4}]
FULL, WIDE, NARROW = "full", "streaming-window20", "streaming-budget0.4"

needs_wandb = pytest.mark.skipif(importlib.util.find_spec("wandb") is None, reason="wandb is not installed")


def services() -> list[int]:
    """The W&B services that this process has running."""
    found = []
    for stat in Path("/proc").glob("[0-9]*/stat"):
        try:
            name, rest = re.fullmatch(r"\d+ \((.*)\) (.*)", stat.read_text().strip(), re.DOTALL).groups()
        except (OSError, AttributeError):
            continue
        if name.startswith("wandb-core") and int(rest.split()[1]) == os.getpid() and rest[0] != "Z":
            found.append(int(stat.parent.name))
    return found


def isolated(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Iterator[Path]:
    """A run folder; no settings and no login of the user's, a working directory of its own, no service left behind."""
    for name in [name for name in os.environ if name.startswith("WANDB_")]:
        monkeypatch.delenv(name)
    for name in ("RANK", "WORLD_SIZE"):
        monkeypatch.delenv(name, raising=False)
    (tmp_path / "home").mkdir()
    (tmp_path / "elsewhere").mkdir()
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    monkeypatch.setenv("WANDB_ERROR_REPORTING", "false")
    monkeypatch.chdir(tmp_path / "elsewhere")
    (tmp_path / "out").mkdir()
    yield tmp_path / "out"
    assert services() == []


def make_config(mode: str = "offline", **changes: Any) -> dict[str, Any]:
    raw = {"name": "tiny", "model": {"id": "models/tiny-llama"}, "task": {"name": "xsum"}, "methods": METHODS}
    return to_dict(parse_config({**raw, "wandb": {"mode": mode, "project": "trial"}, **changes}))


def record(number: int, **changes: Any) -> dict[str, Any]:
    return {
        "id": f"s{number}",
        "prompt_hash": "h",
        "prompt_tokens": 40 + number,
        "new_tokens": 5,
        "output": f"output {number}",
        "output_ids": [1, 2],
        "reference": f"reference {number}",
        "metrics": {"rouge1": 0.1 * number, "rougeL": 0.05 * number},
        "policy": {"name": "streaming", "window": 20},
        "cache": {
            "mean_tokens": 20.0 + number,
            "peak_tokens": 30,
            "full_mean_tokens": 42.0,
            "curve": [[1, 20], [4, 26]],
        },
        "seconds": 0.5,
        **changes,
    }


def all_records() -> dict[str, list[dict[str, Any]]]:
    records = {name: [record(i) for i in range(4)] for name in (FULL, WIDE, NARROW)}
    for row in records[FULL]:
        row["policy"] = {"name": "full"}
    for row in records[NARROW]:
        row["cache"] = {**row["cache"], "mean_tokens": 10.0, "curve": [[1, 8], [4, 12]]}
        row["metrics"] = {name: value / 2 for name, value in row["metrics"].items()}
    return records


def summary_of(records, metrics=("rouge1", "rougeL")) -> dict[str, Any]:
    run = {"metrics": list(metrics), "headline": metrics[-1], "full": FULL}
    return summarise(records, metrics, {}, run)


def whole_run(folder: Path, config=None, **options: Any) -> dict[str, Any]:
    """Two batches of two samples for every method, then the summary; returns it."""
    records = all_records()
    summary = summary_of(records)
    with track(config or make_config(), folder, **options) as tracker:
        for name, rows in records.items():
            tracker.samples(name, rows[:2], 2, 4)
            tracker.samples(name, rows[2:], 4, 4)
            tracker.method_done(name, rows)
        tracker.summary(summary)
    return summary


def only_run(folder: Path) -> WandbFile:
    (found,) = read_runs(folder)
    return found


def warnings_in(captured: str) -> list[str]:
    return [line for line in captured.splitlines() if line.startswith("warning: ")]
