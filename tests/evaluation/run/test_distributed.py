"""Runs by several processes: the same figures as one process has, whatever happens to one of them."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch

from buzz.evaluation.models.source import resolve_device
from buzz.evaluation.run.config import load_config
from buzz.evaluation.run.distributed import ALONE, Group, adopt_mpi, join, launched
from buzz.evaluation.run.runner import run
from tests.evaluation.processes import ENVIRONMENT, SCRIPT, Fork, count_samples, samples, summary, wait_for_samples
from tests.evaluation.tiny import articles

HIVE = {"policy": "buzz", "name": "hive", "sink": 2, "window": 12, "stride": 3, "threshold": 10}
METHODS = ["full", HIVE, {"policy": "h2o", "name": "h2o", "match": "hive"}]


@pytest.fixture(scope="module")
def fork() -> Iterator[Fork]:
    with Fork() as process:
        yield process


@pytest.fixture
def config(write_config, data_file) -> Path:
    """7 samples in 4 batches: one process has more to do than the other."""
    data_file.write_text("".join(json.dumps(row) + "\n" for row in articles(7)))
    return write_config(methods=METHODS, batch_size=2)


@pytest.fixture
def alone(config, tmp_path) -> Path:
    """The folder of the same run in one process."""
    run(load_config(config, [f"output={tmp_path / 'alone'}"]))
    return tmp_path / "alone"


def around_batches(code: str) -> str:
    """Python code for `Fork.run` that makes every batch run some code first; it may use `rank`, `jobs` and `calls`."""
    return f"""
import time
import buzz.evaluation.run.work as work
real, calls = work.run_batch, []
def run_batch(model, tokenizer, task, jobs, *rest):
    {code}
    return real(model, tokenizer, task, jobs, *rest)
