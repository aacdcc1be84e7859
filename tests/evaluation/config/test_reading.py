"""Files and overrides that cannot be read: one line for each."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from buzz.evaluation.run.config import RunConfig, load_config
from tests.evaluation.mistakes import BASE, error


@pytest.mark.parametrize(
    ("content", "said"),
    [
        (b"name: x\nmodel: {id: a\n", " line "),
        (b"name: x\nmodel: a: b\n", " line 2: is not valid YAML"),
        (b"name: x\nseed: 1\nseed: 2\n", " line 3: is not valid YAML (key 'seed' is given twice)"),
        (b"name: !!python/object:os.system x\n", " line 1: is not valid YAML"),
        (b"name: !!int 010\n", "is not valid YAML ('010' is no plain decimal number)"),
        (b"name: \x00\n", "is not valid YAML"),
        (b"name: \xff\n", "is not UTF-8"),
        (b"[" * 20_000, "is not valid YAML"),
        (b"- name\n", "is ['name'] (a list), a mapping with the keys name, model"),
        (b"", "is null, a mapping with the keys"),
        (b"{1: 2}", "unknown key"),
    ],
)
def test_broken_files(base: Path, content: bytes, said: str) -> None:
    base.write_bytes(content)
    line = error(base)
    assert said in line
    assert "unknown" in line or line.startswith(str(base))


def test_a_bomb_of_aliases_is_told_in_one_line(base: Path) -> None:
    levels = [f"a{i}: &a{i} [{', '.join([f'*a{i - 1}'] * 9) if i else 'lol'}]" for i in range(12)]
    base.write_text("\n".join([*levels, "circle: &c [*c]"]))
    assert error(base).startswith("a0: unknown key")
    base.write_text("\n".join(["name: &a0 [lol]", *levels[1:]]))
    assert len(error(base)) < 300


def test_a_path_that_is_none(tmp_path: Path) -> None:
    assert error("a\0b.yaml") == "'a\\x00b.yaml': cannot be read (embedded null byte), a YAML file is wanted"
    odd = Path(os.fsdecode(bytes(tmp_path) + b"/\xff.yaml"))
    odd.write_text(BASE)
    assert load_config(odd).name == load_config_of_base(tmp_path).name


def load_config_of_base(tmp_path: Path) -> RunConfig:
    (tmp_path / "same.yaml").write_text(BASE)
    return load_config(tmp_path / "same.yaml")


def test_missing_file_and_folder(tmp_path: Path) -> None:
    assert error(tmp_path / "gone.yaml").startswith(f"{tmp_path / 'gone.yaml'}: cannot be read (No such file")
    assert error(tmp_path).startswith(f"{tmp_path}: cannot be read")
