"""Finds and checks the model of a run without reading a weight: a hub repository, a local folder or a GGUF file."""

from __future__ import annotations

import hashlib
import importlib.util
import json
import re
import urllib.error
import urllib.request
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from huggingface_hub import constants, errors, hf_hub_download

from buzz.evaluation.config.schema import said
from buzz.evaluation.errors import ConfigError
from buzz.evaluation.models.gguf import MODEL_TYPES, read_metadata
from buzz.evaluation.models.pieces import join_pieces
from buzz.evaluation.models.section import ModelConfig, model_name
from buzz.evaluation.paths import PACKAGE_PREFIX, fingerprint, resolve_path, short, user_path
from buzz.patching import supported_families
from buzz.words import told

_LOCAL = "give a local folder as model.id or a GGUF file as model.gguf"
_UNTYPED = "names no model_type"
_FOLDER = "a local folder or the id of a hub repository is wanted"
_PROBE_SECONDS = 5.0  # how long an unreachable hub may take


@dataclass(frozen=True)
class ModelSource:
    """A model that was found and whose family buzz patches, before any of its weights are read.

    root: what `from_pretrained` takes: a folder or a hub id. gguf: file name inside `root`, or None.
    model_type: of the language model. whole: of the multimodal checkpoint that it is the text model of, or None.
    max_positions: length in tokens of the longest text the model was made for, None if it does not say.
    fingerprint: changes whenever the weights or the config do (cheaply: a large checkpoint is not hashed as a whole).
    offline: the hub cannot be reached, use the local hub cache alone.
    """

    root: str
    gguf: str | None
    model_type: str
    max_positions: int | None
    fingerprint: str
    offline: bool = False
    whole: str | None = None

    @property
    def path(self) -> Path:
        """Where the GGUF file lies."""
        return Path(self.root) / str(self.gguf)


def check_model(config: ModelConfig) -> ModelSource:
    """Find the model that a run names, without reading a weight.

    Args:
        config: the `model` section of a run's config.

    Raises:
        ConfigError: nothing named; no such file, folder or hub repository; a hub that cannot be reached and nothing in
            the local hub cache; a model family that buzz does not patch; a device this machine lacks.
    """
    if not config.id and not config.gguf:
        raise ConfigError("model", "neither model.id nor model.gguf is given", _LOCAL)
    source = _find_gguf(config) if config.gguf else _find_checkpoint(str(config.id))
    resolve_device(config.device)
    return source


def _check_family(model_type: str, where: str, inside: str = "") -> None:
    families = supported_families()
    if model_type not in families:
        what = f"the model family {model_type!r}{inside} is not supported"
        raise ConfigError(where, what, f"one of {', '.join(families)} is wanted")


def _find_checkpoint(name: str) -> ModelSource:
    folder = user_path(name, "model.id", _FOLDER)
    offline = False
    if folder.is_dir():
        path, root = folder / "config.json", str(folder)
        if not path.is_file():
            what = f"no config.json in the folder {short(name)}"
            raise ConfigError("model.id", what, "a folder that save_pretrained wrote is wanted")
    else:
        offline = _check_hub_id(name)
        path, root = _hub_file(name, "config.json", "model.id", offline), name
    try:
        fingerprint = _fingerprint_folder(folder) if folder.is_dir() else _revision(path)
        config = json.loads(path.read_text(encoding="utf-8"))
        model_type = config["model_type"]
    except (OSError, ValueError, KeyError, TypeError, RecursionError) as error:
        what = f"{path} " + (f"cannot be read ({error.strerror})" if isinstance(error, OSError) else _UNTYPED)
        raise ConfigError("model.id", what, "the config.json of a transformers model is wanted") from error
    text, whole, inside = config.get("text_config"), None, ""
    if model_type not in supported_families() and isinstance(text, dict) and isinstance(text.get("model_type"), str):
        config, whole, model_type = text, model_type, text["model_type"]
        inside = f", the text model of {whole!r},"
    _check_family(model_type, "model.id", inside)
    known = _positions(config, "max_position_embeddings", "model.id", path)
    return ModelSource(root, None, model_type, known, fingerprint, offline, whole)


def _find_gguf(config: ModelConfig) -> ModelSource:
    if importlib.util.find_spec("gguf") is None:
        raise ConfigError(
            "model.gguf", "needs the package gguf", "install it with `pip install gguf`, or give model.id alone"
        )
    if isinstance(config.gguf, list):
        pieces = [_gguf_path(config.id, name, f"model.gguf[{i}]").absolute() for i, name in enumerate(config.gguf)]
        path, digest = join_pieces(pieces, model_name(None, config.gguf))
    else:
        path = _gguf_path(config.id, str(config.gguf), "model.gguf").absolute()
        digest = None
    try:
        metadata = read_metadata(path)
        architecture = metadata["general.architecture"]
    except (OSError, ValueError, KeyError) as error:
        reason = "names no architecture" if isinstance(error, KeyError) else f"is {told(error)}"
        if isinstance(error, OSError):
            reason = f"cannot be read ({error.strerror})"
        raise ConfigError("model.gguf", f"{path} {reason}", "a GGUF file of a language model is wanted") from error
    model_type = MODEL_TYPES.get(architecture, architecture)
    _check_family(model_type, "model.gguf")
    if architecture not in MODEL_TYPES:
        what = f"transformers reads no GGUF files of the family {architecture!r}"
        raise ConfigError("model.gguf", what, "the checkpoint that the file was made of is wanted as model.id")
    known = _positions(metadata, f"{architecture}.context_length", "model.gguf", path)
    return ModelSource(str(path.parent), path.name, model_type, known, digest or _fingerprint_file(path))


