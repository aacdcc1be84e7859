"""One of several processes that share tiny models by tensor parallelism, and hold them against ones that are whole.

On two GPUs, or on the CPU:

    torchrun --nproc-per-node 2 -m tests.patching.tensor_parallel_worker
    torchrun --nproc-per-node 2 -m tests.patching.tensor_parallel_worker --device cpu

A Llama is run with every policy, one of each kind in all ways; all families and their variants with three. The first
process prints a line for each policy and each model, `full: equal`; what transformers itself does not share alike is
told, not counted. The exit status is 1 if anything differs in any process.

Products that are cut up over processes round otherwise, which may decide between nearly equal logits or scores; in
float64 it practically never does.
"""

from __future__ import annotations

import argparse
import functools
import importlib.util
import os
import sys
import tempfile
import warnings
from collections.abc import Iterator
from datetime import timedelta
from typing import Any

if "cpu" in sys.argv:
    os.environ["CUDA_VISIBLE_DEVICES"] = ""  # transformers takes whatever accelerator there is
os.environ.setdefault("HF_HUB_OFFLINE", "1")

import torch
import torch.distributed as dist
from transformers import DynamicCache, LlamaConfig, LlamaForCausalLM

import buzz
from buzz.decoding.arena import Off, Uncaptured
from buzz.decoding.capture import Captured
from buzz.models import tensor_parallel
from tests.decoding.kernel_steps import Kernels, everywhere
from tests.models.tiny import CASES
from tests.patching.placed import KINDS, PLACED
from tests.patching.shared_families import OutsideError, check_case, save_case
from tests.patching.shared_runs import GREEDY, differences, forward, generate, load_shared, load_whole, run

SEGMENTS = {"sink": 2, "window": 6, "stride": 5, "threshold": 9}
# Prompts have 21 to 40 tokens: all evict, most of them at almost every step.
POLICIES: dict[str, Any] = {
    "full": {},
    "local": {"window": 12},
    "streaming": {"sink": 2, "window": 10},
    "h2o": {"heavy": 7, "window": 6},
    "buzz": SEGMENTS,
    "buzz_fast": SEGMENTS,
    "buzz_no_max": SEGMENTS,
    "snapkv": {"capacity": 14, "window": 4, "kernel": 3},
    "pyramidkv": {"capacity": 14, "window": 4, "kernel": 3, "beta": 4},
    "tova": {"capacity": 12},
    "random": {"capacity": 15, "sink": 2, "window": 6, "seed": 3},
    "keydiff": {"capacity": 12},
    # Heads that share their slots are refused here.
    "comb": {"capacity": 12, "sink": 2, "lazy": 1, "beyond": 4, "near": 3, "scope": "head"},
    "kvzip": {"capacity": 14, "sink": 2, "window": 4, "chunk": 9, "scope": "head"},
    "expected_attention": {"capacity": 12, "sink": 2, "scope": "head"},
}
INTERPRETED = os.environ.get("TRITON_INTERPRET") == "1" and importlib.util.find_spec("triton") is not None
SHARING = (("comb", {"scope": "model"}), ("comb", {"scope": "layer"}), ("kvzip", {}))


def main() -> int:
    arguments = _arguments()
    cuda = arguments.device == "cuda"
    device = torch.device("cuda", int(os.environ["LOCAL_RANK"])) if cuda else torch.device("cpu")
    if cuda:
        torch.cuda.set_device(device)
    torch.set_num_threads(1)
    warnings.filterwarnings("error", message="decoding is not")  # as it should be: run by kernels, captured
    if cuda or INTERPRETED:
        everywhere(setattr, cuda)
    torch.backends.cuda.matmul.allow_tf32 = False
    dtype = getattr(torch, arguments.dtype)
    with tempfile.TemporaryDirectory() as folder:
        folders = {kv_heads: _save(kv_heads, f"{folder}/{kv_heads}") for kv_heads in (2, 4)}
        cases = {name: save_case(name, f"{folder}/{name}") for name in arguments.families}
        _join(arguments.rendezvous, device)
        pairs = {n: (load_whole(path, device, dtype), load_shared(path, dtype)) for n, path in folders.items()}
        differing = _tell("patch", _check_patch(*pairs[2]))
        differing |= _tell("heads that share", _check_refusals(pairs[2][1]))
        for name in arguments.policies:
            differing |= _tell(name, _check(name, pairs))
        for name, path in cases.items():
            differing |= _tell(name, check_case(name, path, device, dtype, kernels=cuda or INTERPRETED))
    dist.destroy_process_group()
    return int(differing)


