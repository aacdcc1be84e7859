"""The section `model` of a config."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

from buzz.evaluation.config.schema import convert, matching, parsed_by, said
from buzz.evaluation.errors import ConfigError

_FILE = matching(r"\S(.*\S)?", "a GGUF file is wanted")
_DEVICE = matching(
    r"auto|cpu|mps|(cuda|xpu)(:(0|[1-9][0-9]{0,2}))?",
    "auto, cpu, mps, cuda, or one by its number such as cuda:0, is wanted",
)


def parse_gguf(raw: Any, where: str) -> str | list[str] | None:
    """A GGUF file, or the pieces that one was cut into, in their order."""
    if not isinstance(raw, list):
        wanted = {**_FILE, "wanted": "a GGUF file, or a list of the pieces of one, is wanted"}
        return convert(raw, str | None, wanted, where)
    if not raw:
        raise ConfigError(where, said(raw), "a list of at least one piece of a GGUF file is wanted")
    pieces = [convert(piece, str, _FILE, f"{where}[{index}]") for index, piece in enumerate(raw)]
    for index, piece in enumerate(pieces):
        if (first := pieces.index(piece)) < index:
            raise ConfigError(f"{where}[{index}]", f"is {where}[{first}] as well", "each piece is wanted once")
    return pieces


@dataclass(frozen=True)
class ModelConfig:
    """Which model: a hub id or local folder, a GGUF file, or both (see `buzz.evaluation.models.load`).

    gguf: a list names the pieces of one file, in their order.
    """

    id: str | None = field(default=None, metadata=matching(r"\S(.*\S)?", "a hub id or a folder is wanted"))
    gguf: str | list[str] | None = field(default=None, metadata=parsed_by(parse_gguf))
    dtype: Literal["auto", "float32", "float16", "bfloat16"] = "auto"
    device: str = field(default="auto", metadata=_DEVICE)
    chat_template: bool = False


def model_name(model_id: str | None, gguf: str | Sequence[str] | None) -> str:
    """What a model is called: its GGUF file's name without the ending, or the last part of its id."""
    if not gguf:
        return Path(model_id or "").name
    if isinstance(gguf, str):
        return Path(gguf).stem
    return Path(gguf[0]).name.partition(".gguf")[0] or "model"  # such as x.gguf.part00
