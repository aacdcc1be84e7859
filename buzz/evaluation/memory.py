"""Too little memory: which errors mean it, and how to go on."""

from __future__ import annotations

import gc


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
