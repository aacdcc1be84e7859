"""The config of a run: typed, strict, and checked whole before anything heavy happens.

Defaults < YAML file < `key.sub=value` from the command line. The dataclasses below are the schema: their fields are
the allowed keys, their annotations the types, their metadata the ranges. Every mistake is a ConfigError of one line.
"""

from __future__ import annotations

import dataclasses
import difflib
import re
import warnings
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal, get_type_hints

import yaml

from buzz.evaluation.errors import ConfigError
from buzz.evaluation.schema import (
    BROKEN_YAML,
    StrictLoader,
    at_least,
    build,
    check,
    convert,
    keys_of,
    matching,
    parsed_by,
    refuse_unknown,
    said,
)
from buzz.evaluation.tasks import make_task, options_of
from buzz.policies import POLICIES, make_policy

# Names become file and folder names; one of dots alone would be a folder that exists.
_NAME = matching(r"(?!\.+$)[A-Za-z0-9._-]+", "a name of letters, digits and . _ - is wanted")
_DEVICE = matching(r"auto|cpu|mps|(cuda|xpu)(:\d+)?", "auto, cpu, mps, cuda, cuda:0, ... is wanted")
_BUDGET = check(
    lambda value: 0 < value <= 1 if isinstance(value, float) else value >= 1,
    "a share of the prompt above 0.0 and up to 1.0, or an integer of at least 1 (tokens), is wanted",
)


@dataclass(frozen=True)
class ModelConfig:
    """Which model: a hub id or local folder, a GGUF file, or both (see `buzz.evaluation.models`)."""

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
class MethodConfig:
    """One method of a run: a policy, its parameters and what surrounds it.

    Args:
        name: unique in the run, also where case does not count; names the file of its samples.
        policy: a key of `buzz.policies.POLICIES`.
        params: the policy's own parameters. All of them, defaults included, unless a budget or match is given: then
            those the user fixed, the others being left for `from_budget` to fit.
        positions: None: the model family's default.
        logn_base: log-n scaling of attention logits; None: off.
        budget: mean cache length wanted: a share of the prompt (float, up to 1.0) or tokens (int).
        reduction: wanted mean cache length of the full cache over that of this method, sample by sample.
        match: name of the method whose mean cache length this one gets. At most one of the three is set.
    """

    name: str = field(metadata=_NAME)
    policy: str
    params: dict[str, Any] = field(default_factory=dict)
    positions: Literal["cache", "original"] | None = None
    logn_base: float | None = field(default=None, metadata=check(lambda v: v > 1, "a number above 1 is wanted"))
    budget: int | float | None = field(default=None, metadata=_BUDGET)
    reduction: float | None = field(default=None, metadata=check(lambda v: v > 1, "a number above 1 is wanted"))
    match: str | None = None

    def make_policy(self) -> Any:
        """The policy with `params` and `logn_base`; a budget or match is for the runner to apply."""
        return make_policy(self.policy, **self.params, logn_base=self.logn_base)


@dataclass(frozen=True)
class GenerationConfig:
    """Greedy decoding, as in the authors' protocol.

    Args:
        max_new_tokens: at most this many tokens per answer.
        fidelity: also measure, if the run has a method with the policy `full`, how near each method stays to it.
    """

    max_new_tokens: int = field(default=100, metadata=at_least(1))
    fidelity: bool = True


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

    name: str = field(metadata=_NAME)
    model: ModelConfig
    task: TaskConfig = field(metadata=parsed_by(lambda raw, where: _task(raw, where)))
    methods: list[MethodConfig] = field(metadata=parsed_by(lambda raw, where: _methods(raw, where)))
    generation: GenerationConfig = field(default_factory=GenerationConfig)
    batch_size: int = field(default=8, metadata=at_least(1))
    seed: int = field(default=0, metadata=at_least(0))
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
    raw = _read_yaml(Path(path))
    for override in overrides:
        _apply(raw, override)
    config: RunConfig = build(RunConfig, raw, "")
    if config.model.id is None and config.model.gguf is None:
        raise ConfigError("model", "neither id nor gguf is given", "a hub id, a folder or a GGUF file is wanted")
    make_task(config.task)  # for its errors: an unknown task, a prompt template that does not fit
    return config


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
    return yaml.safe_dump(to_dict(config), sort_keys=False)


# --- reading and merging ---------------------------------------------------------------------------------------------


def _read_yaml(path: Path) -> dict[str, Any]:
    wanted = "a YAML file is wanted"
    try:
        text = path.read_bytes().decode("utf-8-sig")
    except OSError as error:
        raise ConfigError(str(path), f"cannot be read ({error.strerror or error})", wanted) from error
    except UnicodeDecodeError as error:
        raise ConfigError(str(path), "is not UTF-8 text", wanted) from error
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


def _apply(raw: dict[str, Any], override: str) -> None:
    """Put one `key.sub=value` into the raw config."""
    key, equals, text = override.partition("=")
    parts = key.strip().split(".")
    if not equals or not all(parts):
        raise ConfigError(override, "is no override", "key=value or key.sub=value is wanted")
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


def _task(raw: Any, where: str) -> TaskConfig:
    """The `task` section: the keys that all tasks have, and those of this task's `Options`."""
    own = [key for key in keys_of(TaskConfig) if key != "options"]
    options = options_of(raw["name"]) if isinstance(raw, dict) and isinstance(raw.get("name"), str) else None
    if options is None:
        return build(TaskConfig, raw, where)
    refuse_unknown(raw, [*own, *keys_of(options)], where)
    given = {key: value for key, value in raw.items() if key not in own}
    common = build(TaskConfig, {key: value for key, value in raw.items() if key in own}, where)
    return dataclasses.replace(common, options=dataclasses.asdict(build(options, given, where)))