def _positions(metadata: dict[str, Any], key: str, where: str, path: Path) -> int | None:
    """How many positions a model's own words give it; None: they do not say."""
    known = metadata.get(key)
    if known is None or (type(known) is int and known >= 1):
        return known
    raise ConfigError(where, f"{path}: {key} {said(known)}", "an integer of at least 1 is wanted")


def _gguf_path(model_id: str | None, gguf: str, where: str) -> Path:
    """A file by its path, inside an installed package, or inside the folder or hub repository `model_id`."""
    path = user_path(gguf, where, "a GGUF file is wanted")
    if not model_id or gguf.startswith(PACKAGE_PREFIX) or path.is_file():
        return resolve_path(gguf, where)
    folder = user_path(model_id, "model.id", _FOLDER)
    if folder.is_dir():
        return resolve_path(folder / path, where)
    return _hub_file(model_id, gguf, where, _check_hub_id(model_id))


def _check_hub_id(name: str) -> bool:
    """Whether a hub repository must be taken from the local hub cache alone; refuses what cannot be a hub id."""
    if not re.fullmatch(r"[\w.-]+(/[\w.-]+)?", name) or name.startswith((".", "/")):
        raise ConfigError("model.id", f"no folder {short(name)}", _FOLDER)
    return not _hub_reachable()


def _hub_reachable() -> bool:
    """One quick look: huggingface_hub itself retries for half a minute before it gives up."""
    if constants.HF_HUB_OFFLINE:
        return False
    try:
        request = urllib.request.Request(constants.ENDPOINT, method="HEAD")
        urllib.request.urlopen(request, timeout=_PROBE_SECONDS).close()
    except urllib.error.HTTPError:
        return True  # it answered
    except (OSError, ValueError):
        return False
    return True


def _hub_file(repo: str, name: str, where: str, offline: bool) -> Path:
    try:
        return Path(hf_hub_download(repo, name, local_files_only=offline))
    except errors.RepositoryNotFoundError:  # also a gated one without access
        what = f"no hub repository {repo}, or no access to it"
    except errors.LocalEntryNotFoundError:
        what = f"the hub cannot be reached, and {repo} is not in the local hub cache"
    except errors.EntryNotFoundError:
        what = f"the hub repository {repo} has no {name}"
    except (OSError, ValueError) as error:
        what = f"{name} of the hub repository {repo} cannot be had: {told(error)}"
    raise ConfigError(where, what, _LOCAL)


def _revision(path: Path) -> str:
    """The commit of a file in the hub cache, whose folders are named .../snapshots/COMMIT/."""
    return path.parent.name if path.parent.parent.name == "snapshots" else _fingerprint_file(path)


def _fingerprint_file(path: Path) -> str:
    return str(fingerprint(path)["sha256"])


def _fingerprint_folder(folder: Path) -> str:
    """Of a checkpoint folder: its config's bytes, names and sizes of its weight files, times of the latter.

    Weights can have hundreds of gigabytes, so they are not read.
    """
    digest = hashlib.sha256((folder / "config.json").read_bytes())
    for path in sorted(folder.glob("*.safetensors")) + sorted(folder.glob("*.bin")):
        stat = path.stat()
        digest.update(f"{path.name} {stat.st_size} {stat.st_mtime_ns}\n".encode())
    return digest.hexdigest()


def resolve_device(name: str, local: int | None = None) -> torch.device:
    """The `torch.device` behind a device name; `auto` is cuda where there is one.

    Of several processes each gets a GPU of its host in turn, unless the name says which; there may be fewer GPUs.

    Args:
        local: of several processes this one's number among those of its host; None: there is one.

    Raises:
        ConfigError: no such device on this machine.
    """
    if name == "auto":
        name = "cuda" if torch.cuda.is_available() else "cpu"
    if name == "cuda" and local is not None and torch.cuda.is_available():
        name = f"cuda:{local % torch.cuda.device_count()}"
    counts = {"cuda": torch.cuda.device_count(), "xpu": torch.xpu.device_count(), "mps": torch.mps.device_count()}
    there = ["cpu", *(f"{kind}:{i}" for kind in ("cuda", "xpu") for i in range(counts[kind]))]
    there += ["mps"] * (counts["mps"] > 0)
    kind, _, index = name.partition(":")
    if kind != "cpu" and int(index or 0) >= counts.get(kind, 0):
        what = f"is {name}, but the devices of this machine are {', '.join(there)}"
        if there == ["cpu"]:
            what = f"is {name}, but PyTorch finds no device on this machine beside the CPU"
        raise ConfigError("model.device", what, f"{' or '.join(['auto', *there])} is wanted")
    return torch.device(name)
