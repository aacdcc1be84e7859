"""The matrix of tiny models, of which each is shared by several processes."""

from __future__ import annotations

from collections.abc import Iterator
from functools import partial
from typing import Any

import torch
import torch.distributed as dist

import buzz
from buzz.decoding.arena import Off, Uncaptured
from tests.decoding.kernel_steps import Kernels
from tests.models.tiny import VARIANTS, tiny
from tests.patching.shared_runs import close, differences, forward, generate, load_shared, load_whole, prompt, run

# One whose heads choose on their own, one that looks across heads, and one without scores.
POLICIES: dict[str, dict[str, int]] = {
    "h2o": {"heavy": 5, "window": 4},
    "tova": {"capacity": 10},
    "streaming": {"sink": 2, "window": 7},
}
GENERATE = partial(generate, max_new_tokens=5)  # every one of them evicts
# Policy, positions, how, and the call. A family is run in all, a variant of it in the second, whose steps kernels may
# run, and in every third one of the others.
SETTINGS: tuple[tuple[str, str, str, Any], ...] = (
    ("h2o", "cache", "generate", GENERATE),
    ("h2o", "original", "static memory", GENERATE),
    ("tova", "cache", "forward", forward),
    ("tova", "original", "static memory", GENERATE),
    ("streaming", "cache", "forward", forward),
    ("streaming", "original", "static memory", GENERATE),
)
# Those whose steps run by kernels of our own in each process; others gather what they project, or mix experts.
BY_KERNELS = ("llama", "mistral", "qwen2", "qwen3", "gemma3_text", "smollm3", "granite")
NO_PLAN = "transformers has no plan for it"


class OutsideError(Exception):
    """transformers itself does not share a model, or gives something else then, unpatched."""


def save_case(name: str, folder: str) -> str:
    """A model of the matrix, in a folder. Its vocabulary is even: older transformers share no other."""
    tiny(name, vocab_size=96).save_pretrained(folder)
    return folder


def check_case(
    name: str, folder: str, device: torch.device, dtype: torch.dtype, kernels: bool = False
) -> Iterator[str]:
    """In which settings processes that share a model of the matrix, saved in a folder, differ from one that has it.

    Args:
        kernels: whether the device runs those of steps; then static memory with the first policy does.

    Raises:
        OutsideError: in all processes.
    """
    whole, shared = _pair(folder, device, dtype)
    styles = {style for module, style in shared.tp_plan.items() if module.endswith((".k_proj", ".qkv_proj"))}
    spread = styles == {"colwise"}  # others gather what the processes project, so that each has all heads
    family = VARIANTS.get(name, (name,))[0]
    settings = SETTINGS if name == family else (SETTINGS[1], *SETTINGS[2 + list(VARIANTS).index(name) % 2 :: 3])
    for policy_name, positions, how, call in settings:
        policy = buzz.make_policy(policy_name, **POLICIES[policy_name])
        with buzz.patch_model(whole) as one, buzz.patch_model(shared) as many:
            one.engine.run = many.engine.run = Uncaptured() if how == "static memory" else Off()
            if kernels and (policy_name, how) == ("h2o", "static memory"):
                many.engine.run = Kernels(needed=family in BY_KERNELS)
            expected, got = (run(model, call, policy, positions) for model in (whole, shared))
            found = list(differences(expected, got, spread))
            if not expected.evictions:
                found.append("nothing is evicted")
            if many.engine.told:
                found.append(f"decoded otherwise: {', '.join(many.engine.told)}")
            for what in found:
                yield f"{what} ({policy_name}, {how}, positions {positions})"


def _pair(folder: str, device: torch.device, dtype: torch.dtype) -> tuple[Any, Any]:
    """A model, whole and shared, which give the same in transformers."""
    options = {"experts_implementation": "eager"}  # grouped products of experts know no float64
    whole, shared, failure = load_whole(folder, device, dtype, **options), None, None
    if not whole.tp_plan:
        raise OutsideError(NO_PLAN)
    try:
        shared = load_shared(folder, dtype, **options)
        ids, mask = prompt(device)
        with torch.no_grad():
            before, after = (model(ids, attention_mask=mask).logits[mask == 1] for model in (whole, shared))
        if not close(before, after):
            failure = "unpatched, it gives other logits"
    except Exception as error:
        failure = f"{type(error).__name__}: {error}"
    failures: list[str | None] = [None] * dist.get_world_size()
    dist.all_gather_object(failures, failure)
    if any(failures):
        raise OutsideError(f"in transformers itself: {'; '.join(sorted({f for f in failures if f}))}")
    return whole, shared
