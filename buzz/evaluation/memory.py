"""Memory: bytes of a cached token, which errors mean that there is too little, and how to go on."""

from __future__ import annotations

import gc
from collections.abc import Sequence
from typing import Any

import torch

from buzz.cache.call import Shape


def token_bytes(model: Any) -> int:
    """Bytes of a cached token's keys and values in all layers, in the model's dtype."""
    shape = Shape.of(model.config)
    return int(2 * shape.layers * shape.heads * shape.head_dim * model.dtype.itemsize)


def slot_bytes(model: Any, policy: Any) -> int:
    """Bytes of a slot in all layers: a token's keys and values, and its float32 scores if the policy sums them up.

    Layers with a sliding window have no scores.
    """
    spec, shape = policy.score_spec, Shape.of(model.config)
    scores = 4 * shape.heads if spec is not None and spec.accumulate else 0
    return token_bytes(model) + shape.windows.count(None) * scores


def full_means(model: Any, lengths: Sequence[int]) -> tuple[float, float]:
    """Mean cached tokens and mean bytes of keys and values of a cache that never evicts, over calls.

    It holds no more of a sliding window than a query sees beside its own token. Tokens are, as everywhere, the mean
    over the layers that policies decide over: those of full attention, or all if there are none.

    Args:
        lengths: tokens of the text so far, after each call.
    """
    windows = Shape.of(model.config).windows
    totals = {w: sum(length if w is None else min(length, w - 1) for length in lengths) for w in set(windows)}
    held = [totals[window] for window in windows]
    decided = [total for total, window in zip(held, windows, strict=True) if window is None] or held
    calls = len(lengths)
    tokens, everywhere = (sum(totals) / (len(totals) * calls) for totals in (decided, held))
    return tokens, everywhere * token_bytes(model)


def is_out_of_memory(error: RuntimeError) -> bool:
    """Whether an error means that a smaller batch could work. Other RuntimeErrors are bugs and are not swallowed."""
    said = ("out of memory", "can't allocate memory", "status_alloc_failed")  # CUDA, the CPU, cuBLAS and cuDNN
    return isinstance(error, torch.OutOfMemoryError) or any(words in str(error).lower() for words in said)


def release_memory() -> None:
    """Give back what a failed batch, or a model that is no longer used, left behind."""
    gc.collect()
    if torch.cuda.is_available():
        torch.cuda.empty_cache()
