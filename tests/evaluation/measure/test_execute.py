"""Batches of every kind of task: which parts run, and what a record holds."""

from __future__ import annotations

import json

import pytest

import buzz
from buzz.evaluation.measure.batch import Job, prompt_hash
from buzz.evaluation.measure.execute import compare_batch, encode, run_batch
from buzz.evaluation.measure.fidelity import fidelity
from buzz.evaluation.measure.likelihood import answer_nll
from buzz.evaluation.measure.metric_info import FIDELITY_METRICS
from buzz.evaluation.tasks import Sample, make_task
from buzz.evaluation.tasks.section import TaskConfig
from tests.evaluation.toys import POLICIES, Numbers, Toy, job, model_of, numbers

JOBS = [job(numbers(length, length), POLICIES["buzz"], name=f"s{length}") for length in (30, 14, 22)]
FULL = [Job(one.prompt, POLICIES["full"]) for one in JOBS]


@pytest.fixture(scope="module")
def model():
    model = model_of("llama")
    with buzz.patch_model(model):
        yield model


def run(model, jobs, reference, task=None):
    task = task or Toy()
    records = run_batch(model, Numbers(), task, jobs, None, 10)
    compare_batch(model, Numbers(), task, jobs, None, records, reference)
    return records


def test_a_record_of_a_generation(model):
    record = run(model, JOBS, None)[0]
    assert list(record) == [
        *["id", "prompt_hash", "prompt_tokens", "new_tokens", "output", "output_ids", "reference"],
        *["metrics", "policy", "positions", "cache", "seconds"],
    ]
    assert record["id"] == "s30"
    assert record["prompt_tokens"] == 30
    assert len(record["output_ids"]) == record["new_tokens"] <= 10
    assert record["reference"] == "7 8 9"
    assert list(record["metrics"]) == Toy.metrics
    assert record["policy"] == {"name": "buzz", "sink": 2, "window": 6, "stride": 3, "threshold": 5}
    assert record["seconds"] > 0
    assert json.loads(json.dumps(record)) == record


def test_the_likelihood_is_measured_where_a_task_wants_it(model):
    expected = answer_nll(model, Numbers(), Toy(), JOBS, None)
    assert [record["metrics"]["answer_nll"] for record in run(model, JOBS, None)] == expected

    class Plain(Toy):
        metrics = ["words"]  # noqa: RUF012

    records = run(model, JOBS, None, Plain())
    assert [list(record["metrics"]) for record in records] == [["words"]] * 3


def test_the_full_cache_is_its_own_reference(model):
    for record in run(model, FULL, "self"):
        assert list(record["metrics"]) == [*Toy.metrics, *FIDELITY_METRICS]
        assert record["metrics"]["fidelity_kl"] < 1e-6
        assert record["metrics"]["fidelity_top1"] == 1.0
        assert record["metrics"]["fidelity_rougeL"] == 1.0


def test_a_method_is_compared_with_the_full_caches_records(model):
    full = {record["id"]: record for record in run(model, FULL, "self")}
    records = run(model, JOBS, full)
    expected = fidelity(model, JOBS, None, records, [full[one.prompt.sample.id] for one in JOBS])
    for record, near in zip(records, expected, strict=True):
        assert list(record["metrics"]) == [*Toy.metrics, *FIDELITY_METRICS]
        assert {name: record["metrics"][name] for name in FIDELITY_METRICS} == near
        assert record["metrics"]["fidelity_kl"] > 1e-4


def test_a_prompt_is_encoded_as_its_task_is(tmp_path):
    sample = Sample("a", "3 4 5 6 7", "9", {})
    prompt = encode(Numbers(bos=1), Toy(), sample, False, 4)
    assert (prompt.ids, prompt.truncated, prompt.hash) == ([1, 3, 6, 7], True, prompt_hash("3 4 5 6 7"))
    path = tmp_path / "text.txt"
    path.write_text("3 4 5 6 7")
    task = make_task(TaskConfig("stream", data=str(path)))
    text = encode(Numbers(bos=1), task, task.load()[0], False, 4)
    assert (text.ids, text.truncated) == ([1, 3, 4, 5, 6, 7], False)  # what is only read is never cut
    assert text.hash == prompt_hash("3 4 5 6 7")


def test_texts_are_read_not_answered(model, tmp_path):
    path = tmp_path / "text.txt"
    path.write_text(" ".join(map(str, numbers(40, 3))))
    task = make_task(TaskConfig("stream", data=str(path)))
    prompt = encode(Numbers(), task, task.load()[0], False, None)
    (record,) = run(model, [Job(prompt, POLICIES["buzz"])], "self", task)
    assert list(record)[-2:] == ["weight", "blocks"]
    assert (record["output"], record["output_ids"], record["reference"]) == ("", [], None)
    assert (record["prompt_tokens"], record["new_tokens"], record["weight"]) == (1, 39, 39)
    assert json.loads(json.dumps(record)) == record
