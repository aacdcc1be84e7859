"""Reads what an offline run wrote: the `run-*.wandb` file, and the tables beside it."""

from __future__ import annotations

import json
import struct
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

_BLOCK = 32768  # a record is cut where a block ends, as in a LevelDB log


@dataclass
class WandbFile:
    """One start of a run. `history` are its rows, `tables` the content of every table by key, columns by name, `pages`
    that of every HTML file."""

    run: Any
    config: dict[str, Any] = field(default_factory=dict)
    summary: dict[str, Any] = field(default_factory=dict)
    history: list[dict[str, Any]] = field(default_factory=list)
    tables: dict[str, dict[str, list[Any]]] = field(default_factory=dict)
    pages: dict[str, bytes] = field(default_factory=dict)
    metrics: dict[str, Any] = field(default_factory=dict)
    exit_code: int | None = None


def read_runs(folder: Path) -> list[WandbFile]:
    """All offline starts of the run in a run folder that wrote anything, the oldest first."""
    found = [_read_run(path) for path in sorted(folder.glob("wandb/offline-run-*/run-*.wandb"))]
    return [run for run in found if run is not None]


def _read_run(path: Path) -> WandbFile | None:
    found: WandbFile | None = None
    for record in _records(path):
        kind = record.WhichOneof("record_type")
        value = getattr(record, kind)
        if kind == "run":
            found = WandbFile(value)
            _update(found.config, value.config.update)
        if found is None:
            continue
        if kind in ("config", "summary"):
            _update(getattr(found, kind), value.update)
        elif kind == "history":
            row: dict[str, Any] = {}
            _update(row, value.item)
            found.history.append(row)
        elif kind == "metric":
            found.metrics[value.name or value.glob_name] = value
        elif kind == "exit":
            found.exit_code = value.exit_code
    if found is None:
        return None
    for row in found.history:
        for key, value in row.items():
            if isinstance(value, dict) and value.get("_type") == "table-file":
                found.tables[key] = _columns(path.parent / "files" / value["path"])
            if isinstance(value, dict) and value.get("_type") == "html-file":
                found.pages[key] = (path.parent / "files" / value["path"]).read_bytes()
    return found


def _columns(path: Path) -> dict[str, list[Any]]:
    table = json.loads(path.read_text())
    return {name: [row[i] for row in table["data"]] for i, name in enumerate(table["columns"])}


def _update(target: dict[str, Any], items: Any) -> None:
    for item in items:
        keys = list(item.nested_key) or [item.key]
        inner = target
        for key in keys[:-1]:
            inner = inner.setdefault(key, {})
        inner[keys[-1]] = json.loads(item.value_json)


def _records(path: Path) -> Iterator[Any]:
    from wandb.proto import wandb_internal_pb2

    data = path.read_bytes()
    assert data[:4] == b":W&B"
    position, part = 7, b""
    while position + 7 <= len(data):
        left = _BLOCK - position % _BLOCK
        if left < 7:  # padding
            position += left
            continue
        _, length, kind = struct.unpack_from("<IHB", data, position)
        position += 7
        part += data[position : position + length]
        position += length
        if kind in (1, 4):  # a whole record, or the last part of one
            record = wandb_internal_pb2.Record()
            record.ParseFromString(part)
            part = b""
            yield record
