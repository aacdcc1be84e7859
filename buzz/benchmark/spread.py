"""Decoding with a model's heads spread over several GPUs (`tp_plan="auto"`), beside one GPU and transformers' own way:

    torchrun --standalone --nproc-per-node 2 -m buzz.benchmark.spread --shape llama-3-8b --output runs/bench/spread.json

A shape with random weights is made on the first GPU, measured there, written to a folder (in the shared memory of the
host, where there is one), and loaded by all processes together. With --layers-apart the first one also loads it with
whole layers on one GPU or another (`device_map`). It prints the rows and writes them.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import tempfile
from collections.abc import Sequence
from datetime import timedelta
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
import transformers
from transformers import AutoModelForCausalLM, DynamicCache, GenerationConfig
from transformers.distributed import DistributedConfig

import buzz
from buzz.benchmark.clocks import Clock, Marks, generate
from buzz.benchmark.config import SHAPES, BenchModel
from buzz.benchmark.decoding import WARM
from buzz.benchmark.model import load
from buzz.decoding.arena import Uncaptured
from buzz.decoding.capture import Captured


def main(arguments: Sequence[str] | None = None) -> int:
    """Run as one of the processes that torchrun starts."""
    how = _arguments(arguments)
    device = torch.device("cuda", int(os.environ["LOCAL_RANK"]))
    torch.cuda.set_device(device)
    dist.init_process_group("nccl", device_id=device, timeout=timedelta(seconds=600))
    # Whoever waits does so on the host: a barrier of NCCL is a kernel, which would take its GPU's time from the first.
    host = dist.new_group(backend="gloo", timeout=timedelta(seconds=600))
    rows: list[dict[str, Any]] = []
    with tempfile.TemporaryDirectory(dir="/dev/shm" if Path("/dev/shm").is_dir() else None) as own:
        folder = [own]
        dist.broadcast_object_list(folder, group=host)
        if dist.get_rank() == 0:
            model = load(BenchModel(shape=how.shape, dtype="bfloat16", device="cuda"), 0)[0]
            rows += _measured(model, "one GPU", how, {"buzz": Captured()})
            model.save_pretrained(folder[0])
            del model
            torch.cuda.empty_cache()
            if how.layers_apart:
                apart = AutoModelForCausalLM.from_pretrained(folder[0], dtype=torch.bfloat16, device_map="balanced")
                ways = {"buzz": Captured(), "buzz, not captured": Uncaptured()}
                rows += _measured(_endless(apart), "layers apart", how, ways)
                del apart
                torch.cuda.empty_cache()
        dist.barrier(group=host)
        plan = DistributedConfig(tp_plan="auto", tp_size=dist.get_world_size())
        spread = AutoModelForCausalLM.from_pretrained(folder[0], dtype=torch.bfloat16, distributed_config=plan)
        dist.barrier(group=host)  # all have read the folder
    ways = {"buzz": Captured(), "buzz, in modules": Captured(kernels=False), "buzz, not captured": Uncaptured()}
    rows += _measured(_endless(spread), f"{dist.get_world_size()} GPUs", how, ways)
    if dist.get_rank() == 0:
        facts = {"shape": how.shape, "prompt": how.prompt, "card": torch.cuda.get_device_name(device)}
        facts |= {"torch": torch.__version__, "transformers": transformers.__version__}
        text = json.dumps({**facts, "rows": rows}, indent=1)
        if how.output is not None:
            how.output.parent.mkdir(parents=True, exist_ok=True)
            how.output.write_text(text + "\n", encoding="utf-8")
        print(text, flush=True)
    dist.barrier(group=host)
    dist.destroy_process_group()
    return 0


def _arguments(arguments: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--shape", choices=SHAPES, default="llama-3-8b")
    parser.add_argument("--prompt", type=int, default=1024, help="tokens of each row's prompt")
    parser.add_argument("--batches", type=int, nargs="+", default=[1, 16])
    parser.add_argument("--steps", type=int, default=40, help="measured steps of each point")
    parser.add_argument("--layers-apart", action="store_true", help="measure the model with `device_map` as well")
    parser.add_argument("--output", type=Path, default=None)
    return parser.parse_args(arguments)


def _endless(model: Any) -> Any:
    """The model, no answer of which ends early."""
    model.generation_config = GenerationConfig(pad_token_id=0, eos_token_id=model.config.vocab_size)
    return model.eval()


def _measured(model: Any, where: str, how: argparse.Namespace, ways: dict[str, Any]) -> list[dict[str, Any]]:
    """A row for every batch: of transformers' DynamicCache, and of BUZZ at its defaults in each way to run steps."""
    clock, rows = Clock(model.device), []
    for batch in how.batches:
        generator = torch.Generator().manual_seed(batch)
        ids = torch.randint(model.config.vocab_size, (batch, how.prompt), generator=generator).to(model.device)
        rows.append({"where": where, "what": "DynamicCache", "batch": batch, **_point(model, ids, None, clock, how)})
        for what, run in ways.items():
            with buzz.patch_model(model) as handle:
                handle.engine.run = run
                rows.append({"where": where, "what": what, "batch": batch, **_point(model, ids, "buzz", clock, how)})
                rows[-1]["told"] = sorted(handle.engine.told)
    return rows


def _point(model: Any, ids: torch.Tensor, policy: str | None, clock: Clock, how: argparse.Namespace) -> dict[str, Any]:
    cache = DynamicCache(config=model.config) if policy is None else buzz.BeehiveCache(policy, model)
    # No limit of time: all processes must make as many steps, whatever their clocks say.
    marks = Marks(clock, WARM, how.steps)
    generate(model, ids, cache, marks.tokens, marks)
    times = sorted(marks.times())
    return {
        "ms_median": 1e3 * statistics.median(times),
        "ms_fastest": 1e3 * times[0],
        "ms_slowest": 1e3 * times[-1],
        "tokens_per_s": len(ids) / statistics.mean(times),
    }


if __name__ == "__main__":
    raise SystemExit(main())
