"""What transformers calls the argument that holds a cache: `cache` from 5.24 on, `past_key_values` before."""

from __future__ import annotations

from dataclasses import fields
from typing import Any

import transformers
from transformers.modeling_outputs import BaseModelOutputWithPast

from buzz.cache import BeehiveCache

CACHE = "cache" if "cache" in {field.name for field in fields(BaseModelOutputWithPast)} else "past_key_values"
"""The name that forwards, `generate()` and their outputs have for it."""
OTHER = "past_key_values" if CACHE == "cache" else "cache"
"""The name in other versions. From 5.24 on transformers takes the earlier one, too."""


def as_argument(cache: Any) -> dict[str, Any]:
    """A cache as keyword arguments of a call."""
    return {CACHE: cache}


def named(kwargs: dict[str, Any]) -> dict[str, Any]:
    """Keyword arguments of a call, with a BeehiveCache by the name that the installed version has.

    Raises:
        ValueError: there is one, and something by the other name, too.
    """
    given, other = kwargs.get(CACHE), kwargs.get(OTHER)
    if OTHER not in kwargs or not (isinstance(given, BeehiveCache) or isinstance(other, BeehiveCache)):
        return kwargs
    if given is not None and other is not None:
        raise ValueError("a cache is given twice, as cache and as past_key_values: give it once")
    rest = {name: value for name, value in kwargs.items() if name not in (CACHE, OTHER)}
    return rest | as_argument(other if given is None else given)


def refuse_other(kwargs: dict[str, Any]) -> None:
    """Refuse a BeehiveCache that a forward before 5.24 was given by the later name, which it has only handed on.

    Raises:
        ValueError: what has made masks or caches of its own on the way knew nothing of it.
    """
    if CACHE != "cache" and isinstance(kwargs.get(OTHER), BeehiveCache):
        raise ValueError(
            f"forwards of transformers {transformers.__version__} call the argument past_key_values: "
            "give the cache by that name"
        )