def _tell(name: str, found: Iterator[str]) -> bool:
    """Print what all processes have found; whether it is ours."""
    outside, here = None, []
    try:
        here = list(found)
    except OutsideError as error:
        outside = str(error)
    everywhere: list[list[str]] = [[] for _ in range(dist.get_world_size())]
    dist.all_gather_object(everywhere, here)
    differences = sorted({text for texts in everywhere for text in texts})
    if dist.get_rank() == 0:
        print(f"{name}: {outside or '; '.join(differences) or 'equal'}", flush=True)
    return bool(differences)


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--device", choices=("cuda", "cpu"), default="cuda")
    parser.add_argument("--dtype", choices=("float32", "float64"), default="float32")
    parser.add_argument("--rendezvous", default="env://", help="where the processes meet, env:// or file:///path")
    parser.add_argument("--policies", nargs="*", choices=POLICIES, default=list(POLICIES), help="of the tiny Llama")
    parser.add_argument("--families", nargs="*", choices=CASES, default=CASES, help="and their variants")
    return parser.parse_args()


def _save(kv_heads: int, folder: str) -> str:
    """A tiny Llama with four query heads, in a folder. To be called before the processes join: then only one saves."""
    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=96, hidden_size=64, intermediate_size=96, num_hidden_layers=2, num_attention_heads=4,
        num_key_value_heads=kv_heads, max_position_embeddings=1024, initializer_range=0.1,
        pad_token_id=0, bos_token_id=1, eos_token_id=2,
    )  # fmt: skip
    LlamaForCausalLM(config).save_pretrained(folder)
    return folder


def _join(rendezvous: str, device: torch.device) -> None:
    cuda = device.type == "cuda"
    dist.init_process_group(
        "nccl" if cuda else "gloo",
        init_method=rendezvous,
        rank=int(os.environ["RANK"]),
        world_size=int(os.environ["WORLD_SIZE"]),
        timeout=timedelta(seconds=60),
        device_id=device if cuda else None,
    )


# KV heads, positions, how, and the call: given a model, ids and mask of a left-padded batch and a cache, it gives ids.
# Policies that are of the kind of another one are run in those of the first list alone.
SOME: tuple[tuple[int, str, str, Any], ...] = (
    (2, "cache", "generate", generate),
    (2, "cache", "static memory", generate),
    (2, "original", "captured", generate),
    (2, "original", "chunks", functools.partial(generate, prefill_chunk_size=9)),
    (4, "cache", "generate", generate),
)
SETTINGS = (
    *SOME,
    (2, "cache", "forward", forward),
    (2, "original", "static memory", generate),
    (2, "cache", "kernels", generate),
    (2, "original", "kernels", generate),
    (2, "cache", "captured", generate),
    (2, "cache", "captured modules", generate),
    (4, "original", "forward", forward),
)


# What must be equal.


