"""A config without mistakes, and the one line that a mistake in it gives."""

from __future__ import annotations

from pathlib import Path

import pytest

from buzz.evaluation.errors import ConfigError
from buzz.evaluation.run.config import load_config

BASE = "{name: test, model: {id: some/model}, task: {name: xsum}, methods: [full]}"


def error(path: Path, *overrides: str) -> str:
    with pytest.raises(ConfigError) as caught:
        load_config(path, overrides)
    line = str(caught.value)
    assert "\n" not in line
    return line
