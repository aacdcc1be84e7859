"""The run folder: config.yaml, environment.json, samples/METHOD.jsonl, summary.json, the hives and the report.

A folder belongs to one config, one model and one data set. Samples are appended as they finish, and a run that is
started again goes on after the last whole line of each file. Of several processes each appends to a file of its own,
samples/METHOD.shard-RRR.jsonl; the main process merges them once the method is done, or when the run is taken up again.
"""

from __future__ import annotations

import errno
import fcntl
import json
import os
import re
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import yaml

from buzz.evaluation.environment import environment
from buzz.evaluation.errors import ConfigError, WriteError
from buzz.evaluation.files import append, write_atomically, writing
from buzz.evaluation.measure.records import DamageError, check_environment, check_record, check_speed, parse_object
from buzz.evaluation.paths import read_regular, short, user_path
from buzz.evaluation.run.config import ADDED_KEYS, ADDED_METHOD_KEYS, RunConfig, to_yaml
from buzz.evaluation.run.distributed import ALONE, Group

# Keys in which a continued run may differ from the one that made the folder, since they change no result: what the run
# is called, the spelling of the folder's own path, tracking, and comparisons. Everything else must be equal.
FREE_KEYS = ("name", "output", "wandb", "compare")
_LETTERS = 40  # of a value in a message
_TOLD = 2  # of the keys in which two configs differ
_SHARD = r"\.shard-\d{3,}$"  # what a process's own file of samples has after the method's name
_OTHER = "choose another output or delete the folder"
_FULL = (errno.ENOSPC, errno.EDQUOT, errno.EIO)  # of a disk, where another folder is no way out


