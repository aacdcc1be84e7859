"""From a YAML file and the command line's overrides to the plain data that a schema checks."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import yaml

from buzz.evaluation.config.dialect import BROKEN_YAML, StrictLoader
from buzz.evaluation.config.schema import said
from buzz.evaluation.errors import ConfigError
from buzz.evaluation.paths import read_regular, short, unspeakable

# Top-level keys that the configs of one command alone have.
_BENCH = {
    *("ceilings", "kernels", "prefill", "decode", "stream", "evictions", "throughput", "one_row", "many_rows"),
    *("agreement", "steps"),
}
_COMMANDS = {"buzz eval": {"task", "sweep"}, "buzz bench": _BENCH}


def read_config(path: str | Path, overrides: Sequence[str], keys: Sequence[str]) -> dict[str, Any]:
    """The YAML file with the overrides in it, as plain data; checked no further than that it is a mapping.

    Args:
        overrides: `key.sub=value` each, later ones win.
        keys: of the config, for the error of a file that is no mapping, or the config of another command.

    Raises:
        ConfigError: the file is no YAML mapping, or one for another command; or an override is none.
    """
    raw = _read_yaml(Path(path), keys)
    _refuse_others(raw, str(path), keys)
    for override in overrides:
        _apply(raw, override)
    _check_text(raw, "", set())
    return raw


def _read_yaml(path: Path, keys: Sequence[str]) -> dict[str, Any]:
    wanted = "a YAML file is wanted"
    try:
        text = read_regular(path).decode("utf-8-sig")
    except UnicodeDecodeError as error:
        raise ConfigError(short(path), "is not UTF-8 text", wanted) from error
    except (OSError, ValueError) as error:  # ValueError: a path with a NUL
        raise ConfigError(
            short(path), f"cannot be read ({getattr(error, 'strerror', None) or error})", wanted
        ) from error
    try:
        raw = yaml.load(text, StrictLoader)
    except BROKEN_YAML as error:
        mark = getattr(error, "problem_mark", None)
        line = f" line {mark.line + 1}" if mark else ""
        problem = getattr(error, "problem", None) or str(error)
        raise ConfigError(f"{path}{line}", f"is not valid YAML ({problem})", wanted) from error
    if not isinstance(raw, dict):
        raise ConfigError(str(path), said(raw), f"a mapping with the keys {', '.join(keys)} is wanted")
    return raw


def _refuse_others(raw: Mapping[str, Any], path: str, keys: Sequence[str]) -> None:
    """Refuse the config of another command, whose keys would all be unknown."""
    commands = [command for command, own in _COMMANDS.items() if own & raw.keys()]
    if len(commands) == 1 and not _COMMANDS[commands[0]] & set(keys):
        raise ConfigError(short(path), "is the config of another command", f"run it with {commands[0]}")


def _check_text(raw: Any, where: str, seen: set[int]) -> None:
    """Refuse text, at any depth, that no UTF-8 file can hold: what a config says goes to files and names them."""
    if isinstance(raw, str):
        if problem := unspeakable(raw):
            raise ConfigError(where or "config", f"{short(raw)} {problem}", "UTF-8 text is wanted")
    elif isinstance(raw, dict | list) and id(raw) not in seen:  # YAML's aliases can go in circles
        seen.add(id(raw))
        for key, value in raw.items() if isinstance(raw, dict) else enumerate(raw):
            if isinstance(raw, dict):
                _check_text(key, where, seen)
                _check_text(value, f"{where}.{key}".lstrip("."), seen)
            else:
                _check_text(value, f"{where}[{key}]", seen)


def _apply(raw: dict[str, Any], override: str) -> None:
    """Put one `key.sub=value` into the raw config."""
    key, equals, text = override.partition("=")
    parts = key.strip().split(".")
    if not equals or not all(parts):
        raise ConfigError(short(override), "is no override", "key=value or key.sub=value is wanted")
    for depth, part in enumerate(parts[:-1], 1):
        raw = raw.setdefault(part, {})
        if not isinstance(raw, dict):
            path = ".".join(parts[:depth])
            allowed = f"replace it whole: {path}=[...]" if isinstance(raw, list) else "a key has no keys below it then"
            raise ConfigError(key, f"{path} {said(raw)}", allowed)
    raw[parts[-1]] = _override_value(text)


def _override_value(text: str) -> Any:
    try:
        value = yaml.load(text, StrictLoader)
    except BROKEN_YAML:
        return text
    return text if isinstance(value, dict) else value
