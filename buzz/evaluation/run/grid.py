"""The grid of a sweep: from one config with a `sweep` section to the configs of its runs."""

from __future__ import annotations

import itertools
import math
import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from buzz.evaluation.config.methods import NAME, default_name, own_keys, parse_method, policy_keys
from buzz.evaluation.config.reading import read_config
from buzz.evaluation.config.schema import build, convert, keys_of, refuse_unknown, said
from buzz.evaluation.errors import ConfigError
from buzz.evaluation.models.section import ModelConfig, model_name
from buzz.evaluation.run.config import RunConfig, parse_config
from buzz.evaluation.tasks import make_task, parse_task
from buzz.policies import POLICIES

_MOST_METHODS = 1000  # of a sweep, in one run
_SECTIONS = ("methods", "models", "tasks")


@dataclass(frozen=True)
class Sweep:
    """Several runs that belong together.

    Args:
        name: of the sweep; its runs' W&B group unless the config names another.
        output: the folder of the runs' folders.
        runs: the runs, those of equal models one after the other. The folder of each is `<output>/<its name>`.
    """

    name: str
    output: str
    runs: tuple[RunConfig, ...]


def is_sweep(path: str | Path, overrides: Sequence[str] = ()) -> bool:
    """Whether a config, with these overrides, has a `sweep` section.

    Raises:
        ConfigError: the file cannot be read, or an override is none.
    """
    return "sweep" in read_config(path, overrides, keys_of(RunConfig))


def load_sweep(path: str | Path, overrides: Sequence[str] = ()) -> Sweep:
    """Read, merge and check the config of a sweep, as `load_config` does for a run; overrides may be `sweep.*` too.

    Raises:
        ConfigError: whatever is wrong, in one line. Methods of the grid are named with their values.
    """
    raw = read_config(path, overrides, keys_of(RunConfig))
    if "sweep" not in raw:
        raise ConfigError("sweep", "is missing", "a mapping is wanted")
    return expand(raw)


def expand(raw: Mapping[str, Any]) -> Sweep:
    """The sweep that plain data describes.

    Every method of `sweep.methods` is multiplied by every list of `sweep` whose key it takes and does not set itself;
    the products join the base `methods` in each run. Each combination of `sweep.models` and `sweep.tasks`, merged over
    the base sections, is a run.

    Raises:
        ConfigError: as `load_sweep`.
    """
    section = _section(raw["sweep"])
    base = {key: value for key, value in raw.items() if key != "sweep"}
    axes = _axes(section)
    name = convert(base.get("name"), str, NAME, "name")
    output = convert(base.get("output", ""), str, {}, "output").strip().rstrip("/") or f"runs/{name}"
    methods = [*_base_methods(base, section), *_products(section, axes)]
    wandb = base.get("wandb", {})
    if isinstance(wandb, dict) and wandb.get("group") is None:
        wandb = {**wandb, "group": name}

    models = _variants(base, section, "model", _check_model)
    tasks = _variants(base, section, "task", _check_task)
    runs = []
    for (model_label, model), (task_label, task) in itertools.product(models, tasks):
        label = f"{task_label}-{model_label}"
        own = {"name": label, "model": model, "task": task, "methods": methods, "output": f"{output}/{label}"}
        runs.append(parse_config({**base, **own, "wandb": wandb}))
    order = [run.model for run in runs]
    return Sweep(name, output, tuple(sorted(runs, key=lambda run: order.index(run.model))))


# --- methods ---------------------------------------------------------------------------------------------------------


def _section(raw: Any) -> dict[str, Any]:
    """The `sweep` section without the keys that are null, which is how an override takes one out."""
    own = [key for key in own_keys() if key not in ("name", "policy")]
    params = [key for policy in POLICIES for key in policy_keys(policy)]
    allowed = [*_SECTIONS, *own, *dict.fromkeys(params)]
    if not isinstance(raw, dict):
        raise ConfigError("sweep", said(raw), f"a mapping with the keys {', '.join(allowed)} is wanted")
    refuse_unknown(raw, allowed, "sweep")
    return {key: value for key, value in raw.items() if value is not None}


def _axes(section: Mapping[str, Any]) -> dict[str, list[Any]]:
    """The lists that multiply methods, by method key; one value counts as a list of it."""
    axes = {}
    for key, values in section.items():
        if key not in _SECTIONS:
            listed = values if isinstance(values, list) else [values]
            if not listed or any(isinstance(value, list | dict) for value in listed):
                raise ConfigError(f"sweep.{key}", said(values), "a list of values is wanted")
            axes[key] = listed
    return axes


def _base_methods(base: Mapping[str, Any], section: Mapping[str, Any]) -> list[Any]:
    """The methods that every run has beside the grid's; none will do if the grid has some."""
    methods = base.get("methods", [])
    if not isinstance(methods, list):
        raise ConfigError("methods", said(methods), "a list of methods is wanted")
    if not methods and "methods" not in section:
        raise ConfigError("methods", "is missing", "a list of methods is wanted, here or under sweep")
    return methods


