"""The command line: one line and status 2 for every mistake, and runs that survive signals."""

from __future__ import annotations

import importlib.util
import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from buzz.evaluation.models import load as models
from buzz.evaluation.models import source as model_source
from buzz.evaluation.run.cli import main
from buzz.patching import supported_families

NEITHER = (
    "is neither a file nor the name of a packaged config, a YAML file or a name that `buzz configs` lists is wanted"
)
SCRIPT = Path(__file__).resolve().parents[3] / "scripts" / "run_eval.py"


@pytest.fixture
def fails(write_config, capfd, monkeypatch):
    """Run the tiny config with overrides; returns the one line of the error. No weight may be read on the way."""
    monkeypatch.setattr(models, "load_model", lambda *_: pytest.fail("loaded a model"))
    monkeypatch.setattr(models, "_load_weights", lambda *_: pytest.fail("loaded weights"))
    monkeypatch.setattr(model_source, "_hub_reachable", lambda: False)

    def fail(*overrides: str, **changes) -> str:
        assert main(["--config", str(write_config(**changes)), *overrides]) == 2
        captured = capfd.readouterr()
        assert captured.out == ""
        (line,) = captured.err.splitlines()
        assert line.startswith("error: ")
        return line

    return fail


def test_unknown_key_names_the_nearest(fails):
    line = fails("batch_sise=3")
    assert "batch_sise" in line
    assert "batch_size" in line


def test_wrong_type(fails):
    assert "batch_size" in fails("batch_size=many")


def test_window_zero(fails):
    assert "window" in fails(methods=[{"policy": "buzz", "window": 0}])


def test_unknown_policy_lists_them(fails):
    line = fails(methods=["buz"])
    assert all(name in line for name in ("full", "streaming", "h2o", "buzz"))


def test_missing_data_file(fails):
    line = fails("task.data=/missing.jsonl")
    assert "task.data" in line
    assert "/missing.jsonl" in line


def test_row_without_a_field_names_file_and_row(fails, data_file):
    data_file.write_text('{"document": "a b c", "summary": "x"}\n{"document": "a b c"}\n')
    line = fails()
    assert f"{data_file} row 2" in line
    assert "summary" in line


def test_hub_without_network_says_which_key_takes_a_file(fails):
    line = fails("model.id=nobody/nothing-here")
    assert line.startswith("error: model.id: ")
    assert "model.gguf" in line


def test_unsupported_family(fails, tmp_path):
    folder = tmp_path / "mamba"
    folder.mkdir()
    (folder / "config.json").write_text('{"model_type": "mamba"}')
    line = fails(f"model.id={folder}")
    wanted = f"one of {', '.join(supported_families())} is wanted"
    assert line == f"error: model.id: the model family 'mamba' is not supported, {wanted}"


def test_folder_of_something_else(fails, tmp_path):
    foreign = tmp_path / "foreign"
    foreign.mkdir()
    (foreign / "x").write_text("x")
    assert fails(f"output={foreign}").startswith("error: output: ")


def test_a_bad_config_leaves_no_folder(fails, tmp_path):
    fails("model.id=nobody/nothing-here")
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize("arguments", [[], ["--config"], ["--config", "x", "--frobnicate"], ["task.limit=3"]])
def test_bad_usage(arguments, capfd):
    assert main(arguments) == 2
    (line,) = capfd.readouterr().err.splitlines()
    assert line.startswith("error: usage: ")


@pytest.mark.parametrize(
    "arguments", ["{} batch_size=0", "batch_size=0 {}", "--config {} batch_size=0", "batch_size=0 --config={}"]
)
def test_the_config_may_stand_first_or_anywhere(write_config, capfd, arguments):
    assert main(arguments.format(write_config()).split()) == 2
    assert capfd.readouterr().err.startswith("error: batch_size: is 0")


@pytest.mark.parametrize("arguments", ["quickstart", "--config quickstart", "configs/quickstart.yaml", "comb/headline"])
def test_a_packaged_config_goes_by_its_name(arguments, monkeypatch, tmp_path, capfd):
    monkeypatch.chdir(tmp_path)
    assert main([*arguments.split(), "batch_size=0"]) == 2
    assert capfd.readouterr().err.startswith("error: batch_size: is 0")


