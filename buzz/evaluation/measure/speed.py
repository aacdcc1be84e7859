"""What a long prompt costs beside transformers' own cache: bytes, seconds, and tokens a second after it."""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
from transformers import DynamicCache

from buzz.cache import BeehiveCache
from buzz.evaluation.measure.summary import MIB
from buzz.models.cache_argument import as_argument
from buzz.policies import Policy

FULL = "DynamicCache"
_BLOCK = 4  # steps between two changes of cache
_WARM = 2  # steps of each cache that do not count
Tell = Callable[[int, float, bool], None]


@torch.inference_mode()
def long_prompt(
    model: Any, ids: Sequence[int], steps: int, policies: Mapping[str, tuple[Policy, str | None]], tell: Tell
) -> list[dict[str, Any]]:
    """Time one row of several caches after the same prompt, by single forward calls.

    The caches take turns of a few steps, so a machine that gets slower does so for all of them.

    Args:
        model: patched. transformers' own cache goes through the unpatched forwards all the same.
        ids: of the prompt, read in one call. steps: of each cache that count.
        policies: of the other caches by name, with the positions of their keys.
        tell: told after every call, as of a `Job`.

    Returns:
        A row a cache, transformers' own first: `method`, `prompt_tokens`, `prompt_seconds`, `ms` a step (the median),
        `steps`, `tokens_per_second` (by the median), `tokens` a head after the last step and `mib` allocated then.
    """
    prompt = torch.tensor([list(ids)], device=model.device)
    caches: dict[str, Any] = {FULL: DynamicCache(config=model.config)}
    for name, (policy, positions) in policies.items():
        caches[name] = BeehiveCache(policy, model.config, positions=positions)
    _seconds(model, prompt[:, :256], None)  # first calls pack weights and start threads
    first = {}
    for name, cache in caches.items():
        first[name] = _seconds(model, prompt, cache)
        tell(1, _tokens(cache), True)
    taken: dict[str, list[float]] = {name: [] for name in caches}
    for done in range(0, steps + _WARM, _BLOCK):
        for name, cache in caches.items():
            for _ in range(min(_BLOCK, steps + _WARM - done)):
                taken[name].append(_seconds(model, prompt[:, :1], cache))
                tell(1, _tokens(cache), False)
    rows = []
    for name, cache in caches.items():
        median = statistics.median(taken[name][_WARM:])
        rows.append(
            {
                "method": name,
                "prompt_tokens": len(ids),
                "prompt_seconds": first[name],
                "ms": 1e3 * median,
                "steps": steps,
                "tokens_per_second": 1 / median,
                "tokens": _tokens(cache),
                "mib": _nbytes(cache) / MIB,
            }
        )
    return rows


def _seconds(model: Any, ids: torch.Tensor, cache: Any) -> float:
    if model.device.type == "cuda":
        torch.cuda.synchronize(model.device)
    started = time.perf_counter()
    model(ids, **as_argument(cache), use_cache=cache is not None, logits_to_keep=1)
    if model.device.type == "cuda":
        torch.cuda.synchronize(model.device)
    return time.perf_counter() - started


def _tokens(cache: Any) -> float:
    return float(cache.lengths[0] if isinstance(cache, BeehiveCache) else cache.get_seq_length())


def _nbytes(cache: Any) -> int:
    if isinstance(cache, BeehiveCache):
        return int(cache.nbytes)
    tensors = [t for layer in cache.layers for t in (layer.keys, layer.values) if t is not None]
    return sum(t.untyped_storage().nbytes() for t in tensors)
