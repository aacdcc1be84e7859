"""The section `task` of a config."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

from buzz.evaluation.config.schema import at_least, matching


@dataclass(frozen=True)
class TaskConfig:
    """Which task on which data.

    Args:
        data: a local file; None: the task's hub data set (then `split` counts).
        options: keys of the task's own (its `Options`), in the YAML beside the others; all of them, defaults included.
    """

    name: str
    data: str | None = field(default=None, metadata=matching(r"(?s).*\S.*", "a file is wanted"))
    split: str = field(default="validation", metadata=matching(r"\S(.*\S)?", "the name of a split is wanted"))
    limit: int | None = field(default=200, metadata=at_least(1))
    prompt: str | None = None
    options: dict[str, Any] = field(default_factory=dict)
