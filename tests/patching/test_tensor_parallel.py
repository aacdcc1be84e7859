"""Two processes that share a model by tensor parallelism do what one does that has all of it."""

from __future__ import annotations

import os
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch
import torch.distributed as dist

import buzz
from buzz.models.tensor_parallel import SpreadHeads, local, spread_heads
from buzz.policies import Held
from tests.conftest import tiny_llama
from tests.models.tiny import tiny_config
from tests.patching.shared_families import NO_PLAN

ROOT = Path(__file__).resolve().parents[2]
# Those that are shared in a way of their own; Llama has all the policies, and others are shared as Llama is.
OWN_WAYS = ("qwen3", "phi3", "gemma3_text", "smollm3", "olmo2", "mixtral", "opt")
PROCESSES, SECONDS = 2, 280  # much more than it takes
ENVIRONMENT = {"OMP_NUM_THREADS": "1", "TRITON_INTERPRET": "1"}  # so that kernels run, if there is a triton


@pytest.mark.slow
@pytest.mark.timeout(2 * SECONDS + 40)
@pytest.mark.skipif(not (dist.is_available() and dist.is_gloo_available()), reason="this torch has no gloo")
def test_two_processes_decode_as_one(tmp_path):
    """Tokens, slots that stay and what is cached; the matrix is in the worker, which is started once.

    Here without the families' variants and those that are shared alike, for which the worker takes twice as long again.
    """
    how = ("--device", "cpu", "--dtype", "float64", "--families", *OWN_WAYS)
    statuses = launch(tmp_path, *how)
    if any(status is not None and status < 0 for status in statuses):
        # gloo's own thread was once seen to crash on a busy machine (a general protection fault). Not twice.
        tmp_path = tmp_path / "again"
        tmp_path.mkdir()
        statuses = launch(tmp_path, *how)
    errors = "\n".join((tmp_path / f"stderr.{rank}").read_text()[-3000:] for rank in range(PROCESSES))
    found = dict(line.split(": ", 1) for line in (tmp_path / "stdout.0").read_text().splitlines())
    families = {name: "equal" if tiny_config(name).base_model_tp_plan else NO_PLAN for name in OWN_WAYS}
    assert found == dict.fromkeys(["patch", "heads that share", *buzz.POLICIES], "equal") | families, errors
    assert statuses == [0] * PROCESSES, errors


def launch(folder: Path, *arguments: str) -> list[int | None]:
    """Run the workers. They meet in a file, so that no port can be taken.

    Returns:
        Exit statuses by rank, negative for one that a signal has ended. All are killed once one fails, or after a
        time: then it is None.
    """
    size = str(PROCESSES)
    processes = []
    for rank in map(str, range(PROCESSES)):
        places = {"RANK": rank, "LOCAL_RANK": rank, "WORLD_SIZE": size, "LOCAL_WORLD_SIZE": size}
        with (folder / f"stdout.{rank}").open("w") as stdout, (folder / f"stderr.{rank}").open("w") as stderr:
            command = [sys.executable, "-m", "tests.patching.tensor_parallel_worker", *arguments]
            processes.append(
                subprocess.Popen(
                    [*command, "--rendezvous", (folder / "rendezvous").as_uri()],
                    cwd=ROOT, env={**os.environ, **places, **ENVIRONMENT}, stdout=stdout, stderr=stderr,
                )
            )  # fmt: skip
    try:
        deadline = time.monotonic() + SECONDS
        while any(process.poll() is None for process in processes) and time.monotonic() < deadline:
            if any(process.poll() for process in processes):
                break
            time.sleep(0.05)
    finally:
        time.sleep(0.5)  # one that failed may have made others fail, who are about to say so
        statuses = [process.poll() for process in processes]
        for process in processes:
            process.kill()
            process.wait()
    return statuses


def test_heads_in_one_process_choose_by_themselves():
    """Also where weights are spread in another way than by heads."""
    model = tiny_llama()
    attention = model.model.layers[0].self_attn
    weight = attention.k_proj.weight
    assert spread_heads(attention, total=2) is None
    assert local(weight) is weight
    scores = torch.rand(3, 2, 20)
    policy = buzz.make_policy("tova", capacity=5)
    slots = SpreadHeads(total=2, group=None).select(lambda seen: policy.select(Held(seen), 20), scores)
    assert slots.tolist() == policy.select(Held(scores), 20).tolist()
