"""Where the context of a prompt ends, task by task."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from buzz.evaluation.errors import ConfigError
from buzz.evaluation.tasks import make_task
from buzz.evaluation.tasks.longbench import DATA_SETS
from buzz.evaluation.tasks.section import TaskConfig

_QA = {"question": "Who {did} it?", "answers": ["A bee"], "ctxs": [{"title": "T", "text": "A bee did."}]}
_BENCH = {"input": "Who?", "context": "A 1 bee did.", "answers": ["1"], "all_classes": ["1"]}


def samples(name: str, folder: Path, rows: list[dict[str, Any]], **changes: Any) -> Any:
    path = folder / "rows.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return make_task(TaskConfig(name, data=str(path), query_aware=False, **changes)).load()


def test_ten_documents(tmp_path: Path) -> None:
    (sample,) = samples("ten_qa", tmp_path, [_QA])
    assert sample.context == "Documents are following: T\nA bee did.\n"
    assert sample.prompt.startswith(sample.context + ". Based on")
    (whole,) = make_task(TaskConfig("ten_qa", data=str(tmp_path / "rows.jsonl"))).load()
    assert (whole.prompt, whole.context) == (sample.prompt, "")


def test_passkey() -> None:
    (sample,) = make_task(TaskConfig("passkey", limit=1, query_aware=False, options={"lengths": [50]})).load()
    assert sample.context.endswith(sample.row["text"])
    assert sample.prompt.removeprefix(sample.context).startswith("\n\nWhat is the pass key of")


@pytest.mark.parametrize("name", list(DATA_SETS))
def test_longbench(name: str, tmp_path: Path) -> None:
    (sample,) = samples("longbench", tmp_path, [{"dataset": name, **_BENCH}])
    assert sample.context.endswith("A 1 bee did.")
    assert sample.prompt.startswith(sample.context + "\n")


@pytest.mark.parametrize("name", ["xsum", "cnn_dm", "wikitext", "stream"])
def test_tasks_without_a_question_are_refused(name: str) -> None:
    said = f"task.query_aware: is false, but {name} asks no question about a context, true, or a task that does, is"
    with pytest.raises(ConfigError) as caught:
        make_task(TaskConfig(name, query_aware=False))
    assert str(caught.value).startswith(said)


@pytest.mark.parametrize("prompt", ["{question} {documents}", "{question}", "{documents} {question} {documents}"])
def test_a_prompt_that_asks_first_is_refused(prompt: str) -> None:
    said = "task.query_aware: is false, but task.prompt has no {documents} before {question}, true, or a prompt that"
    with pytest.raises(ConfigError) as caught:
        make_task(TaskConfig("ten_qa", prompt=prompt, query_aware=False))
    assert str(caught.value).startswith(said)
    make_task(TaskConfig("ten_qa", prompt="{documents} {documents}: {question} {question}", query_aware=False))
