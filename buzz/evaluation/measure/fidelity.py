"""How near a method stays to the full cache: next-token distributions along the full cache's own answer.

Two summaries may differ in every word and be equally good, and both may be poor. What an eviction really costs shows
earlier: in the distributions from which the words are taken. The full cache itself is measured as well. It gives the
noise floor, what is left of rounding and of another order of sums.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch

from buzz.cache import BeehiveCache
from buzz.evaluation.measure.batch import Job, Reading, contexts_and_rests, left_padded, new_cache, right_padded
from buzz.evaluation.metrics import likeness
from buzz.policies import make_policy

_FULL_TOKENS = 1 << 16  # tokens of one forward through the full cache: rows take turns, since its memory is all theirs


def fidelity(
    model: Any,
    jobs: Sequence[Job],
    positions: str | None,
    records: Sequence[Mapping[str, Any]],
    full: Sequence[Mapping[str, Any]],
    chunk: int | None = None,
) -> list[dict[str, float]]:
    """Fidelity metrics of a batch.

    Args:
        model: patched.
        positions: of the BeehiveCache.
        records: of the jobs; their `output`.
        full: records of the full cache on the same samples; their `output_ids` are teacher-forced, end token included.
        chunk: the method reads prompts in calls of so many tokens, None: in one call; the full cache always in one,
            contexts included.

    Returns:
        For each job fidelity_kl, KL(full || method) in nats, mean over the tokens of the full cache's answer;
        fidelity_top1, the share of these tokens for which both name the same most likely one; fidelity_rougeL of the
        two answers' texts.
    """
    answers = [record["output_ids"] for record in full]
    distances = _distances(model, jobs, positions, answers, chunk)
    return [
        {"fidelity_kl": kl, "fidelity_top1": top1, "fidelity_rougeL": likeness(record["output"], other["output"])}
        for (kl, top1), record, other in zip(distances, records, full, strict=True)
    ]


def _distances(
    model: Any, jobs: Sequence[Job], positions: str | None, answers: Sequence[Sequence[int]], chunk: int | None
) -> list[tuple[float, float]]:
    """KL divergence and agreement of each job, mean over its answer's tokens."""
    prompts = [job.prompt.ids for job in jobs]
    with torch.inference_mode():
        full = full_logits(model, prompts, answers)  # [B, T, V]
        kl = torch.zeros(full.shape[:2], device=full.device)  # float32 [B, T], zero past an answer's end
        same = torch.zeros_like(kl)
        # As in a generation: the last token of an answer is predicted, but nothing comes after it.
        fed = [answer[:-1] for answer in answers]
        contexts, rests = contexts_and_rests(jobs)
        reading = Reading(model, new_cache(model, jobs, positions), rests, fed, chunk, contexts)
        for call, (rows, logits) in enumerate(reading):
            # float32, one call at a time: a whole block of float32 may be too large.
            p = full[rows, call].float().log_softmax(-1)  # [R, V]
            q = logits.float().log_softmax(-1)
            # No divergence is negative, but one near zero may be rounded to below it.
            kl[rows, call] = (p.exp() * (p - q)).sum(-1).clamp(min=0)
            same[rows, call] = (p.argmax(-1) == q.argmax(-1)).float()
        sums = torch.stack([kl.sum(1), same.sum(1)], dim=1).tolist()
    return [(kl / len(answer), same / len(answer)) for (kl, same), answer in zip(sums, answers, strict=True)]


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
        past_key_values=BeehiveCache(make_policy("full"), model.config),
        use_cache=True,
        logits_to_keep=width,
    )
    return output.logits
