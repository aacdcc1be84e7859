"""The config of a run: typed, strict, and checked whole before anything heavy happens.

Defaults < YAML file < `key.sub=value` from the command line. Each room declares the section that is its own, in its
`section.py`; here they become one config. Every mistake is a ConfigError of one line.
"""

from __future__ import annotations

import dataclasses
import warnings
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import yaml

from buzz.evaluation.config.dialect import StrictDumper
from buzz.evaluation.config.methods import NAME, MethodConfig, baselines, parse_compare, parse_methods
from buzz.evaluation.config.reading import read_config
from buzz.evaluation.config.schema import MAX_SEED, at_least, build, keys_of, parsed_by
from buzz.evaluation.errors import ConfigError
from buzz.evaluation.measure.section import GenerationConfig, SpeedConfig
from buzz.evaluation.models.section import ModelConfig
from buzz.evaluation.show.section import WandbConfig
from buzz.evaluation.tasks import make_task, parse_task
from buzz.evaluation.tasks.section import TaskConfig

# Keys that the config.yaml of an older run folder may lack, and what was the case when they did not exist; some are
# options of a task, so not every config has them.
ADDED_KEYS = {
    "generation.prefill_chunk_size": None,
    "generation.answers": True,
    "speed": None,
    "task.rows": "all",
    "task.query_aware": True,
    "task.answer_prefix": None,
    "task.segment": None,
    "task.likelihood": False,
}
_OWN_MEMORY = "a method with a budget, a reduction or parameters is wanted"
ADDED_METHOD_KEYS = {"match_by": None}  # the same, of every method


def _parse_speed(raw: Any, where: str) -> SpeedConfig | None:
    return None if raw is None else build(SpeedConfig, raw, where)


@dataclass(frozen=True)
class RunConfig:
    """Everything a run depends on.

    Args:
        hive: the first so many samples have their evictions recorded, token by token, for the report's hive view.
        compare: methods with which all others are compared, beside the full cache and each one's best rival (see
            `config.methods.baselines`).
        speed: decoding after a long prompt is timed as well; None: it is not.
        output: the run folder; `runs/<name>` if not given.
    """

    name: str = field(metadata=NAME)
    model: ModelConfig
    task: TaskConfig = field(metadata=parsed_by(parse_task))
    methods: list[MethodConfig] = field(metadata=parsed_by(parse_methods))
    generation: GenerationConfig = field(default_factory=GenerationConfig)
    batch_size: int = field(default=8, metadata=at_least(1))
    seed: int = field(default=0, metadata=at_least(0, MAX_SEED))
    hive: int = field(default=1, metadata=at_least(0))
    compare: list[str] = field(default_factory=list, metadata=parsed_by(parse_compare))
    speed: SpeedConfig | None = field(default=None, metadata=parsed_by(_parse_speed))
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
    raw = read_config(path, overrides, keys_of(RunConfig))
    if "sweep" in raw:
        raise ConfigError("sweep", "makes this the config of several runs", "run it with buzz eval")
    return parse_config(raw)


def parse_config(raw: Mapping[str, Any]) -> RunConfig:
    """The config that plain data describes.

    Raises:
        ConfigError: whatever is wrong, in one line.
    """
    config: RunConfig = build(RunConfig, raw, "")
    if config.model.id is None and config.model.gguf is None:
        raise ConfigError("model", "neither id nor gguf is given", "a hub id, a folder or a GGUF file is wanted")
    task = make_task(config.task)  # for its errors: an unknown task, a prompt template that does not fit
    _check_chunks(config)
    _check_answers(config, task.kind)
    _check_speed(config)
    comparisons(config)  # for its errors
    return config


def comparisons(config: RunConfig) -> dict[str, dict[str, str]]:
    """What `compare` asks for: for each of its names the other method's name, by method."""
    return {name: baselines(config.methods, name, "compare") for name in config.compare}


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


def _check_answers(config: RunConfig, kind: str) -> None:
    """Refuse to leave answers out where nothing would be left to measure."""
    if config.generation.answers:
        return
    where, allowed = "generation.answers", "true is wanted"
    if kind != "generation":
        raise ConfigError(where, f"is false, but {config.task.name} asks for no answers", allowed)
    if not config.generation.fidelity:
        raise ConfigError(where, "is false, and so is generation.fidelity", "one of them must be true")
    if all(method.policy != "full" for method in config.methods):
        raise ConfigError(where, "is false, but no method is the full cache, whose answers are given", allowed)


def _check_speed(config: RunConfig) -> None:
    """Refuse to time what has no memory of its own for a prompt that is in no sample."""
    known = {method.name: method for method in config.methods}
    for index, name in enumerate(config.speed.methods if config.speed is not None else ()):
        where = f"speed.methods[{index}]"
        if name not in known:
            raise ConfigError(where, f"{name!r} is no method of this run", f"one of {', '.join(known)} is wanted")
        if known[name].match is not None:
            raise ConfigError(where, f"{name} is matched with {known[name].match} sample by sample", _OWN_MEMORY)


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
