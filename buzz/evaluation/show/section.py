"""The section `wandb` of a config."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Literal

from buzz.evaluation.config.schema import matching


@dataclass(frozen=True)
class WandbConfig:
    """Tracking with Weights & Biases; off unless asked for. `group`: runs that one dashboard shows together."""

    mode: Literal["disabled", "offline", "online"] = "disabled"
    project: str = field(default="buzz", metadata=matching(r"\S(.*\S)?", "the name of a project is wanted"))
    group: str | None = field(default=None, metadata=matching(r"\S(.*\S)?", "the name of a group is wanted"))
