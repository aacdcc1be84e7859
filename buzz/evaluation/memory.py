"""Memory: bytes of a cached token, which errors mean that there is too little, and how to go on."""

from __future__ import annotations

import gc
from typing import Any


def token_bytes(model: Any) -> int:
    """Bytes of a cached token's keys and values in all layers, in the model's dtype."""
    config = model.config
    return int(2 * config.num_hidden_layers * kv_heads(config) * head_dim(config) * model.dtype.itemsize)


def slot_bytes(model: Any, policy: Any) -> int:
    """Bytes of a slot in all layers: a token's keys and values, and its float32 scores if the policy sums them up."""
    spec = policy.score_spec
    scores = 4 * kv_heads(model.config) if spec is not None and spec.accumulate else 0
    return token_bytes(model) + int(model.config.num_hidden_layers * scores)


def kv_heads(config: Any) -> int:
    """Heads of a layer's keys and values."""
    return int(getattr(config, "num_key_value_heads", None) or config.num_attention_heads)


def head_dim(config: Any) -> int:
    """Width of an attention head."""
    return int(getattr(config, "head_dim", None) or config.hidden_size // config.num_attention_heads)


def is_out_of_memory(error: RuntimeError) -> bool:
    """Whether an error means that a smaller batch could work. Other RuntimeErrors are bugs and are not swallowed."""
    import torch

    said = ("out of memory", "can't allocate memory", "status_alloc_failed")  # CUDA, the CPU, cuBLAS and cuDNN
    return isinstance(error, torch.OutOfMemoryError) or any(words in str(error).lower() for words in said)


def release_memory() -> None:
    """Give back what a failed batch, or a model that is no longer used, left behind."""
    import torch

    gc.collect()
    if torch.cuda.is_available():
        torch.cuda.empty_cache()
