"""Greedy generation of a batch through a BeehiveCache, and what its cache held meanwhile."""

from __future__ import annotations

import gc
import hashlib
import time
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from buzz.evaluation.matching import describe
from buzz.evaluation.tasks import Sample, Task
from buzz.policies import Policy


@dataclass(frozen=True)
class Prompt:
    """A sample's prompt in tokens. `hash`: of the raw prompt's text. `truncated`: its middle was cut out to fit."""

    sample: Sample
    ids: list[int]
    hash: str
    truncated: bool


@dataclass(frozen=True)
class Job:
    """One sample under one policy."""

    prompt: Prompt
    policy: Policy


def prompt_hash(text: str) -> str:
    """First 16 hex digits of the SHA-256 of a raw prompt."""
    return hashlib.sha256(text.encode("utf-8")).hexdigest()[:16]


def encode(tokenizer: Any, sample: Sample, chat_template: bool, longest: int | None) -> Prompt:
    """A sample's prompt as tokens: one user message if there is a chat template, else the raw text.

    Args:
        longest: tokens that fit; more are cut out of the middle, where an article has the least of its task.
    """
    if chat_template:
        message = [{"role": "user", "content": sample.prompt}]
        text = tokenizer.apply_chat_template(message, tokenize=False, add_generation_prompt=True)
        ids = tokenizer(text, add_special_tokens=False)["input_ids"]  # the template writes them itself
    else:
        ids = tokenizer(sample.prompt)["input_ids"]
    truncated = longest is not None and len(ids) > longest
    if truncated:
        assert longest is not None
        head = (longest + 1) // 2
        ids = ids[:head] + ids[len(ids) - (longest - head) :]
    return Prompt(sample, ids, prompt_hash(sample.prompt), truncated)


def generate_batch(
    model: Any, tokenizer: Any, task: Task, jobs: Sequence[Job], positions: str | None, max_new_tokens: int
) -> list[dict[str, Any]]:
    """Answer prompts that share a policy, in one batch, greedily.

    Args:
        model: patched, in eval mode; its generation config holds its special tokens alone (see `load_model`).
        positions: of the BeehiveCache.

    Returns:
        One record per job, in order: what samples/METHOD.jsonl has on a line.
    """
    import torch
    from transformers import GenerationConfig

    from buzz import BeehiveCache

    special = model.generation_config
    settings = GenerationConfig(
        max_new_tokens=max_new_tokens,
        do_sample=False,
        num_beams=1,
        bos_token_id=special.bos_token_id,
        eos_token_id=special.eos_token_id,
        pad_token_id=special.pad_token_id,
    )
    started = time.perf_counter()
    cache = BeehiveCache(jobs[0].policy, model.config, positions=positions)
    ids, mask = _left_padded([job.prompt.ids for job in jobs], special.pad_token_id, model.device)  # [B, L]
    with torch.inference_mode():
        output = model.generate(ids, attention_mask=mask, generation_config=settings, past_key_values=cache)
    answers = output[:, ids.shape[1] :].tolist()
    seconds = (time.perf_counter() - started) / len(jobs)
    records = []
    for row, (job, answer) in enumerate(zip(jobs, answers, strict=True)):
        lengths = [call[row] for call in cache.history]
        records.append(_record(job, answer, lengths, special.eos_token_id or [], tokenizer, task, seconds))
    return records


def _left_padded(rows: Sequence[Sequence[int]], pad: int, device: Any) -> tuple[Any, Any]:
    """Token ids and attention mask, int64 [B, L], of rows of unequal lengths."""
    import torch

    width = max(map(len, rows))
    ids = torch.tensor([[pad] * (width - len(row)) + list(row) for row in rows])
    mask = torch.tensor([[0] * (width - len(row)) + [1] * len(row) for row in rows])
    return ids.to(device), mask.to(device)


def _record(
    job: Job, answer: list[int], lengths: list[float], ends: Sequence[int], tokenizer: Any, task: Task, seconds: float
) -> dict[str, Any]:
    prompt, sample = job.prompt, job.prompt.sample
    # What follows a row's end are pads, made while longer rows went on.
    end = next((i for i, token in enumerate(answer) if token in ends), len(answer))
    new_tokens = min(end + 1, len(answer))
    text = tokenizer.decode(answer[:end], skip_special_tokens=True, clean_up_tokenization_spaces=False)
    return {
        "id": sample.id,
        "prompt_hash": prompt.hash,
        "prompt_tokens": len(prompt.ids),
        "new_tokens": new_tokens,
        **({"truncated": True} if prompt.truncated else {}),
        "output": text,
        "reference": sample.reference,
        "metrics": task.score(text, sample),
        "policy": describe(job.policy),
        "cache": cache_figures(lengths, len(prompt.ids), new_tokens),
        "seconds": round(seconds, 6),
    }


def cache_figures(lengths: Sequence[float], prompt_tokens: int, new_tokens: int) -> dict[str, float]:
    """A sample's cache in tokens, over its own decode calls.

    The prompt's call gives the first new token and each decode call one more, so there are `new_tokens - 1`. A sample
    without one is measured after its prompt.

    Args:
        lengths: cached tokens after the prompt and after each decode call, of which there may be more than its own.

    Returns:
        mean_tokens, peak_tokens, and full_mean_tokens: the mean of a cache that never evicts.
    """
    calls = range(1, new_tokens) if new_tokens > 1 else range(1)
    own = [lengths[call] for call in calls]
    return {
        "mean_tokens": sum(own) / len(own),
        "peak_tokens": max(own),
        "full_mean_tokens": sum(prompt_tokens + call for call in calls) / len(calls),
    }


def is_out_of_memory(error: RuntimeError) -> bool:
    """Whether an error means that a smaller batch could work. Other RuntimeErrors are bugs and are not swallowed."""
    import torch

    text = str(error).lower()
    return isinstance(error, torch.OutOfMemoryError) or "out of memory" in text or "can't allocate memory" in text


def release_memory() -> None:
    """Give back what a failed batch left behind."""
    import torch

    gc.collect()
    if torch.cuda.is_available():
        torch.cuda.empty_cache()