# --- methods ---------------------------------------------------------------------------------------------------------


def _methods(raw: Any, where: str) -> list[MethodConfig]:
    if not isinstance(raw, list) or not raw:
        raise ConfigError(
            where, said(raw), f"a list of at least one method is wanted (policies: {', '.join(POLICIES)})"
        )
    methods = [_method(entry, f"{where}[{index}]") for index, entry in enumerate(raw)]
    first: dict[str, int] = {}
    for index, method in enumerate(methods):
        # Names become file names, and not every file system tells upper from lower case.
        other = first.setdefault(method.name.casefold(), index)
        if other != index:
            what = f"{method.name!r} is the name of {where}[{other}] as well"
            raise ConfigError(f"{where}[{index}].name", what, "each method needs a name of its own")
    return [_matched(method, methods, f"{where}[{index}]") for index, method in enumerate(methods)]


def _method(raw: Any, where: str) -> MethodConfig:
    """One entry of `methods`: a policy's name, or a mapping."""
    entry = {"policy": raw} if isinstance(raw, str) else raw
    policies = f"one of {', '.join(POLICIES)} is wanted"
    if not isinstance(entry, dict):
        raise ConfigError(where, said(raw), "a policy's name or a mapping with the key policy is wanted")
    name = entry.get("policy")
    if not isinstance(name, str) or name not in POLICIES:
        near = difflib.get_close_matches(str(name), POLICIES, n=1)
        hint = f" (did you mean {near[0]!r}?)" if near else ""
        what = f"unknown policy {name!r}{hint}" if "policy" in entry else "is missing"
        raise ConfigError(f"{where}.policy", what, policies)

    where = f"{where} ({name})"
    own = {item.name: item for item in dataclasses.fields(MethodConfig) if item.name != "params"}
    params = {item.name: item for item in dataclasses.fields(POLICIES[name]) if item.init and item.name not in own}
    hints = get_type_hints(POLICIES[name]) | get_type_hints(MethodConfig)
    refuse_unknown(entry, [*own, *params], where)
    values = {
        key: convert(value, hints[key], own[key].metadata if key in own else {}, f"{where}.{key}")
        for key, value in entry.items()
    }
    given = {key: value for key, value in values.items() if key in params}
    rest = {key: value for key, value in values.items() if key in own}
    method = MethodConfig(**{"name": _default_name(name, values), **rest, "params": given})
    return _with_defaults(method, list(params), where)


def _default_name(policy: str, values: Mapping[str, Any]) -> str:
    """The policy's name and what was given: `buzz-stride7-window64`, `h2o-match-buzz`."""
    parts = [policy]
    for key, value in sorted(values.items()):
        if key not in ("policy", "name") and value is not None:
            shown = f"-{value}" if isinstance(value, str) else f"{value:g}" if isinstance(value, float) else str(value)
            parts.append(f"{key}{shown}")
    return re.sub(r"[^A-Za-z0-9._-]+", "-", "-".join(parts))


def _with_defaults(method: MethodConfig, params: list[str], where: str) -> MethodConfig:
    """The method with all of its policy's parameters, once the policy has accepted them."""
    given = [key for key in ("budget", "reduction", "match") if getattr(method, key) is not None]
    if len(given) > 1:
        raise ConfigError(f"{where}.{given[1]}", f"is given beside {given[0]}", "at most one of the two can be")
    sized = given[0] if given else None
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # the policy warns when it is built for use
            policy = method.make_policy()
            if sized and not policy.sizable:
                what = f"{method.policy} with these parameters never settles at a cache length"
                raise ConfigError(f"{where}.{sized}", what, "a policy that keeps evicting is wanted")
            if isinstance(method.budget, int):
                type(policy).from_budget(method.budget, **method.params)
    except (TypeError, ValueError) as error:
        raise _policy_error(error, where, [*params, "logn_base", "budget", "reduction"]) from error
    if sized:
        return method
    return dataclasses.replace(method, params={name: getattr(policy, name) for name in params})


def _policy_error(error: Exception, where: str, keys: Sequence[str]) -> ConfigError:
    """`buzz: window must be at least 1, got 0` -> `methods[2] (buzz).window: is 0, must be at least 1`."""
    message = re.sub(r"^\w+: ", "", str(error))
    exact = re.fullmatch(r"(\w+) (must be .+), got (.+)", message)
    if exact and exact[1] in keys:
        return ConfigError(f"{where}.{exact[1]}", f"is {exact[3]}", exact[2])
    named = [word for word in re.findall(r"\w+", message) if word in keys]
    return ConfigError(f"{where}.{named[0]}" if named else where, message)


def _matched(method: MethodConfig, methods: list[MethodConfig], where: str) -> MethodConfig:
    """The method with `match` as the full name of another method; a policy's name will do where only one has it."""
    if method.match is None:
        return method
    others = [other for other in methods if other is not method and other.match is None]
    found = [other for other in others if other.name == method.match]
    found = found or [other for other in others if other.policy == method.match]
    if len(found) != 1:
        what = f"{method.match!r} names {'more than one' if found else 'no other'} method without a match of its own"
        names = ", ".join(other.name for other in others)
        raise ConfigError(f"{where} ({method.policy}).match", what, f"one of {names} is wanted" if names else "")
    return dataclasses.replace(method, match=found[0].name)
