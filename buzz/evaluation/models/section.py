"""The section `model` of a config."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Literal

from buzz.evaluation.config.schema import matching

_DEVICE = matching(
    r"auto|cpu|mps|(cuda|xpu)(:(0|[1-9][0-9]{0,2}))?",
    "auto, cpu, mps, cuda, or one by its number such as cuda:0, is wanted",
)


@dataclass(frozen=True)
class ModelConfig:
    """Which model: a hub id or local folder, a GGUF file, or both (see `buzz.evaluation.models.load`)."""

    id: str | None = field(default=None, metadata=matching(r"\S(.*\S)?", "a hub id or a folder is wanted"))
    gguf: str | None = field(default=None, metadata=matching(r"\S(.*\S)?", "a GGUF file is wanted"))
    dtype: Literal["auto", "float32", "float16", "bfloat16"] = "auto"
    device: str = field(default="auto", metadata=_DEVICE)
    chat_template: bool = False
