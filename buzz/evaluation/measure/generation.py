"""Greedy generation of a batch through a BeehiveCache, and what its cache held meanwhile."""

from __future__ import annotations

import time
from collections.abc import Sequence
from functools import partial
from typing import Any

import torch
from transformers import GenerationConfig

from buzz.evaluation.measure.batch import Held, Job, Prompt, held_by, left_padded, make_record, new_cache, prompt_hash
from buzz.evaluation.memory import full_means
from buzz.evaluation.tasks import Sample, Task


def encode_question(tokenizer: Any, sample: Sample, chat_template: bool, longest: int | None) -> Prompt:
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
    model: Any,
    tokenizer: Any,
    task: Task,
    jobs: Sequence[Job],
    positions: str | None,
    max_new_tokens: int,
    chunk: int | None = None,
) -> list[dict[str, Any]]:
    """Answer prompts in one batch, greedily. Policies may differ in parameters, but not in kind.

    Args:
        model: patched, in eval mode; its generation config holds its special tokens alone (see `load_model`).
        positions: of the BeehiveCache.
        chunk: prompts are read in calls of so many tokens, each row cut as it would be alone; None: in one call.

    Returns:
        One record per job, in order, with the metrics of `task.score`.
    """
    special = model.generation_config
    settings = GenerationConfig(
        max_new_tokens=max_new_tokens,
        do_sample=False,
        num_beams=1,
        bos_token_id=special.bos_token_id,
        eos_token_id=special.eos_token_id,
        pad_token_id=special.pad_token_id,
        prefill_chunk_size=chunk,
    )
    started = time.perf_counter()
    cache = new_cache(model, jobs, positions)
    ids, mask = left_padded([job.prompt.ids for job in jobs], special.pad_token_id, model.device, chunk)  # [B, L]
    with torch.inference_mode():
        output = model.generate(ids, attention_mask=mask, generation_config=settings, past_key_values=cache)
    answers = output[:, ids.shape[1] :].tolist()
    seconds = (time.perf_counter() - started) / len(jobs)
    before = (ids.shape[1] - 1) // chunk if chunk else 0  # calls before the prompt's last one
    records = []
    for row, (job, answer) in enumerate(zip(jobs, answers, strict=True)):
        held = held_by(cache.curve, row, before)
        records.append(_record(model, job, answer, held, special.eos_token_id or [], tokenizer, task, seconds))
    return records


def _record(
    model: Any,
    job: Job,
    answer: list[int],
    held: Held,
    ends: Sequence[int],
    tokenizer: Any,
    task: Task,
    seconds: float,
) -> dict[str, Any]:
    # What follows a row's end are pads, made while longer rows went on.
    end = next((i for i, token in enumerate(answer) if token in ends), len(answer))
    new_tokens = min(end + 1, len(answer))
    text = tokenizer.decode(answer[:end], skip_special_tokens=True, clean_up_tokenization_spaces=False)
    return make_record(
        job,
        prompt_tokens=len(job.prompt.ids),
        output=text,
        output_ids=answer[:new_tokens],
        new_tokens=new_tokens,
        metrics=task.score(text, job.prompt.sample),
        held=held,
        full=partial(full_means, model),
        seconds=seconds,
    )
