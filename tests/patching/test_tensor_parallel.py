"""Two processes that share a model by tensor parallelism do what one does that has all of it."""

from __future__ import annotations

import copy
import os
import subprocess
import sys
import time
from pathlib import Path
from types import SimpleNamespace
from unittest.mock import Mock

import pytest
import torch
import torch.distributed as dist
from torch.distributed.tensor import Replicate
from transformers.distributed.tensor_parallel import ColwiseParallel, RowwiseParallel

import buzz
from buzz.decoding import engine as engines
from buzz.decoding.arena import Uncaptured
from buzz.models.tensor_parallel import SpreadHeads, gives_its_part, is_summed, local, spread_heads, summed
from buzz.policies import Held
from tests.conftest import tiny_llama
from tests.models.tiny import tiny_config
from tests.patching.shared_families import NO_PLAN

ROOT = Path(__file__).resolve().parents[2]
# Those that are shared in a way of their own; Llama has all the policies, and others are shared as Llama is.
OWN_WAYS = ("qwen3", "phi3", "gemma3_text", "smollm3", "olmo2", "mixtral", "opt", "llama-biases")
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


# What kernels are told of projections that transformers has spread.


def spread_linear(style):
    linear = torch.nn.Linear(6, 4)
    style.install_forward(linear, None)
    return linear


def test_projections_are_known_by_what_is_around_them():
    """What gathers or cuts up on its own is not for kernels, nor is a copy, whose forward is the original's."""
    layouts = {"rows": {"output_layouts": Replicate()}, "columns": {"input_layouts": Replicate()}}
    rows, columns = spread_linear(ColwiseParallel()), spread_linear(RowwiseParallel())
    assert (gives_its_part(rows), is_summed(rows)) == (True, False)
    assert (gives_its_part(columns), is_summed(columns)) == (False, True)
    assert not gives_its_part(spread_linear(ColwiseParallel(**layouts["rows"])))
    assert not is_summed(spread_linear(RowwiseParallel(**layouts["columns"])))
    assert not gives_its_part(torch.nn.Linear(6, 4))
    assert not gives_its_part(copy.deepcopy(rows))
    assert not is_summed(copy.deepcopy(columns))


@pytest.mark.parametrize(("columns", "size", "parts"), [(64, 4, 3), (65, 4, 1), (64, 1 << 19, 1)])
def test_processes_add_up_alike(monkeypatch, columns, size, parts):
    """Of columns that do not divide, processes may have unequally many parts; much is added up before it travels."""
    sent = []
    monkeypatch.setattr(dist, "get_world_size", lambda group: 2)
    monkeypatch.setattr(dist, "all_reduce", lambda tensor, group: sent.append(tensor.clone()))
    weight = SimpleNamespace(device_mesh=SimpleNamespace(ndim=1, get_group=lambda: "group"))
    given = torch.rand(3, 1, size)
    total = summed(SimpleNamespace(weight=weight, in_features=columns), given.clone()).sum(dim=0)
    assert [len(tensor) for tensor in sent] == [parts]
    torch.testing.assert_close(total, given.sum(dim=0))


def test_processes_go_the_same_way(monkeypatch):
    """Arenas go by turns, whatever caches a process still has; what fails in one is not tried once more."""
    model = tiny_llama()

    def answer(rows):
        cache = buzz.BeehiveCache(buzz.make_policy("h2o", heavy=4, window=5), model)
        prompt = torch.arange(3, 33).expand(rows, -1)
        model.generate(prompt, past_key_values=cache, max_new_tokens=3, do_sample=False)
        return cache

    with buzz.patch_model(model) as handle:
        engine = handle.engine
        monkeypatch.setattr(engines, "has_spread", lambda model: True)
        engine.run = Uncaptured()
        caches = [answer(rows) for rows in (1, 2, 3)]
        del caches[1:]  # the first one goes all the same
        caches += [answer(rows) for rows in (4, 5)]
        assert [key.rows for key in engine._arenas] == [2, 3, 4, 5]
        failing = Mock(wraps=Uncaptured(), prepare=Mock(side_effect=torch.OutOfMemoryError("none left")))
        engine.run = failing
        with pytest.raises(torch.OutOfMemoryError):
            answer(6)
        assert failing.prepare.call_count == 1
