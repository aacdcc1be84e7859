"""The model's arguments: a method as in a config, where the model is, and what lm-eval's own `hf` model takes."""

from __future__ import annotations

import contextlib
import errno
import os
from collections.abc import Collection, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch

from buzz.evaluation.config.methods import MethodConfig, own_keys, parse_method, policy_keys
from buzz.evaluation.config.schema import build, said
from buzz.evaluation.errors import ConfigError
from buzz.evaluation.models.load import load_model
from buzz.evaluation.models.section import ModelConfig, parse_gguf
from buzz.evaluation.models.source import check_model
from buzz.evaluation.paths import short, user_path
from buzz.harness.fitting import Fitting
from buzz.policies import POLICIES
from buzz.words import hint

WHERE = "model_args"
_MINE = ("pretrained", "gguf", "cache_log")
_NOT_HERE = ("name", "match", "match_by")  # keys of a method that speak of other methods
# What lm-eval hands on to `from_pretrained`, which would take any word.
_LOADING = (
    *("attn_implementation", "bnb_4bit_compute_dtype", "bnb_4bit_quant_type", "bnb_4bit_use_double_quant"),
    *("cache_dir", "device_map", "ignore_mismatched_sizes", "load_in_4bit", "load_in_8bit", "local_files_only"),
    *("low_cpu_mem_usage", "token", "use_safetensors", "variant"),
)


@dataclass(frozen=True)
class Arguments:
    """What the model was given, checked.

    Args:
        method: the policy, its parameters, and how much it may hold.
        pretrained: a hub id, a folder, or a model that is there; None with a GGUF file alone.
        gguf: a GGUF file, or the pieces of one.
        cache_log: where a line for every request goes; None: nowhere.
        others: for lm-eval's `hf` model.
    """

    method: MethodConfig
    pretrained: Any
    gguf: str | list[str] | None
    cache_log: Path | None
    others: dict[str, Any] = field(default_factory=dict)


def read_arguments(raw: Mapping[str, Any], known: Collection[str]) -> Arguments:
    """Check the model's arguments before anything is loaded.

    Args:
        raw: as lm-eval has read them, values typed.
        known: names that lm-eval's `hf` model takes.

    Raises:
        ConfigError: an unknown argument, or a value that cannot be; no policy or no model is named; the budget is none
            that the policy can have; no such model, or one that buzz does not patch; the log cannot be written.
    """
    policy = raw.get("policy")
    of_policy = policy_keys(policy) if isinstance(policy, str) and policy in POLICIES else []
    of_method = [key for key in own_keys() if key not in _NOT_HERE]
    allowed = [*_MINE, *of_method, *of_policy, *known, *_LOADING]
    mine = {key: value for key, value in raw.items() if key in {*of_method, *of_policy}}
    method = parse_method(mine, WHERE)  # says first whether there is a policy, of which the allowed keys depend
    for key in raw:
        if key not in allowed:
            names = f"allowed: {', '.join([*_MINE, *of_method, *of_policy])}, and what lm-eval's model hf takes"
            raise ConfigError(f"{WHERE}.{key}", f"unknown argument{hint(str(key), allowed)}", names)
    Fitting(method, 1)  # whether the policy can be fitted at all
    others = {key: value for key, value in raw.items() if key not in {*_MINE, *mine}}
    pretrained, gguf = raw.get("pretrained"), parse_gguf(raw.get("gguf"), f"{WHERE}.gguf")
    found = Arguments(method, pretrained, gguf, _log_file(raw.get("cache_log")), others)
    _check_source(found)
    return found


def load_gguf(arguments: Arguments) -> tuple[Any, Any]:
    """The model, in eval mode on its device, and the tokenizer of a GGUF file.

    Raises:
        ConfigError: as `load_model`.
    """
    with _named():
        model, tokenizer, _ = load_model(_section(arguments))
    return model, tokenizer


def _log_file(raw: Any) -> Path | None:
    if raw is None:
        return None
    where, wanted = f"{WHERE}.cache_log", "a file that is not there yet is wanted"
    if not isinstance(raw, str | Path):
        raise ConfigError(where, said(raw), wanted)
    path = user_path(raw, where, wanted)
    if path.exists():
        raise ConfigError(where, f"{short(raw)} exists", wanted)
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        if not os.access(path.parent, os.W_OK):
            raise PermissionError(errno.EACCES, os.strerror(errno.EACCES))
    except OSError as error:
        raise ConfigError(where, f"{short(raw)} cannot be written ({error.strerror})", wanted) from error
    return path


def _check_source(arguments: Arguments) -> None:
    """Whether there is such a model, and whether it can be patched, as far as can be told without loading it."""
    pretrained, others = arguments.pretrained, arguments.others
    if pretrained is not None and not isinstance(pretrained, str):
        if arguments.gguf:
            raise ConfigError(f"{WHERE}.gguf", "is given beside a model that is there", "one of the two is wanted")
        if not isinstance(pretrained, torch.nn.Module):
            raise ConfigError(f"{WHERE}.pretrained", said(pretrained), "a hub id or a folder is wanted")
        return
    # Of another revision or folder of a repository, transformers finds the configuration.
    elsewhere = any(others.get(key) not in (None, "", "main") for key in ("revision", "subfolder", "gguf_file"))
    if not (isinstance(pretrained, str) and elsewhere):
        with _named():
            check_model(_section(arguments))


def _section(arguments: Arguments) -> ModelConfig:
    """The model as in a config. lm-eval names a GPU by default, also where there is none."""
    others = arguments.others
    device = others.get("device") or "auto"
    if str(device).startswith("cuda") and not torch.cuda.is_available():
        device = "auto"
    if not arguments.gguf:
        return ModelConfig(id=arguments.pretrained)
    raw = {"id": arguments.pretrained, "gguf": arguments.gguf, "dtype": others.get("dtype") or "auto", "device": device}
    section: ModelConfig = build(ModelConfig, raw, WHERE)
    return section


@contextlib.contextmanager
def _named() -> Iterator[None]:
    """Inside the block errors name the model's arguments, not the keys of a config."""
    try:
        yield
    except ConfigError as error:
        words = [
            text.replace("model.id", f"{WHERE}.pretrained").replace("model.", f"{WHERE}.")
            for text in (error.where, error.what, error.allowed)
        ]
        where = WHERE if words[0] == "model" else words[0]
        raise ConfigError(where, *words[1:]) from error
