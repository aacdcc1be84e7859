"""transformers' QuantizedCache: made as its documentation advises for each backend, and weighed."""

from __future__ import annotations

import importlib.util
from collections.abc import Iterator
from typing import Any

import torch
from transformers import QuantizedCache

from buzz.benchmark.contenders import Quantized

_PACKAGES = {"hqq": ("hqq", "hqq"), "quanto": ("optimum-quanto", "optimum.quanto")}  # to install, and to import
_AXES = {"hqq": 1, "quanto": 0}  # along which numbers share a scale, as transformers' guide to caches says


def quantized_cache(settings: Quantized, config: Any) -> QuantizedCache:
    """An empty cache for a model of this config.

    Raises:
        ImportError: the backend's package is not installed. ValueError: transformers has no such backend, or the
            backend not so many bits.
    """
    backend = settings.backend
    if backend not in _PACKAGES:
        return QuantizedCache(backend, config)
    package, module = _PACKAGES[backend]
    if not _installed(module):
        raise ImportError(f"{package} is not installed, which transformers' QuantizedCache needs")
    axis = _AXES[backend]
    return QuantizedCache(backend, config, nbits=settings.bits, axis_key=axis, axis_value=axis)


def _installed(module: str) -> bool:
    try:
        return importlib.util.find_spec(module) is not None
    except ModuleNotFoundError:  # what it would be inside
        return False


def quantized_bytes(cache: QuantizedCache) -> int:
    """Bytes of all that a quantised cache holds: packed numbers, scales, and the last tokens, which are not packed."""
    names = ("keys", "values", "_quantized_keys", "_quantized_values")
    held = (getattr(layer, name, None) for layer in cache.layers for name in names)
    return sum(t.numel() * t.element_size() for value in held for t in _tensors(value))


def _tensors(value: Any) -> Iterator[torch.Tensor]:
    """Every plain tensor in a value; those that a tensor of a class of its own is made of."""
    if isinstance(value, torch.Tensor):
        if type(value) is torch.Tensor or not hasattr(value, "__tensor_flatten__"):
            yield value
        else:
            for name in value.__tensor_flatten__()[0]:
                yield from _tensors(getattr(value, name))
    elif isinstance(value, dict):
        for item in value.values():
            yield from _tensors(item)
    elif isinstance(value, tuple | list) and not isinstance(value, torch.Size):
        for item in value:
            yield from _tensors(item)
