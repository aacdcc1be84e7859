"""Section `agreement`: whether decoding in static memory gives the tokens of the model's own forward."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Sequence
from typing import Any

import torch
from torch.nn.utils.rnn import pad_sequence
from transformers import GenerationConfig

from buzz.benchmark.bench import Bench, new_cache
from buzz.benchmark.config import Agreement
from buzz.benchmark.contenders import Contender
from buzz.decoding.arena import Off, Uncaptured
from buzz.models.cache_argument import as_argument


def agreement(bench: Bench, config: Agreement, contenders: Sequence[Contender]) -> None:
    """Every policy on every prompt, greedily, once in each way.

    Where the two part, the model's own forward tells how near its two likeliest tokens were. From there on the texts
    differ, so only the first difference of a prompt says anything.
    """
    for contender in contenders:
        if contender.patched:

            def measure(contender=contender) -> dict[str, Any]:
                texts = list(_prompts(bench, config))
                batches = [texts[i : i + config.batch] for i in range(0, len(texts), config.batch)]
                found = [row for batch in batches for row in _compare(bench, contender, batch, config.new_tokens)]
                parted = [difference for difference in found if difference is not None]
                return {
                    "prompts": len(found),
                    "rows": config.batch,
                    "equal": len(found) - len(parted),
                    "first": min((step for step, _ in parted), default=None),
                    "gap": max((gap for _, gap in parted), default=None),
                    "differences": [{"step": step, "gap": gap} for step, gap in parted],
                }

            bench.contender_point("agreement", contender, {}, measure)


def _prompts(bench: Bench, config: Agreement) -> Iterator[torch.Tensor]:
    """Real text [L] from places of its own, of lengths spread evenly from the shortest to the longest."""
    text = bench.text(config.longest)[0]
    for number in range(config.prompts):
        length = config.shortest + (config.longest - config.shortest) * number // max(1, config.prompts - 1)
        yield text.roll(-number * len(text) // config.prompts)[:length]


def _compare(
    bench: Bench, contender: Contender, texts: list[torch.Tensor], tokens: int
) -> list[tuple[int, float] | None]:
    """Of each row the first new token that differs, and the gap between the two likeliest there; None: none does."""
    model = bench.model
    settings = GenerationConfig(
        pad_token_id=0, do_sample=False, max_new_tokens=tokens, return_dict_in_generate=True, output_logits=True
    )
    ids = pad_sequence(texts, batch_first=True, padding_side="left")
    mask = pad_sequence([torch.ones_like(text) for text in texts], batch_first=True, padding_side="left")

    def answer(run: Any) -> Any:
        cache = new_cache(contender, model.config, ids.shape[1] + tokens)
        settings.output_logits = isinstance(run, Off)  # which the static loop does not record
        with decoding(model, run), torch.inference_mode():
            return model.generate(ids, attention_mask=mask, **as_argument(cache), generation_config=settings)

    own = answer(Off())
    static = answer(None if ids.is_cuda else Uncaptured())
    differs = (own.sequences != static.sequences)[:, ids.shape[1] :]
    found: list[tuple[int, float] | None] = []
    for row, places in enumerate(differs):
        steps = places.nonzero()
        if not len(steps):
            found.append(None)
            continue
        step = int(steps[0])
        first, second = own.logits[step][row].float().topk(2).values.tolist()
        found.append((step, first - second))
    return found


@contextlib.contextmanager
def decoding(model: Any, run: Any) -> Iterator[None]:
    """Steps of generate() run like this inside the block; None: as they do anyway."""
    engine = model._buzz_handle.engine
    before = engine.run
    engine.run = run or before
    try:
        yield
    finally:
        engine.run = before
