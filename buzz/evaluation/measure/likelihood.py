"""How likely a given answer is under a compressed cache: finer than whether the greedy answer happens to be right."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
import torch.nn.functional as F

from buzz.evaluation.errors import ConfigError
from buzz.evaluation.measure.batch import Job, Reading, contexts_and_rests, new_cache, right_padded
from buzz.evaluation.tasks import Task

_SKIP = -100  # no target


def answer_nll(
    model: Any,
    tokenizer: Any,
    task: Task,
    jobs: Sequence[Job],
    positions: str | None,
    chunk: int | None = None,
) -> list[float]:
    """Mean negative log-likelihood in nats of the tokens of `task.likely`, each job under its policy.

    An eviction affects later calls only. So the prompt without its last token is read first, and then the last token
    and those of the answer follow one by one: already the first token of the answer is predicted from the compressed
    cache. (In a generation it is predicted from the whole prompt.) Contexts are read before, in calls of their own.

    The answer is tokenised alone, without special tokens, and its tokens are put behind those of the prompt; a space
    between the two is the task's to give. Of an answer that leaves the model's positions, only the start counts.

    Args:
        model: patched.
        positions: of the BeehiveCache.
        chunk: prompts are read in calls of so many tokens; None: in one call.

    Raises:
        ConfigError: a sample has no answer, or one without tokens.
    """
    answers = [_answer_ids(model, tokenizer, task, job) for job in jobs]
    contexts, prompts = contexts_and_rests(jobs)
    # A prompt, or what follows a context, of a single token is a call of its own.
    firsts = [ids[:-1] or ids for ids in prompts]
    lasts = [ids[len(first) :] for ids, first in zip(prompts, firsts, strict=True)]
    rest = [last + answer[:-1] for last, answer in zip(lasts, answers, strict=True)]
    wanted = [[_SKIP] * len(last) + answer for last, answer in zip(lasts, answers, strict=True)]
    targets = right_padded(wanted, _SKIP, model.device)  # [B, calls]
    nll = torch.zeros(targets.shape, device=model.device)  # float32
    with torch.inference_mode():
        reading = Reading(model, new_cache(model, jobs, positions), firsts, rest, chunk, contexts)
        for call, (rows, logits) in enumerate(reading):
            losses = F.cross_entropy(logits.float(), targets[rows, call], ignore_index=_SKIP, reduction="none")
            nll[rows, call] = losses
        sums = nll.sum(1).tolist()
    return [total / len(answer) for total, answer in zip(sums, answers, strict=True)]


def _answer_ids(model: Any, tokenizer: Any, task: Task, job: Job) -> list[int]:
    text = task.likely(job.prompt.sample)
    ids = tokenizer(text, add_special_tokens=False)["input_ids"] if text else []
    if not ids:
        what = f"sample {job.prompt.sample.id!r} has no answer whose likelihood could be measured"
        raise ConfigError("task.data", what, "an answer of at least one token is wanted")
    known = getattr(model.config, "max_position_embeddings", None)
    # The last token of an answer takes no position: nothing comes after it.
    return ids if known is None else ids[: max(1, known - len(job.prompt.ids) + 1)]
