"""What every data row must have, and one line for the first thing that it lacks."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any

from buzz.evaluation.errors import ConfigError

Row = dict[str, Any]


@dataclass(frozen=True)
class Maybe:
    """A field that may also be missing, null or empty."""

    kind: Any


# What a field must be: a type (a str, list or dict must not be empty), `[kind]` for a list of at least one item,
# `{key: kind, ...}` for a mapping with these keys at least, or `Maybe(kind)`.
Fields = Mapping[str, Any]
# What else is wrong with a row, as (what, what is allowed); None: nothing.
Problem = Callable[[Row], "tuple[str, str] | None"]

_WORDS = {str: "non-empty text", list: "a non-empty list", dict: "a non-empty mapping", int: "an integer"}


def checked_rows(
    rows: Iterable[tuple[int, Any]], source: str, fields: Fields, where: str, problem: Problem | None = None
) -> Iterator[Row]:
    """Numbered raw rows -> rows with all fields and an `id` of their own; at least one.

    The id is the row's `id` (or `_id`, as some data sets call it) as text, else `row-<n>` with n the row's number.

    Args:
        source: the file or data set, for errors.
        problem: a check beyond `fields`.

    Raises:
        ConfigError: no row at all, a missing, empty or mistyped field, a problem, an id that an earlier row has.
    """
    seen: dict[str, int] = {}
    for number, row in rows:
        place = f"{source} row {number}"
        if not isinstance(row, dict):
            raise ConfigError(where, f"{place}: is a {type(row).__name__}", "one JSON object a line is wanted")
        _check_keys(row, fields, "", place, where)
        if wrong := problem(row) if problem else None:
            raise ConfigError(where, f"{place}: {wrong[0]}", wrong[1])
        name = _row_id(row, number, place, where)
        if name in seen:
            raise ConfigError(where, f"{place}: id {name!r} is also the id of row {seen[name]}", "ids must be unique")
        seen[name] = number
        yield {**row, "id": name}
    if not seen:
        raise ConfigError(where, f"{source} is empty", "at least one row is wanted")


def _check_keys(mapping: Mapping[str, Any], fields: Fields, prefix: str, place: str, where: str) -> None:
    for key, kind in fields.items():
        name = prefix + key
        if isinstance(kind, Maybe):
            if mapping.get(key) in (None, "", [], {}):
                continue
            kind = kind.kind
        if key not in mapping:
            has = ", ".join(map(str, mapping)) or "none"
            owner = "fields there" if prefix else "the row's fields"
            allowed = f"{_wanted(kind)} there ({owner}: {has})"
            raise ConfigError(where, f"{place}: has no field {name!r}", allowed)
        _check(mapping[key], kind, name, place, where)


def _check(value: Any, kind: Any, name: str, place: str, where: str) -> None:
    wanted: Any = kind if isinstance(kind, type) else type(kind)
    if type(value) is not wanted:  # exact: a bool is no int
        raise ConfigError(where, f"{place}: field {name!r} is of type {type(value).__name__}", _wanted(kind))
    if wanted in (str, list, dict) and not (value.strip() if isinstance(value, str) else value):
        raise ConfigError(where, f"{place}: field {name!r} is empty", _wanted(kind))
    if isinstance(value, str) and not _encodable(value):
        what = f"{place}: field {name!r} holds half a surrogate pair, which no tokenizer can read"
        raise ConfigError(where, what, "valid Unicode is wanted")
    if isinstance(kind, list):
        for index, item in enumerate(value):
            _check(item, kind[0], f"{name}[{index}]", place, where)
    elif isinstance(kind, dict):
        _check_keys(value, kind, f"{name}.", place, where)


def _wanted(kind: Any) -> str:
    if isinstance(kind, dict):
        return f"a mapping with {', '.join(kind)} is wanted"
    wanted = kind if isinstance(kind, type) else type(kind)
    return f"{_WORDS.get(wanted, wanted.__name__)} is wanted"


def _encodable(text: str) -> bool:
    try:
        text.encode("utf-8")
    except UnicodeEncodeError:
        return False
    return True


def _row_id(row: Row, number: int, place: str, where: str) -> str:
    value = row.get("id", row.get("_id"))
    if value is None:
        return f"row-{number}"
    if isinstance(value, bool) or not isinstance(value, str | int) or not str(value).strip():
        raise ConfigError(where, f"{place}: id {value!r} is no id", "non-empty text or an integer is wanted")
    _check(str(value), str, "id", place, where)
    return str(value)