def test_without_the_extra_the_line_says_which(write_config, monkeypatch, capfd):
    find = importlib.util.find_spec
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None if name == "rouge" else find(name))
    assert main([str(write_config(batch_size=0))]) == 2
    wanted = "error: packages: not installed: rouge, `pip install 'buzz-kv[eval]'` brings what is needed\n"
    assert capfd.readouterr().err == wanted


def test_a_config_needs_no_ending_to_be_one(write_config, tmp_path, capfd):
    (tmp_path / "config").write_text(write_config(batch_size=0).read_text())
    assert main([str(tmp_path / "config")]) == 2
    assert capfd.readouterr().err.startswith("error: batch_size: is 0")


@pytest.mark.parametrize(
    ("arguments", "line"),
    [
        ("a.yaml --config b.yaml", "usage: two configs are given, b.yaml and a.yaml, one is wanted"),
        ("a.yaml seed=1 b.yml", "usage: two configs are given, a.yaml and b.yml, one is wanted"),
        ("--config a.yaml --config b.yaml", "usage: two configs are given, a.yaml and b.yaml, one is wanted"),
        ("--config a.yaml --config a.yaml", "usage: two configs are given, a.yaml and a.yaml, one is wanted"),
        ("/nope seed=1", f"/nope: {NEITHER}"),
        ("/", "usage: / is a folder, a YAML file is wanted; see --help"),
        ("/dev/null", "usage: /dev/null is no regular file, a YAML file is wanted; see --help"),
        ("--config /dev/null", "/dev/null: cannot be read (is no regular file), a YAML file is wanted"),
        ("seed=1", "usage: no config is given, a YAML file is wanted; see --help"),
        ("task.data=a.yaml", "usage: no config is given, a YAML file is wanted; see --help"),
        ("gone.yaml seed=1", f"gone.yaml: {NEITHER}"),
        ("gone seed=1", f"gone: {NEITHER}"),
        ("quickstart xsum", "usage: two configs are given, quickstart and xsum, one is wanted"),
    ],
)
def test_which_config(arguments, line, capfd):
    assert main(arguments.split()) == 2
    assert capfd.readouterr().err == f"error: {line}\n"


def test_a_pipe_is_no_config(tmp_path, capfd):
    os.mkfifo(tmp_path / "pipe.yaml")
    assert main([str(tmp_path / "pipe.yaml")]) == 2
    assert capfd.readouterr().err.startswith(f"error: {tmp_path}/pipe.yaml: cannot be read (is no regular file), ")


def test_an_empty_word_is_no_config(capfd):
    for arguments in ([""], ["--config", ""]):
        assert main(arguments) == 2
        assert capfd.readouterr().err == "error: usage: the config's path is empty, a YAML file is wanted; see --help\n"


def test_missing_config(capfd):
    assert main(["--config", "/missing.yaml"]) == 2
    assert len(capfd.readouterr().err.splitlines()) == 1


def test_overrides_may_stand_anywhere(write_config, capfd):
    assert main(["batch_size=0", "--config", str(write_config())]) == 2
    assert "batch_size" in capfd.readouterr().err


def test_help(capfd):
    with pytest.raises(SystemExit) as caught:
        main(["--help"])
    assert caught.value.code == 0
    assert "key.sub=value" in capfd.readouterr().out


def test_a_run_prints_its_table(write_config, capfd):
    assert main(["--config", str(write_config()), "task.limit=2", "methods=[full, local]"]) == 0
    out = capfd.readouterr().out.splitlines()
    assert out[0].startswith("method")
    assert [line.split()[0] for line in out[2:4]] == ["full", "local"]


def test_a_damaged_run_is_not_resumed(write_config, tmp_path, capfd):
    methods = ["full", {"policy": "local", "window": 8, "name": "local"}, {"policy": "h2o", "match": "local"}]
    methods[2] |= {"match_by": "bytes", "name": "h2o"}
    line = ["--config", str(write_config(methods=methods)), "task.limit=2"]
    assert main(line) == 0
    path = tmp_path / "out" / "samples" / "local.jsonl"
    rows = [json.loads(row) for row in path.read_text().splitlines()]
    names = ("mean_bytes", "peak_bytes", "full_mean_bytes")
    for change, what in (
        ({"mean_bytes": 0}, f"{path} row 2 is not a sample: cache.mean_bytes is 0"),
        (dict.fromkeys(names), f"{path} row 2 is not a sample: cache.mean_bytes is not a number"),
        (None, "holds samples of local without their bytes, which h2o needs"),
    ):
        cache = {**rows[1]["cache"], **(change or {})}
        if change is None:
            cache = {key: value for key, value in cache.items() if key not in names}
        path.write_text(json.dumps(rows[0]) + "\n" + json.dumps({**rows[1], "cache": cache}) + "\n")
        capfd.readouterr()
        assert main(line) == 2
        (error,) = capfd.readouterr().err.splitlines()
        assert error.startswith("error: output: ")
        assert what in error


