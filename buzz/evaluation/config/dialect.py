"""The YAML that configs are written in: safe, and without the surprises of YAML 1.1."""

from __future__ import annotations

import re
from typing import Any

import yaml

INTEGER = re.compile(r"[-+]?(0|[1-9][0-9]*)")
_FLOAT = re.compile(
    r"[-+]?([0-9]+\.[0-9]*|\.[0-9]+)([eE][-+]?[0-9]+)?|[-+]?[0-9]+[eE][-+]?[0-9]+"
    r"|[-+]?\.(inf|Inf|INF)|\.(nan|NaN|NAN)"
)
# What YAML 1.1, or a reader, may take for a number although it is none here.
OTHER_NUMBER = re.compile(r"[-+]?[0-9][0-9_,]*|[-+]?0[xXoObB][0-9a-fA-F_]+|[-+]?[0-9][0-9_]*(:[0-5]?[0-9])+")
_SCALARS = {
    "null": (re.compile(r"~|null|Null|NULL|"), ["~", "n", "N", ""]),
    "bool": (re.compile(r"true|True|TRUE|false|False|FALSE"), list("tTfF")),
    "int": (INTEGER, list("-+0123456789")),
    "float": (_FLOAT, list("-+.0123456789")),
    "merge": (re.compile(r"<<"), ["<"]),
}


class StrictLoader(yaml.SafeLoader):
    """Safe YAML that means what it says.

    YAML 1.1 (as PyYAML reads it) takes 010 for 8, 1:30 for 90, 1_000 for 1000, `no` for false and a date for an
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
        if INTEGER.fullmatch(text):
            return float(text) if node.tag.endswith("float") else int(text)
        if not _FLOAT.fullmatch(text) or node.tag.endswith("int"):
            raise yaml.constructor.ConstructorError(None, None, f"{text!r} is no plain decimal number", node.start_mark)
        return float(re.sub(r"\.(?=[a-zA-Z])", "", text))


class StrictDumper(yaml.SafeDumper):
    """Writes text such that YAML 1.1 and `StrictLoader` both read text."""


for _kind, (_pattern, _first) in _SCALARS.items():
    _whole = re.compile(f"^(?:{_pattern.pattern})$")
    StrictLoader.add_implicit_resolver(f"tag:yaml.org,2002:{_kind}", _whole, _first)
    if _kind == "float":
        StrictDumper.add_implicit_resolver(f"tag:yaml.org,2002:{_kind}", _whole, _first)
for _kind in ("int", "float"):
    StrictLoader.add_constructor(f"tag:yaml.org,2002:{_kind}", StrictLoader.construct_number)


BROKEN_YAML = (yaml.YAMLError, ValueError, RecursionError)  # ValueError: an integer of thousands of digits
