"""Tasks: where samples come from, how a model is asked, and how its answer is scored."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from buzz.evaluation.errors import ConfigError
from buzz.evaluation.tasks.base import Sample, Task
from buzz.evaluation.tasks.language_modeling import Stream, Wikitext
from buzz.evaluation.tasks.longbench import LongBench
from buzz.evaluation.tasks.passkey import Passkey
from buzz.evaluation.tasks.question_answering import TenDocumentQA
from buzz.evaluation.tasks.summarization import CnnDailyMail, CnnDailyMailSelfBleu, Xsum
from buzz.words import hint

if TYPE_CHECKING:  # config imports this package to check task names
    from buzz.evaluation.run.config import TaskConfig

# A new task is one class and one entry here.
TASKS: dict[str, type[Task]] = {
    task.name: task
    for task in (Xsum, CnnDailyMail, CnnDailyMailSelfBleu, TenDocumentQA, Passkey, LongBench, Wikitext, Stream)
}


def options_of(name: str) -> Any:
    """The dataclass of a task's own config keys; None for an unknown task."""
    return TASKS[name].Options if name in TASKS else None


def make_task(config: TaskConfig) -> Task:
    """The task that a config names. Cheap: data is read by `Task.load`.

    Raises:
        ConfigError: no such task (lists them), or a prompt template that names unknown fields.
    """
    if config.name not in TASKS:
        raise ConfigError(
            "task.name",
            f"unknown task {config.name!r}{hint(config.name, TASKS)}",
            f"one of {', '.join(TASKS)} is wanted",
        )
    return TASKS[config.name](config)


__all__ = ["TASKS", "Sample", "Task", "make_task", "options_of"]
