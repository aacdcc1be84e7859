"""Perplexity of texts that are read token by token through an evicting cache."""

from __future__ import annotations

import time
from collections.abc import Sequence
from functools import partial
from typing import Any

import torch
import torch.nn.functional as F

from buzz.cache.call import Shape
from buzz.evaluation.errors import ConfigError
from buzz.evaluation.measure.batch import Held, Job, Prompt, Reading, make_record, new_cache, prompt_hash, right_padded
from buzz.evaluation.memory import full_means
from buzz.evaluation.tasks import Sample, Task
from buzz.policies.sizes import walk

BLOCK = 256  # predictions that a record sums up in one number
_TABLES = ("opt",)  # model families whose positions are a table, with nothing past its end


def encode_text(tokenizer: Any, task: Any, sample: Sample) -> Prompt:
    """A text as tokens, each predicted from those before it.

    The first token is context alone: the beginning-of-text token where the tokenizer adds one, else the text's own.
    A task may cut a text into `pieces`, which are tokenised alone, special tokens included, and read one after the
    other: then the first token of each piece is context alone, and the last one is predicted but never read.

    Args:
        task: of the kind "perplexity"; its options say how many tokens to read at the most.

    Raises:
        ConfigError: there is nothing to predict.
    """
    inputs: list[int] = []
    targets: list[int] = []
    most = task.options.max_tokens
    for piece in task.pieces(sample):
        ids = tokenizer(piece)["input_ids"]
        inputs += ids[:-1]
        targets += ids[1:]
        if most is not None and len(inputs) >= most:
            break
    if most is not None:
        inputs, targets = inputs[: most - 1], targets[: most - 1]
    if not targets:
        raise ConfigError("task.data", f"the text {sample.id!r} is a single token", "at least two are wanted")
    return Prompt(sample, [*inputs, targets[-1]], prompt_hash(sample.text), False, targets)


def read_batch(
    model: Any, task: Task, jobs: Sequence[Job], positions: str | None, chunk: int | None = None
) -> list[dict[str, Any]]:
    """Read texts in one batch, each under its policy and with a cache of its own.

    The first call takes as many tokens as the task says (one, unless it has a `prefill`), each later call one. Every
    token after the first call is predicted and counts. The loss is float32, from logits in the model's dtype.

    Args:
        model: patched, in eval mode.
        positions: of the BeehiveCache.
        chunk: the tokens of a `prefill` are read in calls of so many; None: in one call.

    Returns:
        One record per job, in order, with `weight`, the number of predicted tokens, and `blocks`, pairs of tokens and
        summed negative log-likelihoods in nats of `BLOCK` predictions each.

    Raises:
        ConfigError: a text needs more positions than the model has.
    """
    _check_positions(model, task, jobs, positions, chunk)
    started = time.perf_counter()
    ids = [job.prompt.ids for job in jobs]
    first = [task.calls(len(row), 0)[0] for row in ids]
    reading = Reading(
        model,
        new_cache(model, jobs, positions),
        [row[:n] for row, n in zip(ids, first, strict=True)],
        [row[n:-1] for row, n in zip(ids, first, strict=True)],
        chunk,
    )
    wanted = [job.prompt.targets[n - 1 :] for job, n in zip(jobs, first, strict=True)]
    targets = right_padded(wanted, 0, model.device)  # [B, calls]
    nll = torch.zeros(targets.shape, device=model.device)  # float32; stays on the device to the end
    with torch.inference_mode():
        for call, (rows, logits) in enumerate(reading):
            nll[rows, call] = F.cross_entropy(logits.float(), targets[rows, call], reduction="none")
        losses = nll.cpu().double()
    seconds = (time.perf_counter() - started) / len(jobs)
    return [
        _record(model, job, n, losses[row, : len(wanted[row])], reading.held[row], seconds)
        for row, (job, n) in enumerate(zip(jobs, first, strict=True))
    ]


def _record(model: Any, job: Job, first: int, losses: Any, held: Held, seconds: float) -> dict[str, Any]:
    record = make_record(
        job,
        prompt_tokens=first,
        output="",
        output_ids=[],
        new_tokens=len(losses),
        metrics={"perplexity": float(losses.mean())},
        held=held,
        full=partial(full_means, model),
        seconds=seconds,
    )
    blocks = [[len(block), float(block.sum())] for block in losses.split(BLOCK)]
    return {**record, "weight": len(losses), "blocks": blocks}


# --- what can be wrong with a long text ------------------------------------------------------------------------------


def check_length(config: Any, task: Task, source: Any) -> None:
    """Refuse, before a model is loaded, texts that may run past the end of its table of positions.

    Rotary models have no such end: positions past those of the training are poor, not impossible.

    Args:
        config: of the run. source: of its model, from `check_model`.

    Raises:
        ConfigError: the task's texts may be longer than the table, and a method would need it at their full length;
            or a chat template is asked for, which a text that is only read has no use for.
    """
    if task.kind != "perplexity":
        return
    if config.model.chat_template:
        raise ConfigError("model.chat_template", "is true, but a text is read as it is", "false is wanted")
    known, most = source.max_positions, task.options.max_tokens
    if source.model_type not in _TABLES or known is None or (most is not None and most <= known):
        return
    for method in config.methods:
        if method.positions != "cache" or not method.make_policy().bounded:
            what = f"{'null' if most is None else most} may run past the model's {known} positions ({method.name})"
            allowed = f"at most {known}, or policies that evict and positions: cache, are wanted"
            raise ConfigError("task.max_tokens", what, allowed)


def _check_positions(model: Any, task: Task, jobs: Sequence[Job], positions: str | None, chunk: int | None) -> None:
    """The same, once texts and policies are known."""
    if model.config.model_type not in _TABLES:
        return
    known = model.config.max_position_embeddings
    for job in jobs:
        needed = len(job.prompt.ids) - 1
        if positions == "cache":
            first, calls = task.calls(len(job.prompt.ids), 0)
            policies = set(job.policy.per_layer(len(Shape.of(model.config).decided)))
            needed = max(during for policy in policies for during, _ in walk(policy, first, calls, chunk))
        if needed > known:
            what = f"the text {job.prompt.sample.id!r} needs {needed} positions under {job.policy.name}"
            raise ConfigError("task.max_tokens", what, f"the model has {known}")
