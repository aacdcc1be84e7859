"""Speed of decoding: a full cache against BUZZ, and what a patched step costs at equal cache length, in one run."""

from __future__ import annotations

import json
import statistics
import time
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

import torch
from transformers import Cache, DynamicCache, PreTrainedModel

import buzz
from buzz.evaluation.config import ModelConfig
from buzz.evaluation.data import resolve_path
from buzz.evaluation.models import load_model, quiet_transformers
from buzz.evaluation.store import environment, write_atomically

_TEXT = "package:buzz/evaluation/samples/articles.jsonl"
_BLOCK = 8  # steps between two changes of cache, so that a drifting machine drifts for all of them
FULL = "DynamicCache"


@dataclass(frozen=True)
class Row:
    """One cache. Times are of decode steps: the median, and all of them together, evictions included."""

    cache: str
    mean_length: float  # cached tokens over the steps
    mib: float  # keys, values and scores at the end
    prefill_s: float
    step_ms: float
    tokens_per_s: float  # all rows together


class _Timed:
    """A cache whose calls are timed."""

    def __init__(self, name: str, cache: Cache) -> None:
        self.name, self.cache = name, cache
        self.prefill_s, self.steps, self.lengths = 0.0, list[float](), list[float]()

    def prefill(self, model: PreTrainedModel, ids: torch.Tensor) -> None:
        self.prefill_s = _seconds(model, ids, self.cache)

    def decode(self, model: PreTrainedModel, token: torch.Tensor, steps: int) -> None:
        for _ in range(steps):
            self.steps.append(_seconds(model, token, self.cache))
            evicting = isinstance(self.cache, buzz.BeehiveCache)
            self.lengths.append(self.cache.lengths[0] if evicting else self.cache.get_seq_length())

    def row(self) -> Row:
        layers = [t for layer in self.cache.layers for t in (layer.keys, layer.values)]
        size = getattr(self.cache, "nbytes", None) or sum(t.numel() * t.element_size() for t in layers)
        total = sum(self.steps)
        step = 1e3 * statistics.median(self.steps)
        rate = len(self.steps) * layers[0].shape[0] / total
        return Row(self.name, statistics.mean(self.lengths), size / 2**20, self.prefill_s, step, rate)


def _seconds(model: PreTrainedModel, ids: torch.Tensor, cache: Cache) -> float:
    start = time.perf_counter()
    model(ids, past_key_values=cache, logits_to_keep=1)
    if ids.is_cuda:
        torch.cuda.synchronize()
    return time.perf_counter() - start


