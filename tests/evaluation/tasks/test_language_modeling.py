"""Texts for perplexity: articles, lines and streams, from files and from the hub."""

from __future__ import annotations

import gzip

import pytest
from hypothesis import given
from hypothesis import strategies as st

from buzz.evaluation.errors import ConfigError
from buzz.evaluation.tasks import language_modeling, make_task
from buzz.evaluation.tasks.language_modeling import articles, written_lines
from buzz.evaluation.tasks.section import TaskConfig

RAW = (
    " \n = First Title = \n \n Some words = here . \n \n = = Section = = \n \n More\x85words\u2028here . \n"
    " = 1 henry and k = \n This line follows no title . \n \n \n = Other = One = \n \n The end . \n \n"
)


@pytest.fixture
def file(tmp_path):
    path = tmp_path / "wiki.txt.gz"
    path.write_bytes(gzip.compress(RAW.encode()))
    return str(path)


def load(file, protocol="document", **changes):
    return make_task(TaskConfig("wikitext", data=file, options={"protocol": protocol}, **changes)).load()


def test_articles_begin_at_their_titles(file):
    first, second = load(file)
    assert [first.id, second.id] == ["1 First Title", "2 Other = One"]
    assert second.prompt == " = Other = One = \n \n The end . \n \n"
    assert first.prompt + second.prompt == RAW
    assert [sample.id for sample in load(file, limit=1)] == ["1 First Title"]
    assert first.reference is None


def test_lines_are_those_that_are_not_blank(file):
    (sample,) = load(file, "lines")
    task = make_task(TaskConfig("wikitext", data=file, options={"protocol": "lines"}))
    assert task.pieces(sample)[:3] == [" = First Title = \n", " Some words = here . \n", " = = Section = = \n"]
    assert task.pieces(sample)[3] == " More\x85words\u2028here . \n"  # no line of its own
    assert len(task.pieces(sample)) == 8
    (sample,) = load(file, "lines", limit=2)
    assert task.pieces(sample) == [" = First Title = \n", " Some words = here . \n"]


def test_a_stream_is_the_whole_text(file):
    (sample,) = load(file, "stream", limit=1)
    assert sample.prompt == RAW
    task = make_task(TaskConfig("stream", data=file, limit=1))
    (sample,) = task.load()
    assert (sample.id, sample.prompt, task.pieces(sample)) == ("wiki.txt.gz", RAW, [RAW])


@given(st.text(alphabet=st.sampled_from([" ", "=", "\n", "a", "\r", "\u2028"])))
def test_articles_put_together_are_the_text(text):
    if not text.strip():
        return
    found = articles(text)
    assert "".join(body for _, body in found) == text
    assert len({name for name, _ in found}) == len(found)
    assert all(body.strip() for _, body in found)
    written = [line for line in text.split("\n") if line.strip()]
    assert [line.removesuffix("\n") for line in written_lines(text)] == written


def test_a_text_without_titles_is_one_article():
    assert articles("one\ntwo\n") == [("1 one", "one\ntwo\n")]


def test_what_comes_before_the_first_title_is_kept():
    text = "Preface\n\n = Title = \n\nBody\n"
    assert articles(text) == [("1 Preface", "Preface\n\n"), ("2 Title", " = Title = \n\nBody\n")]


def test_rows_of_the_hub_are_the_lines_of_the_file(file, monkeypatch):
    def rows(source, split, fields, limit=None, where="task.data", problem=None):
        assert (source.path, source.name, split) == ("Salesforce/wikitext", "wikitext-2-raw-v1", "validation")
        for line in RAW.split("\n")[:-1]:
            row = {"text": line + "\n" if line.strip() else ""}
            assert problem(row) is None
            yield row
        assert problem({"words": "a"}) is not None

    monkeypatch.setattr(language_modeling, "read_hub_rows", rows)
    for protocol in ("document", "lines", "stream"):
        assert [s.prompt for s in load(None, protocol)] == [s.prompt for s in load(file, protocol)]


def test_an_unreachable_hub_says_which_files_will_do(monkeypatch):
    def rows(*args, **kwargs):
        raise ConfigError("task.data", "Salesforce/wikitext (validation) cannot be loaded", "a .jsonl file")

    monkeypatch.setattr(language_modeling, "read_hub_rows", rows)
    with pytest.raises(ConfigError, match=r"cannot be loaded, task.data takes a local \.txt or \.txt\.gz file$"):
        load(None)


def test_a_stream_needs_a_file():
    with pytest.raises(ConfigError, match=r"^task.data: is null, but stream .*, a \.txt or \.txt\.gz file is wanted$"):
        make_task(TaskConfig("stream")).load()


@pytest.mark.parametrize("name", ["wikitext", "stream"])
def test_a_text_takes_no_prompt(name, file):
    with pytest.raises(ConfigError, match=rf"^task.prompt: is given, but {name} reads its text as it is, null is"):
        make_task(TaskConfig(name, data=file, prompt="{text}"))


@pytest.mark.parametrize(
    ("prefill", "tokens", "expected"), [(1, 2, (1, 0)), (1, 50, (1, 48)), (16, 50, (16, 33)), (16, 10, (9, 0))]
)
def test_calls(prefill, tokens, expected, file):
    task = make_task(TaskConfig("stream", data=file, options={"prefill": prefill}))
    assert task.calls(tokens, 100) == expected
