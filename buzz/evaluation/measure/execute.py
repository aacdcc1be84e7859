"""Runs a batch of samples under their policies, whatever the kind of the task, and measures it."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

from buzz.evaluation.measure.batch import Job, Prompt
from buzz.evaluation.measure.fidelity import Logits, fidelity, follow_batch
from buzz.evaluation.measure.generation import encode_question, generate_batch
from buzz.evaluation.measure.likelihood import answer_nll
from buzz.evaluation.measure.perplexity import encode_text, read_batch
from buzz.evaluation.tasks import Sample, Task

Record = dict[str, Any]


def encode(tokenizer: Any, task: Task, sample: Sample, chat_template: bool, longest: int | None) -> Prompt:
    """A sample's prompt as tokens.

    Args:
        chat_template: ask with the tokenizer's chat template; a text that is only read stays as it is.
        longest: tokens of a prompt that fit; more are cut out of its middle. A text that is only read is never cut.

    Raises:
        ConfigError: a text to be read has nothing to predict.
    """
    if task.kind == "perplexity":
        return encode_text(tokenizer, task, sample)
    return encode_question(tokenizer, sample, chat_template, longest)


def run_batch(
    model: Any,
    tokenizer: Any,
    task: Task,
    jobs: Sequence[Job],
    positions: str | None,
    max_new_tokens: int,
    chunk: int | None = None,
) -> list[Record]:
    """Run jobs as one batch: prompts are answered, texts read.

    Args:
        model: patched, in eval mode; its generation config holds its special tokens alone (see `load_model`).
        jobs: their policies may differ in parameters, but not in kind.
        positions: of the BeehiveCache.
        chunk: prompts are read in calls of so many tokens; None: in one call.

    Returns:
        One record per job, in order: what samples/METHOD.jsonl has on a line, but for what `compare_batch` adds.

    Raises:
        ConfigError: a text has more tokens than the model has positions.
    """
    if task.kind == "perplexity":
        return read_batch(model, task, jobs, positions, chunk)
    return generate_batch(model, tokenizer, task, jobs, positions, max_new_tokens, chunk)


def compare_batch(
    model: Any,
    tokenizer: Any,
    task: Task,
    jobs: Sequence[Job],
    positions: str | None,
    records: Sequence[Record],
    full: Mapping[str, Record] | str | None,
    chunk: int | None = None,
    logits: Logits | None = None,
) -> None:
    """Add to the records of jobs the metrics that are not read off their answers: likelihood, and fidelity at the end.

    Args:
        full: what fidelity is measured against: the full cache's records of these samples, by sample id; "self"
            if these jobs are the full cache's own; None: it is not measured.
        chunk: as for `run_batch`. logits: as for `fidelity`.

    Raises:
        ConfigError: a sample has no answer to be likely.
    """
    if task.kind == "perplexity":
        return
    if "answer_nll" in task.measured:
        likelihoods = answer_nll(model, tokenizer, task, jobs, positions, chunk)
        for record, nll in zip(records, likelihoods, strict=True):
            record["metrics"]["answer_nll"] = nll
    for record in records:
        record["metrics"] = {name: record["metrics"][name] for name in task.measured}
    if full is None:
        return
    wanted = records if isinstance(full, str) else [full[job.prompt.sample.id] for job in jobs]
    for record, near in zip(records, fidelity(model, jobs, positions, records, wanted, chunk, logits), strict=True):
        record["metrics"].update(near)


def follow(
    model: Any,
    tokenizer: Any,
    task: Task,
    jobs: Sequence[Job],
    positions: str | None,
    full: Mapping[str, Record],
    chunk: int | None = None,
    logits: Logits | None = None,
    watch: Callable[[Any, Sequence[Sequence[int]]], None] | None = None,
) -> list[Record]:
    """Records of jobs that do not answer but read the full cache's answers: fidelity, and likelihood if it is measured.

    Args:
        full: the full cache's records of these samples, by sample id. watch: given the cache while it is empty, and the
            answers. The others: as for `compare_batch`.

    Raises:
        ConfigError: a sample has no answer to be likely.
    """
    given = [full[job.prompt.sample.id] for job in jobs]
    records = follow_batch(model, jobs, positions, given, chunk, logits, watch)
    if "answer_nll" in task.measured:
        likelihoods = answer_nll(model, tokenizer, task, jobs, positions, chunk)
        for record, nll in zip(records, likelihoods, strict=True):
            record["metrics"] = {"answer_nll": nll, **record["metrics"]}
    return records
