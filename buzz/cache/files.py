"""A saved cache: a folder with `cache.json`, integers and policies, and `cache.safetensors`, what the layers hold.

Nothing in there is code. The first is written last and knows the second by its digest, and itself by its own, so that
what was cut off, mixed up or damaged is refused. The policies are kept with all their parameters, so later defaults do
not change them.
"""

from __future__ import annotations

import dataclasses
import hashlib
import json
import os
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file

from buzz.cache.budget import ShareOfPrompt
from buzz.cache.calls import Calls
from buzz.cache.identity import decoder_of, devices_of, identity_of
from buzz.cache.layer import BeehiveLayer
from buzz.cache.packing import pack
from buzz.cache.per_row import PerRow
from buzz.policies import POLICIES, HeadShares, Policy
from buzz.policies.window import SlidingWindow
from buzz.words import shown, told

_FORMAT = 1
_INTEGERS, _TENSORS = "cache.json", "cache.safetensors"


class Setting(NamedTuple):
    """What a cache was built with, beside its policies.

    positions: of keys. capacity: slots to allocate at least. budget: that is a share of the prompt. shares: of heads.
    lent: whether these are the model's, until the cache is reset.
    """

    positions: str
    capacity: int
    budget: ShareOfPrompt | None
    shares: HeadShares | None
    lent: bool


class Stored(NamedTuple):
    """A cache that was read.

    policies: of each layer. rows: of each schedule those of its rows. state: of its integers (`Calls.state`). packed:
    what each layer holds, on its device, and pooled: schedules whose heads lie in pools (`buzz.cache.packing`).
    """

    setting: Setting
    policies: list[Policy | PerRow]
    rows: list[list[Policy]]
    state: Mapping[str, Any]
    packed: list[dict[str, torch.Tensor] | None]
    pooled: list[int]


def write(
    folder: str | os.PathLike[str], model: Any, setting: Setting, calls: Calls, layers: Sequence[BeehiveLayer]
) -> None:
    """Write a cache. One that is in the folder is replaced.

    Args:
        model: that has filled it.

    Raises:
        ValueError: the model's weights are spread over processes. TypeError: a policy has a parameter that JSON has no
            form of. OSError: it cannot be written.
    """
    path, known = Path(folder), dict[Policy, int]()  # policies are written once, and named by number

    def number(policy: Policy | PerRow) -> int | list[int]:
        if isinstance(policy, PerRow):
            return [known.setdefault(own, len(known)) for own in policy.policies]
        return known.setdefault(policy, len(known))

    budget, shares = setting.budget, setting.shares
    content = {
        "format": _FORMAT,
        "model": identity_of(decoder_of(model)),
        **setting._asdict(),
        "budget": None if budget is None else [number(budget.policy), budget.share],
        "shares": None if shares is None else shares.shares,
        "layers": [number(calls.policy(layer)) for layer in range(len(layers))],
        "rows": [[number(own) for own in calls.row_policies(s, len(calls.tokens))] for s in calls.groups],
        "policies": [
            {"name": policy.name, "class": type(policy).__name__, "parameters": dataclasses.asdict(policy)}
            for policy in known
        ],
        "pooled": [schedule for schedule, group in calls.groups.items() if layers[group[0]].pool is not None],
        "calls": calls.state(),
    }
    tensors = {
        f"{layer}.{name}": tensor
        for layer, store in enumerate(layers)
        if store.is_initialized
        for name, tensor in pack(store, calls.lengths(layer)).items()
    }
    for policy in known:
        _refuse_unwritable(policy)
    if path.exists() and not path.is_dir():
        raise FileExistsError(f"{path}: it is a file; the name of a folder is wanted")
    path.mkdir(parents=True, exist_ok=True)
    news = [path / f".{name}.new" for name in (_TENSORS, _INTEGERS)]
    try:
        save_file(tensors, news[0])
        content["tensors"] = _digest(news[0])
        text = json.dumps({**content, "digest": _own_digest(content)}) + "\n"
        news[1].write_text(text, encoding="utf-8")
        # Only now, so that what fails leaves a cache that was there before.
        for new, name in zip(news, (_TENSORS, _INTEGERS), strict=True):
            os.replace(new, path / name)
    except SafetensorError as error:
        raise OSError(f"{path / _TENSORS}: it cannot be written: {told(error)}") from None
    finally:
        for new in news:
            new.unlink(missing_ok=True)


def _refuse_unwritable(policy: Policy) -> None:
    """Policies of others may have parameters that would not come back from JSON as they are."""
    for name, value in dataclasses.asdict(policy).items():
        try:
            same = json.loads(json.dumps(value)) == value
        except (TypeError, ValueError):
            same = False
        if not same:
            raise TypeError(
                f"{type(policy).__name__}.{name} is {shown(value)}, which cannot be saved: numbers, texts, lists and "
                "None of Python's own can"
            )


