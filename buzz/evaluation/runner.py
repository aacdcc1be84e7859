"""Runs a config: every method over every sample, into the run folder.

All that can be wrong with a config is found before the model's weights are read.
"""

from __future__ import annotations

import contextlib
import signal
import sys
import threading
import time
from collections import deque
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from datetime import datetime, timezone
from pathlib import Path
from typing import Any

import buzz
from buzz.evaluation.config import MethodConfig, RunConfig
from buzz.evaluation.errors import ConfigError
from buzz.evaluation.generate import (
    Job,
    Prompt,
    encode,
    generate_batch,
    is_out_of_memory,
    prompt_hash,
    release_memory,
)
from buzz.evaluation.matching import policy_for
from buzz.evaluation.models import ModelSource, check_model, load_model, quiet_transformers
from buzz.evaluation.plot import plot_quality
from buzz.evaluation.store import RunFolder
from buzz.evaluation.summary import summarise
from buzz.evaluation.table import markdown_report
from buzz.evaluation.tasks import Sample, Task, make_task
from buzz.policies import Policy

PLOT = "quality.png"
Records = dict[str, dict[str, Any]]  # sample records by sample id


class Interrupted(Exception):  # noqa: N818 - not an error
    """A signal ended a run between two batches; everything finished is in its folder."""

    def __init__(self, number: int, output: str) -> None:
        super().__init__(number, output)
        self.number, self.output = number, output


def run(config: RunConfig) -> dict[str, Any]:
    """Run a config, or go on with it where its folder stops.

    The order: task data, model (without its weights), run folder, then the weights, then method after method. A run
    that is already complete loads no weights and writes its summary anew. A method that runs out of memory even with
    a batch of one is given up (`failed` in its summary), and the run goes on with the next.

    Returns:
        The summary, as in summary.json.

    Raises:
        ConfigError: the config, its data, its model or its folder cannot be used.
        Interrupted: SIGINT or SIGTERM came; the batch in flight was finished and written.
    """
    if config.wandb.mode != "disabled":
        raise ConfigError("wandb.mode", "tracking with Weights & Biases is not built yet", "disabled is wanted")
    task = make_task(config.task)
    samples = task.load()
    source = check_model(config.model)
    longest = _longest_prompt(config, source)
    fingerprints = {"model": source.fingerprint, "data": task.fingerprint()}
    with _signals(config.output) as check, RunFolder(config, fingerprints) as folder:
        state = _Run(config, task, samples, longest, folder, check)
        if state.pending():
            with quiet_transformers():
                state.load_model(source)
                check()
                with buzz.patch_model(state.model):
                    state.run_methods()
        return _finish(config, task, state, source, folder)


def _longest_prompt(config: RunConfig, source: ModelSource) -> int | None:
    """Prompt tokens that fit the model beside the answer."""
    if source.max_positions is None:
        return None
    longest = source.max_positions - config.generation.max_new_tokens
    if longest < 1:
        what = f"{config.generation.max_new_tokens} leaves no room for a prompt"
        allowed = f"less than the model's {source.max_positions} positions is wanted"
        raise ConfigError("generation.max_new_tokens", what, allowed)
    return longest


@dataclass
class _Run:
    """What a run has while it goes: its parts, the records so far, and the methods that failed."""

    config: RunConfig
    task: Task
    samples: list[Sample]
    longest: int | None
    folder: RunFolder
    check: Any  # raises Interrupted once a signal has come
    model: Any = None
    tokenizer: Any = None
    failures: dict[str, str] = field(default_factory=dict)
    records: dict[str, Records] = field(init=False)

    def __post_init__(self) -> None:
        self.records = {method.name: self._known(method.name) for method in self.config.methods}

    def _known(self, method: str) -> Records:
        """A method's records in the folder; they must be of these very prompts."""
        known = self.folder.samples(method)
        prompts = {sample.id: sample.prompt for sample in self.samples}
        for name, record in known.items():
            if name not in prompts or record["prompt_hash"] != prompt_hash(prompts[name]):
                what = f"{self.folder.path} holds a sample {name!r} with another prompt"
                raise ConfigError("output", what, "choose another output or delete the folder")
        return known

    def pending(self) -> bool:
        return any(len(records) < len(self.samples) for records in self.records.values())

    def load_model(self, source: ModelSource) -> None:
        import torch

        if sys.stderr.isatty():
            print(f"loading {source.path if source.gguf else source.root}", file=sys.stderr)
        self.model, self.tokenizer, info = load_model(self.config.model, source)
        self.folder.write_environment(info)
        torch.manual_seed(self.config.seed)

    def run_methods(self) -> None:
        """Every method, those that others are matched with first."""
        chat = self.config.model.chat_template
        prompts = [encode(self.tokenizer, sample, chat, self.longest) for sample in self.samples]
        methods = self.config.methods
        for method in methods:
            if method.match is None:
                self._jobs(method, prompts)  # a budget that cannot be met is told before anything is generated
        for method in sorted(methods, key=lambda method: method.match is not None):
            self._run_method(method, prompts)

    def _run_method(self, method: MethodConfig, prompts: Sequence[Prompt]) -> None:
        if method.match in self.failures:
            self.failures[method.name] = f"{method.match}, which it is matched with, did not finish"
            return
        done = self.records[method.name]
        batches = _batches(self._jobs(method, prompts), self.config.batch_size)
        # Batches are cut before finished samples are taken out, so that a continued run has the same ones.
        queue = deque(rest for batch in batches if (rest := [job for job in batch if job.prompt.sample.id not in done]))
        if not queue:
            return
        with _Progress(method.name, len(prompts), len(done)) as progress:
            try:
                self._work_off(method, queue, progress)
            except MemoryError:
                self.failures[method.name] = "out of memory"

    def _jobs(self, method: MethodConfig, prompts: Sequence[Prompt]) -> list[Job]:
        policies: dict[Any, Policy] = {}  # samples alike have policies alike; fitting takes milliseconds each
        jobs = []
        for prompt in prompts:
            target = self.records[method.match][prompt.sample.id] if method.match else None
            key = (len(prompt.ids), target and (target["new_tokens"], target["cache"]["mean_tokens"]))
            if key not in policies:
                policies[key] = policy_for(method, len(prompt.ids), target)
            jobs.append(Job(prompt, policies[key]))
        return jobs

    def _work_off(self, method: MethodConfig, queue: deque[list[Job]], progress: _Progress) -> None:
        """Batch after batch; one that is too large for the memory is halved, and so are those after it.

        Raises:
            MemoryError: a single sample is too large.
        """
        most = self.config.batch_size
        while queue:
            self.check()
            jobs = queue.popleft()
            if len(jobs) > most:
                queue.extendleft([jobs[most:], jobs[:most]])
                continue
            records = self._try(method, jobs)
            if records is None:
                release_memory()
                if len(jobs) == 1:
                    raise MemoryError
                most = len(jobs) // 2
                queue.appendleft(jobs)
                continue
            self.folder.append(method.name, records)
            self.records[method.name].update((record["id"], record) for record in records)
            progress.add(records)

    def _try(self, method: MethodConfig, jobs: Sequence[Job]) -> list[dict[str, Any]] | None:
        """The records of a batch, or None if memory ran out. (The error dies here, and its tensors with it.)"""
        tokens = self.config.generation.max_new_tokens
        try:
            return generate_batch(self.model, self.tokenizer, self.task, jobs, method.positions, tokens)
        except (RuntimeError, MemoryError) as error:
            if isinstance(error, MemoryError) or is_out_of_memory(error):
                return None
            raise


