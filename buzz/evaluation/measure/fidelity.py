"""How near a method stays to the full cache: next-token distributions along the full cache's own answer.

Two summaries may differ in every word and be equally good, and both may be poor. What an eviction really costs shows
earlier: in the distributions from which the words are taken. The full cache itself is measured as well. It gives the
noise floor, what is left of rounding and of another order of sums.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from typing import Any

import torch

from buzz.cache import BeehiveCache
from buzz.evaluation.measure.batch import (
    Held,
    Job,
    Reading,
    contexts_and_rests,
    left_padded,
    make_record,
    new_cache,
    right_padded,
)
from buzz.evaluation.memory import full_means
from buzz.evaluation.metrics import likeness
from buzz.models.cache_argument import as_argument
from buzz.policies import make_policy

Logits = Callable[[Sequence[Sequence[int]], Sequence[Sequence[int]]], Any]
_KEPT = 1 << 28  # bytes of logits
_FULL_TOKENS = 1 << 16  # tokens of one forward through the full cache: rows take turns, since its memory is all theirs


def fidelity(
    model: Any,
    jobs: Sequence[Job],
    positions: str | None,
    records: Sequence[Mapping[str, Any]],
    full: Sequence[Mapping[str, Any]],
    chunk: int | None = None,
    logits: Logits | None = None,
) -> list[dict[str, float]]:
    """Fidelity metrics of a batch.

    Args:
        model: patched.
        positions: of the BeehiveCache.
        records: of the jobs; their `output`.
        full: records of the full cache on the same samples; their `output_ids` are teacher-forced, end token included.
        chunk: the method reads prompts in calls of so many tokens, None: in one call; the full cache always in one,
            contexts included.
        logits: gives `full_logits` of the model, such as `FullLogits`; None: they are computed.

    Returns:
        For each job fidelity_kl, KL(full || method) in nats, mean over the tokens of the full cache's answer;
        fidelity_top1, the share of these tokens for which both name the same most likely one; fidelity_rougeL of the
        two answers' texts.
    """
    answers = [record["output_ids"] for record in full]
    distances, _ = _distances(model, jobs, positions, answers, chunk, logits or partial(full_logits, model))
    return [
        {"fidelity_kl": kl, "fidelity_top1": top1, "fidelity_rougeL": likeness(record["output"], other["output"])}
        for (kl, top1), record, other in zip(distances, records, full, strict=True)
    ]


def follow_batch(
    model: Any,
    jobs: Sequence[Job],
    positions: str | None,
    full: Sequence[Mapping[str, Any]],
    chunk: int | None = None,
    logits: Logits | None = None,
    watch: Callable[[Any, Sequence[Sequence[int]]], None] | None = None,
) -> list[dict[str, Any]]:
    """Jobs that do not answer: they read the full cache's answers, and how near they stay is all that is measured.

    Args:
        model, positions, full, chunk, logits: as of `fidelity`.
        watch: given the cache before it is filled, and the answers; a row leaves the batch after its last call.

    Returns:
        One record per job, in order, without an `output`; `output_ids` are those of the full cache. Metrics are
        fidelity_kl and fidelity_top1.
    """
    answers = [record["output_ids"] for record in full]
    logits = logits or partial(full_logits, model)
    logits([job.prompt.ids for job in jobs], answers)  # no part of the method's time, if they are kept
    started = time.perf_counter()
    distances, held = _distances(model, jobs, positions, answers, chunk, logits, watch)
    seconds = (time.perf_counter() - started) / len(jobs)
    return [
        make_record(
            job,
            prompt_tokens=len(job.prompt.ids),
            output=None,
            output_ids=list(answer),
            new_tokens=len(answer),
            metrics={"fidelity_kl": kl, "fidelity_top1": top1},
            held=held[row],
            full=partial(full_means, model),
            seconds=seconds,
        )
        for row, (job, answer, (kl, top1)) in enumerate(zip(jobs, answers, distances, strict=True))
    ]


def _distances(
    model: Any,
    jobs: Sequence[Job],
    positions: str | None,
    answers: Sequence[Sequence[int]],
    chunk: int | None,
    logits_of: Logits,
    watch: Callable[[Any, Sequence[Sequence[int]]], None] | None = None,
) -> tuple[list[tuple[float, float]], dict[int, Held]]:
    """KL divergence and agreement of each job, mean over its answer's tokens; and what its cache held."""
    prompts = [job.prompt.ids for job in jobs]
    with torch.inference_mode():
        full = logits_of(prompts, answers)  # [B, T, V]
        kl = torch.zeros(full.shape[:2], device=full.device)  # float32 [B, T], zero past an answer's end
        same = torch.zeros_like(kl)
        # As in a generation: the last token of an answer is predicted, but nothing comes after it.
        fed = [answer[:-1] for answer in answers]
        contexts, rests = contexts_and_rests(jobs)
        cache = new_cache(model, jobs, positions)
        if watch is not None:
            watch(cache, answers)
        reading = Reading(model, cache, rests, fed, chunk, contexts)
        for call, (rows, logits) in enumerate(reading):
            # float32, one call at a time: a whole block of float32 may be too large.
            p = full[rows, call].float().log_softmax(-1)  # [R, V]
            q = logits.float().log_softmax(-1)
            # No divergence is negative, but one near zero may be rounded to below it.
            kl[rows, call] = (p.exp() * (p - q)).sum(-1).clamp(min=0)
            same[rows, call] = (p.argmax(-1) == q.argmax(-1)).float()
        sums = torch.stack([kl.sum(1), same.sum(1)], dim=1).tolist()
    means = [(kl / len(answer), same / len(answer)) for (kl, same), answer in zip(sums, answers, strict=True)]
    return means, reading.held


