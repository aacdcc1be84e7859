"""A disk that fills, or fails, while a run writes: one line, nothing lost, and the same command goes on."""

from __future__ import annotations

import errno
import json
import os
import resource
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from buzz.evaluation import files
from buzz.evaluation.errors import WriteError
from buzz.evaluation.files import append, write_atomically
from buzz.evaluation.run.cli import main
from buzz.evaluation.show.report.cli import main as report_main
from tests.evaluation.run.test_cli import SCRIPT


@pytest.fixture
def full(monkeypatch: pytest.MonkeyPatch) -> Callable[..., None]:
    """Make writes of files whose names hold a word fail; called without one, they work again."""
    real = files.writing

    def fill(word: str | None = None, number: int = errno.ENOSPC) -> None:
        def writing(path: str | Path):
            if word is not None and word in Path(path).name:
                raise WriteError(str(path), os.strerror(number))
            return real(path)

        for name, module in list(sys.modules.items()):
            if name.startswith("buzz.evaluation") and hasattr(module, "writing"):
                monkeypatch.setattr(module, "writing", writing)

    return fill


PLACES = ["environment.json", "full.jsonl", "hive", "summary.json", "report.html", "quality.png"]


@pytest.mark.parametrize("place", PLACES)
def test_a_run_ends_with_one_line_and_goes_on(write_config, tmp_path, capfd, full, place: str) -> None:
    config = str(write_config(batch_size=2))
    assert main([config]) == 0
    wanted = {path.name: path.read_bytes() for path in (tmp_path / "out" / "samples").iterdir()}
    table = capfd.readouterr().out.splitlines()[:4]

    arguments = [config, f"output={tmp_path / 'again'}"]
    full(place)
    assert main(arguments) == 1
    captured = capfd.readouterr()
    lines = [line for line in captured.err.splitlines() if not line.startswith(("1/2 full: ", "2/2 buzz"))]
    assert len(lines) == 1, captured.err
    assert lines[0].startswith(f"error: {tmp_path / 'again'}")
    assert place in lines[0]
    assert "cannot be written (No space left on device); what is finished is kept" in lines[0]
    assert captured.out == ""

    full()
    before = {path: path.read_bytes() for path in (tmp_path / "again" / "samples").glob("*.jsonl")}
    assert main(arguments) == 0
    assert all(path.read_bytes().startswith(data) for path, data in before.items())
    assert {path.name for path in (tmp_path / "again" / "samples").iterdir()} == set(wanted)
    # All but the last two columns, which are times.
    assert [line.split()[:-2] for line in capfd.readouterr().out.splitlines()[:4]] == [
        line.split()[:-2] for line in table
    ]
    assert len(list((tmp_path / "again" / "hive").glob("*.json"))) == 2
    assert not [path for path in (tmp_path / "again").rglob(".*") if path.name != ".lock"]


@pytest.mark.parametrize("number", [errno.EIO, errno.EDQUOT, errno.EROFS, errno.EACCES])
def test_other_reasons(write_config, tmp_path, capfd, full, number: int) -> None:
    full("full.jsonl", number)
    assert main([str(write_config())]) == 1
    assert f"full.jsonl cannot be written ({os.strerror(number)})" in capfd.readouterr().err


def test_a_write_that_fails_half_way(tmp_path, monkeypatch) -> None:
    path = tmp_path / "full.jsonl"
    append(path, '{"id": "a"}\n')
    monkeypatch.setattr(os, "fsync", lambda *_: (_ for _ in ()).throw(OSError(errno.ENOSPC, "No space left on device")))
    with pytest.raises(WriteError, match=r"full\.jsonl cannot be written \(No space left on device\)"):
        append(path, '{"id": "b"}\n')
    assert path.read_text() == '{"id": "a"}\n'
    with pytest.raises(WriteError, match=r"summary\.json cannot be written"):
        write_atomically(tmp_path / "summary.json", "{}")
    assert [entry.name for entry in tmp_path.iterdir()] == ["full.jsonl"]


def test_odd_letters_are_escaped(tmp_path) -> None:
    append(tmp_path / "x.jsonl", json.dumps({"a": os.fsdecode(b"\xff")}, ensure_ascii=False) + "\n")
    assert json.loads((tmp_path / "x.jsonl").read_text()) == {"a": "\udcff"}


def limited(limit: int) -> Callable[[], None]:
    return lambda: resource.setrlimit(resource.RLIMIT_FSIZE, (limit, resource.RLIM_INFINITY))


def test_a_real_limit_of_the_system(write_config, tmp_path) -> None:
    """No file may grow beyond some bytes, of which a record takes about 2000: the first batch fits, a later one not."""
    config = str(write_config(batch_size=2, methods=["full"], generation={"max_new_tokens": 80}))
    samples = tmp_path / "out" / "samples" / "full.jsonl"
    done = subprocess.run(
        [sys.executable, str(SCRIPT), config],
        preexec_fn=limited(5500),
        capture_output=True,
        text=True,
        timeout=120,
        env={**os.environ, "OMP_NUM_THREADS": "1"},
    )
    assert done.returncode == 1, done.stderr
    assert done.stderr.startswith(f"error: {samples} cannot be written (File too large); what is finished is kept, ")
    assert done.stderr.count("\n") == 1
    kept = samples.read_bytes()
    assert 2 <= kept.count(b"\n") < 6
    assert kept.endswith(b"\n")
    assert main([config]) == 0
    assert samples.read_bytes().startswith(kept)
    assert samples.read_bytes().count(b"\n") == 6


def test_a_report_on_a_full_disk(write_config, tmp_path, capfd, full) -> None:
    assert main([str(write_config())]) == 0
    capfd.readouterr()
    full("report.md")
    assert report_main([str(tmp_path / "out"), "--output", str(tmp_path / "report")]) == 1
    captured = capfd.readouterr()
    assert captured.err.startswith(f"error: {tmp_path / 'report' / 'report.md'} cannot be written (No space left")
    assert captured.err.count("\n") == 1


@pytest.mark.parametrize("out", ["/dev/full", "pipe"])
def test_a_table_that_cannot_be_printed(write_config, tmp_path, out: str) -> None:
    config = str(write_config(methods=["full"]))
    assert main([config]) == 0
    rest = f"> {out}" if out != "pipe" else "| true; exit ${PIPESTATUS[0]}"
    command = ["bash", "-c", f"{sys.executable} {SCRIPT} {config} {rest}"]
    done = subprocess.run(command, capture_output=True, text=True, timeout=120)
    known, *lines = done.stderr.splitlines()
    assert "has all of this run already" in known
    if out == "pipe":
        assert (done.returncode, lines) == (0, [])
    else:
        assert done.returncode == 1
        (line,) = lines
        assert line.startswith("error: stdout cannot be written (No space left on device)")
