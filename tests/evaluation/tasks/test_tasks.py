"""What all tasks share, and summaries: the authors' prompts, templates of one's own, samples and scores."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from buzz.evaluation.errors import ConfigError
from buzz.evaluation.measure.metric_info import METRIC_INFO
from buzz.evaluation.tasks import TASKS, Sample, Task, make_task
from buzz.evaluation.tasks.base import continuation, parse_template
from buzz.evaluation.tasks.section import TaskConfig

ROWS: dict[str, dict[str, Any]] = {
    "xsum": {"id": "a", "document": "A {hive} of 100% {0} bees {{.", "summary": "Bees."},
    "cnn_dm": {"id": "a", "article": "A {hive} of 100% {0} bees {{.", "highlights": "Bees .\nHives ."},
    "cnn_dm_self_bleu": {"id": "a", "article": "A {hive} of 100% {0} bees {{.", "highlights": "Bees .\nHives ."},
}
END = dict.fromkeys(ROWS, "\n\nSUMMARIZE the previous text to 50 words!") | {
    "cnn_dm_self_bleu": "\nSUMMARIZE the previous text to 150 words!"
}


@pytest.fixture(params=list(ROWS))
def name(request: pytest.FixtureRequest) -> str:
    return request.param


def config(name: str, tmp_path: Path, **options: Any) -> TaskConfig:
    path = tmp_path / "rows.jsonl"
    path.write_text("".join(json.dumps({**ROWS[name], "id": f"id-{i}"}) + "\n" for i in range(5)))
    return TaskConfig(name, data=str(path), **options)


@pytest.mark.parametrize("task", TASKS.values(), ids=list(TASKS))
def test_registered_tasks_are_sound(task: type[Task]) -> None:
    assert set(task.metrics) <= set(METRIC_INFO)
    assert task.headline in task.metrics
    assert len(set(task.metrics)) == len(task.metrics)
    parse_template(task.template, ["id", *(task.placeholders or task.fields)], "task.prompt")  # its own prompt fits


def test_answers_begin_with_what_is_given(name: str, tmp_path: Path) -> None:
    own, given = (make_task(config(name, tmp_path, limit=1, answer_prefix=what)) for what in (None, "In short:"))
    (plain,), (sample,) = own.load(), given.load()
    assert (sample.prompt, sample.prefix, plain.prefix) == (plain.prompt, "In short:", "")
    assert sample.text == plain.prompt + continuation(plain.prompt, "In short:")
    assert (plain.text, given.likely(sample)) == (plain.prompt, f" {sample.reference}")


@pytest.mark.parametrize(
    ("task", "why"),
    [
        ("wikitext", "wikitext has no answers"),
        ("stream", "stream has no answers"),
        ("ruler", "ruler has prefixes of its own"),
    ],
)
def test_where_an_answer_cannot_begin_with_what_is_given_it_is_refused(task: str, why: str) -> None:
    with pytest.raises(ConfigError) as caught:
        make_task(TaskConfig(task, answer_prefix="It is"))
    assert str(caught.value) == f"task.answer_prefix: is given, but {why}, null is wanted"


def test_samples_and_the_authors_prompt(name: str, tmp_path: Path) -> None:
    task = make_task(config(name, tmp_path, limit=3))
    samples = task.load()
    assert [sample.id for sample in samples] == ["id-0", "id-1", "id-2"]
    assert samples[0].prompt == f"Text: A {{hive}} of 100% {{0}} bees {{{{.{END[name]}"
    assert samples[0].reference == list(ROWS[name].values())[2]
    assert samples[0].row == {**ROWS[name], "id": "id-0"}


def test_scores(name: str, tmp_path: Path) -> None:
    task = make_task(config(name, tmp_path))
    sample = task.load()[0]
    perfect = task.score(sample.reference, sample)
    assert list(perfect) == task.metrics
    assert task.headline in task.metrics
    assert perfect["rouge1"] == pytest.approx(1.0, abs=1e-6)
    assert set(task.score("", sample).values()) == {0.0}


def test_self_bleu_needs_no_reference(tmp_path: Path) -> None:
    task = make_task(config("cnn_dm_self_bleu", tmp_path))
    sample = task.load()[0]
    assert task.score("A b c d. A b c d. A b c d.", sample)["self_bleu"] == pytest.approx(1.0)
    assert task.score("A b c d. E f g h.", sample)["self_bleu"] == 0.0


def test_prompt_of_ones_own(tmp_path: Path) -> None:
    task = make_task(config("xsum", tmp_path, prompt="[{id}] {{x}} {document}\nTL;DR:"))
    assert task.load()[1].prompt == "[id-1] {x} A {hive} of 100% {0} bees {{.\nTL;DR:"


@given(text=st.text(alphabet="{}ab!:.[]0 ", min_size=1))
def test_braces_in_an_article_are_text(text: str) -> None:
    task = make_task(TaskConfig("xsum", prompt="<{document}>"))
    assert task.prompt({"document": text}) == f"<{text}>"


@pytest.mark.parametrize(
    ("prompt", "said"),
    [
        ("{article}", "{article}"),
        ("{document.__class__}", "{document.__class__}"),
        ("{document[0]}", "{document[0]}"),
        ("{document!r}", "{document!r}"),
        ("{document:>{summary}}", "placeholder"),
        ("{}", "{}"),
        ("{document", "no template"),
        ("document}", "no template"),
        ("Summarize!", "names no field"),
        ("", "names no field"),
    ],
)
def test_bad_prompts_list_the_fields(prompt: str, said: str) -> None:
    with pytest.raises(ConfigError) as caught:
        make_task(TaskConfig("xsum", prompt=prompt))
    line = str(caught.value)
    assert line.startswith("task.prompt: ")
    assert said in line
    assert "{id}, {document}, {summary}" in line


def test_unknown_task_lists_all() -> None:
    with pytest.raises(ConfigError, match=r"task\.name: unknown task 'xsun' \(did you mean 'xsum'\?\).*xsum, cnn_dm"):
        make_task(TaskConfig("xsun"))


def test_missing_file_and_field_are_named(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"task\.data: .*gone\.jsonl does not exist"):
        make_task(TaskConfig("xsum", data=str(tmp_path / "gone.jsonl"))).load()
    with pytest.raises(ConfigError, match=r"task\.data: .* row 1: has no field 'article'"):
        make_task(TaskConfig("cnn_dm", data=config("xsum", tmp_path).data)).load()


def test_fingerprint_of_a_file_and_of_hub_data(tmp_path: Path) -> None:
    assert set(make_task(config("xsum", tmp_path)).fingerprint()) == {"path", "bytes", "sha256"}
    assert make_task(TaskConfig("cnn_dm", split="test")).fingerprint() == {
        "hub": "abisee/cnn_dailymail",
        "name": "3.0.0",
        "revision": None,
        "split": "test",
    }


def test_hub_sources(monkeypatch: pytest.MonkeyPatch) -> None:
    asked = []

    def read_hub_rows(source: Any, split: str, fields: Any, limit: int | None, problem: Any, keep: Any) -> Any:
        asked.append((source.path, source.name, source.revision, split, limit))
        return iter([ROWS["xsum"] | ROWS["cnn_dm"]])

    monkeypatch.setattr("buzz.evaluation.tasks.base.read_hub_rows", read_hub_rows)
    for name in ROWS:
        assert isinstance(make_task(TaskConfig(name)).load()[0], Sample)
    assert asked == [
        ("EdinburghNLP/xsum", None, "refs/convert/parquet", "validation", 200),
        ("abisee/cnn_dailymail", "3.0.0", None, "validation", 200),
        ("abisee/cnn_dailymail", "3.0.0", None, "validation", 200),
    ]


def test_continuation() -> None:
    assert continuation("Be BRIEF. ", "Paris") == "Paris"
    assert continuation("Answer:\n", "Paris") == "Paris"
    assert continuation("Answer:", "Paris") == " Paris"
