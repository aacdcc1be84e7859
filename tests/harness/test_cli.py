"""lm-eval's command line with the model in it."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

from buzz.harness import cli


@pytest.fixture
def few_tasks(monkeypatch, tmp_path):
    """lm-eval without its own tasks, of which it otherwise reads thousands of files first, nor a log of its own."""
    manager = pytest.importorskip("lm_eval.tasks.manager")
    monkeypatch.setattr("lm_eval.__main__.setup_logging", lambda: None)
    monkeypatch.setattr(manager, "__file__", str(tmp_path / "none" / "manager.py"))


def test_a_command(few_tasks, model_folder, task_folder, tmp_path, capsys):
    arguments = f"pretrained={model_folder},dtype=float32,policy=streaming,budget=12"
    line = ["--model_args", arguments, "--tasks", "buzz_choice", "--include_path", str(task_folder)]
    before = list(sys.argv)
    status = cli.main([*line, "--device", "cpu", "--output_path", str(tmp_path / "out"), "--log_samples"])
    assert status == 0
    assert sys.argv == before
    assert "|buzz_choice|" in capsys.readouterr().out
    (results,) = (tmp_path / "out").glob("*/results_*.json")
    told = json.loads(results.read_text())["config"]
    assert told["model"] == "buzz"
    assert told["buzz"]["tasks"]["buzz_choice"]["evicted"] == 14
    (log,) = (tmp_path / "out").glob("cache_*.jsonl")
    assert told["buzz"]["cache_log"] == str(log)
    assert len(log.read_text().splitlines()) == 14


def test_mistakes_are_one_line(few_tasks, model_folder, task_folder, capsys):
    model, task = f"pretrained={model_folder}", ["--tasks", "buzz_choice", "--include_path", str(task_folder)]
    assert cli.main(["--model_args", f"{model},policy=comb,windw=3", *task]) == 2
    assert said(capsys).startswith("error: model_args.windw: unknown argument (did you mean 'window'?)")
    assert cli.main(["--model_args", f"{model},policy=comb", "--tasks", "no_such_task"]) == 2
    assert said(capsys).startswith("error: lm-eval: ")


def said(capsys) -> str:
    """The last line on stderr."""
    return capsys.readouterr().err.splitlines()[-1]


def test_without_lm_eval(monkeypatch, capsys):
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    assert cli.main(["--tasks", "x"]) == 2
    assert capsys.readouterr().err == (
        "error: lm-eval: is not installed, `pip install lm-eval` is wanted (the extra lm-eval of buzz)\n"
    )


def test_what_is_added_to_a_line():
    def added(*words: str) -> list[str]:
        return cli._completed(list(words))[len(words) :]

    tasks = ["--include_path", str(Path(cli.__file__).parent / "tasks")]
    for words in ([], ["ls", "tasks"], ["validate", "--tasks", "x"]):
        assert added(*words) == []
    assert added("run", "--tasks", "x") == ["--model", "buzz", *tasks]
    assert added("-M", "hf", "--output_path", "out", "--model_args", "pretrained=x") == tasks
    assert added("--include_path", "here", "--tasks", "x") == ["--model", "buzz"]
    assert added("--config", "x.yaml") == []
    given = ("--model", "buzz", "--include_path", "here", "-a", "policy=comb", "pretrained=x", "-o")
    for place, folder in (("out", "out"), ("deep/out.json", "deep")):
        option, text = added(*given, place)
        path = Path(json.loads(text)["cache_log"])
        assert (option, path.parent) == ("--model_args", Path(folder))
        assert path.match("cache_*.jsonl")
    assert added(*given, "out", "-a", "cache_log=x") == []


def test_the_tasks_of_this_package(few_tasks, model_folder, tmp_path, capsys):
    rows = [
        {
            "question": f"who {i}",
            "answers": [f"a{i % 3}"],
            "ctxs": [{"title": f"t{j}", "text": "x y"} for j in range(10)],
        }
        for i in range(5)
    ]
    data = tmp_path / "rows.jsonl"
    data.write_text("".join(json.dumps(row) + "\n" for row in rows))
    line = ["--tasks", "ten_qa_choice,ten_qa_answer", "--device", "cpu", "--batch_size", "4", "--show_config"]
    arguments = f"pretrained={model_folder},dtype=float32,policy=streaming,budget=20"
    assert cli.main([*line, "--model_args", arguments, "--metadata", f"data={data}"]) == 0
    out = capsys.readouterr().out
    assert "best_subspan_em" in out
    told = json.loads(out[: out.index("\nbuzz (")])["config"]["buzz"]["tasks"]
    assert told["ten_qa_choice"]["requests"] == 15  # there are three answers
    assert told["ten_qa_answer"]["evicted"] == 5


def test_the_module_runs():
    """`python -m buzz.harness run --help`: the help of lm-eval's own."""
    pytest.importorskip("lm_eval")
    command = [sys.executable, "-m", "buzz.harness", "run", "--help"]
    done = subprocess.run(command, capture_output=True, text=True, timeout=120)
    assert done.returncode == 0
    assert "--model_args" in done.stdout
