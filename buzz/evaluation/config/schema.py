"""Dataclasses as the schema of a config: fields are the keys, annotations the types, metadata the ranges.

Knows nothing of any particular config: each room declares a section of its own. Every mistake is a ConfigError.
"""

from __future__ import annotations

import dataclasses
import math
import re
import reprlib
import types
from collections.abc import Callable, Mapping, Sequence
from typing import Any, Literal, Union, get_args, get_origin, get_type_hints

from buzz.evaluation.config.dialect import INTEGER, OTHER_NUMBER
from buzz.evaluation.errors import ConfigError
from buzz.words import hint

# --- what a field's metadata can say ---------------------------------------------------------------------------------


def check(holds: Callable[[Any], bool], wanted: str) -> dict[str, Any]:
    """Field metadata: what must hold of a value that is not None, and how to say so."""
    return {"holds": holds, "wanted": wanted}


MOST = 10**9  # of any number, unless its field says otherwise: more is a slip of the hand
MAX_SEED = 2**63 - 1  # what both torch and numpy take


def at_least(low: int, most: int = MOST) -> dict[str, Any]:
    """Field metadata of an integer with a lower bound; the upper one is there against slips of the hand."""
    return {**check(lambda value: value >= low, f"an integer of at least {low} is wanted"), "most": most}


def matching(pattern: str, wanted: str) -> dict[str, Any]:
    """Field metadata of text that must match a pattern as a whole."""
    return check(lambda value: re.fullmatch(pattern, value) is not None, wanted)


def parsed_by(parse: Callable[[Any, str], Any]) -> dict[str, Any]:
    """Field metadata: `parse(raw, where)` makes the value, instead of the annotation."""
    return {"parse": parse}


# --- raw data against dataclasses ------------------------------------------------------------------------------------


def build(cls: Any, raw: Any, where: str) -> Any:
    """A dataclass from a raw mapping."""
    names = keys_of(cls)
    if not isinstance(raw, dict):
        raise ConfigError(where, said(raw), f"a mapping with the keys {', '.join(names)} is wanted")
    kinds, values = get_type_hints(cls), {}
    refuse_unknown(raw, names, where, _dotted(kinds))
    for item in dataclasses.fields(cls):
        place = f"{where}.{item.name}" if where else item.name
        if item.name in raw:
            values[item.name] = convert(raw[item.name], kinds[item.name], item.metadata, place)
        elif item.default is dataclasses.MISSING and item.default_factory is dataclasses.MISSING:
            raise ConfigError(place, "is missing", item.metadata.get("wanted") or _wanted(kinds[item.name]))
    return cls(**values)


def convert(raw: Any, kind: Any, metadata: Mapping[str, Any], where: str) -> Any:
    """A raw value as the annotated type, inside the range of the field's metadata."""
    if "parse" in metadata:
        return metadata["parse"](raw, where)
    if dataclasses.is_dataclass(kind):
        return build(kind, raw, where)
    value = _typed(raw, kind)
    finite = not isinstance(value, float) or math.isfinite(value)
    if value is _NO or not finite or (value is not None and not metadata.get("holds", lambda _: True)(value)):
        odd = isinstance(raw, str) and OTHER_NUMBER.fullmatch(raw) and not INTEGER.fullmatch(raw)
        how = " (numbers are plain decimals)" if odd and {int, float} & set(_options(kind)) else ""
        raise ConfigError(where, said(raw), (metadata.get("wanted") or _wanted(kind)) + how)
    most = metadata.get("most", MOST)
    if isinstance(value, int | float) and value > most:
        raise ConfigError(where, said(raw), f"at most {most} is wanted")
    return value


_NO = object()  # what no raw value can be: the type does not fit


def _typed(raw: Any, kind: Any) -> Any:
    """The value if it is of the type, an integer made a float where only floats are taken; else _NO."""
    options = _options(kind)
    if type(raw) in options or any(get_origin(o) is Literal and _in_literal(raw, o) for o in options):
        return raw  # exact types: a bool is no integer
    if type(raw) is int and float in options:
        try:
            return float(raw)
        except OverflowError:
            return _NO
    return raw if Any in options else _NO


def _in_literal(raw: Any, kind: Any) -> bool:
    return any(raw == choice and type(raw) is type(choice) for choice in get_args(kind))


def _options(kind: Any) -> list[Any]:
    """`int | None` -> [int, NoneType]."""
    return list(get_args(kind)) if get_origin(kind) in (Union, types.UnionType) else [kind]


_SAID = {int: "an integer", float: "a number", str: "text", bool: "true or false", type(None): "null"}
_SHORT = reprlib.Repr()  # in which a list of lists of lists stays short
_SHORT.maxlist = _SHORT.maxdict = 6
_SHORT.maxstring = _SHORT.maxlong = _SHORT.maxother = 60


def _wanted(kind: Any) -> str:
    if dataclasses.is_dataclass(kind):
        return f"a mapping with the keys {', '.join(keys_of(kind))} is wanted"
    words: list[str] = []
    for option in _options(kind):
        choices = get_args(option) if get_origin(option) is Literal else [_SAID.get(option, str(option))]
        words += map(str, choices)
    return f"one of {', '.join(words)} is wanted" if len(words) > 2 else f"{' or '.join(words)} is wanted"


def said(raw: Any) -> str:
    """`is 'eight' (text)`, for messages."""
    if raw is None:
        return "is null"
    kind = {dict: "a mapping", list: "a list", bool: "a boolean", float: "a float"}.get(type(raw))
    shown = _SHORT.repr(raw)
    shown = shown if len(shown) <= 60 else shown[:57] + "..."
    return f"is {shown} ({kind or _SAID.get(type(raw)) or type(raw).__name__})"


def keys_of(cls: Any) -> list[str]:
    """The allowed keys of a section."""
    return [item.name for item in dataclasses.fields(cls)]


def refuse_unknown(raw: Mapping[Any, Any], names: Sequence[str], where: str, sections: Sequence[str] = ()) -> None:
    """Raise a ConfigError for a key that is not among `names`; `sections` are dotted keys that may be meant instead."""
    for key in raw:
        if key not in names:
            below = [path for path in sections if path.endswith(f".{key}")]
            near = hint(below[0], below) if below else hint(str(key), names)
            place = f"{where}.{key}" if where else str(key)
            raise ConfigError(place, f"unknown key{near}", f"allowed: {', '.join(names)}")


def _dotted(kinds: Mapping[str, Any]) -> list[str]:
    """The keys of all sections below: `task.limit`, ..."""
    sections = {name: kind for name, kind in kinds.items() if dataclasses.is_dataclass(kind)}
    return [f"{name}.{key}" for name, kind in sections.items() for key in keys_of(kind)]
