"""The section `task` of a config."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from buzz.evaluation.config.schema import at_least, matching
from buzz.evaluation.tasks.split import Rows


@dataclass(frozen=True)
class TaskConfig:
    """Which task on which data.

    Args:
        data: a local file; None: the task's hub data set (then `split` counts).
        limit: at most so many samples, of those that `rows` leaves.
        rows: "tune": those whose ids say so, a quarter of them (see `split`); "test": the others.
        query_aware: False: what the question is about is read, and compressed, before the question is. For tasks that
            have both (`Task.asks`).
        answer_prefix: what every answer is made to begin with, given and not scored; None: nothing. Not for texts that
            are only read, and not where a task has prefixes of its own.
        options: keys of the task's own (its `Options`), in the YAML beside the others; all of them, defaults included.
    """

    name: str
    data: str | None = field(default=None, metadata=matching(r"(?s).*\S.*", "a file is wanted"))
    split: str = field(default="validation", metadata=matching(r"\S(.*\S)?", "the name of a split is wanted"))
    limit: int | None = field(default=200, metadata=at_least(1))
    rows: Rows = "all"
    prompt: str | None = None
    query_aware: bool = True
    answer_prefix: str | None = field(
        default=None, metadata=matching(r"(?s)\S(.*\S)?", "text without blanks around it is wanted")
    )
    options: dict[str, Any] = field(default_factory=dict)


def remarks(task: Mapping[str, Any]) -> list[str]:
    """What a reader of a run's figures must know of its `task` section, as plain data; older ones lack some keys."""
    rows = {"tune": "tuning rows alone (task.rows: tune)", "test": "test rows alone (task.rows: test)"}
    told = [rows[task["rows"]]] if task.get("rows") in rows else []
    if not task.get("query_aware", True):
        told.append("contexts are read, and compressed, before the questions (task.query_aware: false)")
    if task.get("answer_prefix"):
        told.append(f"answers are made to begin with {task['answer_prefix']!r} (task.answer_prefix)")
    return told