@torch.inference_mode()
def long_prompt(
    model: PreTrainedModel, ids: torch.Tensor, steps: int, policies: Sequence[str], batches: Sequence[int]
) -> Iterator[tuple[int, list[Row]]]:
    """The unpatched model's DynamicCache against policies at their defaults, after the same prompt ids [1, L].

    Yields (batch, rows); a larger batch goes on from the caches of the smaller one, their rows repeated.
    """
    timed = [_Timed(FULL, DynamicCache(config=model.config))]
    timed[0].prefill(model, ids)
    with buzz.patch_model(model):
        for name in policies:
            timed.append(_Timed(name, buzz.BeehiveCache(buzz.make_policy(name), model.config)))
            timed[-1].prefill(model, ids)
    rows = 1
    for batch in sorted(batches):
        for t in timed:
            t.cache.batch_repeat_interleave(batch // rows)
            t.steps, t.lengths = [], []
        rows *= batch // rows
        _interleave(model, ids[:, :1].repeat(rows, 1), timed, steps)
        yield rows, [t.row() for t in timed]


@torch.inference_mode()
def equal_length(model: PreTrainedModel, ids: torch.Tensor, steps: int) -> list[Row]:
    """Steps at the same cache length: unpatched, patched without scores, patched with scores. Nothing is evicted."""
    room = ids.shape[1] + steps
    policies = {
        "patched, no scores": buzz.make_policy("streaming", window=room),
        "patched, scores": buzz.make_policy("h2o", heavy=room, window=1),
    }
    timed = [_Timed(FULL, DynamicCache(config=model.config))]
    timed += [_Timed(name, buzz.BeehiveCache(p, model.config, capacity=room)) for name, p in policies.items()]
    timed[0].prefill(model, ids)
    with buzz.patch_model(model):
        for t in timed[1:]:
            t.prefill(model, ids)
    _interleave(model, ids[:, :1], timed, steps)
    return [t.row() for t in timed]


def _interleave(model: PreTrainedModel, token: torch.Tensor, timed: Sequence[_Timed], steps: int) -> None:
    """The same number of steps for every cache, a block each in turn; the DynamicCache's on the unpatched model."""
    for done in range(0, steps, _BLOCK):
        for t in timed:
            n = min(_BLOCK, steps - done)
            if t.name == FULL:
                t.decode(model, token, n)
            else:
                with buzz.patch_model(model):
                    t.decode(model, token, n)


def text_table(title: str, rows: Sequence[Row]) -> str:
    """A Markdown table; ratios are against its first row."""
    first = rows[0]
    lines = [f"{title}\n", "| cache | mean length | MiB | prefill s | ms a step | ratio | tokens/s | ratio |"]
    lines += ["| --- | ---: | ---: | ---: | ---: | ---: | ---: | ---: |"]
    lines += [
        f"| {r.cache} | {r.mean_length:.0f} | {r.mib:.1f} | {r.prefill_s:.2f} | {r.step_ms:.2f} "
        f"| {r.step_ms / first.step_ms:.3f} | {r.tokens_per_s:.2f} | {r.tokens_per_s / first.tokens_per_s:.2f} |"
        for r in rows
    ]
    return "\n".join(lines)


def run(
    model: ModelConfig,
    prompt: int,
    steps: int,
    lengths: Sequence[int],
    batches: Sequence[int],
    output: Path | None,
) -> None:
    """Measure, print the tables, and write them as JSON.

    Args:
        prompt: tokens of the long prompt. steps: decode steps of every cache. lengths: prompt tokens of the runs at
            equal cache length. batches: rows of the runs after the long prompt, each a multiple of the one before.
    """
    with quiet_transformers():
        loaded, tokenizer, info = load_model(model)
    info["root"] = Path(info["root"]).name  # where it lies on this machine is nobody's business
    lines = resolve_path(_TEXT, "text").read_text(encoding="utf-8").splitlines()
    ids = tokenizer("\n\n".join(json.loads(line)["document"] for line in lines), return_tensors="pt").input_ids
    ids = ids.repeat(1, -(-max(prompt, *lengths) // ids.shape[1])).to(loaded.device)  # [1, at least the longest]
    facts = environment()
    with torch.inference_mode():
        loaded(ids[:, : max(lengths)], logits_to_keep=1)  # first calls pack weights and start threads
    print(
        f"{info['parameters'] / 1e6:.0f}M parameters, {info['dtype']}, {facts['device_name']}, "
        f"{facts['threads']} threads, torch {facts['versions']['torch']}, "
        f"transformers {facts['versions']['transformers']}"
    )
    results = {}
    for length in lengths:
        results[f"{length} cached tokens, then {steps} steps"] = equal_length(loaded, ids[:, :length], steps)
        print("\n" + text_table(*list(results.items())[-1]), flush=True)
    for batch, rows in long_prompt(loaded, ids[:, :prompt], steps, ["buzz", "buzz_no_max"], batches):
        results[f"{prompt} prompt tokens, then {steps} steps, batch {batch}"] = rows
        print("\n" + text_table(*list(results.items())[-1]), flush=True)
    if output is not None:
        output.parent.mkdir(parents=True, exist_ok=True)
        tables = {title: [asdict(row) for row in rows] for title, rows in results.items()}
        write_atomically(output, json.dumps({"environment": facts, "model": info, **tables}, indent=2, default=str))
