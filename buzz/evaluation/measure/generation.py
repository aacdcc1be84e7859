"""Greedy generation of a batch through a BeehiveCache, and what its cache held meanwhile."""

from __future__ import annotations

import time
from collections.abc import Sequence
from functools import partial
from typing import Any

import torch
from transformers import GenerationConfig

from buzz.evaluation.errors import ConfigError
from buzz.evaluation.measure.batch import (
    Held,
    Job,
    Prompt,
    contexts_and_rests,
    held_by,
    left_padded,
    make_record,
    new_cache,
    prompt_hash,
    read,
)
from buzz.evaluation.memory import full_means
from buzz.evaluation.tasks import Sample, Task
from buzz.models.cache_argument import as_argument


def encode_question(tokenizer: Any, sample: Sample, chat_template: bool, longest: int | None) -> Prompt:
    """A sample's prompt as tokens: one user message if there is a chat template, else the raw text; then its prefix.

    Args:
        longest: tokens that fit; more are cut out of the middle, where an article has the least of its task.
    """
    if chat_template:
        message = [{"role": "user", "content": sample.prompt}]
        text = tokenizer.apply_chat_template(message, tokenize=False, add_generation_prompt=True) + sample.prefix
    else:
        text = sample.text
    special = {"add_special_tokens": False} if chat_template else {}  # the template writes them itself
    ids = tokenizer(text, **special)["input_ids"]
    context = _context_tokens(tokenizer, sample, text, ids, special) if sample.context else None
    truncated = longest is not None and len(ids) > longest
    if truncated:
        assert longest is not None
        head = (longest + 1) // 2
        tail = len(ids) - (longest - head)
        ids = ids[:head] + ids[tail:]
        context = None if context is None else min(context, head) + max(0, context - tail)
    if context is not None:
        context = min(context, len(ids) - 1) or None  # the answer needs a token to follow
    return Prompt(sample, ids, prompt_hash(sample.text), truncated, context=context)


def _context_tokens(tokenizer: Any, sample: Sample, text: str, ids: Sequence[int], special: dict[str, bool]) -> int:
    """How many of a text's tokens hold its sample's context: up to the token in which it ends.

    The tokens are those of the whole text, so that a full cache reads what it reads in one call. Where a tokenizer does
    not tell the places of its tokens, they are compared with those of the context alone.

    Raises:
        ConfigError: the chat template changes the context.
    """
    own = sample.context.lstrip()  # templates strip a message
    start = text.find(own)
    if start < 0:
        what = f"is false, but the chat template changes the context of sample {sample.id!r}"
        raise ConfigError("task.query_aware", what, "true, or another template, is wanted")
    end = start + len(own)
    if getattr(tokenizer, "is_fast", False):
        places = tokenizer(text, return_offsets_mapping=True, **special)["offset_mapping"]
        return next((i for i, (_, last) in enumerate(places, 1) if last >= end), len(ids))
    alone = tokenizer(text[:end], **special)["input_ids"]
    same = next((i for i, (a, b) in enumerate(zip(alone, ids, strict=False)) if a != b), len(alone))
    return min(same + (same < len(alone)), len(ids))


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

    Of prompts with a context, calls of their own read the contexts first, and policies evict after these as after any
    call. The rest of each prompt then reads what they kept, and they evict again.

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
    contexts, rests = contexts_and_rests(jobs)
    ids, mask = left_padded(rests, special.pad_token_id, model.device, chunk)  # [B, L]
    before = (ids.shape[1] - 1) // chunk if chunk else 0  # calls before the prompt's last one
    with torch.inference_mode():
        if contexts:
            # generate() counts positions by the mask, so this call does.
            early = read(model, cache, contexts, chunk, [0] * len(jobs) if cache.positions == "original" else None)
            before += early.calls
            # Pads stand before each part; generate() is given all columns and reads those that the cache has not seen.
            ids, mask = torch.cat([early.ids, ids], dim=1), torch.cat([early.mask, mask], dim=1)
        output = model.generate(ids, attention_mask=mask, generation_config=settings, **as_argument(cache))
    answers = output[:, ids.shape[1] :].tolist()
    seconds = (time.perf_counter() - started) / len(jobs)
    records = []
    for job, answer, held in zip(jobs, answers, held_by(cache, range(len(jobs)), before), strict=True):
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
