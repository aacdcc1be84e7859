"""Runs a config: every method over every sample, into the run folder.

All that can be wrong with a config is found before the model's weights are read.
"""

from __future__ import annotations

import contextlib
import dataclasses
import json
import math
import signal
import sys
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from datetime import datetime, timezone
from pathlib import Path
from typing import Any

import torch

import buzz
from buzz.evaluation.errors import ConfigError, WriteError
from buzz.evaluation.measure.batch import prompt_hash
from buzz.evaluation.measure.execute import encode
from buzz.evaluation.measure.hive import recordable
from buzz.evaluation.measure.metric_info import FIDELITY_METRICS, FOLLOWED_METRICS
from buzz.evaluation.measure.perplexity import check_length
from buzz.evaluation.measure.records import hive_path
from buzz.evaluation.measure.summary import summarise
from buzz.evaluation.models.load import ModelLoader, quiet_transformers
from buzz.evaluation.models.source import ModelSource, check_model
from buzz.evaluation.paths import short
from buzz.evaluation.run.budgets import TOLERANCE, in_bytes, off_target, otherwise
from buzz.evaluation.run.config import RunConfig, comparisons, to_dict
from buzz.evaluation.run.distributed import Group, PeerLostError, join
from buzz.evaluation.run.shares import know_shares
from buzz.evaluation.run.signals import Interrupted, held_back
from buzz.evaluation.run.store import RunFolder
from buzz.evaluation.run.work import Records, Work, full_method, has_fidelity
from buzz.evaluation.show.report.write import write_report
from buzz.evaluation.show.tracking import Tracker, track
from buzz.evaluation.tasks import Sample, Task, make_task
from buzz.evaluation.tasks.section import remarks

STOP = "stop"  # the flag by which one process ends the run of all


def run(config: RunConfig, loader: ModelLoader | None = None) -> dict[str, Any]:
    """Run a config, or go on with it where its folder stops.

    The order: task data, model (without its weights), run folder, then the weights, then method after method. A run
    that is already complete loads no weights and writes its summary anew. A method that runs out of memory even with
    a batch of one is given up (`failed` in its summary), and the run goes on with the next.

    Started by `accelerate launch` or torchrun, several processes share the batches; all of them must call this.

    Args:
        loader: keeps the model for the next run; None: loaded for this one.

    Returns:
        The summary, as in summary.json.

    Raises:
        ConfigError: the config, its data, its model or its folder cannot be used.
        Interrupted: SIGINT or SIGTERM came; the batch in flight was finished and written.
        PeerLostError: another process of the run is gone. WriteError: a file of the run cannot be written.
    """
    group = join()
    task = make_task(config.task)
    samples = task.load()
    source = check_model(config.model)
    check_length(config, task, source)
    longest = _longest_prompt(config, task, source)
    _check_speed(config, source)
    fingerprints = {"model": source.fingerprint, "data": task.fingerprint()}
    with held_back(group.size > 1) as came, RunFolder(config, fingerprints, group) as folder:
        one = _Run(config, group, task, samples, source, folder, came)
        with one.ending_together(), quiet_transformers():
            one.take_up()
            loaded = one.load(loader or ModelLoader()) if one.pending() else None
            with track(to_dict(config), folder.path, folder.environment(), one.records, group.main) as tracker:
                if loaded:
                    one.work(*loaded, longest, tracker)
                else:
                    one.tell_complete()
                summary = group.by_main(one.finish)
                tracker.summary(summary)
                tracker.report(folder.path / "report.html")
        return summary


def _longest_prompt(config: RunConfig, task: Task, source: ModelSource) -> int | None:
    """Prompt tokens that fit the model beside the answer; None: no limit, as for a text that is read as a stream."""
    if source.max_positions is None or task.kind != "generation":
        return None
    longest = source.max_positions - config.generation.max_new_tokens
    if longest < 1:
        what = f"{config.generation.max_new_tokens} leaves no room for a prompt"
        allowed = f"less than the model's {source.max_positions} positions is wanted"
        raise ConfigError("generation.max_new_tokens", what, allowed)
    return longest


def _check_speed(config: RunConfig, source: ModelSource) -> None:
    """Refuse a long prompt that is too long for the model."""
    needed = 0 if config.speed is None else config.speed.prompt + config.speed.steps
    if source.max_positions is not None and needed > source.max_positions:
        what, allowed = f"{needed} tokens with its steps", f"at most the model's {source.max_positions} are wanted"
        raise ConfigError("speed.prompt", what, allowed)


