"""Reads run folders. Nothing in them is changed, so a run that is still going on may be read, too."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import yaml

from buzz.evaluation.errors import ConfigError
from buzz.evaluation.measure.metric_info import FIDELITY_METRICS, FOLLOWED_METRICS
from buzz.evaluation.measure.records import DamageError, check_environment, check_record, find_hives, parse_object
from buzz.evaluation.measure.summary import summarise
from buzz.evaluation.models.section import model_name
from buzz.evaluation.paths import read_regular, short, user_path
from buzz.evaluation.tasks import TASKS
from buzz.evaluation.tasks.section import remarks

Record = dict[str, Any]
_DAMAGED = "a file as buzz eval writes it is wanted"
_RUN = "a run folder, or one that holds such folders, is wanted"
# What a summary must have, so that the report can read them.
_FACTS = {"name": str, "model": str, "task": str, "samples": int, "metrics": list, "headline": str}
_ENTRY = {"metrics": dict, "cache": dict, "seconds": dict}
_HIVE = {
    **{"sample": str, "tokens": list, "evicted_at": str},
    **dict.fromkeys(("prompt_tokens", "calls", "layers", "heads"), int),
}


@dataclass(frozen=True)
class Hive:
    """One sample's evictions under one method; `data` as in the file that `record_hive` writes."""

    method: str
    data: dict[str, Any]


@dataclass(frozen=True)
class Run:
    """What a run folder holds.

    Args:
        config: config.yaml. environment: environment.json, empty if it is missing.
        summary: as in summary.json; of the samples so far, if the run is not finished.
        records: by method, in the order of the config.
        finished: there was a summary.json.
    """

    path: Path
    config: dict[str, Any]
    environment: dict[str, Any]
    summary: dict[str, Any]
    records: dict[str, list[Record]]
    hives: list[Hive] = field(default_factory=list)
    finished: bool = True

    @property
    def name(self) -> str:
        return str(self.summary["run"]["name"])


def find_runs(folders: Sequence[str | Path]) -> list[Path]:
    """The run folders among these folders and below them, each once, in this order; those below one by their names.

    Raises:
        ConfigError: a folder does not exist, or neither is a run nor holds one.
    """
    found: dict[Path, Path] = {}
    for folder in (user_path(folder, "runs", _RUN) for folder in folders):
        if not folder.is_dir():
            raise ConfigError(short(folder), "is a file" if folder.exists() else "does not exist", _RUN)
        try:
            runs = list(_below(folder))
        except OSError as error:
            raise ConfigError(str(folder), f"cannot be read ({error.strerror})", _RUN) from error
        if not runs:
            raise ConfigError(str(folder), "holds no run (config.yaml and samples/)", _RUN)
        for run in runs:
            found.setdefault(run.resolve(), run)
    return list(found.values())


def _below(folder: Path) -> Iterator[Path]:
    if (folder / "config.yaml").is_file():
        yield folder
        return
    for entry in sorted(folder.iterdir()):
        if entry.is_dir() and not entry.is_symlink() and not entry.name.startswith("."):
            yield from _below(entry)


def load_run(path: Path) -> Run:
    """Read a run folder.

    Raises:
        ConfigError: a file cannot be read, or is damaged; or no sample is finished yet. A last line of samples that
            was cut off is a run's that goes on, or was killed, and is left out.
    """
    config = _config(path / "config.yaml")
    names = [method["name"] for method in config["methods"]]
    records = {name: _records(path / "samples", name) for name in names}
    found = path / "summary.json"
    finished = found.exists()
    if finished:
        summary = _summary(found)
    elif any(records.values()):
        summary = _so_far(config, records)
    else:
        raise ConfigError(str(path), "no sample of this run is finished", "run it first")
    environment = path / "environment.json"
    facts = _mapping(environment) if environment.exists() else {}
    try:
        check_environment(facts)
    except DamageError as error:
        raise ConfigError(str(environment), f"is no environment of a run ({error})", _DAMAGED) from error
    return Run(path, config, facts, summary, records, list(_hives(path, names)), finished)


# --- files -----------------------------------------------------------------------------------------------------------


def _config(path: Path) -> dict[str, Any]:
    try:
        config = yaml.safe_load(read_regular(path))
        for method in config["methods"]:
            _require(method, {"name": str, "policy": str})
        _require(config, {"name": str, "model": dict, "task": dict})
        _require(config["task"], {"name": str})
    except OSError as error:
        raise ConfigError(str(path), f"cannot be read ({error.strerror})", _DAMAGED) from error
    except (ValueError, KeyError, TypeError, RecursionError, yaml.YAMLError) as error:
        raise ConfigError(str(path), "is not the config of a run", _DAMAGED) from error
    return dict(config)


