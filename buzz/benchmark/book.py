"""The folder of a benchmark: every point is written as soon as it is measured, and never measured twice."""

from __future__ import annotations

import json
import time
from collections.abc import Mapping
from typing import Any

from buzz.benchmark.config import BenchConfig, section_facts, with_defaults
from buzz.evaluation.errors import ConfigError
from buzz.evaluation.files import write_atomically
from buzz.evaluation.paths import short, user_path

RESULTS = "results.json"
_OTHER = "another output is wanted"


class OutOfTimeError(Exception):
    """The time of the config is over; the same command goes on where the folder stops."""


class Book:
    """results.json: `name`, `model`, `runs` (the environment of each run), and `sections`.

    A section has `facts` (its settings and contenders), `complete`, and `rows`: the key of a point, and what was
    measured or `failed` (why not).

    Raises:
        ConfigError: the folder holds results of another model or other settings, is no benchmark's, or cannot be made.
    """

    def __init__(self, config: BenchConfig) -> None:
        self.folder = user_path(config.output, "output", "a folder is wanted")
        self._path = self.folder / RESULTS
        self._end = None if config.seconds is None else time.monotonic() + config.seconds
        try:
            self.folder.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            what = f"{short(self.folder)} cannot be written ({error.strerror or error})"
            raise ConfigError("output", what, _OTHER) from error
        self.data: dict[str, Any] = {"name": config.name, "model": {}, "runs": [], "sections": {}}
        if self._path.exists():
            self.data = self._read()
        for name in config.sections:
            facts = json.loads(json.dumps(section_facts(config, name)))
            there = self.data["sections"].setdefault(name, {"facts": facts, "complete": False, "rows": []})
            before = json.loads(json.dumps(with_defaults(there["facts"], config, name)))
            if before != facts:
                differing = [key for key in facts if before.get(key) != facts[key]]
                what = f"{config.output} holds {name} of other {', '.join(differing)}"
                raise ConfigError("output", what, _OTHER)

    def _read(self) -> dict[str, Any]:
        try:
            data = json.loads(self._path.read_text(encoding="utf-8"))
            assert {"name", "model", "runs", "sections"} <= data.keys()
        except (OSError, ValueError, AttributeError, AssertionError) as error:
            raise ConfigError("output", f"{self._path} holds no results of a benchmark", _OTHER) from error
        return data

    def begin(self, environment: Mapping[str, Any], model: Mapping[str, Any]) -> None:
        """A run starts here.

        Raises:
            ConfigError: the results that are there were measured on another device.
        """
        before = {run["device_name"] for run in self.data["runs"]} - {environment["device_name"]}
        if before:
            what = f"{self.folder} holds results of {', '.join(sorted(before))}, this is {environment['device_name']}"
            raise ConfigError("output", what, _OTHER)
        self.data["runs"].append(dict(environment))
        self.data["model"] = dict(model)
        self.save()

    def rows(self, section: str) -> list[dict[str, Any]]:
        """The rows of a section; none if it is not there."""
        return self.data["sections"].get(section, {"rows": []})["rows"]

    def find(self, section: str, key: Mapping[str, Any]) -> dict[str, Any] | None:
        """The row of a point; None if it is not measured yet."""
        return next((row for row in self.rows(section) if all(row.get(k) == v for k, v in key.items())), None)

    def add(self, section: str, row: Mapping[str, Any]) -> None:
        """Keep a row, on the disk too."""
        self.rows(section).append(dict(row))
        self.save()

    def complete(self, section: str) -> None:
        """All points of a section are there."""
        self.data["sections"][section]["complete"] = True
        self.save()

    def is_complete(self, section: str) -> bool:
        return self.data["sections"][section]["complete"]

    def check_time(self) -> None:
        """Raises OutOfTimeError once the config's `seconds` are over."""
        if self._end is not None and time.monotonic() > self._end:
            raise OutOfTimeError

    @property
    def copy_bandwidth(self) -> float | None:
        """GB/s of a copy on the device, read and written bytes counted; None if it was not measured."""
        row = self.find("ceilings", {"what": "copy"})
        return None if row is None else row.get("gb_per_s")

    def save(self) -> None:
        """Write results.json."""
        write_atomically(self._path, json.dumps(self.data, indent=1) + "\n")
