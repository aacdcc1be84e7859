"""The methods of a run, one after the other, batch by batch."""

from __future__ import annotations

import warnings
from collections import deque
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import chain, cycle, islice
from typing import Any

from buzz.evaluation.config.methods import MethodConfig
from buzz.evaluation.errors import WriteError
from buzz.evaluation.measure.batch import Job, Prompt
from buzz.evaluation.measure.execute import compare_batch, follow, run_batch
from buzz.evaluation.measure.fidelity import FullLogits
from buzz.evaluation.measure.hive import record_hive, recordable, watch_rows, write_hive
from buzz.evaluation.measure.metric_info import FIDELITY_METRICS
from buzz.evaluation.measure.records import hive_path
from buzz.evaluation.measure.section import SpeedConfig
from buzz.evaluation.measure.speed import long_prompt
from buzz.evaluation.memory import is_out_of_memory, release_memory, slot_bytes
from buzz.evaluation.run.budgets import in_bytes, off_target, policy_for
from buzz.evaluation.run.config import RunConfig
from buzz.evaluation.run.distributed import Group
from buzz.evaluation.run.progress import Progress, prompt_weight, weight
from buzz.evaluation.run.store import RunFolder
from buzz.evaluation.show.tracking import Tracker
from buzz.evaluation.tasks import Task
from buzz.policies import Policy, make_policy
from buzz.words import told

Record = dict[str, Any]
Records = dict[str, Record]  # by sample id
REFITS = 2  # further tries to give a sample the memory that `match` or `reduction` asks for
OUT_OF_MEMORY = "out of memory"
_SPEED = "a long prompt"  # what progress calls it; no method has such a name


def full_method(config: RunConfig, task: Task) -> str | None:
    """The full cache, which the other methods are compared with token by token; None: fidelity is not measured."""
    if not config.generation.fidelity or task.kind != "generation":
        return None
    return next((method.name for method in config.methods if method.policy == "full"), None)


def in_order(methods: Sequence[MethodConfig], full: str | None) -> list[MethodConfig]:
    """The order of work: the full cache, then methods that others are matched with, then the rest."""
    matched = {method.match for method in methods}
    return sorted(methods, key=lambda method: (method.name != full, method.name not in matched))


def cut(prompts: Sequence[Prompt], size: int) -> list[list[Prompt]]:
    """Batches, the longest prompts first: little padding, and too little memory shows early.

    They are the same for every method, for any number of processes and for a run that goes on.
    """
    longest_first = sorted(prompts, key=lambda prompt: -len(prompt.ids))  # stable, so ties keep the order of the data
    return [longest_first[start : start + size] for start in range(0, len(prompts), size)]


