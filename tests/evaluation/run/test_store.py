"""The run folder: resuming, refusing, locking."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from buzz.evaluation.errors import ConfigError, WriteError
from buzz.evaluation.files import write_atomically
from buzz.evaluation.run.config import load_config
from buzz.evaluation.run.store import RunFolder
from tests.evaluation.synthetic import record

PRINTS = {"model": "m", "data": {"sha256": "d"}}


@pytest.fixture
def config(write_config):
    return load_config(write_config())


def row(name: str, **more) -> dict:
    return record(name, "full", {"rouge1": 0.5}, **more)


def text(*names: str) -> str:
    return "".join(json.dumps(row(name)) + "\n" for name in names)


def lines(config) -> Path:
    return Path(config.output) / "samples" / "full.jsonl"


def test_samples_come_back_in_order(config):
    with RunFolder(config, PRINTS) as folder:
        assert folder.samples("full") == {}
        folder.append("full", [row("b", output="zwei\nZeilen é "), row("a")])
        folder.append("full", [row("c")])
        assert list(folder.samples("full")) == ["b", "a", "c"]
        assert folder.samples("full")["b"]["output"] == "zwei\nZeilen é "
    assert len(lines(config).read_bytes().splitlines()) == 3


@pytest.mark.parametrize("rest", [b'{"id": "c", "out', b'{"id": "c"}', b"\0" * 40 + b"\n", b"\xff\n"])
def test_a_cut_last_line_is_removed(config, rest):
    with RunFolder(config, PRINTS) as folder:
        folder.append("full", [row("a"), row("b")])
        with open(lines(config), "ab") as file:
            file.write(rest)
        assert list(folder.samples("full")) == ["a", "b"]
        folder.append("full", [row("c")])
        assert list(folder.samples("full")) == ["a", "b", "c"]


def test_a_broken_line_in_the_middle_is_refused(config):
    with RunFolder(config, PRINTS) as folder:
        lines(config).write_text(text("a") + '{"id"\n' + text("c"))
        with pytest.raises(ConfigError, match=r"row 2 is not a sample: it is not valid JSON"):
            folder.samples("full")


GONE = object()
IMPOSSIBLE = (float("nan"), None, "1", 0, -1, float("inf"), True, 10**400)


@pytest.mark.parametrize(
    ("where", "value", "what"),
    [
        *((key, GONE, f"{key} is missing") for key in ("id", "metrics", "cache", "policy", "prompt_hash", "seconds")),
        ("new_tokens", GONE, "new_tokens is missing"),
        ("id", 3, "id is not text"),
        ("new_tokens", 0, "new_tokens is 0"),
        ("new_tokens", 10**30, "new_tokens is too large"),
        ("seconds", float("nan"), "seconds is NaN"),
        ("seconds", -1, "seconds is -1"),
        ("metrics", {}, "metrics is empty"),
        ("policy.name", 1, "policy.name is not text"),
        ("metrics.rouge1", "x", "metrics.rouge1 is not a number"),
        ("metrics.rouge1", float("nan"), "metrics.rouge1 is NaN"),
        ("cache.mean_tokens", GONE, "cache.mean_tokens is missing"),
        ("cache.full_mean_tokens", 0, "cache.full_mean_tokens is 0"),
        ("cache.curve", [[1]], "cache.curve is no list of pairs of numbers"),
        ("cache.mean_bytes", GONE, "cache.mean_bytes is missing"),
        ("cache.peak_bytes", GONE, "cache.peak_bytes is missing"),
        *(("cache.mean_bytes", bad, "cache.mean_bytes is ") for bad in IMPOSSIBLE),
    ],
)
def test_a_row_that_is_no_sample_is_refused_and_kept(config, where, value, what):
    damaged = row("b")
    *above, key = where.split(".")
    owner = damaged[above[0]] if above else damaged
    if value is GONE:
        del owner[key]
    else:
        owner[key] = value
    with RunFolder(config, PRINTS) as folder:
        lines(config).write_text(text("a") + json.dumps(damaged) + "\n")
        before = lines(config).read_bytes()
        with pytest.raises(ConfigError, match=f"full.jsonl row 2 is not a sample: {what}"):
            folder.samples("full")
        assert lines(config).read_bytes() == before


def test_samples_of_older_versions_have_no_bytes(config):
    old = row("a")
    old["cache"] = {key: value for key, value in old["cache"].items() if "bytes" not in key}
    with RunFolder(config, PRINTS) as folder:
        folder.append("full", [old])
        assert folder.samples("full") == {"a": old}


@pytest.mark.parametrize(
    ("name", "content", "what"),
    [
        ("environment.json", "[1, 2]", "is damaged: is no JSON object"),
        ("environment.json", '{"fingerprints": null}', "is damaged: fingerprints is not a mapping"),
        ("environment.json", "[" * 100_000, "is damaged: is not valid JSON"),
        ("environment.json", None, "is no regular file"),
        ("config.yaml", "a: " + "[" * 5000, "is not the config of a run"),
        ("config.yaml", None, "is no regular file"),
        ("samples/full.jsonl", None, "is no regular file"),
    ],
)
def test_a_damaged_folder_is_one_line(config, name, content, what):
    RunFolder(config, PRINTS).close()
    path = Path(config.output) / name
    path.unlink(missing_ok=True)
    if content is None:
        os.mkfifo(path)
    else:
        path.write_text(content)
    with pytest.raises(ConfigError, match=what) as caught, RunFolder(config, PRINTS) as folder:
        folder.samples("full")
    assert str(path) in str(caught.value)


def test_another_config_is_refused_with_both_values(config, write_config):
    RunFolder(config, PRINTS).close()
    before = (Path(config.output) / "config.yaml").read_text()
    other = load_config(write_config(), ["batch_size=2", "task.limit=3"])
    with pytest.raises(ConfigError) as caught:
        RunFolder(other, PRINTS)
    text = str(caught.value)
    assert text.startswith("output: ")
    assert "batch_size is 4 there and 2 now" in text
    assert "task.limit is 200 there and 3 now" in text
    assert "choose another output or delete the folder" in text
    assert (Path(config.output) / "config.yaml").read_text() == before


def test_another_method_list_is_refused(config, write_config):
    RunFolder(config, PRINTS).close()
    with pytest.raises(ConfigError, match=r"methods\[0\].*'full' there and 'local' now"):
        RunFolder(load_config(write_config(), ["methods=[local]"]), PRINTS)


def test_name_tracking_and_spelling_of_the_folder_may_differ(config, write_config):
    RunFolder(config, PRINTS).close()
    output = Path(config.output)
    free = ["name=else", "wandb.project=else", f"output={output.parent}/./{output.name}"]
    RunFolder(load_config(write_config(), free), PRINTS).close()


@pytest.mark.parametrize(("which", "value"), [("model", "other"), ("data", {"sha256": "e"})])
def test_changed_weights_or_rows_are_refused(config, which, value):
    with RunFolder(config, PRINTS) as folder:
        folder.write_environment({"layers": 2})
    RunFolder(config, PRINTS).close()
    with pytest.raises(ConfigError, match=f"another {which}"):
        RunFolder(config, {**PRINTS, which: value})


def test_environment_keeps_its_start_and_notes_resumption(config):
    with RunFolder(config, PRINTS) as folder:
        folder.write_environment({"layers": 2})
        first = json.loads((folder.path / "environment.json").read_text())
        folder.write_environment({"layers": 2})
        second = json.loads((folder.path / "environment.json").read_text())
    assert second["started"] == first["started"]
    assert second["model"] == {"layers": 2}
    assert [set(entry) for entry in second["resumed"]] == [{"started"}]
    assert {"python", "torch", "transformers", "buzz"} <= set(first["versions"])


def test_only_one_holder(config):
    with (
        RunFolder(config, PRINTS),
        pytest.raises(ConfigError, match=rf"another process \(pid {os.getpid()}\)"),
    ):
        RunFolder(config, PRINTS)
    RunFolder(config, PRINTS).close()


def test_the_lock_of_a_killed_process_is_free(config, tmp_path):
    RunFolder(config, PRINTS).close()
    code = (
        "import fcntl, sys, time; f = open(sys.argv[1], 'a+'); fcntl.flock(f, fcntl.LOCK_EX); "
        "f.truncate(0); f.write('4711'); f.flush(); print('locked', flush=True); time.sleep(60)"
    )
    path = Path(config.output) / ".lock"
    with subprocess.Popen([sys.executable, "-c", code, str(path)], stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        assert process.stdout.readline() == "locked\n"
        with pytest.raises(ConfigError, match="pid 4711"):
            RunFolder(config, PRINTS)
        process.send_signal(signal.SIGKILL)
        process.wait()
    RunFolder(config, PRINTS).close()


def test_what_is_not_a_run_is_left_alone(config, write_config, tmp_path):
    foreign = tmp_path / "thesis"
    foreign.mkdir()
    (foreign / "chapter1.tex").write_text("x")
    with pytest.raises(ConfigError, match="holds other files"):
        RunFolder(load_config(write_config(), [f"output={foreign}"]), PRINTS)
    assert [path.name for path in foreign.iterdir()] == ["chapter1.tex"]
    with pytest.raises(ConfigError, match="is a file"):
        RunFolder(load_config(write_config(), [f"output={foreign / 'chapter1.tex'}"]), PRINTS)
    with pytest.raises(ConfigError, match="cannot be written"):
        RunFolder(load_config(write_config(), [f"output={foreign / 'chapter1.tex' / 'out'}"]), PRINTS)


def test_writing_is_all_or_nothing(tmp_path, monkeypatch):
    path = tmp_path / "summary.json"
    write_atomically(path, "old")
    monkeypatch.setattr(os, "replace", lambda *_: (_ for _ in ()).throw(OSError("disk full")))
    with pytest.raises(WriteError, match=r"summary\.json cannot be written \(disk full\); what is finished is kept"):
        write_atomically(path, "new")
    assert path.read_text() == "old"
    assert list(tmp_path.iterdir()) == [path]


# --- several processes -----------------------------------------------------------------------------------------------


@pytest.fixture
def shards(config) -> RunFolder:
    """What two processes, and a run of one before them, left; the last line of one is cut off, and "b" is there twice,
    as when a merge was killed before it had removed the shards."""
    with RunFolder(config, PRINTS) as folder:
        folder.append("full", [row("d"), row("b")])
    (lines(config).parent / "full.shard-000.jsonl").write_text(text("b", "c"))
    (lines(config).parent / "full.shard-001.jsonl").write_text(text("a") + '{"id": "e", "outp')
    return folder


def test_samples_of_all_processes_are_read(config, shards):
    assert sorted(shards.samples("full")) == ["a", "b", "c", "d"]


def test_a_merge_is_in_the_order_of_the_data(config, shards):
    shards.merge(["full"], ["a", "b", "c", "d", "e"])
    assert [json.loads(line)["id"] for line in lines(config).read_text().splitlines()] == ["a", "b", "c", "d"]
    assert [path.name for path in lines(config).parent.iterdir()] == ["full.jsonl"]
    shards.merge(["full"], ["d", "c", "b", "a"])  # nothing to merge
    assert list(shards.samples("full")) == ["a", "b", "c", "d"]


def test_a_merge_that_is_killed_loses_nothing(config, shards, monkeypatch):
    monkeypatch.setattr(Path, "unlink", lambda *_, **__: (_ for _ in ()).throw(KeyboardInterrupt))
    with pytest.raises(KeyboardInterrupt):
        shards.merge(["full"], ["a", "b", "c", "d"])
    monkeypatch.undo()
    assert sorted(shards.samples("full")) == ["a", "b", "c", "d"]
    shards.merge(["full"], ["a", "b", "c", "d"])
    assert lines(config).read_text().count("\n") == 4


def test_a_method_named_like_a_shard_is_refused(write_config):
    methods = ["full", {"policy": "local", "name": "full.shard-001"}]
    with pytest.raises(ConfigError, match=r"full\.shard-001 ends like"):
        RunFolder(load_config(write_config(methods=methods)), PRINTS)


def test_flags_are_for_several_processes(config):
    with RunFolder(config, PRINTS) as folder:
        folder.raise_flag("stop", "15")
        assert folder.flagged("stop") is None
    assert not list(Path(config.output).glob(".*.flag"))


def test_data_that_moved_are_the_same_data(config):
    """As a checkout that was moved: the place of a file does not count, its content does."""
    there = {"path": "/here/data.jsonl", "bytes": 5, "sha256": "ab"}
    with RunFolder(config, {"data": there}) as folder:
        folder.write_environment({})
    RunFolder(config, {"data": there | {"path": "/elsewhere/data.jsonl"}}).close()
    with pytest.raises(ConfigError, match="another data"):
        RunFolder(config, {"data": there | {"sha256": "cd"}})
