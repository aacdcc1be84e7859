"""10-QA: the authors' prompt to the letter, both rules of a right answer, and rows that are broken inside."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from buzz.evaluation.errors import ConfigError
from buzz.evaluation.tasks import make_task
from buzz.evaluation.tasks.section import TaskConfig

ROW: dict[str, Any] = {
    "question": "who {first} danced",
    "answers": ["A Bee", "the drone"],
    "ctxs": [
        {"title": "Bees", "text": "Bees dance.", "isgold": True},
        {"title": "Hives", "text": "Hives hum. {x}", "isgold": False},
    ],
}


def load(tmp_path: Path, *rows: Any, **config: Any) -> Any:
    path = tmp_path / "rows.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    task = make_task(TaskConfig("ten_qa", data=str(path), **config))
    return task, task.load()


def test_the_authors_prompt(tmp_path: Path) -> None:
    task, (sample,) = load(tmp_path, ROW)
    assert sample.prompt == (
        "Documents are following: Bees\nBees dance.\nHives\nHives hum. {x}\n. Based on the provided documents, give an "
        "brief answer to this question: who {first} danced. The answer has to directly answer the question and be "
        "BRIEF. "
    )
    assert sample.id == "row-1"
    assert sample.reference == ["A Bee", "the drone"]
    assert task.likely(sample) == "A Bee"  # the prompt ends in a blank


def test_prompt_of_ones_own(tmp_path: Path) -> None:
    task, (sample,) = load(tmp_path, ROW, prompt="{id} {documents}Q: {question}?\nA:")
    assert sample.prompt == "row-1 Bees\nBees dance.\nHives\nHives hum. {x}\nQ: who {first} danced?\nA:"
    assert task.likely(sample) == " A Bee"
    with pytest.raises(ConfigError, match=r"\{ctxs\}.*the fields are \{id\}, \{documents\}, \{question\}"):
        load(tmp_path, ROW, prompt="{ctxs}")


@pytest.mark.parametrize(
    ("output", "exact", "subspan"),
    [
        (" a bee\n", 1.0, 1.0),
        ("A bee.", 0.0, 1.0),
        ("bee", 0.0, 1.0),  # articles do not count
        ("The drone", 0.0, 1.0),  # an accepted answer, but not the first
        ("It was\nthe Drone!", 0.0, 1.0),
        ("wasps", 0.0, 0.0),
        ("", 0.0, 0.0),
    ],
)
def test_scores(tmp_path: Path, output: str, exact: float, subspan: float) -> None:
    task, (sample,) = load(tmp_path, ROW)
    assert task.score(output, sample) == {"best_subspan_em": subspan, "exact_match": exact}
    assert set(task.metrics) == {"best_subspan_em", "exact_match", "answer_nll"}


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"ctxs": "Bees"}, "field 'ctxs' is of type str, a non-empty list is wanted"),
        ({"ctxs": []}, "field 'ctxs' is empty"),
        ({"ctxs": ["Bees"]}, "field 'ctxs[0]' is of type str, a mapping with title, text is wanted"),
        ({"ctxs": [*ROW["ctxs"], {"title": "T"}]}, "has no field 'ctxs[2].text', non-empty text is wanted there"),
        ({"ctxs": [{"title": "T", "text": 3}]}, "field 'ctxs[0].text' is of type int, non-empty text is wanted"),
        ({"ctxs": [{"title": " ", "text": "t"}]}, "field 'ctxs[0].title' is empty"),
        ({"answers": []}, "field 'answers' is empty, a non-empty list is wanted"),
        ({"answers": "A Bee"}, "field 'answers' is of type str"),
        ({"answers": ["A", None]}, "field 'answers[1]' is of type NoneType, non-empty text is wanted"),
        ({"answers": ["A", "\ud800"]}, "field 'answers[1]' holds half a surrogate pair"),
        ({"question": None}, "field 'question' is of type NoneType"),
    ],
)
def test_what_is_wrong_inside_a_row_is_named(tmp_path: Path, change: dict[str, Any], said: str) -> None:
    with pytest.raises(ConfigError) as caught:
        load(tmp_path, ROW, ROW | change)
    line = str(caught.value)
    assert line.startswith(f"task.data: {tmp_path / 'rows.jsonl'} row 2: {said}")
    assert "\n" not in line


def test_without_a_file_the_papers_own_is_read(monkeypatch: pytest.MonkeyPatch) -> None:
    asked = []

    def fetch(source: Any) -> str:
        asked.append(source.file)
        raise ConnectionError("no network")

    monkeypatch.setattr("buzz.evaluation.tasks.data.fetch", fetch)
    task = make_task(TaskConfig("ten_qa"))
    with pytest.raises(ConfigError, match=r"task\.data: https://.*no network.*task\.data takes a local \.jsonl"):
        task.load()
    assert asked[0].endswith("10_total_documents/nq-open-10_total_documents_gold_at_4.jsonl.gz")
    assert task.fingerprint() == {"file": asked[0]}
