"""Configs by name: a file wins, then a packaged config, then a line with the nearest names."""

from __future__ import annotations

from pathlib import Path

import pytest

from buzz.evaluation.config.cli import main
from buzz.evaluation.errors import ConfigError
from buzz.evaluation.packaged import configs_folder, find_config, first_sentence, packaged_configs

CONFIGS = Path(__file__).parents[2] / "configs"


def test_a_checkout_has_those_at_its_top() -> None:
    assert configs_folder() == CONFIGS
    names = list(packaged_configs())
    assert {"quickstart", "comb/headline", "bench/h100", "sweeps/xsum"} <= set(names)
    assert len(names) == len(list(CONFIGS.rglob("*.yaml")))
    assert names.index("xsum") < names.index("bench/agreement")


def test_an_installed_package_has_its_own(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "buzz" / "configs" / "comb").mkdir(parents=True)
    (tmp_path / "configs").mkdir()
    (tmp_path / "configs" / "foreign.yaml").write_text("")
    (tmp_path / "buzz" / "configs" / "comb" / "own.yaml").write_text("")
    monkeypatch.setattr("buzz.__file__", str(tmp_path / "buzz" / "__init__.py"))
    assert list(packaged_configs()) == ["comb/own"]


@pytest.mark.parametrize(
    "word", ["quickstart", "quickstart.yaml", "quickstart.yml", "configs/quickstart", "./configs/quickstart.yaml"]
)
def test_a_name_in_all_its_forms(word: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    assert find_config(word) == str(CONFIGS / "quickstart.yaml")


def test_a_file_wins_and_a_folder_does_not(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "passkey").mkdir()
    assert find_config("passkey") == str(CONFIGS / "passkey.yaml")
    (tmp_path / "quickstart").write_text("")
    assert find_config("quickstart") == "quickstart"
    (tmp_path / "configs").mkdir()
    (tmp_path / "configs" / "xsum.yaml").write_text("")
    assert find_config("configs/xsum.yaml") == "configs/xsum.yaml"
    assert find_config("xsum") == str(CONFIGS / "xsum.yaml")


def test_what_is_no_file_and_cannot_be_looked_at_is_left_to_its_reader(tmp_path: Path) -> None:
    assert find_config(str(tmp_path)) == str(tmp_path)
    assert find_config("/dev/null") == "/dev/null"
    assert find_config("x" * 5000) == "x" * 5000


@pytest.mark.parametrize(
    ("word", "meant"),
    [
        ("quickstrat", " (did you mean 'quickstart'?)"),
        ("headline", " (did you mean 'comb/headline'?)"),
        ("configs/comb/headlin.yaml", " (did you mean 'comb/headline'?)"),
        ("tune", " (did you mean 'bench/tune' or 'comb/tune'?)"),
        ("../quickstart", " (did you mean 'quickstart'?)"),
        ("a\0b", ""),
    ],
)
def test_a_wrong_name(word: str, meant: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    with pytest.raises(ConfigError) as caught:
        find_config(word)
    assert f": is neither a file nor the name of a packaged config{meant}, a YAML file or a name" in str(caught.value)


def test_they_are_listed_with_what_they_say_of_themselves(capsys: pytest.CaptureFixture[str]) -> None:
    assert main([]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert lines[-1] == f"in {CONFIGS}"
    listed = dict(line.split(maxsplit=1) for line in lines[:-2])
    assert list(listed) == list(packaged_configs())  # and each has a sentence, or the line would have one word
    assert listed["wikitext"].startswith("Perplexity on WikiText-2 (raw), ")
    assert all(len(line) <= 120 for line in lines)
    assert main(["quickstart"]) == 2
    assert capsys.readouterr().err.startswith("error: usage: unrecognized arguments: quickstart")


def test_the_first_sentence_ends_before_a_command(tmp_path: Path) -> None:
    file = tmp_path / "config.yaml"
    file.write_text("# One, of 2.5 words:\n# and more. Two.\nname: x\n")
    assert first_sentence(file) == "One, of 2.5 words: and more."
    file.write_text("# What it does:\n#   command\n")
    assert first_sentence(file) == "What it does:"
    file.write_text("name: x # no\n")
    assert first_sentence(file) == ""