work.run_batch = run_batch
"""


def check_equal(folder: Path, alone: Path, merged: bool = True) -> None:
    """The same figures and records, each once; in the order of the data, if several processes made them."""
    assert summary(folder) == summary(alone)
    files = {path.name for path in (folder / "samples").iterdir()}
    assert files == {f"{name}.jsonl" for name in ("full", "hive", "h2o")}
    order = [row["id"] for row in articles(7)]
    for name in ("full", "hive", "h2o"):
        records = samples(folder, name)
        if merged:
            assert [record["id"] for record in records] == order
        records, expected = (
            sorted(found, key=lambda record: record["id"]) for found in (records, samples(alone, name))
        )
        assert records == expected
    assert not list(folder.glob(".*.flag"))


def test_processes_that_accelerate_did_not_start_are_told_of(monkeypatch):
    monkeypatch.delenv("WORLD_SIZE", raising=False)
    monkeypatch.setenv("ACCELERATE_USE_CPU", "True")
    monkeypatch.setenv("MASTER_ADDR", "127.0.0.1")
    with pytest.warns(UserWarning, match="torchrun --nproc-per-node"):
        assert join() == ALONE


@pytest.mark.slow
def test_the_launcher_gives_the_figures_of_one_process(config, tmp_path):
    """Launched, ended by SIGTERM, launched again."""
    config.write_text(config.read_text().replace("max_new_tokens: 12", "max_new_tokens: 30"))  # time for a signal
    alone = tmp_path / "alone"
    run(load_config(config, [f"output={alone}"]))
    launch = [str(Path(sys.executable).parent / "accelerate"), "launch", "--multi_gpu", "--num_processes", "2"]
    launch += ["--main_process_port", "0", str(SCRIPT), "--config", str(config)]
    out = tmp_path / "out"
    with subprocess.Popen(
        launch, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, env=ENVIRONMENT
    ) as first:
        wait_for_samples(out, 1)
        first.send_signal(signal.SIGTERM)
        said, _ = first.communicate(timeout=60)
    assert first.returncode != 0
    assert "the same command resumes" in said
    assert 1 <= count_samples(out) < 21
    again = subprocess.run(launch, capture_output=True, text=True, env=ENVIRONMENT, timeout=120)
    assert again.returncode == 0, again.stderr
    assert again.stdout.splitlines()[0].startswith("method")
    assert again.stdout.count("ROUGE-1") == 1  # one of the two speaks
    check_equal(out, alone)
    assert json.loads((out / "summary.json").read_text())["run"]["processes"] == 2


def test_two_processes_give_the_figures_of_one(fork, config, alone, tmp_path):
    statuses, said = fork.run(config, processes=2)
    assert (statuses, said.count("samples,")) == ([0, 0], 3)
    check_equal(tmp_path / "out", alone)
    # And once more: nothing is left to do.
    before = (tmp_path / "out" / "samples" / "h2o.jsonl").stat().st_mtime_ns
    assert fork.run(config, processes=2)[0] == [0, 0]
    assert (tmp_path / "out" / "samples" / "h2o.jsonl").stat().st_mtime_ns == before


def test_fewer_batches_than_processes(fork, config, tmp_path):
    run(load_config(config, ["batch_size=4", f"output={tmp_path / 'alone'}"]))
    assert fork.run(config, "batch_size=4", processes=3)[0] == [0] * 3
    check_equal(tmp_path / "out", tmp_path / "alone")


@pytest.mark.parametrize(("before", "now"), [(2, 1), (1, 3)])
def test_another_number_of_processes_resumes(fork, config, alone, tmp_path, before, now):
    code = "calls.append(0)\n    if len(calls) > 3: raise SystemError('enough')"
    statuses, said = fork.run(config, processes=before, broken=around_batches(code))
    assert "SystemError: enough" in said
    assert 70 in statuses
    assert None not in statuses
    assert 1 <= count_samples(tmp_path / "out") < 21
    statuses, said = fork.run(config, processes=now)
    assert statuses == [0] * now, said
    check_equal(tmp_path / "out", alone, merged=now > 1)


def test_a_killed_process_ends_the_others(fork, config, alone, tmp_path):
    slow = around_batches("time.sleep(0.3 * rank)")
    statuses, said = fork.run(config, processes=2, written=1, after=0.1, ranks=[1], broken=slow)
    assert statuses == [1, -signal.SIGKILL], said
    assert "another process of the run has stopped; the same command resumes" in said
    assert fork.run(config)[0] == [0]
    assert summary(tmp_path / "out") == summary(alone)


def test_a_signal_to_one_process_ends_all(fork, config, alone, tmp_path):
    slow = around_batches("time.sleep(0.4)")
    statuses, said = fork.run(config, processes=2, written=1, after=0.1, ranks=[1], number=signal.SIGTERM, broken=slow)
    assert statuses == [143, 143], said
    assert said.count("the same command resumes") == 1
    for path in (tmp_path / "out" / "samples").iterdir():
        assert path.read_bytes().endswith(b"\n")
    assert fork.run(config, processes=2)[0] == [0, 0]
    check_equal(tmp_path / "out", alone)


def test_memory_that_one_process_lacks_is_told_by_all(fork, config, tmp_path):
    code = "if rank == 1 and jobs[0].policy.name == 'full': raise MemoryError"
    statuses, said = fork.run(config, processes=2, broken=around_batches(code))
    assert statuses == [1, 1], said
    found = json.loads((tmp_path / "out" / "summary.json").read_text())
    assert found["methods"]["full"]["failed"] == "out of memory"
    assert found["run"]["batch_halvings"] == [{"method": "full", "from": 2, "to": 1}]
    # Nobody compares with a reference that is not whole.
    assert not any("fidelity_kl" in record["metrics"] for record in samples(tmp_path / "out", "hive"))
    assert found["methods"]["hive"]["n"] == found["methods"]["h2o"]["n"] == 7
    assert sum("is not compared with" in note for note in found["run"]["notes"]) == 2
    assert not list((tmp_path / "out").glob(".*.flag"))


def test_a_mistake_is_told_once(fork, config, tmp_path):
    statuses, said = fork.run(config, "batch_size=0", processes=2)
    assert statuses == [2, 2]
    assert said.count("error: batch_size") == said.count("\n") == 1
    (tmp_path / "taken").write_text("")
    statuses, said = fork.run(config, f"output={tmp_path / 'taken'}", processes=2)  # seen by the main process alone
    assert statuses == [2, 2]
    assert said.count("error: output") == said.count("\n") == 1


def test_batches_are_dealt_in_turn():
    groups = [Group(rank, 3, rank) for rank in range(3)]
    owners = [[group.rank for group in groups if group.mine(number)] for number in range(7)]
    assert owners == [[0], [1], [2], [0], [1], [2], [0]]


@pytest.mark.parametrize("prefix", ["OMPI_COMM_WORLD_", "MV2_COMM_WORLD_", "PMI_"])
def test_mpi_names_its_processes_too(monkeypatch, prefix):
    monkeypatch.setattr(os, "environ", {f"{prefix}SIZE": "3", f"{prefix}RANK": "2"})
    adopt_mpi()
    assert not launched()  # not all of the names: something else has set them
    os.environ["MPI_LOCALRANKID" if prefix == "PMI_" else f"{prefix}LOCAL_RANK"] = "1"
    adopt_mpi()
    assert launched()
    assert [os.environ[word] for word in ("WORLD_SIZE", "RANK", "LOCAL_RANK")] == ["3", "2", "1"]
    os.environ.update(WORLD_SIZE="5")  # a launcher between mpirun and this process has the last word
    adopt_mpi()
    assert os.environ["WORLD_SIZE"] == "5"


@pytest.mark.parametrize(
    ("name", "device"), [("auto", "cuda:1"), ("cuda", "cuda:1"), ("cuda:0", "cuda:0"), ("cpu", "cpu")]
)
def test_every_process_has_a_gpu(monkeypatch, name, device):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    assert resolve_device(name, 3) == torch.device(device)
    assert resolve_device("auto") == torch.device("cuda")


def test_a_plain_run_joins_nobody(monkeypatch, config, tmp_path):
    monkeypatch.setitem(sys.modules, "accelerate.state", None)  # an import of it fails
    monkeypatch.delenv("WORLD_SIZE", raising=False)
    assert os.environ.get("RANK") is None
    run(load_config(config, ["task.limit=1"]))
