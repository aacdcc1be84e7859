"""Writes docs/results/table.md from measured/table/SHAPE.json, the results of configs/bench/table.yaml.

python docs/table.py
"""

from __future__ import annotations

import json
from pathlib import Path

from buzz.benchmark.page import caches_lines

HERE = Path(__file__).parent
PAGE = HERE / "results" / "table.md"
SHAPES = {"llama-2-7b": "Llama-2-7B", "llama-3-8b": "Llama-3-8B", "qwen3-8b": "Qwen3-8B"}
HEAD = """\
# Caches side by side

Shapes of known models with random weights, which cost what trained ones do: this project's policies against
transformers' own caches on one GPU, one row at growing contexts, and as many rows as fit into the same memory. How it
is measured: [benchmark.md](../benchmark.md#one-row-and-many). This page is made from [the figures](../measured) by
`python docs/table.py`.

    for shape in llama-2-7b llama-3-8b qwen3-8b; do
      python scripts/benchmark.py configs/bench/table.yaml model.shape=$shape output=runs/bench/table/$shape
    done

Every shape was measured from beginning to end by one process on one H100 (code d38b32a, with `seconds=540`), all three
one after the other. `comb`, and `full` and `buzz` at 1k, were measured again on other H100s (with `seconds=110`), when
heads of unequal lengths were read in one call and less was checked before a prompt
([before](../measured/h100/heads-one-by-one.json)): of Llama-2-7B with code fc41eb8, which the figures call
d38b32a-dirty, of the others with cbd9809, which they call bb18b6b. What has a dash is not meant to run so long. First
tokens are of one prompt or the mean of two, after one of the same length that does not count
([a new length](speed.md#a-new-length)).

| method | what runs |
| --- | --- |
| dynamic | `DynamicCache` and PyTorch's SDPA, by `generate()` |
| static | `StaticCache`, its steps compiled by `generate()` anew for every point; at 1k alone |
| quantized | `QuantizedCache` with 4 bits (hqq): every step unpacks the whole cache |
| paged | continuous batching (`ContinuousBatchingManager`); without flash-attn its attention is SDPA with a mask |
| paged-graphs | the same, its calls captured as CUDA graphs |
| full | the patched model, nothing is evicted |
| buzz, comb | the patched model with these policies, 560 tokens a head in the mean of a stream |

`buzz` and `comb` forget: what that costs in quality is in [results.md](../results.md). One row: a prompt is read in one
call; one of 128k tokens by `buzz` and `comb` in chunks of 8192, which they evict from in between; by `paged` always in
calls of 8192 at most. Many rows: all methods have the same memory above the weights for caches, activations and graphs,
and PyTorch allocates no more; prompts are read in chunks of 1024.
"""
MISSING = ["Not measured yet.", ""]


def page() -> str:
    """The whole page; shapes that are not measured are said to be so."""
    lines = [HEAD]
    for shape, name in SHAPES.items():
        file = HERE / "measured" / "table" / f"{shape}.json"
        there = caches_lines(json.loads(file.read_text(encoding="utf-8"))) if file.exists() else MISSING
        lines += [f"## {name}", "", *there]
    return "\n".join(lines)


if __name__ == "__main__":
    PAGE.write_text(page(), encoding="utf-8")