class RunFolder:
    """An open run folder; only one run has it at a time. Close it, or use it as a context manager.

    Args:
        config: the run. Its `output` is the folder; made if it does not exist.
        fingerprints: `{"model": ..., "data": ...}`, plain data that changes whenever the weights or the rows do.
        group: the processes of the run. The main one locks the folder for all of them.

    Raises:
        ConfigError: the path cannot be written, another process has the folder, it holds something else, or a run with
            another config, model or data. WriteError: the disk is full; also from every method that writes.
    """

    def __init__(self, config: RunConfig, fingerprints: Mapping[str, Any], group: Group = ALONE) -> None:
        self.path = user_path(config.output, "output", "a folder is wanted")
        self._fingerprints = dict(fingerprints)
        self._group = group
        self._lock: Any = None
        group.by_main(lambda: self._open(config))

    def __enter__(self) -> RunFolder:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        """Let another process have the folder."""
        if self._lock is not None:
            self._lock.close()

    def _open(self, config: RunConfig) -> None:
        for method in config.methods:
            if re.search(_SHARD, method.name):
                raise ConfigError("methods", f"{method.name} ends like a file of samples", "choose another name")
        try:
            _refuse_foreign(self.path)
            (self.path / "samples").mkdir(parents=True, exist_ok=True)
            self._lock = _take_lock(self.path / ".lock")
            self.clear_flags()
        except OSError as error:
            if error.errno in _FULL:
                raise WriteError(str(self.path), str(error.strerror)) from error
            reason = error.strerror or type(error).__name__
            raise ConfigError("output", f"{self.path} cannot be written ({reason})", "choose another output") from error
        try:
            self._claim(config)
        except BaseException:
            self.close()
            raise

    def _claim(self, config: RunConfig) -> None:
        path = self.path / "config.yaml"
        if path.exists():
            self._check_config(path, config)
            self._check_fingerprints()
        else:
            write_atomically(path, to_yaml(config))

    def _check_config(self, path: Path, config: RunConfig) -> None:
        try:
            there = yaml.safe_load(_read(path))
            added = dict(ADDED_KEYS)
            for number in range(len(there["methods"])):
                added |= {f"methods[{number}].{key}": value for key, value in ADDED_METHOD_KEYS.items()}
            new = _flat(yaml.safe_load(to_yaml(config)))
            old = {key: value for key, value in added.items() if key in new} | _flat(there)
        except (ValueError, KeyError, TypeError, RecursionError, yaml.YAMLError) as error:
            raise ConfigError("output", f"{path} is not the config of a run", _OTHER) from error
        keys = [key for key in [*old, *(key for key in new if key not in old)] if not _free(key)]
        differing = [key for key in keys if key not in old or key not in new or old[key] != new[key]]
        if differing:
            told = [f"{key} is {_shown(old, key)} there and {_shown(new, key)} now" for key in differing[:_TOLD]]
            more = f"; {len(differing) - _TOLD} more differ" if len(differing) > _TOLD else ""
            what = f"{short(self.path)} holds a run with another config ({'; '.join(told)}{more})"
            raise ConfigError("output", what, _OTHER)

    def _check_fingerprints(self) -> None:
        there = self.environment().get("fingerprints", {})
        for name, value in json.loads(json.dumps(self._fingerprints)).items():
            if name in there and _content(there[name]) != _content(value):
                what = f"{self.path} holds a run with another {name}: its content has changed since"
                raise ConfigError("output", what, _OTHER)

    # --- samples ---

    def samples(self, method: str) -> dict[str, dict[str, Any]]:
        """The records of a method so far, by sample id. A last line that was cut off is removed from its file.

        Raises:
            ConfigError: a line is not a record. (The last one may be cut off.)
        """
        records: dict[str, dict[str, Any]] = {}
        for path in [self._samples_path(method), *self._shards(method)]:
            for record in _read_samples(path):
                records.setdefault(record["id"], record)
        return records

    def append(self, method: str, records: Iterable[Mapping[str, Any]]) -> None:
        """Add finished samples; they are on the disk when this returns."""
        shard = f".shard-{self._group.rank:03d}" if self._group.size > 1 else ""
        append(self._samples_path(f"{method}{shard}"), _lines(records))

    def merge(self, methods: Iterable[str], order: Sequence[str]) -> None:
        """Bring what several processes wrote into one file a method, in this order of sample ids.

        For the main process alone. Killed at any moment, it loses nothing: a sample that is then in two files counts
        once.
        """
        rank = {name: number for number, name in enumerate(order)}
        for method in methods:
            if shards := self._shards(method):
                records = sorted(self.samples(method).values(), key=lambda record: rank.get(record["id"], len(rank)))
                write_atomically(self._samples_path(method), _lines(records))
                for shard in shards:
                    with writing(shard):
                        shard.unlink()

    def _samples_path(self, method: str) -> Path:
        return self.path / "samples" / f"{method}.jsonl"

    def _shards(self, method: str) -> list[Path]:
        name = re.compile(re.escape(method) + _SHARD)
        return sorted(path for path in (self.path / "samples").glob("*.jsonl") if name.fullmatch(path.stem))

    # --- flags: what one process tells the others between two of their meetings ---

    def raise_flag(self, name: str, text: str = "") -> None:
        """Tell the other processes of the run."""
        if self._group.size > 1:
            write_atomically(self._flag(name), text)

    def flagged(self, name: str) -> str | None:
        """The text of a flag that was raised since the folder was opened, or None."""
        try:
            return self._flag(name).read_text(encoding="utf-8") if self._group.size > 1 else None
        except FileNotFoundError:
            return None

    def clear_flags(self) -> None:
        """For the main process alone, while no other one looks."""
        for path in self.path.glob(".*.flag"):
            path.unlink()

    def _flag(self, name: str) -> Path:
        return self.path / f".{name}.flag"

    # --- the other files ---

    def environment(self) -> dict[str, Any]:
        """What environment.json holds; nothing, if it is not there.

        Raises:
            ConfigError: it is damaged.
        """
        path = self.path / "environment.json"
        if not path.exists():
            return {}
        try:
            facts = parse_object(_read(path))
            check_environment(facts)
        except DamageError as error:
            raise ConfigError("output", f"{path} is damaged: {error}", _OTHER) from error
        return facts

    def write_environment(self, model: Mapping[str, Any]) -> None:
        """environment.json: what the run depends on beside its config. Started again, a run adds to `resumed`."""
        now = environment() | {
            "processes": self._group.size,
            "model": dict(model),
            "fingerprints": self._fingerprints,
        }
        first = self.environment()
        if first:
            same = first.keys() & now.keys() - {"started", "resumed"}
            changed = {key: now[key] for key in sorted(same) if json.loads(json.dumps(now[key])) != first[key]}
            now = first | {"resumed": [*first.get("resumed", []), {"started": now["started"], **changed}]}
        self._write_environment(now)

    def extend_environment(self, key: str, values: Iterable[Any]) -> None:
        """Add to a list in environment.json."""
        now = self.environment()
        self._write_environment(now | {key: [*now.get(key, []), *values]})

    def _write_environment(self, now: Mapping[str, Any]) -> None:
        write_atomically(self.path / "environment.json", json.dumps(now, indent=2, default=str) + "\n")

    def speed(self) -> list[dict[str, Any]] | None:
        """What speed.json holds; None, if it is not there.

        Raises:
            ConfigError: it is damaged.
        """
        path = self.path / "speed.json"
        if not path.exists():
            return None
        try:
            facts = parse_object(_read(path))
            check_speed(facts)
        except DamageError as error:
            raise ConfigError("output", f"{path} is damaged: {error}", _OTHER) from error
        return list(facts["rows"])

    def write_speed(self, rows: Sequence[Mapping[str, Any]]) -> None:
        """speed.json, whole or not at all."""
        write_atomically(self.path / "speed.json", json.dumps({"rows": list(rows)}, indent=2) + "\n")

    def write_summary(self, summary: Mapping[str, Any]) -> None:
        """summary.json, whole or not at all."""
        write_atomically(self.path / "summary.json", json.dumps(summary, indent=2) + "\n")