def test_a_sweep_prints_its_tables(write_config, tmp_path, capfd):
    sweep = {"stride": [2, 3], "methods": [{"policy": "buzz", "sink": 2, "window": 12, "threshold": 10}]}
    assert main(["--config", str(write_config(methods=["full"], sweep=sweep)), "task.limit=2"]) == 0
    captured = capfd.readouterr()
    table = captured.out.split("\n\n")[1]  # after its title; the verdict follows
    assert sum(line.startswith("buzz-") for line in table.splitlines()) == 2
    assert f"{tmp_path / 'out'}: summary.json" in captured.out


def test_a_sweep_is_checked_as_a_run_is(fails):
    assert fails(sweep={"strides": [2]}).startswith("error: sweep")


# --- as a process ----------------------------------------------------------------------------------------------------


def command(*arguments: str) -> list[str]:
    return [sys.executable, str(SCRIPT), *arguments]


def test_the_script_works_without_an_installation(tmp_path):
    done = subprocess.run(
        command("--config", "missing.yaml"), cwd=tmp_path, capture_output=True, text=True, timeout=120
    )
    assert done.returncode == 2
    assert done.stderr.startswith("error: missing.yaml")
    assert done.stderr.count("\n") == 1


def test_help_reads_no_torch():
    code = (
        "import sys; from buzz.evaluation.run.cli import main\n"
        "try: main(['--help'])\n"
        "except SystemExit as end: sys.exit(end.code or 77 * ('torch' in sys.modules))"
    )
    arguments = [sys.executable, "-c", code]
    done = subprocess.run(arguments, cwd=SCRIPT.parents[1], capture_output=True, text=True, timeout=120)
    assert (done.returncode, done.stderr) == (0, "")
    assert done.stdout.startswith("usage: ")


def test_a_mistake_is_told_before_transformers_is_read(write_config):
    code = (
        "import sys; from buzz.evaluation.run.cli import main; status = main(sys.argv[1:]); "
        "sys.exit(status if 'transformers' not in sys.modules else 77)"
    )
    arguments = [sys.executable, "-c", code, "--config", str(write_config(batch_size=0))]
    done = subprocess.run(arguments, cwd=SCRIPT.parents[1], capture_output=True, text=True, timeout=120)
    assert (done.returncode, done.stderr.count("\n")) == (2, 1), done.stderr


@pytest.mark.parametrize(("number", "status"), [(signal.SIGTERM, 143), (signal.SIGINT, 130)])
def test_an_interrupted_run_resumes(write_config, tmp_path, number, status):
    config = write_config(batch_size=1, generation={"max_new_tokens": 150}, methods=["full"])
    arguments = command("--config", str(config))
    samples = tmp_path / "out" / "samples" / "full.jsonl"
    with subprocess.Popen(
        arguments, stderr=subprocess.PIPE, text=True, env={**os.environ, "OMP_NUM_THREADS": "1"}
    ) as process:
        deadline = time.monotonic() + 120
        while not (samples.exists() and samples.stat().st_size):
            assert process.poll() is None, process.stderr and process.stderr.read()
            assert time.monotonic() < deadline
            time.sleep(0.005)
        process.send_signal(number)
        _, error = process.communicate(timeout=60)
    assert process.returncode == status
    if number != signal.SIGKILL:
        (line,) = error.splitlines()
        assert "the same command resumes" in line
        assert samples.read_bytes().endswith(b"\n")
    before = samples.read_bytes()
    before = before[: before.rfind(b"\n") + 1]
    assert 1 <= before.count(b"\n") < 6
    assert not (tmp_path / "out" / "summary.json").exists()

    assert main(["--config", str(config)]) == 0
    assert samples.read_bytes().startswith(before)
    names = [json.loads(line)["id"] for line in samples.read_text().splitlines()]
    assert sorted(names) == [f"s{i}" for i in range(6)]