def _check(name: str, pairs: dict[int, tuple[Any, Any]]) -> Iterator[str]:
    """In which settings processes that share a model differ from one that has it."""
    policies = {"": buzz.make_policy(name, **POLICIES[name])}
    if name == "tova":
        policies[", rows"] = buzz.PerRow([buzz.make_policy("tova", capacity=n) for n in (9, 14, 11)])
    if name == "comb":
        policies[", echo"] = buzz.make_policy(name, **POLICIES[name], echo=True, chunk=9)
    for kv_heads, positions, how, call in SETTINGS if name in KINDS else SOME:
        if (name, positions) not in PLACED or not _runs(how, name, positions):
            continue
        with buzz.patch_model(pairs[kv_heads][0]) as one, buzz.patch_model(pairs[kv_heads][1]) as many:
            one.engine.run = Off() if how in ("generate", "forward", "chunks") else Uncaptured()
            many.engine.run = OWN_RUNS.get(how, lambda: one.engine.run)()
            # Once each process adds its parts up before they travel, and once all of them do.
            tensor_parallel._LARGE = 0 if positions == "original" else 1 << 20
            for rows, policy in policies.items():
                expected, got = (run(model, call, policy, positions) for model in pairs[kv_heads])
                for what in differences(expected, got):
                    yield f"{what} ({how}, positions {positions}, {kv_heads} KV heads{rows})"
            if many.engine.told:
                yield f"decoded otherwise: {', '.join(many.engine.told)}"


# How a shared model is run where it is not as the whole one, whose steps are modules'.
OWN_RUNS: dict[str, Any] = {
    "kernels": Kernels,
    "captured": Captured,
    "captured modules": functools.partial(Captured, kernels=False),
}


def _runs(how: str, name: str, positions: str) -> bool:
    """Whether there is a device for it; kernels that are interpreted, which takes long, with two policies.

    Without their positions equal tokens have equal keys, but for the rounding of the products that made them: of a
    prompt and of steps by kernels these are two, and would decide what a policy that compares keys evicts.
    """
    cuda = torch.cuda.is_available()
    if (name, positions) == ("keydiff", "cache") and how in ("kernels", "captured"):
        return False
    if how == "kernels":
        return cuda or (INTERPRETED and name in ("buzz", "h2o"))
    return cuda or how not in OWN_RUNS


def _check_refusals(shared: Any) -> Iterator[str]:
    """Policies whose heads share their slots are refused before anything is cached."""
    ids = torch.arange(3, 40, device=shared.device)[None]
    with buzz.patch_model(shared):
        for name, params in SHARING:
            policy = buzz.make_policy(name, **params)
            cache = buzz.BeehiveCache(policy, shared.config)
            try:
                shared(ids, past_key_values=cache)
            except ValueError as error:
                if "are spread over processes: take scope='head'" not in str(error):
                    yield f"{policy}: {error}"
            else:
                yield f"{policy} is not refused"
            if cache.get_seq_length():
                yield f"{policy} has cached something"


def _check_patch(whole: Any, shared: Any) -> Iterator[str]:
    """Without an evicting cache a patch changes nothing, it can be taken back, and it says how it decodes."""
    ids = torch.arange(3, 40, device=shared.device)[None]

    def answer(model: Any, cache: Any) -> list[list[int]]:
        return model.generate(ids, past_key_values=cache, **GREEDY).tolist()

    forwards = {name: vars(module).get("forward") for name, module in shared.named_modules()}
    before = answer(shared, DynamicCache(config=shared.config))
    if before != answer(whole, DynamicCache(config=whole.config)):
        yield "the models differ before they are patched"
    handle = buzz.patch_model(shared)
    if handle.engine.obstacle() is not None:
        yield f"a captured step is held up by: {handle.engine.obstacle()}"
    if answer(shared, DynamicCache(config=shared.config)) != before:
        yield "another cache gives other tokens"
    if answer(shared, buzz.BeehiveCache(buzz.make_policy("full"), shared.config)) != before:
        yield "a cache that evicts nothing gives other tokens"
    if handle.engine.told:
        yield f"the warnings were: {handle.engine.told}"
    handle.remove()
    left = [name for name, module in shared.named_modules() if vars(module).get("forward") != forwards[name]]
    if left or hasattr(shared, "_buzz_handle"):
        yield f"not restored: {', '.join(left) or 'the model'}"
    if answer(shared, DynamicCache(config=shared.config)) != before:
        yield "the restored model gives other tokens"


if __name__ == "__main__":
    sys.exit(main())