def _mapping(path: Path) -> dict[str, Any]:
    """The JSON object in a file."""
    try:
        return parse_object(read_regular(path))
    except OSError as error:
        raise ConfigError(str(path), f"cannot be read ({error.strerror})", _DAMAGED) from error
    except DamageError as error:
        raise ConfigError(str(path), str(error), _DAMAGED) from error


def _require(data: Any, wanted: Mapping[str, Any]) -> None:
    """Raise KeyError or TypeError unless a mapping has these keys with values of these types."""
    for key, kind in wanted.items():
        if not isinstance(data[key], kind):
            raise TypeError(key)


def _check(path: Path, data: Any, wanted: Mapping[str, Any], problem: str) -> None:
    """As `_require`, but with an error for the user."""
    try:
        _require(data, wanted)
    except (KeyError, TypeError) as error:
        raise ConfigError(str(path), f"{problem} ({error.args[0]})", _DAMAGED) from error


def _summary(path: Path) -> dict[str, Any]:
    summary, problem = _mapping(path), "is no summary of a run"
    _check(path, summary, {"run": dict, "methods": dict}, problem)
    _check(path, summary["run"], _FACTS, problem)
    for entry in summary["methods"].values():
        _check(path, entry, {"n": int}, problem)
        _check(path, entry, _ENTRY if entry["n"] else {}, problem)
    return summary


def _records(folder: Path, method: str) -> list[Record]:
    """A method's records, from the files of all processes; those of a sample that is there twice count once."""
    shard = re.compile(re.escape(method) + r"\.shard-\d{3,}\.jsonl")
    shards = sorted(path for path in folder.glob("*.jsonl") if shard.fullmatch(path.name))
    records: dict[str, Record] = {}
    for path in [folder / f"{method}.jsonl", *shards]:
        for record in _lines(path) if path.exists() else ():
            records.setdefault(record["id"], record)
    return list(records.values())


def _lines(path: Path) -> Iterator[Record]:
    try:
        lines = read_regular(path).split(b"\n")
    except OSError as error:
        raise ConfigError(str(path), f"cannot be read ({error.strerror})", _DAMAGED) from error
    for number, line in enumerate(lines, 1):
        try:
            record = parse_object(line)
        except DamageError as error:
            if number >= len(lines) - 1:  # after the last line feed there is nothing, or the start of a line
                continue
            raise ConfigError(f"{path} line {number}", f"{error}", _DAMAGED) from error
        try:
            check_record(record)
        except DamageError as error:
            raise ConfigError(f"{path} line {number}", f"is no finished sample ({error})", _DAMAGED) from error
        yield record


def _hives(folder: Path, methods: Sequence[str]) -> Iterator[Hive]:
    """The recordings of all methods, sample by sample."""
    for method, path in find_hives(folder, methods):
        data = _mapping(path)
        _check(path, data, _HIVE, "is no recording of evictions")
        yield Hive(method, data)


# --- a run without a summary -----------------------------------------------------------------------------------------


def _so_far(config: Mapping[str, Any], records: Mapping[str, Sequence[Record]]) -> dict[str, Any]:
    """The summary of a run that is not finished."""
    model, task = config["model"], TASKS.get(config["task"]["name"])
    metrics = list(dict.fromkeys(metric for rows in records.values() for row in rows for metric in row["metrics"]))
    if not config.get("generation", {}).get("answers", True):  # only the full cache's answers have a score
        metrics = [metric for metric in metrics if metric in ("answer_nll", *FOLLOWED_METRICS)]
    headline = task.headline if task is not None else None
    first = next(rows for rows in records.values() if rows)
    counts = ", ".join(f"{name} {len(rows)}" for name, rows in records.items())
    facts = {
        "name": config["name"],
        "model": model_name(model.get("id"), model.get("gguf")),
        "task": config["task"]["name"],
        "samples": max(map(len, records.values())),
        "truncated": sum("truncated" in row for row in first),
        "metrics": metrics,
        "headline": next(name for name in (headline, FIDELITY_METRICS[0], metrics[0]) if name in metrics),
        "full": next((method["name"] for method in config["methods"] if method["policy"] == "full"), None),
        "notes": [f"The run is not finished. Samples so far: {counts}.", *remarks(config["task"])],
    }
    return summarise(records, metrics, {}, facts, config.get("seed", 0))
