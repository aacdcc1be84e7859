"""The run folder: config.yaml, environment.json, samples/METHOD.jsonl, summary.json, report.md and pictures.

A folder belongs to one config, one model and one data set. Samples are appended as they finish, and a run that is
started again goes on after the last whole line of each file.
"""

from __future__ import annotations

import contextlib
import fcntl
import json
import os
import platform
import subprocess
import sys
import tempfile
from collections.abc import Iterable, Mapping
from datetime import datetime, timezone
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

import yaml

from buzz.evaluation.config import RunConfig, to_yaml
from buzz.evaluation.errors import ConfigError

# Keys in which a continued run may differ from the one that made the folder, since they change no result: what the run
# is called, the spelling of the folder's own path, and tracking. Everything else must be equal.
FREE_KEYS = ("name", "output", "wandb")
_OTHER = "choose another output or delete the folder"
_PACKAGES = ("torch", "transformers", "tokenizers", "numpy", "gguf", "rouge")


class RunFolder:
    """An open run folder; only one process has it at a time. Close it, or use it as a context manager.

    Args:
        config: the run. Its `output` is the folder; made if it does not exist.
        fingerprints: `{"model": ..., "data": ...}`, plain data that changes whenever the weights or the rows do.

    Raises:
        ConfigError: the path cannot be written, another process has the folder, it holds something else, or a run with
            another config, model or data.
    """

    def __init__(self, config: RunConfig, fingerprints: Mapping[str, Any]) -> None:
        self.path = Path(config.output).expanduser()
        self._fingerprints = dict(fingerprints)
        try:
            _refuse_foreign(self.path)
            (self.path / "samples").mkdir(parents=True, exist_ok=True)
            self._lock = _take_lock(self.path / ".lock")
        except OSError as error:
            reason = error.strerror or type(error).__name__
            raise ConfigError("output", f"{self.path} cannot be written ({reason})", "choose another output") from error
        try:
            self._claim(config)
        except BaseException:
            self.close()
            raise

    def __enter__(self) -> RunFolder:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        """Let another process have the folder."""
        self._lock.close()

    def _claim(self, config: RunConfig) -> None:
        path = self.path / "config.yaml"
        if path.exists():
            self._check_config(path, config)
            self._check_fingerprints()
        else:
            write_atomically(path, to_yaml(config))

    def _check_config(self, path: Path, config: RunConfig) -> None:
        try:
            there = yaml.safe_load(path.read_text(encoding="utf-8"))
        except (OSError, ValueError, yaml.YAMLError) as error:
            raise ConfigError("output", f"{path} cannot be read", _OTHER) from error
        old, new = _flat(there), _flat(yaml.safe_load(to_yaml(config)))
        keys = [key for key in [*old, *(key for key in new if key not in old)] if not _free(key)]
        differing = [
            f"{key} is {_shown(old, key)} there and {_shown(new, key)} now"
            for key in keys
            if key not in old or key not in new or old[key] != new[key]
        ]
        if differing:
            raise ConfigError("output", f"{self.path} holds a run with another config: {'; '.join(differing)}", _OTHER)

    def _check_fingerprints(self) -> None:
        with contextlib.suppress(OSError, ValueError):
            there = json.loads((self.path / "environment.json").read_text(encoding="utf-8"))["fingerprints"]
            for name, value in json.loads(json.dumps(self._fingerprints)).items():
                if name in there and there[name] != value:
                    what = f"{self.path} holds a run with another {name}: its content has changed since"
                    raise ConfigError("output", what, _OTHER)

    # --- samples ---

    def samples(self, method: str) -> dict[str, dict[str, Any]]:
        """The records of a method so far, by sample id. A last line that was cut off is removed from the file.

        Raises:
            ConfigError: a line before the last is not a record.
        """
        path = self._samples_path(method)
        if not path.exists():
            return {}
        data = path.read_bytes()
        whole = data[: data.rfind(b"\n") + 1]
        lines = whole.splitlines(keepends=True)
        records: dict[str, dict[str, Any]] = {}
        for number, line in enumerate(lines, 1):
            try:
                record = json.loads(line)
                records.setdefault(record["id"], record)
            except (ValueError, KeyError, TypeError) as error:
                if number < len(lines):
                    raise ConfigError("output", f"{path} row {number} is not a sample", _OTHER) from error
                whole = whole[: -len(line)]  # a power cut may leave a last line of zeros
        if len(whole) < len(data):
            with open(path, "r+b") as file:
                file.truncate(len(whole))
                os.fsync(file.fileno())
        return records

    def append(self, method: str, records: Iterable[Mapping[str, Any]]) -> None:
        """Add finished samples; they are on the disk when this returns."""
        text = "".join(json.dumps(record, ensure_ascii=False) + "\n" for record in records)
        with open(self._samples_path(method), "ab") as file:
            file.write(text.encode("utf-8"))
            file.flush()
            os.fsync(file.fileno())

    def _samples_path(self, method: str) -> Path:
        return self.path / "samples" / f"{method}.jsonl"

    # --- the other files ---

    def write_environment(self, model: Mapping[str, Any]) -> None:
        """environment.json: what the run depends on beside its config. Started again, a run adds to `resumed`."""
        path = self.path / "environment.json"
        now = environment() | {"model": dict(model), "fingerprints": self._fingerprints}
        with contextlib.suppress(OSError, ValueError):
            first = json.loads(path.read_text(encoding="utf-8"))
            same = first.keys() & now.keys() - {"started", "resumed"}
            changed = {key: now[key] for key in sorted(same) if json.loads(json.dumps(now[key])) != first[key]}
            now = first | {"resumed": [*first.get("resumed", []), {"started": now["started"], **changed}]}
        write_atomically(path, json.dumps(now, indent=2, default=str) + "\n")

    def write_summary(self, summary: Mapping[str, Any]) -> None:
        """summary.json, whole or not at all."""
        write_atomically(self.path / "summary.json", json.dumps(summary, indent=2) + "\n")

    def write_report(self, text: str) -> None:
        """report.md."""
        write_atomically(self.path / "report.md", text)


