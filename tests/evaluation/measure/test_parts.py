"""Parts of a run: what a sample's id says of them, and their scores."""

from __future__ import annotations

import pytest

from buzz.evaluation.measure.parts import Part, part_of, part_scores
from buzz.evaluation.show.parts import part_tables
from tests.evaluation.synthetic import record, summary_of


@pytest.mark.parametrize(
    ("name", "part"),
    [
        ("vt/length1024-3", Part("vt", 1024)),
        ("niah_single_1/length512-depth0.25-0", Part("niah_single_1", 512)),
        ("qasper/17", Part("qasper", None)),
        ("qasper/length-17", Part("qasper", None)),
        ("length512-depth0.25-0", None),
        ("s0", None),
    ],
)
def test_the_part_of_a_sample(name, part):
    assert part_of(name) == part


def test_scores_of_parts():
    rows = [
        record("qasper/1", "h2o", {"score": 0.5, "fidelity_kl": 1.0}, new_tokens=4),
        record("qasper/2", "h2o", {"score": 1.0, "fidelity_kl": 1.0}, new_tokens=8),
        record("trec/1", "h2o", {"score": None, "fidelity_kl": 1.0}, new_tokens=2),
    ]
    metrics = ["score", "fidelity_kl"]
    assert part_scores(rows, metrics) == [
        {"task": "qasper", "length": None, "n": 2, "answer_tokens": 6.0, "metrics": {"score": 0.75}},
        {"task": "trec", "length": None, "n": 1, "answer_tokens": 2.0, "metrics": {}},
    ]
    assert part_scores(rows[:2], metrics) == []  # a single part is the whole
    assert part_scores([*rows, record("s0", "h2o", {"score": 0.5})], metrics) == []
    read = [record(f"book{i}.txt/1", "h2o", {"perplexity": 2.0}, weight=5) for i in (1, 2)]
    assert part_scores(read, ["perplexity"]) == []
    ((title, (header, cells)),) = part_tables(summary_of({"h2o": rows, "late": []}))
    assert title == "score by task"
    assert header == ["method", "qasper", "mean"]  # nothing is known of trec
    assert cells == [["h2o", "75.00", "75.00"]]


def test_tables_by_task_and_by_length():
    def rows(policy, *scores):
        ids = [f"{task}/length{length}-0" for length in (2048, 1024) for task in ("vt", "cwe")]
        return [record(i, policy, {"string_match_all": s}) for i, s in zip(ids, scores, strict=False)]

    made = summary_of({"full": rows("full", 1, 0.5, 0.9, 0.7), "h2o": rows("h2o", 0.2, 0.4, 0.6)})
    tables = dict(part_tables(made))
    assert list(tables) == [
        *("string match by task, 1024 tokens", "string match by task, 2048 tokens", "string match by length"),
    ]
    assert tables["string match by task, 1024 tokens"] == (
        ["method", "vt", "cwe", "mean"],
        [["full", "90.00", "70.00", "80.00"], ["h2o", "60.00", "-", "60.00"]],
    )
    assert tables["string match by length"] == (
        ["method", "1024 tokens", "2048 tokens", "mean"],
        [["full", "80.00", "75.00", "77.50"], ["h2o", "60.00", "30.00", "45.00"]],
    )
    assert part_tables(summary_of({"full": [record("s0", "full", {"score": 0.5})]})) == []
