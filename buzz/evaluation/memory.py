"""Memory: bytes of a cached token, which errors mean that there is too little, and how to go on."""

from __future__ import annotations

import gc
from typing import Any

import torch

from buzz.cache.call import Shape


def token_bytes(model: Any) -> int:
    """Bytes of a cached token's keys and values in all layers, in the model's dtype."""
    shape = Shape.of(model.config)
    return int(2 * shape.layers * shape.heads * shape.head_dim * model.dtype.itemsize)


def slot_bytes(model: Any, policy: Any) -> int:
    """Bytes of a slot in all layers: a token's keys and values, and its float32 scores if the policy sums them up."""
    spec, shape = policy.score_spec, Shape.of(model.config)
    scores = 4 * shape.heads if spec is not None and spec.accumulate else 0
    return token_bytes(model) + shape.layers * scores


def is_out_of_memory(error: RuntimeError) -> bool:
    """Whether an error means that a smaller batch could work. Other RuntimeErrors are bugs and are not swallowed."""
    said = ("out of memory", "can't allocate memory", "status_alloc_failed")  # CUDA, the CPU, cuBLAS and cuDNN
    return isinstance(error, torch.OutOfMemoryError) or any(words in str(error).lower() for words in said)


def release_memory() -> None:
    """Give back what a failed batch, or a model that is no longer used, left behind."""
    gc.collect()
    if torch.cuda.is_available():
        torch.cuda.empty_cache()
