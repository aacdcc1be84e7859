"""What is told of caches."""

from __future__ import annotations

import json
import warnings
from types import SimpleNamespace

import pytest

import buzz
from buzz.evaluation.measure.batch import Held
from buzz.harness.kept import Book, Kept

STREAMING = buzz.make_policy("streaming", sink=1, window=3)


def kept(lengths: list[float], first: int, steps: int, is_least: bool = False) -> Kept:
    held = Held(lengths, [10.0] * len(lengths), positions="cache")
    return Kept.of(STREAMING, is_least, first, steps, held, lambda seen: (sum(seen) / len(seen), 1.0))


def request(task: str, doc: int, index: int = 0, repeats: int = 1) -> SimpleNamespace:
    return SimpleNamespace(task_name=task, doc_id=doc, idx=index, repeats=repeats, request_type="loglikelihood")


def test_only_what_was_gone_before_a_prediction_counts_as_evicted():
    assert kept([4, 4, 4], 8, 2).evicted
    assert kept([3, 4, 4], 3, 2).evicted is False  # after the last call nothing is predicted
    assert kept([3, 4, 4, 4], 3, 3).evicted
    assert kept([4], 8, 0).evicted is False  # predicted from the whole prompt
    assert kept([4, 4, 4, 4], 8, 2).cache["mean_tokens"] == 4  # calls that were another row's do not count


def test_figures_of_a_task_and_lines_of_a_file(tmp_path):
    book = Book(tmp_path / "log.jsonl")
    requests = [request("a", 0), request("a", 0, 1), request("b", 0)]
    parts = [[kept([4, 4], 8, 1)], [kept([3, 4], 3, 1)], [kept([4, 4], 9, 1), kept([4, 4], 11, 1)]]
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        book.add(book.lines(requests, parts), full=False)
    assert book.summary()["a"] == {
        "documents": 1,
        "requests": 2,
        "evicted": 1,
        "smallest": 0,
        "mean_tokens": 4.0,
        "peak_tokens": 4,
        "full_mean_tokens": 6.5,
        "reduction": 6.5 / 4,
    }
    lines = [json.loads(line) for line in (tmp_path / "log.jsonl").read_text().splitlines()]
    assert [(line["task"], line["index"], line.get("window")) for line in lines] == [
        *[("a", 0, None), ("a", 1, None), ("b", 0, 0), ("b", 0, 1)]
    ]
    assert lines[0]["policy"] == {"name": "streaming", "sink": 1, "window": 3}
    assert lines[0]["cache"]["curve"] == [[1, 4]]


def test_requests_that_fill_up_a_process_are_left_out():
    book = Book(None)
    rows = [request("a", 0, repeats=2)] * 3 + [request("a", 1)] * 2
    book.add(book.lines(rows, [[kept([4, 4], 8, 1)]] * 5), full=False)
    assert book.summary()["a"]["requests"] == 3


def test_a_task_in_which_nothing_was_evicted_is_told():
    whole = [[kept([3, 4], 3, 1)]] * 2
    with pytest.warns(UserWarning, match="a: the policy let go of nothing in any of 2 requests: this is the full"):
        Book(None).add(Book(None).lines([request("a", 0), request("a", 1)], whole), full=False)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        Book(None).add(Book(None).lines([request("a", 0)], whole[:1]), full=True)


def test_texts_that_are_too_short_for_their_share_are_told():
    parts = [[kept([4, 4], 8, 1)], [kept([4, 4], 8, 1, is_least=True)]]
    with pytest.warns(UserWarning, match="a: 1 of 2 requests had the smallest cache that the policy can have"):
        Book(None).add(Book(None).lines([request("a", 0), request("a", 1)], parts), full=False)


def test_a_log_that_cannot_be_written_loses_nothing(tmp_path):
    book = Book(tmp_path)  # a folder
    lines = book.lines([request("a", 0)], [[kept([4, 4], 8, 1)]])
    with pytest.warns(UserWarning, match="cannot be written"):
        book.add(lines, full=False)
    book.add(lines, full=False)
    assert book.summary()["a"]["requests"] == 2
