"""A tiny model in a folder, and lm-eval with local tasks; without lm-eval what needs it is skipped."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

os.environ.setdefault("HF_DATASETS_OFFLINE", "1")  # read when datasets is imported

from tests.evaluation.conftest import one_thread  # noqa: F401 - a fixture
from tests.evaluation.tiny import save_model
from tests.harness.tasks import write_tasks

Evaluate = Callable[..., dict[str, Any]]


@pytest.fixture(scope="session")
def model_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("model") / "tiny-llama"
    save_model(folder)
    return folder


@pytest.fixture(scope="session")
def task_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("tasks")
    write_tasks(folder)
    return folder


@pytest.fixture(scope="session")
def evaluate(model_folder: Path, task_folder: Path) -> Evaluate:
    """`lm_eval.simple_evaluate` of the local tasks, as `evaluate(model, batch_size, tasks=[...], **arguments)`."""
    pytest.importorskip("lm_eval")
    import lm_eval
    from lm_eval.tasks import TaskManager

    from buzz.harness import register

    register()
    register()  # doing it again changes nothing
    manager = TaskManager(include_path=str(task_folder), include_defaults=False)

    def run(model: str, batch: int = 4, tasks: str = "choice answer rolling", **arguments: Any) -> dict[str, Any]:
        return lm_eval.simple_evaluate(
            model=model,
            model_args={"pretrained": str(model_folder), "dtype": "float32", "max_length": 100, **arguments},
            tasks=[f"buzz_{task}" for task in tasks.split()],
            task_manager=manager,
            batch_size=batch,
            device="cpu",
            bootstrap_iters=0,
        )

    return run
