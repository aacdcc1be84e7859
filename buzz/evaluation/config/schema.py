"""Dataclasses as the schema of a config: fields are the keys, annotations the types, metadata the ranges.

Knows nothing of any particular config; `buzz.evaluation.run.config` declares one. Every mistake is a ConfigError.
"""

from __future__ import annotations

import dataclasses
import math
import re
import reprlib
import types
from collections.abc import Callable, Mapping, Sequence
from typing import Any, Literal, Union, get_args, get_origin, get_type_hints

import yaml

from buzz.evaluation.errors import ConfigError
from buzz.words import hint

# --- what a field's metadata can say ---------------------------------------------------------------------------------


def check(holds: Callable[[Any], bool], wanted: str) -> dict[str, Any]:
    """Field metadata: what must hold of a value that is not None, and how to say so."""
    return {"holds": holds, "wanted": wanted}


MOST = 10**9  # of any number, unless its field says otherwise: more is a slip of the hand


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
    hints, values = get_type_hints(cls), {}
    refuse_unknown(raw, names, where, _dotted(hints))
    for item in dataclasses.fields(cls):
        place = f"{where}.{item.name}" if where else item.name
        if item.name in raw:
            values[item.name] = convert(raw[item.name], hints[item.name], item.metadata, place)
        elif item.default is dataclasses.MISSING and item.default_factory is dataclasses.MISSING:
            raise ConfigError(place, "is missing", item.metadata.get("wanted") or _wanted(hints[item.name]))
    return cls(**values)


def convert(raw: Any, hint: Any, metadata: Mapping[str, Any], where: str) -> Any:
    """A raw value as the annotated type, inside the range of the field's metadata."""
    if "parse" in metadata:
        return metadata["parse"](raw, where)
    if dataclasses.is_dataclass(hint):
        return build(hint, raw, where)
    value = _typed(raw, hint)
    finite = not isinstance(value, float) or math.isfinite(value)
    if value is _NO or not finite or (value is not None and not metadata.get("holds", lambda _: True)(value)):
        odd = isinstance(raw, str) and _OTHER_NUMBER.fullmatch(raw) and not _INTEGER.fullmatch(raw)
        plain = " (numbers are plain decimals)" if odd and {int, float} & set(_options(hint)) else ""
        raise ConfigError(where, said(raw), (metadata.get("wanted") or _wanted(hint)) + plain)
    most = metadata.get("most", MOST)
    if isinstance(value, int | float) and value > most:
        raise ConfigError(where, said(raw), f"at most {most} is wanted")
    return value


_NO = object()  # what no raw value can be: the type does not fit


def _typed(raw: Any, hint: Any) -> Any:
    """The value if it is of the type, an integer made a float where only floats are taken; else _NO."""
    options = _options(hint)
    if type(raw) in options or any(get_origin(o) is Literal and _in_literal(raw, o) for o in options):
        return raw  # exact types: a bool is no integer
    if type(raw) is int and float in options:
        try:
            return float(raw)
        except OverflowError:
            return _NO
    return raw if Any in options else _NO


def _in_literal(raw: Any, hint: Any) -> bool:
    return any(raw == choice and type(raw) is type(choice) for choice in get_args(hint))


def _options(hint: Any) -> list[Any]:
    """`int | None` -> [int, NoneType]."""
    return list(get_args(hint)) if get_origin(hint) in (Union, types.UnionType) else [hint]


_SAID = {int: "an integer", float: "a number", str: "text", bool: "true or false", type(None): "null"}
_SHORT = reprlib.Repr()  # in which a list of lists of lists stays short
_SHORT.maxlist = _SHORT.maxdict = 6
_SHORT.maxstring = _SHORT.maxlong = _SHORT.maxother = 60


def _wanted(hint: Any) -> str:
    if dataclasses.is_dataclass(hint):
        return f"a mapping with the keys {', '.join(keys_of(hint))} is wanted"
    words: list[str] = []
    for option in _options(hint):
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
            near = f" (did you mean {below[0]!r}?)" if below else hint(str(key), names)
            place = f"{where}.{key}" if where else str(key)
            raise ConfigError(place, f"unknown key{near}", f"allowed: {', '.join(names)}")


