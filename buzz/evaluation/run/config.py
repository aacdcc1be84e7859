"""The config of a run: typed, strict, and checked whole before anything heavy happens.

Defaults < YAML file < `key.sub=value` from the command line. The dataclasses below are the schema: their fields are
the allowed keys, their annotations the types, their metadata the ranges. Every mistake is a ConfigError of one line.
"""

from __future__ import annotations

import dataclasses
import warnings
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

import yaml

from buzz.evaluation.config.methods import NAME, MethodConfig, parse_methods
from buzz.evaluation.config.schema import (
    BROKEN_YAML,
    StrictDumper,
    StrictLoader,
    at_least,
    build,
    keys_of,
    matching,
    parsed_by,
    refuse_unknown,
    said,
)
from buzz.evaluation.errors import ConfigError
from buzz.evaluation.paths import read_regular, short, unspeakable
from buzz.evaluation.tasks import make_task, options_of

# Keys that the config.yaml of an older run folder may lack, and what was the case when they did not exist.
ADDED_KEYS = {"generation.prefill_chunk_size": None}
ADDED_METHOD_KEYS = {"match_by": None}  # the same, of every method

MAX_SEED = 2**63 - 1  # what both torch and numpy take

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


@dataclass(frozen=True)
class GenerationConfig:
    """Greedy decoding, as in the authors' protocol.

    Args:
        max_new_tokens: at most this many tokens per answer.
        fidelity: also measure, if the run has a method with the policy `full`, how near each method stays to it.
        prefill_chunk_size: prompts are read in calls of so many tokens, and may be evicted from after each; None: in
            one call (see docs/long_prompts.md).
    """

    max_new_tokens: int = field(default=100, metadata=at_least(1, 10**6))
    fidelity: bool = True
    prefill_chunk_size: int | None = field(default=None, metadata=at_least(1))


@dataclass(frozen=True)
class WandbConfig:
    """Tracking with Weights & Biases; off unless asked for. `group`: runs that one dashboard shows together."""

    mode: Literal["disabled", "offline", "online"] = "disabled"
    project: str = field(default="buzz", metadata=matching(r"\S(.*\S)?", "the name of a project is wanted"))
    group: str | None = field(default=None, metadata=matching(r"\S(.*\S)?", "the name of a group is wanted"))


@dataclass(frozen=True)
class RunConfig:
    """Everything a run depends on.

    Args:
        hive: the first so many samples have their evictions recorded, token by token, for the report's hive view.
        output: the run folder; `runs/<name>` if not given.
    """

    name: str = field(metadata=NAME)
    model: ModelConfig
    task: TaskConfig = field(metadata=parsed_by(lambda raw, where: parse_task(raw, where)))
    methods: list[MethodConfig] = field(metadata=parsed_by(lambda raw, where: parse_methods(raw, where)))
    generation: GenerationConfig = field(default_factory=GenerationConfig)
    batch_size: int = field(default=8, metadata=at_least(1))
    seed: int = field(default=0, metadata=at_least(0, MAX_SEED))
    hive: int = field(default=1, metadata=at_least(0))
    output: str = ""
    wandb: WandbConfig = field(default_factory=WandbConfig)

    def __post_init__(self) -> None:
        if not self.output.strip():
            object.__setattr__(self, "output", f"runs/{self.name}")


def load_config(path: str | Path, overrides: Sequence[str] = ()) -> RunConfig:
    """Read, merge and check a config.

    Args:
        path: the YAML file.
        overrides: `key.sub=value` each, later ones win. A value is a YAML scalar or list; anything else (text with
            a colon or braces, such as a prompt) is taken as plain text. A list replaces the whole list.

    Raises:
        ConfigError: whatever is wrong, in one line.
    """
    raw = read_config(path, overrides)
    if "sweep" in raw:
        raise ConfigError("sweep", "makes this the config of several runs", "run it with scripts/run_eval.py")
    return parse_config(raw)


def read_config(path: str | Path, overrides: Sequence[str] = ()) -> dict[str, Any]:
    """The YAML file with the overrides in it, as plain data; checked no further than that it is a mapping.

    Raises:
        ConfigError: the file is no YAML mapping, or an override is none.
    """
    raw = _read_yaml(Path(path))
    for override in overrides:
        _apply(raw, override)
    _check_text(raw, "", set())
    return raw


def parse_config(raw: Mapping[str, Any]) -> RunConfig:
    """The config that plain data describes.

    Raises:
        ConfigError: whatever is wrong, in one line.
    """
    config: RunConfig = build(RunConfig, raw, "")
    if config.model.id is None and config.model.gguf is None:
        raise ConfigError("model", "neither id nor gguf is given", "a hub id, a folder or a GGUF file is wanted")
    make_task(config.task)  # for its errors: an unknown task, a prompt template that does not fit
    _check_chunks(config)
    return config