def _batches(jobs: Sequence[Job], size: int) -> list[list[Job]]:
    """Jobs of equal policies together, the longest prompts first: little padding, and too little memory shows early."""
    groups: dict[Policy, list[Job]] = {}
    for job in sorted(jobs, key=lambda job: -len(job.prompt.ids)):  # stable, so ties keep the order of the data
        groups.setdefault(job.policy, []).append(job)
    return [group[start : start + size] for group in groups.values() for start in range(0, len(group), size)]


def _finish(config: RunConfig, task: Task, state: _Run, source: ModelSource, folder: RunFolder) -> dict[str, Any]:
    """summary.json, report.md and the plot."""
    order = [sample.id for sample in state.samples]
    records = {
        name: [state.records[name][sample] for sample in order if sample in state.records[name]]
        for name in state.records
    }
    facts = {
        "name": config.name,
        "model": Path(source.gguf).stem if source.gguf else Path(source.root).name,
        "task": config.task.name,
        "samples": len(state.samples),
        "truncated": sum("truncated" in record for record in next(iter(records.values()))),
        "metrics": list(task.metrics),
        "headline": task.headline,
        "full": next((method.name for method in config.methods if method.policy == "full"), None),
        "finished": datetime.now(timezone.utc).isoformat(timespec="seconds"),
        "buzz": buzz.__version__,
    }
    summary = summarise(records, task.metrics, state.failures, facts, config.seed)
    folder.write_summary(summary)
    plotted = plot_quality(summary, task.headline, folder.path / PLOT)
    folder.write_report(markdown_report(summary, PLOT if plotted else None))
    return summary


class _Progress:
    """A bar for one method on a terminal; elsewhere one line once the method is done."""

    def __init__(self, name: str, total: int, done: int) -> None:
        from tqdm import tqdm

        self._name, self._tokens, self._cached, self._samples = name, 0, 0.0, 0
        self._started = time.perf_counter()
        self._hidden = not sys.stderr.isatty()
        self._bar = tqdm(total=total, initial=done, desc=name, unit="sample", dynamic_ncols=True, disable=self._hidden)

    def __enter__(self) -> _Progress:
        return self

    def __exit__(self, kind: object, *_: object) -> None:
        self._bar.close()
        if self._hidden and kind is None and self._samples:
            print(f"{self._name}: {self._samples} samples, {self._figures()}", file=sys.stderr)

    def add(self, records: Sequence[dict[str, Any]]) -> None:
        """Take in a finished batch."""
        self._samples += len(records)
        self._tokens += sum(record["new_tokens"] for record in records)
        self._cached += sum(record["cache"]["mean_tokens"] for record in records)
        self._bar.set_postfix_str(self._figures(), refresh=False)
        self._bar.update(len(records))

    def _figures(self) -> str:
        rate = self._tokens / (time.perf_counter() - self._started)
        return f"{rate:.1f} tokens/s, {self._cached / self._samples:.0f} cached"


@contextlib.contextmanager
def _signals(output: str) -> Iterator[Any]:
    """Hold SIGINT and SIGTERM back inside the block; yields a function that raises `Interrupted` once one has come.

    A second signal acts as it would without this. Outside of the main thread signals cannot be caught, and are not.
    """
    came: list[int] = []
    if threading.current_thread() is not threading.main_thread():
        yield lambda: None
        return
    before = {number: signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)}

    def restore() -> None:
        for number, handler in before.items():
            signal.signal(number, handler)

    def note(number: int, _: object) -> None:
        came.append(number)
        restore()

    def check() -> None:
        if came:
            raise Interrupted(came[0], output)

    for number in before:
        signal.signal(number, note)
    try:
        yield check
    finally:
        restore()
