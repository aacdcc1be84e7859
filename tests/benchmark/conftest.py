"""The tiny model of the evaluation's tests, in a folder."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.evaluation.tiny import save_model


@pytest.fixture(scope="session")
def model_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Where `save_model` put its model."""
    folder = tmp_path_factory.mktemp("model") / "tiny-llama"
    save_model(folder)
    return folder