@dataclass
class _Run:
    """The parts of a run, and what is known so far."""

    config: RunConfig
    group: Group
    task: Task
    samples: list[Sample]
    source: ModelSource
    folder: RunFolder
    came: Callable[[], int | None]  # the signal that has come
    records: dict[str, Records] = field(default_factory=dict)
    failures: dict[str, str] = field(default_factory=dict)

    def check(self) -> None:
        """Between batches: end the run once a signal has come, here or in another process, or another has failed."""
        word = json.loads(self.folder.flagged(STOP) or "null") or self.came()
        if isinstance(word, list):
            raise ConfigError(*word)
        if word:
            raise Interrupted(word, self.config.output)

    @contextlib.contextmanager
    def ending_together(self) -> Iterator[None]:
        """Whatever ends this process inside the block ends the others after their batch."""
        try:
            yield
        except PeerLostError:
            self.check()  # what ended the other one most likely has been told, or came here, too
            raise
        except Interrupted as stop:
            self.folder.raise_flag(STOP, json.dumps(stop.number))
            raise
        except ConfigError as error:
            self.folder.raise_flag(STOP, json.dumps([error.where, error.what, error.allowed]))
            raise
        except Exception:
            with contextlib.suppress(WriteError):  # on a full disk the others find that out, too
                self.folder.raise_flag(STOP, json.dumps(signal.SIGTERM))
            raise

    def take_up(self) -> None:
        """Read what the folder holds, from however many processes."""
        methods = [method.name for method in self.config.methods]
        self.group.by_main(lambda: self.folder.merge(methods, [sample.id for sample in self.samples]))
        self.records = {method: self._known(method) for method in methods}
        for method in self.config.methods:
            known = self.records[method.name].values()
            told = filter(None, (otherwise(method, record) for record in known if len(known) < len(self.samples)))
            if what := next(told, None):
                what = f"{self.folder.path} holds samples of {method.name} by other rules ({what})"
                raise ConfigError("output", what, "choose another output or delete the folder")
        for method in filter(in_bytes, self.config.methods):
            for name in (method.name, str(method.match)):
                if not all("mean_bytes" in record["cache"] for record in self.records[name].values()):
                    what = f"{self.folder.path} holds samples of {name} without their bytes, which {method.name} needs"
                    raise ConfigError("output", what, "choose another output or delete the folder")
        self.group.gather(None)  # nobody writes before everybody has read

    def _known(self, method: str) -> Records:
        """A method's records in the folder; they must be of these very prompts."""
        known = self.folder.samples(method)
        prompts = {sample.id: sample.text for sample in self.samples}
        for name, record in known.items():
            if name not in prompts or record["prompt_hash"] != prompt_hash(prompts[name]):
                what = f"{self.folder.path} holds a sample {name!r} with another prompt"
                raise ConfigError("output", what, "choose another output or delete the folder")
        return known

    def pending(self) -> bool:
        """Whether the model is needed: samples are missing, or what a run that was cut short has not recorded yet."""
        if any(len(records) < len(self.samples) for records in self.records.values()):
            return True
        if self.config.speed is not None and self.folder.speed() is None:
            return True
        chunk = self.config.generation.prefill_chunk_size
        return not (self.folder.path / "summary.json").exists() and any(
            recordable(records[sample.id], chunk) and not hive_path(self.folder.path, method, number).exists()
            for method, records in self.records.items()
            for number, sample in enumerate(self.samples[: self.config.hive])
        )

    def tell_complete(self) -> None:
        """Say that there is nothing left to measure, and how to measure anew."""
        if self.group.main:
            path = short(self.folder.path)
            print(f"{path} has all of this run already; to begin anew: rm -r {path}", file=sys.stderr)

    def load(self, loader: ModelLoader) -> tuple[Any, Any, dict[str, Any]]:
        """Model, tokenizer and what environment.json says about them."""
        if self.group.main and sys.stderr.isatty():
            print(f"loading {self.source.path if self.source.gguf else self.source.root}", file=sys.stderr)
        loaded = loader.load(self.config.model, self.source, self.group.local)
        if self.group.main:
            self.folder.write_environment(loaded[2])
        torch.manual_seed(self.config.seed)
        return loaded

    def work(self, model: Any, tokenizer: Any, info: dict[str, Any], longest: int | None, tracker: Tracker) -> None:
        """Do what is missing."""
        chat = self.config.model.chat_template
        prompts = [encode(tokenizer, self.task, sample, chat, longest) for sample in self.samples]
        cut = next((prompt.sample.id for prompt in prompts if prompt.truncated), None)
        if cut is not None and self.task.made:
            what = f"{cut} and its answer are longer than the model's positions"
            raise ConfigError(
                "task.lengths", what, "shorter texts are wanted: one that is cut may have lost its needle"
            )
        self.check()
        work = Work(
            config=self.config,
            task=self.task,
            model=model,
            tokenizer=tokenizer,
            layers=info["full_attention_layers"] or info["layers"],  # that policies decide over
            prompts=prompts,
            folder=self.folder,
            group=self.group,
            records=self.records,
            check=self.check,
            tracker=tracker,
        )
        try:
            with buzz.patch_model(model):
                know_shares(model, self.config.methods, self.folder, self.group)
                work.run()
        finally:
            self.failures = work.failures
            if self.group.main and work.halvings:
                self.folder.extend_environment("batch_halvings", work.halvings)

    def finish(self) -> dict[str, Any]:
        """summary.json and the report; the others wait."""
        self.folder.clear_flags()
        order = [sample.id for sample in self.samples]
        records = {name: [known[sample] for sample in order if sample in known] for name, known in self.records.items()}
        metrics = self._metrics()
        facts, compare = self._facts(metrics), comparisons(self.config)
        summary = summarise(records, metrics, self.failures, facts, self.config.seed, compare)
        if self.config.speed is not None and (rows := self.folder.speed()):
            summary["speed"] = rows
        self.folder.write_summary(summary)
        if any(records.values()):
            write_report([self.folder.path], self.folder.path)
        return summary

    def _metrics(self) -> list[str]:
        """The metrics of the summary: those of answers alone where all methods give some."""
        if not self.config.generation.answers:
            return [*(metric for metric in self.task.measured if metric == "answer_nll"), *FOLLOWED_METRICS]
        return [*self.task.measured, *(FIDELITY_METRICS if self._compared() else ())]

    def _facts(self, metrics: list[str]) -> dict[str, Any]:
        source, environment = self.source, self.folder.environment()
        first = next(iter(self.records.values())).values()
        facts = {
            "name": self.config.name,
            "model": Path(source.gguf).stem if source.gguf else Path(source.root).name,
            "task": self.config.task.name,
            "samples": len(self.samples),
            "truncated": sum("truncated" in record for record in first),
            "metrics": metrics,
            "headline": self.task.headline if self.task.headline in metrics else FIDELITY_METRICS[0],
            "full": next((method.name for method in self.config.methods if method.policy == "full"), None),
            "finished": datetime.now(timezone.utc).isoformat(timespec="seconds"),
            "buzz": buzz.__version__,
            "processes": self.group.size if self.group.size > 1 else None,
            "batch_halvings": environment.get("batch_halvings"),
            "notes": self._notes(),
        }
        optional = ("processes", "batch_halvings", "notes")
        return {key: value for key, value in facts.items() if value or key not in optional}

    def _compared(self) -> list[str]:
        """The methods whose samples were compared with the full cache."""
        first = {name: next(iter(known.values()), None) for name, known in self.records.items()}
        return [name for name, record in first.items() if record is not None and has_fidelity(record)]

    def _notes(self) -> list[str]:
        """What a reader of the figures should know."""
        model = self.folder.environment().get("model", {})
        if model.get("full_attention_layers") == 0:
            window = f"a sliding window of {model['sliding_window']} tokens"
            kept = [f"every layer of this model has {window}, which it keeps: the methods decide nothing"]
        else:
            kept = self._idle()
        asked = remarks(dataclasses.asdict(self.config.task))
        return [*asked, *self._uncompared(), *self._mixed(), *kept, *self._missed()]

    def _mixed(self) -> list[str]:
        """Which methods have which positions, where these differ. The full cache's slots are its positions."""
        found: dict[str, list[str]] = {}
        for method in self.config.methods:
            known = next(iter(self.records[method.name].values()), {})
            if method.policy != "full" and "positions" in known:  # older records do not tell
                found.setdefault(known["positions"], []).append(method.name)
        if len(found) < 2:
            return []
        each = "; ".join(f"{positions}: {', '.join(names)}" for positions, names in found.items())
        return [f"methods differ in their keys' positions, so more than their rules is compared ({each})"]

    def _idle(self) -> list[str]:
        """The methods with room for more than any sample needed."""
        limited = [method.name for method in self.config.methods if method.policy != "full"]
        caches = {name: [record["cache"] for record in self.records[name].values()] for name in limited}
        idle = [
            name
            for name, held in caches.items()
            if held and all(math.isclose(cache["mean_tokens"], cache["full_mean_tokens"]) for cache in held)
        ]
        return [
            f"{name} never evicted: it may hold more than any sample needed, so it is a full cache" for name in idle
        ]

    def _missed(self) -> list[str]:
        """The methods with samples for which there was no policy of the memory asked for."""
        found = []
        for method in self.config.methods:
            targets = self.records[method.match] if method.match else {}
            known = self.records[method.name]
            off = [off_target(method, record, targets.get(name)) for name, record in known.items()]
            if missed := [share for share in off if share]:
                asked = f"match: {method.match}" if method.match else f"reduction: {method.reduction:g}"
                asked += " in bytes" if in_bytes(method) else ""
                share = f"{100 * math.fsum(missed) / len(missed):.0f}%"
                found.append(
                    f"{method.name}: {len(missed)} of {len(off)} samples miss {asked} by more than "
                    f"{100 * TOLERANCE:.0f}%, by {share} in the mean; they have the nearest there was"
                )
        return found

    def _uncompared(self) -> list[str]:
        """The methods that fidelity says nothing of."""
        full = full_method(self.config, self.task)
        if full is None:
            return []
        left_out = [name for name, known in self.records.items() if known and name not in self._compared()]
        why = f"{full} had run out of memory when this method ran"
        return [f"{name} is not compared with {full} token by token: {why}" for name in left_out]