@dataclass
class Work:
    """What is left of a run: the methods that are not done.

    What it finds out is in the folder, `records`, `failures` and `halvings`.

    Args:
        model: patched. tokenizer: its own. layers: those that policies decide over.
        prompts: all samples of the run, in the order of the data.
        records: what the folder holds, by method and sample id; what is new is added. Of several processes each adds
            its own samples, and the main process all of them.
        check: called between batches; raises to end the run.
        tracker: told of every batch and every method.
    """

    config: RunConfig
    task: Task
    model: Any
    tokenizer: Any
    layers: int
    prompts: list[Prompt]
    folder: RunFolder
    group: Group
    records: dict[str, Records]
    check: Callable[[], None]
    tracker: Tracker
    failures: dict[str, str] = field(default_factory=dict)  # why a method did not finish
    halvings: list[dict[str, Any]] = field(default_factory=list)  # batches too large for the memory: method, from, to
    _tell: Callable[[int, float, bool], None] | None = None  # who is told of every call
    # What following the first samples has shown, by method and sample id: their policies, and when each head let go.
    _hives: dict[tuple[str, str], tuple[Policy, Any]] = field(default_factory=dict)
    _policies: dict[Any, Policy] = field(default_factory=dict)  # samples alike have policies alike; fitting takes time

    def run(self) -> None:
        """All methods.

        Raises:
            ConfigError: the budget of a method cannot be met; before anything is generated, unless it is matched.
            Whatever `check` raises. PeerLostError: another process is gone.
        """
        batches = cut(self.prompts, self.config.batch_size)
        self._own = [batch for number, batch in enumerate(batches) if self.group.mine(number)]
        self._full = full_method(self.config, self.task)
        self._logits = FullLogits(self.model)
        for method in self.config.methods:
            if method.match is None:
                for prompt in self.prompts:
                    self._job(method, prompt)
        methods = in_order(self.config.methods, self._full)
        planned = {method.name: self._planned(method) for method in methods}
        speed = self.config.speed if self.group.main and self.folder.speed() is None else None
        if speed is not None:
            planned[_SPEED] = (1 + len(speed.methods)) * (prompt_weight(speed.prompt, False) + speed.steps)
        with Progress(planned, self.group.main) as progress:
            self._tell = progress.tell
            for method in methods:
                self._run_method(method, progress)
            if speed is not None:
                self._time(speed, progress)

    def _time(self, speed: SpeedConfig, progress: Progress) -> None:
        """Decoding after a long prompt; where there is no memory for it, the run goes on without."""
        self.check()
        progress.begin(_SPEED)
        progress.batch(prompt_weight(speed.prompt, False))
        ids = list(islice(chain.from_iterable(cycle([prompt.ids for prompt in self.prompts])), speed.prompt))
        known, policies = {method.name: method for method in self.config.methods}, {}
        for name in speed.methods:
            method = known[name]
            policies[name] = policy_for(method, speed.prompt, speed.steps, None, self.layers), method.positions
        try:
            rows = long_prompt(self.model, ids, speed.steps, policies, progress.tell)
        except (RuntimeError, MemoryError) as error:
            if not isinstance(error, MemoryError) and not is_out_of_memory(error):
                raise
            warnings.warn(f"speed is not measured: {OUT_OF_MEMORY}", stacklevel=1)
            release_memory()
            return
        self.folder.write_speed(rows)

    def _planned(self, method: MethodConfig) -> float:
        """How much is left of a method in this process, as progress counts it."""
        done, passes = self.records[method.name], 1
        if self.task.kind == "generation" and not self._follows(method):
            passes += self._full is not None
        total = 0.0
        for batch in self._own:
            lengths = [self.task.calls(len(p.ids), self._most) for p in batch if p.sample.id not in done]
            if lengths:
                prompts, calls = sum(first for first, _ in lengths), max(steps for _, steps in lengths)
                total += weight(prompts, calls, self._echoes(method), passes)
        return total

    def _echoes(self, method: MethodConfig) -> bool:
        return method.make_policy().echo_chunk is not None

    def _run_method(self, method: MethodConfig, progress: Progress) -> None:
        """One method. Every decision before the processes meet rests on what all of them know."""
        done = self.records[method.name]
        if len(done) == len(self.prompts):
            self._record_hives(method)  # killed in between, a run may lack them
            return
        try:
            full = self._full_for(method)
        except LookupError as error:
            self.failures[method.name] = str(error)
            progress.give_up(method.name)
            return
        rest = [[prompt for prompt in batch if prompt.sample.id not in done] for batch in self._own]
        mine = sum(map(len, self._own))
        halvings = len(self.halvings)
        failure = None
        progress.begin(method.name)
        try:
            self._work_off(method, deque(filter(None, rest)), full, progress, mine)
        except MemoryError:
            failure = OUT_OF_MEMORY
            self.folder.raise_flag(method.name)
        everybody = self.group.gather((failure, self.halvings[halvings:], progress.figures()))
        self.halvings[halvings:] = [halving for _, found, _ in everybody for halving in found]
        failures = [found for found, _, _ in everybody if found]
        if failures:
            self.failures[method.name] = failures[0]
            progress.give_up(method.name)
        else:
            progress.finish([figures for _, _, figures in everybody])
        if self.group.size > 1 and self.group.main:
            self.folder.merge([method.name], [prompt.sample.id for prompt in self.prompts])
            done.update(self.folder.samples(method.name))
        self.tracker.method_done(method.name, list(done.values()))
        self._record_hives(method)

    def _full_for(self, method: MethodConfig) -> Mapping[str, Record] | str | None:
        """What fidelity is measured against, so that all records of a method have the same metrics.

        Raises:
            LookupError: the method needs another one that did not finish.
        """
        if method.match in self.failures:
            raise LookupError(f"{method.match}, which it is matched with, did not finish")
        if self._full is None:
            return None
        if self._follows(method) and self._full in self.failures:
            raise LookupError(f"{self._full}, whose answers it is given, did not finish")
        if method.name == self._full:
            return "self"
        known = next(iter(self.records[method.name].values()), None)
        measured = known is not None and has_fidelity(known)
        if self._full in self.failures:
            if measured:  # and of the rest it cannot be
                raise LookupError(f"{self._full}, which it is compared with, did not finish")
            return None
        return self.records[self._full] if known is None or measured else None

    def _work_off(
        self,
        method: MethodConfig,
        queue: deque[list[Prompt]],
        full: Mapping[str, Record] | str | None,
        progress: Progress,
        total: int,
    ) -> None:
        """Batch after batch; one that is too large for the memory is halved, and so are those after it.

        Raises:
            MemoryError: a single sample is too large.
        """
        most = self.config.batch_size
        done = total - sum(map(len, queue))
        while queue:
            self.check()
            if self.folder.flagged(method.name):  # in another process, the method is given up
                return
            prompts = queue.popleft()
            if len(prompts) > most:
                queue.extendleft([prompts[most:], prompts[:most]])
                continue
            first = sum(self.task.calls(len(prompt.ids), self._most)[0] for prompt in prompts)
            progress.batch(prompt_weight(first, self._echoes(method)))
            records = self._try(method, prompts, full)
            if records is None:
                release_memory()
                if len(prompts) == 1:
                    raise MemoryError
                most = len(prompts) // 2
                self.halvings.append({"method": method.name, "from": len(prompts), "to": most})
                queue.appendleft(prompts)
                continue
            self.folder.append(method.name, records)
            self.records[method.name].update((record["id"], record) for record in records)
            done += len(records)
            progress.add(records)
            self.tracker.samples(method.name, records, done, total)

    def _try(
        self, method: MethodConfig, prompts: Sequence[Prompt], full: Mapping[str, Record] | str | None
    ) -> list[Record] | None:
        """The records of a batch, or None if memory ran out. (The error dies here, and its tensors with it.)"""
        model, tokenizer, task, positions = self.model, self.tokenizer, self.task, method.positions
        try:
            jobs, records = self._fitted(method, [self._job(method, prompt) for prompt in prompts])
            if not self._follows(method):
                compare_batch(model, tokenizer, task, jobs, positions, records, full, self._chunk, self._logits)
        except (RuntimeError, MemoryError) as error:
            if isinstance(error, MemoryError) or is_out_of_memory(error):
                return None
            raise
        return records

    def _fitted(self, method: MethodConfig, jobs: Sequence[Job]) -> tuple[list[Job], list[Record]]:
        """The jobs as they were run in the end, and their records.

        Rows that miss the cache length asked for run again, fitted to the calls that they took; the nearest counts. An
        answer's length is only known once it is there, and another policy may give an answer of another length.
        """
        latest = list(zip(jobs, self._run(method, jobs), strict=True))
        best = list(latest)
        for _ in range(REFITS):
            again = []
            for row, (job, record) in enumerate(latest):
                if off_target(method, best[row][1], self._target(method, job.prompt)):
                    refit = self._job(method, job.prompt, record)
                    if refit.policy != job.policy:
                        again.append((row, refit))
            if not again:
                break
            for (row, job), record in zip(again, self._run(method, [job for _, job in again]), strict=True):
                latest[row] = job, record
                target = self._target(method, job.prompt)
                if off_target(method, record, target) < off_target(method, best[row][1], target):
                    best[row] = job, record
        return [job for job, _ in best], [record for _, record in best]

    def _follows(self, method: MethodConfig) -> bool:
        """Whether a method gives no answers but reads the full cache's."""
        return not self.config.generation.answers and method.name != self._full

    def _run(self, method: MethodConfig, jobs: Sequence[Job]) -> list[Record]:
        if self._follows(method):
            return self._follow(method, jobs)
        return run_batch(self.model, self.tokenizer, self.task, jobs, method.positions, self._most, self._chunk)

    def _follow(self, method: MethodConfig, jobs: Sequence[Job]) -> list[Record]:
        """Records of jobs that are given the full cache's answers. The first samples are watched on the way."""
        assert self._full is not None
        chunk, shown = self._chunk, {prompt.sample.id for prompt in self.prompts[: self.config.hive]}
        prompts = [job.prompt for job in jobs]
        rows = [row for row, prompt in enumerate(prompts) if prompt.sample.id in shown]
        at_once = all(prompt.context is None and len(prompt.ids) <= (chunk or len(prompt.ids)) for prompt in prompts)

        def watch(cache: Any, answers: Sequence[Sequence[int]]) -> None:
            for row, evicted_at in watch_rows(self.model, cache, jobs, answers, rows).items():
                self._hives[method.name, prompts[row].sample.id] = jobs[row].policy, evicted_at

        return follow(
            self.model,
            self.tokenizer,
            self.task,
            jobs,
            method.positions,
            self.records[self._full],
            chunk,
            self._logits,
            watch if rows and at_once else None,
        )

    @property
    def _most(self) -> int:
        return self.config.generation.max_new_tokens

    @property
    def _chunk(self) -> int | None:
        return self.config.generation.prefill_chunk_size

    def _target(self, method: MethodConfig, prompt: Prompt) -> Record | None:
        return self.records[method.match][prompt.sample.id] if method.match else None

    def _job(self, method: MethodConfig, prompt: Prompt, before: Record | None = None) -> Job:
        """A sample under the policy that fits it; `before`: what an earlier try has measured."""
        first, expected = self.task.calls(len(prompt.ids), self._most)
        target = self._target(method, prompt)
        if target and before:
            target = target | {"new_tokens": before["new_tokens"]}  # the length of the other's answer does not count
        if target and in_bytes(method):
            target = target | {
                "cache": {"mean_tokens": target["cache"]["mean_bytes"] / self._per_token(method, before)}
            }
        if self._full is not None and self._follows(method):
            given = self.records[self._full].get(prompt.sample.id)
            expected = expected if given is None else given["new_tokens"] - 1
        calls = before["new_tokens"] - 1 if before else expected
        context = prompt.context or 0
        key = (method.name, first, context, calls, target and (target["new_tokens"], target["cache"]["mean_tokens"]))
        if key not in self._policies:
            self._policies[key] = policy_for(method, first, calls, target, self.layers, self._chunk, context)
        return Job(prompt, self._policies[key], self._tell)

    def _per_token(self, method: MethodConfig, before: Record | None) -> float:
        """Bytes allocated for each token that a method holds: as an earlier try has measured it, or a slot's."""
        if before:
            return float(before["cache"]["mean_bytes"] / before["cache"]["mean_tokens"])
        return float(slot_bytes(self.model, method.make_policy()))

    def _record_hives(self, method: MethodConfig) -> None:
        """What the policy let go of in the first samples, token by token, each recorded by the process that has it.

        An extra of the report: nothing that goes wrong here ends a run but a file that cannot be written.
        """
        own = {prompt.sample.id for batch in self._own for prompt in batch}
        for number, prompt in enumerate(self.prompts[: self.config.hive]):
            record = self.records[method.name].get(prompt.sample.id)
            path = hive_path(self.folder.path, method.name, number)
            if record is None or prompt.sample.id not in own or path.exists() or not recordable(record, self._chunk):
                continue
            self.check()
            try:
                job = Job(prompt, make_policy(**record["policy"]))
                watched = self._hives.pop((method.name, prompt.sample.id), None)
                if watched is not None and watched[0] == job.policy:
                    ids = [*prompt.ids, *record["output_ids"]]
                    write_hive(self.tokenizer, job, ids, len(prompt.ids), watched[1], path)
                else:
                    record_hive(self.model, self.tokenizer, self.task, job, method.positions, record, path)
            except WriteError:
                raise
            except Exception as error:
                warnings.warn(f"{method.name}: no hive of {prompt.sample.id}: {told(error)}", stacklevel=1)
                release_memory()


def has_fidelity(record: Mapping[str, Any]) -> bool:
    """Whether a record was compared with the full cache."""
    return FIDELITY_METRICS[0] in record["metrics"]
