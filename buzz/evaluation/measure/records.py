"""What the files of a run folder must hold, so that a run can go on from them and a report can read them."""

from __future__ import annotations

import json
import math
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from buzz.evaluation.measure.metric_info import metric_info

_RECORD = {
    **{"id": str, "prompt_hash": str, "policy": dict, "metrics": dict, "cache": dict},
    **{"new_tokens": int, "seconds": float},
}
_OPTIONAL = {"prompt_tokens": int, "context_tokens": int, "output": str, "output_ids": list, "positions": str}
_TOKENS = ("mean_tokens", "peak_tokens", "full_mean_tokens")
_HEADS = ("longest_head", "shortest_head")  # where the cache told of single heads
_BYTES = ("mean_bytes", "peak_bytes", "full_mean_bytes")
_SPEED = ("prompt_tokens", "prompt_seconds", "ms", "steps", "tokens_per_second", "tokens", "mib")
_ENVIRONMENT = {
    **{"fingerprints": dict, "model": dict, "versions": dict},
    **{"command": list, "resumed": list, "batch_halvings": list, "head_shares": list},
}
_NAMES = {str: "text", dict: "a mapping", list: "a list", int: "an integer", float: "a number"}


class DamageError(ValueError):
    """What is wrong with a file's content, in a few words."""


def parse_object(data: bytes) -> dict[str, Any]:
    """A JSON object.

    Raises:
        DamageError: it is none.
    """
    try:
        value = json.loads(data)
    except (ValueError, RecursionError) as error:
        raise DamageError("is not valid JSON") from error
    if not isinstance(value, dict):
        raise DamageError("is no JSON object")
    return value


def check_record(record: Mapping[str, Any]) -> None:
    """Check a finished sample, a line of samples/METHOD.jsonl.

    Raises:
        DamageError: a field is missing, of another kind or no possible figure.
    """
    require(record, _RECORD)
    require(record, {key: kind for key, kind in _OPTIONAL.items() if key in record})
    require(record["policy"], {"name": str}, "policy.")
    _at_least(record, "new_tokens", 1)
    _at_least(record, "seconds", 0)
    if not all(_is(token, int) for token in record.get("output_ids", ())):
        raise DamageError("output_ids is no list of integers")
    cache = record["cache"]
    given = [key for key in _BYTES if key in cache]  # older versions did not measure bytes
    if given and len(given) < len(_BYTES):
        raise DamageError(f"cache.{next(key for key in _BYTES if key not in cache)} is missing")
    for key in [*_TOKENS, *given, *(key for key in _HEADS if key in cache)]:
        require(cache, {key: float}, "cache.")
        _above_zero(cache, key, "cache.")
    _check_pairs(cache, "curve", "cache.")
    _check_metrics(record)


def _check_metrics(record: Mapping[str, Any]) -> None:
    metrics = record["metrics"]
    if not metrics:
        raise DamageError("metrics is empty")
    for name, value in metrics.items():
        if value is None:  # the sample has no such figure
            continue
        require(metrics, {name: float}, "metrics.")
        info = metric_info(name)
        if info.percent and not math.isfinite(value):  # others are what the model's numbers made them
            raise DamageError(f"metrics.{name} is {_number(value)}")
        if info.pooled:
            require(record, {"weight": float})
            _above_zero(record, "weight")
    _check_pairs(record, "blocks")


def check_environment(facts: Mapping[str, Any]) -> None:
    """Check what environment.json holds; any of it may be missing.

    Raises:
        DamageError: a part is of another kind.
    """
    require(facts, {key: kind for key, kind in _ENVIRONMENT.items() if key in facts})


def check_speed(facts: Mapping[str, Any]) -> None:
    """Check what speed.json holds: rows as `measure.speed.long_prompt` gives them.

    Raises:
        DamageError: a row lacks something, or has no possible figure.
    """
    require(facts, {"rows": list})
    for row in facts["rows"]:
        if not isinstance(row, dict):
            raise DamageError("a row is not a mapping")
        require(row, {"method": str})
        for key in _SPEED:
            require(row, {key: float})
            _above_zero(row, key)


def require(data: Mapping[str, Any], wanted: Mapping[str, Any], prefix: str = "") -> None:
    """Raise DamageError unless a mapping has these keys with values of these types; an integer counts as a float."""
    for key, kind in wanted.items():
        if key not in data:
            raise DamageError(f"{prefix}{key} is missing")
        if not _is(data[key], kind):
            raise DamageError(f"{prefix}{key} is not {_NAMES[kind]}")


def _is(value: Any, kind: type) -> bool:
    if kind is float:
        return type(value) is float or (type(value) is int and abs(value) < 2**63)  # more is no float at last
    return type(value) is kind  # exact: a bool is no int


def _at_least(data: Mapping[str, Any], key: str, low: float) -> None:
    if not low <= data[key] < 2**63:  # NaN is not, either
        raise DamageError(f"{key} is {_number(data[key])}")


def _above_zero(data: Mapping[str, Any], key: str, prefix: str = "") -> None:
    if not 0 < data[key] < math.inf:
        raise DamageError(f"{prefix}{key} is {_number(data[key])}")


def _number(value: float) -> str:
    return f"{value}" if abs(value) < 2**63 else "too large" if value > 0 else "below 0" if value < 0 else "NaN"


def _check_pairs(data: Mapping[str, Any], key: str, prefix: str = "") -> None:
    """Of a list that may be missing, every item must be two finite numbers, and those of blocks count something."""
    pairs = data.get(key)
    if pairs is None:
        return
    good = isinstance(pairs, list) and all(
        isinstance(pair, list) and len(pair) == 2 and all(_is(number, float) for number in pair) for pair in pairs
    )
    if not good or (key == "blocks" and not all(0 < tokens < math.inf for tokens, _ in pairs)):
        raise DamageError(f"{prefix}{key} is no list of pairs of numbers")


def hive_path(folder: Path, method: str, number: int) -> Path:
    """Where a run folder keeps a method's recording of the sample of this number, from 0."""
    return folder / "hive" / (f"{method}.sample-{number + 1:03d}.json" if number else f"{method}.json")


def find_hives(folder: Path, methods: Sequence[str]) -> list[tuple[str, Path]]:
    """The recordings in a run folder as pairs of a method and a path: sample by sample, methods in their order."""
    found = []
    for place, method in enumerate(methods):
        name = re.compile(re.escape(method) + r"(?:\.sample-(\d{3,}))?\.json")
        for path in (folder / "hive").glob("*.json"):
            if match := name.fullmatch(path.name):
                found.append((int(match.group(1) or 0), place, path))
    return [(methods[place], path) for _, place, path in sorted(found)]
