"""Feeds an endless stream to a tiny model, token by token, and says by how much the process grows.

python -m tests.patching.endless --tokens 1000000            # by the model's own forward
python -m tests.patching.endless --tokens 1000000 --static   # in static memory
"""

from __future__ import annotations

import argparse
import gc
import os
import time
from collections.abc import Callable

import torch
from transformers import LlamaConfig, LlamaForCausalLM

import buzz
from buzz.decoding.arena import Uncaptured

FIRST = 1000  # tokens after which growth counts


def resident() -> float:
    """MiB of this process in memory."""
    gc.collect()
    with open("/proc/self/statm") as file:
        return int(file.read().split()[1]) * os.sysconf("SC_PAGE_SIZE") / 2**20


def feeder(model: LlamaForCausalLM, cache: buzz.BeehiveCache, static: bool) -> Callable[[torch.Tensor], torch.Tensor]:
    """A function that feeds one token [1, 1] and gives the logits [1, V]."""
    handle = buzz.patch_model(model)
    if not static:
        return lambda token: model(token, past_key_values=cache).logits[:, -1]
    handle.engine.run = Uncaptured()
    model(torch.zeros(1, 1, dtype=torch.int64), past_key_values=cache)
    handle.engine.refresh()
    session = handle.engine.session(cache, rows=1, steps=1)
    assert session is not None
    session.begin(None)

    def feed(token: torch.Tensor) -> torch.Tensor:
        session.feed(token[0], None)
        session.finish()
        return session.logits

    return feed


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--tokens", type=int, default=1_000_000)
    parser.add_argument("--static", action="store_true")
    parser.add_argument("--policy", default="buzz")
    parser.add_argument("--most", type=float, default=3.0, metavar="MIB", help="growth that is a failure")
    options = parser.parse_args()
    torch.manual_seed(0)
    torch.set_num_threads(1)
    model = LlamaForCausalLM(
        LlamaConfig(vocab_size=17, hidden_size=8, intermediate_size=8, num_hidden_layers=1, num_attention_heads=1)
    ).eval()
    policy = buzz.POLICIES[options.policy].from_budget(48)
    cache = buzz.BeehiveCache(policy, model)
    ids = torch.randint(0, 17, (4096, 1, 1))
    started, before, finite = time.perf_counter(), 0.0, True
    with torch.inference_mode():
        feed = feeder(model, cache, options.static)
        for i in range(options.tokens):
            logits = feed(ids[i % len(ids)])
            if i == FIRST:
                before = resident()
            if i % 1000 == 0:
                finite = finite and bool(torch.isfinite(logits).all())
    grown = resident() - before
    stats = cache.stats()
    way = "static memory" if options.static else "the model's own forward"
    print(
        f"{options.policy} by {way}: {options.tokens} tokens in {time.perf_counter() - started:.0f} s, "
        f"{stats['mean_tokens'][0]:.1f} cached, {stats['evictions'][0]:.0f} evictions, {cache.nbytes} bytes, "
        f"grown by {grown:.2f} MiB, logits {'finite' if finite else 'NOT FINITE'}"
    )
    return 0 if finite and grown < options.most else 1


if __name__ == "__main__":
    raise SystemExit(main())