def read(folder: str | os.PathLike[str], model: Any, policies: Iterable[type[Policy]]) -> Stored:
    """Read what `write` wrote.

    Args:
        model: that has filled it, or the same one loaded anew.
        policies: classes of policies that are none of buzz's.

    Raises:
        ValueError: it is damaged, of a newer format, of another model, or with policies that are not known.
        FileNotFoundError: a file is not there. TypeError: no model.
    """
    decoder, path = decoder_of(model), Path(folder) / _INTEGERS
    content = _content(path)
    for name, own in identity_of(decoder).items():
        if content["model"].get(name) != own:
            raise ValueError(
                f"{path}: the cache of a model with {name} {shown(content['model'].get(name))}, this one has "
                f"{shown(own)}: load it with the model that filled it (docs/limits.md)"
            )
    given: list[Any] = list(policies) if isinstance(policies, list | tuple | set) else [policies]
    if not all(isinstance(family, type) and issubclass(family, Policy) for family in given):
        raise TypeError(f"policies must be a list of classes of policies, got {shown(policies)}")
    families: list[type[Policy]] = [*POLICIES.values(), SlidingWindow, *given]
    known = {family.name: family for family in families}
    found = [_policy(path, known, entry) for entry in content["policies"]]
    packed = _tensors(Path(folder) / _TENSORS, content["tensors"], devices_of(decoder))
    budget, shares = content["budget"], content["shares"]
    setting = Setting(
        content["positions"],
        content["capacity"],
        None if budget is None else ShareOfPrompt(found[budget[0]], budget[1]),
        None if shares is None else HeadShares(shares),
        content["lent"],
    )
    layers = [found[n] if isinstance(n, int) else PerRow([found[i] for i in n]) for n in content["layers"]]
    rows = [[found[n] for n in row] for row in content["rows"]]
    return Stored(setting, layers, rows, content["calls"], packed, content["pooled"])


def _content(path: Path) -> dict[str, Any]:
    if not path.is_file():
        raise FileNotFoundError(f"{path}: there is none; cache.save(folder) makes a folder with {_INTEGERS} in it")
    try:
        content: Any = json.loads(path.read_text(encoding="utf-8"))
        version, digest = content["format"], content.pop("digest")
    except (KeyError, TypeError, ValueError, AttributeError, RecursionError) as error:
        raise _damaged(path, f"{type(error).__name__}: {told(error)}") from None
    if version != _FORMAT:
        raise ValueError(
            f"{path}: its format is {shown(version)}, and this version of buzz reads {_FORMAT}: load it with the "
            "version that saved it, or a later one (docs/limits.md)"
        )
    if digest != _own_digest(content):
        raise _damaged(path, "it is not what was written")
    return content


def _policy(path: Path, known: Mapping[str, type[Policy]], entry: Mapping[str, Any]) -> Policy:
    family = known.get(entry["name"])
    if family is None or family.__name__ != entry["class"]:
        raise ValueError(
            f"{path}: its policy is {entry['class']} ({entry['name']!r}), which is none of buzz's: give its class, "
            "BeehiveCache.load(folder, model, policies=[...]) (docs/limits.md)"
        )
    try:
        return family(**entry["parameters"])
    except (TypeError, ValueError) as error:
        raise ValueError(f"{path}: its {entry['class']} does not take what was saved of it: {told(error)}") from None


def _tensors(path: Path, digest: str, devices: Sequence[torch.device]) -> list[dict[str, torch.Tensor] | None]:
    if not path.is_file():
        raise FileNotFoundError(f"{path}: there is none, and {_INTEGERS} beside it needs it: save the cache anew")
    if _digest(path) != digest:
        raise _damaged(path, f"it is not the one that {_INTEGERS} speaks of")
    packed: list[dict[str, torch.Tensor]] = [{} for _ in devices]
    for key, tensor in load_file(path).items():
        layer, name = key.split(".")
        packed[int(layer)][name] = tensor.to(devices[int(layer)])
    return [held or None for held in packed]


def _damaged(path: Path, why: str) -> ValueError:
    return ValueError(f"{path}: damaged, or no saved cache ({why}): save the cache anew (docs/limits.md)")


def _digest(path: Path) -> str:
    digest = hashlib.sha256()
    with path.open("rb") as file:
        while part := file.read(1 << 20):
            digest.update(part)
    return digest.hexdigest()


def _own_digest(content: Mapping[str, Any]) -> str:
    return hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()


__all__ = ["Setting", "Stored", "read", "write"]