# --- samples ---------------------------------------------------------------------------------------------------------


def _lines(records: Iterable[Mapping[str, Any]]) -> str:
    return "".join(json.dumps(record, ensure_ascii=False) + "\n" for record in records)


def _read(path: Path) -> bytes:
    try:
        return read_regular(path)
    except OSError as error:
        raise ConfigError("output", f"{path} cannot be read ({error.strerror})", "a readable file is wanted") from error


def _content(fingerprint: Any) -> Any:
    """A fingerprint without the place of the file, which may have moved."""
    if not isinstance(fingerprint, dict):
        return fingerprint
    return {key: value for key, value in fingerprint.items() if key != "path"}


def _read_samples(path: Path) -> list[dict[str, Any]]:
    """The records of a file; a last line that was cut off is removed from it."""
    if not path.exists():
        return []
    data = _read(path)
    whole = data[: data.rfind(b"\n") + 1]
    lines = whole.splitlines(keepends=True)
    records = []
    for number, line in enumerate(lines, 1):
        try:
            record = parse_object(line)
        except DamageError as error:
            if number < len(lines):
                raise ConfigError("output", f"{path} row {number} is not a sample: it {error}", _OTHER) from error
            whole = whole[: -len(line)]  # a power cut may leave a last line of zeros
            continue
        try:
            check_record(record)
        except DamageError as error:
            raise ConfigError("output", f"{path} row {number} is not a sample: {error}", _OTHER) from error
        records.append(record)
    if len(whole) < len(data):
        with writing(path), open(path, "r+b") as file:
            file.truncate(len(whole))
            os.fsync(file.fileno())
    return records


# --- lock ------------------------------------------------------------------------------------------------------------


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
    return any(key == free or key.startswith((f"{free}.", f"{free}[")) for free in FREE_KEYS)


def _shown(flat: Mapping[str, Any], key: str) -> str:
    if key not in flat:
        return "not set"
    if flat[key] is None:
        return "null"
    text = repr(flat[key])
    return text if len(text) <= _LETTERS else f"{text[: _LETTERS // 2]}...{text[-_LETTERS // 2 :]}"
