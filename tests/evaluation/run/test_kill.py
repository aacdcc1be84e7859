"""A run that is killed again and again ends like one that was left alone."""

from __future__ import annotations

import json
import random
import signal
import subprocess
import sys
import time
from collections import Counter
from pathlib import Path

import pytest

from buzz.evaluation.run.config import load_config
from buzz.evaluation.run.runner import run
from tests.evaluation.processes import ENVIRONMENT, SCRIPT, Fork, count_samples, samples, summary, wait_for_samples
from tests.evaluation.tiny import articles

SAMPLES = 24
KILLS = 4
HIVE = {"policy": "buzz", "name": "hive", "sink": 2, "window": 12, "stride": 3, "threshold": 10}
METHODS = ["full", HIVE, {"policy": "h2o", "name": "h2o", "match": "hive"}]


@pytest.fixture
def config(write_config, data_file) -> Path:
    data_file.write_text("".join(json.dumps(row) + "\n" for row in articles(SAMPLES)))
    return write_config(methods=METHODS, batch_size=2)


def kill_command(config: Path, written: int, after: float) -> int:
    """The command line itself; the exit status."""
    with subprocess.Popen([sys.executable, str(SCRIPT), "--config", str(config)], env=ENVIRONMENT) as process:
        wait_for_samples(config.parent / "out", written)
        time.sleep(after)
        process.kill()
    return process.returncode


@pytest.mark.slow
def test_kills_change_nothing(config, tmp_path):
    """Random moments: the first while the run starts, the others spread over the samples that are left to do."""
    moment = random.Random(20)
    out, alone = tmp_path / "out", tmp_path / "alone"
    seen = [0]
    with Fork() as fork:
        for number in range(KILLS):
            # So many more samples are there, of all methods; and then up to a few batches' time goes by.
            left = max(0, len(METHODS) * SAMPLES - 12 - seen[-1]) // (KILLS - number)
            samples_there = seen[-1] + moment.randint(1, max(1, left)) if number else 0
            after = moment.uniform(0, 0.02) if number else moment.uniform(0, 0.2)
            if number == 2:
                status = kill_command(config, samples_there, after)
            else:
                (status,), said = fork.run(config, written=samples_there, after=after)
                assert status == -signal.SIGKILL, said
            assert status == -signal.SIGKILL
            assert not (out / "summary.json").exists()
            seen.append(count_samples(out))
        statuses, said = fork.run(config)
    assert statuses == [0], said
    assert seen[1:] == sorted(set(seen[1:]))  # each kill fell on a state of its own, else this shows little
    run(load_config(config, [f"output={alone}"]))
    for method in ("full", "hive", "h2o"):
        records = samples(out, method)
        assert Counter(record["id"] for record in records) == Counter(f"s{i}" for i in range(SAMPLES))
        assert {r["id"]: r for r in records} == {r["id"]: r for r in samples(alone, method)}
    assert summary(out) == summary(alone)
