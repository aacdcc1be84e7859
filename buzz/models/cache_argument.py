"""What transformers calls the argument that holds a cache: `cache` from 5.24 on, `past_key_values` before.

A patched model takes a BeehiveCache by either name, whichever version is installed.
"""

from __future__ import annotations

from dataclasses import fields
from typing import Any

from transformers.modeling_outputs import BaseModelOutputWithPast

_NAMES = {"cache", "past_key_values"}
CACHE = "cache" if "cache" in {field.name for field in fields(BaseModelOutputWithPast)} else "past_key_values"
"""The name that forwards, `generate()` and their outputs have for it."""
(_OTHER,) = _NAMES - {CACHE}


def as_argument(cache: Any) -> dict[str, Any]:
    """A cache as keyword arguments of a call."""
    return {CACHE: cache}


def named(kwargs: dict[str, Any]) -> dict[str, Any]:
    """Keyword arguments of a call, with the cache by the name that the installed version has.

    Raises:
        ValueError: a cache is given by each of the names.
    """
    if _OTHER not in kwargs:
        return kwargs
    given = [cache for name in _NAMES if (cache := kwargs.get(name)) is not None]
    if len(given) > 1:
        raise ValueError("a cache is given twice, as cache and as past_key_values: give it once")
    rest = {name: value for name, value in kwargs.items() if name not in _NAMES}
    return rest | as_argument(given[0] if given else None)
