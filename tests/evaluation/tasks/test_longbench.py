"""LongBench: each data set asked and scored its own way."""

from __future__ import annotations

import json
import zipfile
from pathlib import Path
from typing import Any

import pytest

from buzz.evaluation.errors import ConfigError
from buzz.evaluation.run.config import load_config
from buzz.evaluation.tasks import Task, make_task
from buzz.evaluation.tasks.longbench import DATA_SETS
from buzz.evaluation.tasks.section import TaskConfig

CLASSES = ["Individual", "Individual sport", "Sport", "Date"]


def row(dataset: str, **changes: Any) -> dict[str, Any]:
    answers = {"trec": ["Individual sport"], "passage_retrieval_en": ["Paragraph 19"], "passage_count": ["7"]}
    return {
        "dataset": dataset,
        "input": f"INPUT {{of}} {dataset}",
        "context": "CONTEXT {here}",
        "answers": answers.get(dataset, ["the yellow bees", "wasps"]),
        "all_classes": CLASSES if dataset == "trec" else None,
        "length": 2,
        **changes,
    }


def write(path: Path, *rows: Any) -> Path:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


def task_of(path: Path, datasets: list[str] | None = None, **config: Any) -> Task:
    return make_task(TaskConfig("longbench", data=str(path), options={"datasets": datasets}, **config))


def score(tmp_path: Path, dataset: str, output: str, **changes: Any) -> float:
    task = task_of(write(tmp_path / "one.jsonl", row(dataset, **changes)))
    return task.score(output, task.load()[0])["score"]


@pytest.mark.parametrize("dataset", DATA_SETS)
def test_prompts_hold_all_of_a_row_and_the_right_answer_scores_one(tmp_path: Path, dataset: str) -> None:
    task = task_of(write(tmp_path / "one.jsonl", row(dataset)))
    (sample,) = task.load()
    assert sample.prompt.count("CONTEXT {here}") == 1
    takes_input = dataset not in ("gov_report", "multi_news", "passage_count")
    assert sample.prompt.count(f"INPUT {{of}} {dataset}") == takes_input
    assert sample.reference == row(dataset)["answers"]
    assert task.score(f"{sample.reference[-1]}", sample) == {"score": pytest.approx(1.0, abs=1e-6)}
    assert task.score("", sample) == {"score": 0.0}


def test_every_data_set_is_asked_its_own_way(tmp_path: Path) -> None:
    task = task_of(write(tmp_path / "all.jsonl", *map(row, DATA_SETS)))
    prompts = {sample.row["dataset"]: sample.prompt.replace(sample.row["dataset"], "") for sample in task.load()}
    questions = {"hotpotqa", "2wikimqa", "musique"}
    assert len({prompt for name, prompt in prompts.items()}) == len(prompts) - len(questions) + 1
    assert prompts["trec"].endswith("\n\nCONTEXT {here}\nINPUT {of} ")  # few-shot: the input goes on


def test_scores_of_the_kinds_of_data_sets(tmp_path: Path) -> None:
    # The better of the two answers; 2 of 3 words said, 2 of 2 meant.
    assert score(tmp_path, "qasper", "Yellow bees, mostly") == pytest.approx(2 * 2 / (3 + 2))
    # ROUGE-L knows no normalisation: case and articles count.
    assert score(tmp_path, "gov_report", "yellow bees") == pytest.approx(0.8, abs=1e-6)
    assert score(tmp_path, "gov_report", "Yellow Bees") == 0.0
    # Individual is a part of the right name and does not count; Sport, in other case, is another class.
    assert score(tmp_path, "trec", " Individual sport") == 1.0
    assert score(tmp_path, "trec", "Individual sport or Date") == 0.5
    assert score(tmp_path, "trec", "Individual") == 0.0
    assert score(tmp_path, "passage_retrieval_en", " Paragraph 19, not 3 or 190.") == pytest.approx(1 / 3)
    assert score(tmp_path, "passage_count", "7") == 1.0
    assert score(tmp_path, "passage_count", "17") == 0.0


def test_few_shot_data_sets_take_the_first_line(tmp_path: Path) -> None:
    assert score(tmp_path, "triviaqa", "\n\nwasps\nPassage: more and more") == 1.0
    assert score(tmp_path, "trec", "Individual sport\nDate") == 1.0
    assert score(tmp_path, "samsum", "wasps\nDialogue: a b") == pytest.approx(1.0, abs=1e-6)
    assert score(tmp_path, "qasper", "wasps\nmore") < 1.0