def _check_chunks(config: RunConfig) -> None:
    """Refuse chunks for a policy that compresses a first call and lets the cache grow from there."""
    chunk = config.generation.prefill_chunk_size
    for method in config.methods if chunk is not None else ():
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # the policy warns when it is built for use
            policy = method.make_policy()
        if policy.sizable and not policy.bounded:
            what = f"is {chunk}, but {method.name} would compress the first chunk alone and keep all others whole"
            allowed = "null, or methods that go on evicting, are wanted"
            raise ConfigError("generation.prefill_chunk_size", what, allowed)


def to_dict(config: RunConfig) -> dict[str, Any]:
    """Everything resolved, defaults included, as plain data that `load_config` reads back to an equal config."""
    data = dataclasses.asdict(config)
    data["task"].update(data["task"].pop("options"))
    for method in data["methods"]:
        method.update(method.pop("params"))
    return data


def to_yaml(config: RunConfig) -> str:
    """`to_dict` as YAML text."""
    # Escaped, not allow_unicode: PyYAML writes some line separators (U+0085) raw and reads them back as blanks.
    return yaml.dump(to_dict(config), Dumper=StrictDumper, sort_keys=False)


# --- reading and merging ---------------------------------------------------------------------------------------------


def _read_yaml(path: Path) -> dict[str, Any]:
    wanted = "a YAML file is wanted"
    try:
        text = read_regular(path).decode("utf-8-sig")
    except UnicodeDecodeError as error:
        raise ConfigError(short(path), "is not UTF-8 text", wanted) from error
    except (OSError, ValueError) as error:  # ValueError: a path with a NUL
        raise ConfigError(
            short(path), f"cannot be read ({getattr(error, 'strerror', None) or error})", wanted
        ) from error
    try:
        raw = yaml.load(text, StrictLoader)
    except BROKEN_YAML as error:
        mark = getattr(error, "problem_mark", None)
        line = f" line {mark.line + 1}" if mark else ""
        problem = getattr(error, "problem", None) or str(error)
        raise ConfigError(f"{path}{line}", f"is not valid YAML ({problem})", wanted) from error
    if not isinstance(raw, dict):
        raise ConfigError(str(path), said(raw), f"a mapping with the keys {', '.join(keys_of(RunConfig))} is wanted")
    return raw


def _check_text(raw: Any, where: str, seen: set[int]) -> None:
    """Refuse text, at any depth, that no UTF-8 file can hold: what a config says goes to files and names them."""
    if isinstance(raw, str):
        if problem := unspeakable(raw):
            raise ConfigError(where or "config", f"{short(raw)} {problem}", "UTF-8 text is wanted")
    elif isinstance(raw, dict | list) and id(raw) not in seen:  # YAML's aliases can go in circles
        seen.add(id(raw))
        for key, value in raw.items() if isinstance(raw, dict) else enumerate(raw):
            if isinstance(raw, dict):
                _check_text(key, where, seen)
                _check_text(value, f"{where}.{key}".lstrip("."), seen)
            else:
                _check_text(value, f"{where}[{key}]", seen)


def _apply(raw: dict[str, Any], override: str) -> None:
    """Put one `key.sub=value` into the raw config."""
    key, equals, text = override.partition("=")
    parts = key.strip().split(".")
    if not equals or not all(parts):
        raise ConfigError(short(override), "is no override", "key=value or key.sub=value is wanted")
    for depth, part in enumerate(parts[:-1], 1):
        raw = raw.setdefault(part, {})
        if not isinstance(raw, dict):
            path = ".".join(parts[:depth])
            hint = f"replace it whole: {path}=[...]" if isinstance(raw, list) else "a key has no keys below it then"
            raise ConfigError(key, f"{path} {said(raw)}", hint)
    raw[parts[-1]] = _override_value(text)


def _override_value(text: str) -> Any:
    try:
        value = yaml.load(text, StrictLoader)
    except BROKEN_YAML:
        return text
    return text if isinstance(value, dict) else value


# --- task ------------------------------------------------------------------------------------------------------------


def parse_task(raw: Any, where: str) -> TaskConfig:
    """The `task` section: the keys that all tasks have, and those of this task's `Options`.

    Raises:
        ConfigError: an unknown or missing key, or a value that is impossible.
    """
    own = [key for key in keys_of(TaskConfig) if key != "options"]
    options = options_of(raw["name"]) if isinstance(raw, dict) and isinstance(raw.get("name"), str) else None
    if not isinstance(raw, dict):
        raise ConfigError(where, said(raw), f"a mapping with the keys {', '.join(own)} is wanted")
    if options is None:
        return build(TaskConfig, raw, where)
    refuse_unknown(raw, [*own, *keys_of(options)], where)
    given = {key: value for key, value in raw.items() if key not in own}
    common = build(TaskConfig, {key: value for key, value in raw.items() if key in own}, where)
    return dataclasses.replace(common, options=dataclasses.asdict(build(options, given, where)))