def _products(section: Mapping[str, Any], axes: Mapping[str, list[Any]]) -> list[dict[str, Any]]:
    """The methods of the grid, each checked by itself, so that an error says which combination it is about."""
    entries = section.get("methods", [])
    if not isinstance(entries, list) or (axes and not entries):
        what = "is missing" if "methods" not in section else said(entries)
        raise ConfigError("sweep.methods", what, f"a list of methods is wanted (policies: {', '.join(POLICIES)})")
    methods: list[dict[str, Any]] = []
    used: set[str] = set()
    for index, raw in enumerate(entries):
        where = f"sweep.methods[{index}]"
        entry = {"policy": raw} if isinstance(raw, str) else raw
        known = isinstance(entry, dict) and isinstance(entry.get("policy"), str) and entry["policy"] in POLICIES
        if not known:
            parse_method(raw, where)  # for its error
        takes = [*own_keys(), *policy_keys(entry["policy"])]
        own = [key for key in axes if key in takes and key not in entry]
        used.update(key for key in axes if key in takes)
        if len(methods) + math.prod(len(axes[key]) for key in own) > _MOST_METHODS:
            raise ConfigError("sweep", f"makes more than {_MOST_METHODS} methods", "shorter lists are wanted")
        for values in itertools.product(*(axes[key] for key in own)):
            product = dict(zip(own, values, strict=True))
            method = {**entry, **product}
            if "name" in entry:
                method["name"] = default_name(str(entry["name"]), product)
            at = " ".join(f"{key}={value}" for key, value in product.items())
            parse_method(method, f"{where} with {at}" if at else where)
            methods.append(method)
    for key in axes:
        if key not in used:
            raise ConfigError(f"sweep.{key}", "is a key of none of sweep.methods", "add a policy that has it")
    return methods


# --- models and tasks ------------------------------------------------------------------------------------------------


def _variants(
    base: Mapping[str, Any], section: Mapping[str, Any], key: str, check: Callable[[Any], str]
) -> list[tuple[str, Any]]:
    """The base section under each of the partial ones of the sweep: labels, unique as file names, and sections.

    Args:
        key: `model` or `task`.
        check: raises a ConfigError for a bad section (its place starts with `key`), else returns what to call it.
    """
    where = f"sweep.{key}s"
    whole = base.get(key)
    if f"{key}s" not in section:
        if key not in base:
            raise ConfigError(key, "is missing", f"a mapping is wanted, or a list of them under {where}")
        return [(_slug(check(whole)), whole)]
    partials = section[f"{key}s"]
    if not isinstance(partials, list) or not partials:
        raise ConfigError(where, said(partials), f"a list of at least one mapping with keys of {key} is wanted")
    if whole is not None and not isinstance(whole, dict):
        raise ConfigError(key, said(whole), "a mapping is wanted")
    stems, merged = [], []
    for index, partial in enumerate(partials):
        place = f"{where}[{index}]"
        if not isinstance(partial, dict):
            raise ConfigError(place, said(partial), f"a mapping with keys of {key} is wanted")
        merged.append(_merged(key, whole or {}, partial))
        with _placed(key, place):
            stems.append(_slug(check(merged[-1])))
    return list(zip(_labels(stems, partials), merged, strict=True))


def _merged(key: str, base: Mapping[str, Any], partial: Mapping[str, Any]) -> dict[str, Any]:
    """The partial section over the base; one that names a model's weights replaces all that the base says of them."""
    weights = {"id", "gguf"}
    dropped = weights if key == "model" and weights & partial.keys() else set()
    return {**{name: value for name, value in base.items() if name not in dropped}, **partial}


@contextmanager
def _placed(key: str, place: str) -> Iterator[None]:
    """Errors about `key.x` inside the block are about `place.x`."""
    try:
        yield
    except ConfigError as error:
        if not re.match(rf"{key}\b", error.where):
            raise
        raise ConfigError(place + error.where[len(key) :], error.what, error.allowed) from error


def _check_model(raw: Any) -> str:
    """A model's name: its GGUF file's, or the last part of its id."""
    model: ModelConfig = build(ModelConfig, raw, "model")
    if model.id is None and model.gguf is None:
        raise ConfigError("model", "neither id nor gguf is given", "a hub id, a folder or a GGUF file is wanted")
    return model_name(model.id, model.gguf) or "model"


def _check_task(raw: Any) -> str:
    """A task's name."""
    config = parse_task(raw, "task")
    make_task(config)
    return config.name


def _labels(stems: Sequence[str], partials: Sequence[Mapping[str, Any]]) -> list[str]:
    """Stems made unique: by what their partial sections say in few letters, then by a number."""
    labels: list[str] = []
    for stem, partial in zip(stems, partials, strict=True):
        label = stem
        if stems.count(stem) > 1:
            short = {key: value for key, value in partial.items() if isinstance(value, int | float | str)}
            short = {key: value for key, value in short.items() if key not in ("name", "id", "gguf")}
            label = default_name(stem, {key: v for key, v in short.items() if len(_slug(str(v))) <= 20})
        taken = {other.casefold() for other in labels}
        unique, number = label, 1
        while unique.casefold() in taken:
            number += 1
            unique = f"{label}-{number}"
        labels.append(unique)
    return labels


def _slug(text: str) -> str:
    """Text as part of a file name."""
    return re.sub(r"[^A-Za-z0-9._-]+", "-", text).strip(".-") or "x"