def environment() -> dict[str, Any]:
    """Versions, machine, git commit, command line and time."""
    import torch

    import buzz

    cuda = torch.cuda.is_available()
    return {
        "started": datetime.now(timezone.utc).isoformat(timespec="seconds"),
        "command": [Path(sys.argv[0]).name, *sys.argv[1:]],
        "versions": {"python": platform.python_version(), "buzz": buzz.__version__, **_versions()},
        "platform": platform.platform(),
        "device_name": torch.cuda.get_device_name() if cuda else platform.processor() or platform.machine(),
        "cuda": torch.version.cuda if cuda else None,
        "threads": torch.get_num_threads(),
        "git": git_commit(),
    }


def _versions() -> dict[str, str | None]:
    found: dict[str, str | None] = {}
    for package in _PACKAGES:
        try:
            found[package] = version(package)
        except PackageNotFoundError:
            found[package] = None
    return found


def git_commit() -> str | None:
    """Commit of the checkout that buzz runs from, `-dirty` if tracked files differ; None outside of one."""
    root = Path(__file__).resolve().parents[2]
    if not (root / ".git").exists():
        return None  # installed somewhere inside another project's checkout, say
    try:
        answer = subprocess.run(
            ["git", "-C", str(root), "describe", "--always", "--dirty", "--abbrev=40", "--exclude=*"],
            capture_output=True,
            text=True,
            timeout=10,
            check=True,
        )
    except (OSError, subprocess.SubprocessError):
        return None
    return answer.stdout.strip() or None


def write_atomically(path: Path, text: str) -> None:
    """Write a file so that a reader sees the old one or the new one, never a part."""
    descriptor, name = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}.")
    try:
        with open(descriptor, "w", encoding="utf-8") as file:
            file.write(text)
            file.flush()
            os.fsync(file.fileno())
        os.chmod(name, 0o644)  # mkstemp lets nobody else read
        os.replace(name, path)
    except BaseException:
        Path(name).unlink(missing_ok=True)
        raise


# --- lock ----------------------------------------------------------------------------------------------------------


def _refuse_foreign(path: Path) -> None:
    """A folder that holds something other than a run is left alone."""
    if not path.exists():
        return
    if not path.is_dir():
        raise ConfigError("output", f"{path} is a file", "a folder is wanted")
    if (path / "config.yaml").exists():
        return
    # A run that was killed while it made the folder leaves these; others' hidden files count as theirs.
    ours = ("samples", ".lock", ".config.yaml.")
    if any(not entry.name.startswith(ours) for entry in path.iterdir()):
        raise ConfigError("output", f"{path} holds other files but no run", "choose an empty or new folder")


def _take_lock(path: Path) -> Any:
    """Lock a file as long as this process lives: the kernel frees it, so no lock outlives its process."""
    file = open(path, "a+", encoding="utf-8")  # noqa: SIM115 - stays open until close()
    try:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        file.seek(0)
        owner = file.read().strip() or "unknown"
        file.close()
        what = f"another process (pid {owner}) has a run in {path.parent}"
        raise ConfigError("output", what, "wait for it or choose another output") from None
    file.truncate(0)
    file.write(str(os.getpid()))
    file.flush()
    return file


# --- comparing configs -----------------------------------------------------------------------------------------------


def _flat(data: Any, prefix: str = "") -> dict[str, Any]:
    """`{"task": {"limit": 8}}` -> `{"task.limit": 8}`; the parts of a list are numbered."""
    if isinstance(data, dict) and data:
        return {k: v for key, value in data.items() for k, v in _flat(value, f"{prefix}.{key}".lstrip(".")).items()}
    if isinstance(data, list) and data:
        return {k: v for i, value in enumerate(data) for k, v in _flat(value, f"{prefix}[{i}]").items()}
    return {prefix: data}


def _free(key: str) -> bool:
    return any(key == free or key.startswith(f"{free}.") for free in FREE_KEYS)


def _shown(flat: Mapping[str, Any], key: str) -> str:
    if key not in flat:
        return "not set"
    return "null" if flat[key] is None else repr(flat[key])
