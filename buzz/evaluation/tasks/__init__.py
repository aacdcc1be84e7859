"""Tasks: where samples come from, how a model is asked, and how its answer is scored.

Read `base`, what every task is, then any task: `summarization` is the simplest. Below them: `data` reads rows from
files and, through `hub`, from the network; `fields` says what is wrong with a row; of samples that are made, `grid` has
the cells and `filler` the texts; `section` has the config's keys.
"""

from __future__ import annotations

import dataclasses
from typing import Any

from buzz.evaluation.config.schema import build, keys_of, refuse_unknown, said
from buzz.evaluation.errors import ConfigError
from buzz.evaluation.tasks.base import Sample, Task
from buzz.evaluation.tasks.language_modeling import Stream, Wikitext
from buzz.evaluation.tasks.longbench import LongBench
from buzz.evaluation.tasks.passkey import Passkey
from buzz.evaluation.tasks.question_answering import TenDocumentQA
from buzz.evaluation.tasks.ruler import Ruler
from buzz.evaluation.tasks.section import TaskConfig
from buzz.evaluation.tasks.summarization import CnnDailyMail, CnnDailyMailSelfBleu, Xsum
from buzz.words import hint

# A new task is one class and one entry here.
TASKS: dict[str, type[Task]] = {
    task.name: task
    for task in (Xsum, CnnDailyMail, CnnDailyMailSelfBleu, TenDocumentQA, Passkey, Ruler, LongBench, Wikitext, Stream)
}


def make_task(config: TaskConfig) -> Task:
    """The task that a config names. Cheap: data is read by `Task.load`.

    Raises:
        ConfigError: no such task (lists them), or a prompt template that names unknown fields.
    """
    return _named(config.name, "task.name")(config)


def parse_task(raw: Any, where: str) -> TaskConfig:
    """The `task` section: the keys that all tasks have, and those of this task's `Options`.

    Raises:
        ConfigError: no such task (lists them), an unknown or missing key, or a value that is impossible.
    """
    own = [key for key in keys_of(TaskConfig) if key != "options"]
    if not isinstance(raw, dict):
        raise ConfigError(where, said(raw), f"a mapping with the keys {', '.join(own)} is wanted")
    shared = {key: value for key, value in raw.items() if key in own}
    if not isinstance(raw.get("name"), str):
        return build(TaskConfig, shared, where)  # for its error
    options = _named(raw["name"], f"{where}.name").Options  # first: which other keys there are depends on it
    refuse_unknown(raw, [*own, *keys_of(options)], where)
    given = {key: value for key, value in raw.items() if key not in own}
    common = build(TaskConfig, shared, where)
    return dataclasses.replace(common, options=dataclasses.asdict(build(options, given, where)))


def _named(name: str, where: str) -> type[Task]:
    """The task of this name."""
    if name not in TASKS:
        what = f"unknown task {name!r}{hint(name, TASKS)}"
        raise ConfigError(where, what, f"one of {', '.join(TASKS)} is wanted")
    return TASKS[name]


__all__ = ["TASKS", "Sample", "Task", "make_task", "parse_task"]