def _dotted(hints: Mapping[str, Any]) -> list[str]:
    """The keys of all sections below: `task.limit`, ..."""
    sections = {name: hint for name, hint in hints.items() if dataclasses.is_dataclass(hint)}
    return [f"{name}.{key}" for name, hint in sections.items() for key in keys_of(hint)]


# --- YAML ------------------------------------------------------------------------------------------------------------


_INTEGER = re.compile(r"[-+]?(0|[1-9][0-9]*)")
_FLOAT = re.compile(
    r"[-+]?([0-9]+\.[0-9]*|\.[0-9]+)([eE][-+]?[0-9]+)?|[-+]?[0-9]+[eE][-+]?[0-9]+"
    r"|[-+]?\.(inf|Inf|INF)|\.(nan|NaN|NAN)"
)
# What YAML 1.1, or a reader, may take for a number although it is none here.
_OTHER_NUMBER = re.compile(r"[-+]?[0-9][0-9_,]*|[-+]?0[xXoObB][0-9a-fA-F_]+|[-+]?[0-9][0-9_]*(:[0-5]?[0-9])+")
_SCALARS = {
    "null": (re.compile(r"~|null|Null|NULL|"), ["~", "n", "N", ""]),
    "bool": (re.compile(r"true|True|TRUE|false|False|FALSE"), list("tTfF")),
    "int": (_INTEGER, list("-+0123456789")),
    "float": (_FLOAT, list("-+.0123456789")),
    "merge": (re.compile(r"<<"), ["<"]),
}


class StrictLoader(yaml.SafeLoader):
    """Safe YAML that means what it says.

    Plain YAML (1.1, as PyYAML reads it) takes 010 for 8, 1:30 for 90, 1_000 for 1000, `no` for false and a date for an
    object, and lets the last of two equal keys win in silence. Here numbers are plain decimals (1000, -3, 2.5, 1e-3),
    truth is `true` or `false`, everything else is text, and a key may stand once.
    """

    yaml_implicit_resolvers = {}  # noqa: RUF012 - PyYAML's own way

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict[Any, Any]:
        seen = set()
        for key, _ in node.value:
            if isinstance(key, yaml.ScalarNode) and key.value in seen:
                raise yaml.constructor.ConstructorError(None, None, f"key {key.value!r} is given twice", key.start_mark)
            seen.add(key.value if isinstance(key, yaml.ScalarNode) else id(key))
        return super().construct_mapping(node, deep)

    def construct_number(self, node: yaml.ScalarNode) -> int | float:
        """A number, also where a tag such as !!int asks for it."""
        text = self.construct_scalar(node)
        if _INTEGER.fullmatch(text):
            return float(text) if node.tag.endswith("float") else int(text)
        if not _FLOAT.fullmatch(text) or node.tag.endswith("int"):
            raise yaml.constructor.ConstructorError(None, None, f"{text!r} is no plain decimal number", node.start_mark)
        return float(re.sub(r"\.(?=[a-zA-Z])", "", text))


class StrictDumper(yaml.SafeDumper):
    """Writes text such that plain YAML and `StrictLoader` both read text."""


for _kind, (_pattern, _first) in _SCALARS.items():
    _whole = re.compile(f"^(?:{_pattern.pattern})$")
    StrictLoader.add_implicit_resolver(f"tag:yaml.org,2002:{_kind}", _whole, _first)
    if _kind == "float":
        StrictDumper.add_implicit_resolver(f"tag:yaml.org,2002:{_kind}", _whole, _first)
for _kind in ("int", "float"):
    StrictLoader.add_constructor(f"tag:yaml.org,2002:{_kind}", StrictLoader.construct_number)


BROKEN_YAML = (yaml.YAMLError, ValueError, RecursionError)  # ValueError: an integer of thousands of digits
