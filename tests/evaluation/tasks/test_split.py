"""Tuning and test rows: every task splits its samples by their ids alone."""

from __future__ import annotations

import hashlib
import json
from pathlib import Path
from typing import Any

import pytest

from buzz.evaluation.errors import ConfigError
from buzz.evaluation.tasks import make_task
from buzz.evaluation.tasks.language_modeling import segments
from buzz.evaluation.tasks.section import TaskConfig
from tests.evaluation.tasks.test_language_modeling import RAW

_QA = {"question": "Who?", "answers": ["A bee"], "ctxs": [{"title": "T", "text": "A bee did."}]}
_BENCH = {"input": "Who?", "context": "A bee did.", "answers": ["A bee"], "all_classes": None}
_SETS = ("qasper", "samsum", "hotpotqa")


def rule(name: str) -> bool:
    """The split as it is agreed on, written out."""
    return int(hashlib.sha256(name.encode()).hexdigest()[:8], 16) % 4 == 0


def task_of(name: str, folder: Path, **changes: Any) -> Any:
    rows: list[dict[str, Any]] = []
    options: dict[str, Any] = {}
    data: Path | None = folder / "rows.jsonl"
    if name in ("wikitext", "stream"):
        data = folder / "text.txt"
        data.write_text("".join(f" = Title {i} = \n \n Words {i} follow . \n \n" for i in range(40)))
        options = {"segment": 5} if name == "stream" else {}
    elif name == "passkey":
        data, options = None, {"lengths": [30, 40], "depths": [0.0, 0.5, 1.0], "per_cell": 6}
    elif name == "ruler":
        data, options = None, {"lengths": [256, 300], "depths": [0.0, 0.5, 1.0], "per_cell": 6, "tasks": ["fwe"]}
    elif name == "longbench":
        rows = [{"id": str(i), "dataset": _SETS[i % 3], **_BENCH} for i in range(40)]
    elif name == "ten_qa":
        rows = [{"id": f"nq-{i}", **_QA} for i in range(40)]
    else:
        rows = [{"id": f"x-{i}", "document": f"Text {i}.", "summary": "Bees."} for i in range(40)]
    if rows:
        (folder / "rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    return make_task(TaskConfig(name, data=str(data) if data else None, options=options, **changes))


@pytest.mark.parametrize("name", ["xsum", "ten_qa", "longbench", "passkey", "ruler", "wikitext", "stream"])
def test_rows_are_split_by_the_samples_id_and_the_limit_counts_what_is_left(name: str, tmp_path: Path) -> None:
    everything = task_of(name, tmp_path, limit=None).load()
    tune = task_of(name, tmp_path, limit=None, rows="tune").load()
    test = task_of(name, tmp_path, limit=None, rows="test").load()
    if name != "longbench":  # takes its data sets in turn, and those are shorter now
        assert tune == [sample for sample in everything if rule(sample.id)]
    assert {sample.id for sample in tune} == {sample.id for sample in everything if rule(sample.id)}
    assert {sample.id for sample in test} == {sample.id for sample in everything if not rule(sample.id)}
    assert len(tune) >= 5
    few = task_of(name, tmp_path, limit=3, rows="tune").load()
    assert len(few) == 3
    assert {sample.id for sample in few} <= {sample.id for sample in tune}
    if name not in ("passkey", "ruler"):  # a limit of these spreads over the grid
        assert few == tune[:3]


@pytest.mark.parametrize(("rows", "of", "other"), [("tune", "tuning", "test"), ("test", "test", "tune")])
def test_nothing_left_is_one_line(rows: str, of: str, other: str, tmp_path: Path) -> None:
    path = tmp_path / "rows.jsonl"
    name = next(name for name in map(str, range(100)) if rule(name) == (rows == "test"))
    path.write_text(json.dumps({"id": name, "document": "Text.", "summary": "Bees."}) + "\n")
    with pytest.raises(ConfigError) as caught:
        make_task(TaskConfig("xsum", data=str(path), rows=rows)).load()
    said = f"task.rows: is {rows}, but no id of the data is that of a {of} row, all or {other}, or more data, is wanted"
    assert str(caught.value) == said


def test_segments_put_together_are_the_text(tmp_path: Path) -> None:
    parts = segments(RAW, 4)
    assert "".join(parts) == RAW
    assert {len(part.split()) for part in parts[:-1]} == {4}
    assert segments("one two ", 5) == ["one two "]
    path = tmp_path / "book.txt"
    path.write_text(RAW)
    found = make_task(TaskConfig("stream", data=str(path), limit=2, options={"segment": 4})).load()
    assert [(sample.id, sample.prompt) for sample in found] == [("book.txt/1", parts[0]), ("book.txt/2", parts[1])]
