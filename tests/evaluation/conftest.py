"""A tiny model in a folder, a data file and configs around them."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml

from tests.evaluation.mistakes import BASE
from tests.evaluation.tiny import articles, save_model


@pytest.fixture(scope="session")
def model_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Where `save_model` put its model."""
    folder = tmp_path_factory.mktemp("model") / "tiny-llama"
    save_model(folder)
    return folder


@pytest.fixture(autouse=True, scope="module")
def one_thread() -> Iterator[None]:
    """Tiny matrices: a second thread costs more than it brings, above all on a busy machine."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@pytest.fixture
def data_file(tmp_path: Path) -> Path:
    path = tmp_path / "data.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in articles(6)))
    return path


@pytest.fixture
def raw_config(model_folder: Path, data_file: Path, tmp_path: Path) -> dict[str, Any]:
    """A run of 6 short samples; tests change it and write it."""
    return {
        "name": "tiny",
        "model": {"id": str(model_folder)},
        "task": {"name": "xsum", "data": str(data_file), "prompt": "{document}"},
        "methods": ["full", {"policy": "buzz", "sink": 2, "window": 12, "stride": 3, "threshold": 10}],
        "generation": {"max_new_tokens": 12},
        "batch_size": 4,
        "output": str(tmp_path / "out"),
    }


@pytest.fixture
def write_config(raw_config: dict[str, Any], tmp_path: Path) -> Callable[..., Path]:
    """Write the tiny config with top-level keys replaced; returns its path."""

    def write(**changes: Any) -> Path:
        path = tmp_path / "config.yaml"
        path.write_text(yaml.safe_dump({**raw_config, **changes}))
        return path

    return write


@pytest.fixture
def base(tmp_path: Path) -> Path:
    path = tmp_path / "base.yaml"
    path.write_text(BASE)
    return path