class FullLogits:
    """`full_logits` of a model, kept for the next method that asks for the same batch.

    Args:
        most: bytes that are kept; what does not fit is computed anew each time.
    """

    def __init__(self, model: Any, most: int = _KEPT) -> None:
        self._model, self._left = model, most
        self._kept: dict[Any, Any] = {}

    def __call__(self, prompts: Sequence[Sequence[int]], answers: Sequence[Sequence[int]]) -> Any:
        key = tuple(map(tuple, prompts)), tuple(map(tuple, answers))
        if key in self._kept:
            return self._kept[key]
        logits = full_logits(self._model, prompts, answers)
        if logits.nbytes <= self._left:
            self._left -= logits.nbytes
            self._kept[key] = logits
        return logits


def full_logits(model: Any, prompts: Sequence[Sequence[int]], answers: Sequence[Sequence[int]]) -> Any:
    """Logits [B, T, V] that the model gives each answer's tokens, T the longest answer, from one forward of everything.

    In the model's dtype; meaningless past the end of a row's answer. The forward goes through a cache that never
    evicts: the model's own attention may build a matrix of all queries and keys, for which a wide batch has no memory.
    """
    size = max(1, _FULL_TOKENS // max(len(p) + len(a) for p, a in zip(prompts, answers, strict=True)))
    parts = [
        _forward(model, prompts[i : i + size], answers[i : i + size], max(map(len, answers)))
        for i in range(0, len(prompts), size)
    ]
    return torch.cat(parts)


def _forward(model: Any, prompts: Sequence[Sequence[int]], answers: Sequence[Sequence[int]], width: int) -> Any:
    """`full_logits` of some rows, for answers of at most `width` tokens."""
    pad = model.generation_config.pad_token_id or 0
    ids, mask = left_padded(prompts, pad, model.device)  # [B, L]
    fed = [[*answer[:-1], *[pad] * (width - len(answer))] for answer in answers]
    ids = torch.cat([ids, right_padded(fed, pad, model.device)], dim=1)  # [B, L + T - 1]
    valid = [[1] * (len(answer) - 1) + [0] * (width - len(answer)) for answer in answers]
    mask = torch.cat([mask, right_padded(valid, 0, model.device)], dim=1)
    output = model(
        ids,
        attention_mask=mask,
        **as_argument(BeehiveCache(make_policy("full"), model.config)),
        use_cache=True,
        logits_to_keep=width,
    )
    return output.logits