def test_limit_takes_the_data_sets_in_turn(tmp_path: Path) -> None:
    names = ["qasper"] * 4 + ["trec"] + ["samsum"] * 2
    path = write(tmp_path / "a.jsonl", *(row(name, id=i) for i, name in enumerate(names)))
    ids = ["qasper/0", "trec/4", "samsum/5", "qasper/1", "samsum/6", "qasper/2", "qasper/3"]
    assert [sample.id for sample in task_of(path, limit=None).load()] == ids
    assert [sample.id for sample in task_of(path, limit=5).load()] == ids[:5]
    assert [sample.id for sample in task_of(path, ["samsum", "trec"], limit=2).load()] == ["trec/4", "samsum/5"]


def test_ids_under_either_name_and_none(tmp_path: Path) -> None:
    path = write(tmp_path / "a.jsonl", row("qasper", _id="x"), row("qasper", id="y"), row("qasper"))
    assert [sample.id for sample in task_of(path).load()] == ["qasper/x", "qasper/y", "qasper/row-3"]


def test_prompt_of_ones_own_is_for_all(tmp_path: Path) -> None:
    path = write(tmp_path / "a.jsonl", row("trec"), row("gov_report", input=None))
    prompts = [sample.prompt for sample in task_of(path, prompt="{dataset}:{input}").load()]
    assert prompts == ["trec:INPUT {of} trec", "gov_report:"]


@pytest.mark.parametrize(
    ("bad", "said"),
    [
        (row("lcc"), "field 'dataset' is 'lcc', one of narrativeqa, "),
        (row("trec", all_classes=None), "field 'all_classes' is missing or empty, trec needs"),
        (row("trec", all_classes=["a", 1]), "field 'all_classes[1]' is of type int"),
        (row("passage_count", answers=["seven"]), "field 'answers' holds 'seven', passage_count needs a number"),
        (row("qasper", answers=[]), "field 'answers' is empty"),
        (row("qasper", input=3), "field 'input' is of type int, non-empty text is wanted"),
        (row("qasper", context=""), "field 'context' is empty"),
        ({"dataset": "qasper"}, "has no field 'context'"),
    ],
)
def test_bad_rows_are_named(tmp_path: Path, bad: dict[str, Any], said: str) -> None:
    path = write(tmp_path / "a.jsonl", row("qasper"), bad)
    with pytest.raises(ConfigError) as caught:
        task_of(path).load()
    assert str(caught.value).startswith(f"task.data: {path} row 2: {said}")
    assert "\n" not in str(caught.value)


def test_rows_of_data_sets_not_taken_may_be_unknown(tmp_path: Path) -> None:
    path = write(tmp_path / "a.jsonl", row("lcc"), row("qasper"))
    assert len(task_of(path, ["qasper"]).load()) == 1
    with pytest.raises(ConfigError, match=r"task\.datasets: 'trec' is not in .*a\.jsonl, it has lcc, qasper"):
        task_of(path, ["trec"]).load()


@pytest.mark.parametrize("value", ["[]", "[qasper,lcc]", "[qasper,qasper]", "qasper", "[1]"])
def test_bad_datasets(write_config: Any, value: str) -> None:
    path = write_config(task={"name": "longbench"})
    with pytest.raises(ConfigError, match=r"task\.datasets: is .* null \(all\) or a list of names among narrativeqa"):
        load_config(path, [f"task.datasets={value}"])


def test_without_a_file_the_archive_of_the_hub_is_read(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    archive = tmp_path / "data.zip"
    with zipfile.ZipFile(archive, "w") as file:
        for name in DATA_SETS:
            lines = [json.dumps(row(name, _id=f"{name}{i}", language="en")) + "\n" for i in range(3)]
            file.writestr(f"data/{name}.jsonl", "".join(lines))
    asked = []

    def download(repository: str, file: str, **options: Any) -> str:
        asked.append((repository, file, options["repo_type"], len(options["revision"])))
        return str(archive)

    monkeypatch.setattr("huggingface_hub.hf_hub_download", download)
    task = make_task(TaskConfig("longbench", limit=20))
    ids = [sample.id for sample in task.load()]
    assert ids[:2] == ["narrativeqa/narrativeqa0", "qasper/qasper0"]
    assert len(ids) == 20
    assert set(asked) == {("zai-org/LongBench", "data.zip", "dataset", 40)}
    assert task.fingerprint().keys() == {"hub", "file", "revision"}
    one = make_task(TaskConfig("longbench", limit=None, options={"datasets": ["trec"]}))
    assert [sample.id for sample in one.load()] == ["trec/trec0", "trec/trec1", "trec/trec2"]
