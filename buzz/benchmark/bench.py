"""What the sections of a benchmark share: the model in the state that a contender needs, inputs, and points."""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Mapping
from typing import Any

import torch
from transformers import DynamicCache, StaticCache

import buzz
from buzz.benchmark.book import Book
from buzz.benchmark.clocks import Clock, attempt
from buzz.benchmark.contenders import Contender, Quantized
from buzz.benchmark.quantized import quantized_cache
from buzz.cache import Shape
from buzz.evaluation.command_line import tell
from buzz.evaluation.paths import resolve_path

_TEXT = "package:buzz/evaluation/samples/articles.jsonl"


class Stage:
    """Brings one model into the state that a contender runs in; what is the case already costs nothing."""

    def __init__(self, model: Any) -> None:
        self._model = model
        self._attention = model.config._attn_implementation
        self._handle: Any = None
        self._contender: Contender | None = None

    def set(self, contender: Contender) -> None:
        """Patched or not, with eager attention or not, and nothing compiled for another point or contender."""
        if contender is not self._contender:
            self.clear()  # a policy's graph holds its whole cache
        self._contender = contender
        self._forget()
        if contender.patched and self._handle is None:
            self._handle = buzz.patch_model(self._model)
        if contender.method is not None and contender.policy().measured and contender.shares is None:
            buzz.head_shares(self._model)  # once, before anything is timed
        wanted = "eager" if contender.kind == "eager" else self._attention
        if self._model.config._attn_implementation != wanted:
            self._model.set_attn_implementation(wanted)

    def clear(self) -> None:
        """The model as it was, without what patches and compiled graphs hold."""
        self._contender = None
        self._forget()
        self._unpatch()
        if self._model.config._attn_implementation != self._attention:
            self._model.set_attn_implementation(self._attention)

    def _unpatch(self) -> None:
        if self._handle is not None:
            self._handle.remove()
            self._handle = None

    def _forget(self) -> None:
        """Drop what generate() compiled: graphs for another length are slower, and they hold memory."""
        if vars(self._model).pop("_compiled_call", None) is not None:
            torch._dynamo.reset()


def new_cache(contender: Contender, config: Any, room: int) -> Any:
    """An empty cache of a contender for a model of this config.

    Args:
        room: tokens that a static cache must hold; the others find their size themselves.

    Raises:
        ImportError: the package that a quantised cache needs is not installed. ValueError: transformers has no such
            quantised cache, or the contender has no cache of its own (`paged`).
    """
    if contender.method is not None:
        shares = contender.shares_of(Shape.of(config))
        return buzz.BeehiveCache(contender.policy(), config, positions=contender.method.positions, shares=shares)
    if contender.kind == "static":
        return StaticCache(config=config, max_cache_len=room)
    if isinstance(contender.settings, Quantized):
        return quantized_cache(contender.settings, config)
    if contender.kind == "paged":
        raise ValueError("continuous batching makes its cache itself")
    return DynamicCache(config=config)


class Bench:
    """One run of a benchmark."""

    def __init__(self, model: Any, tokenizer: Any, book: Book, seed: int, say: Callable[[str], None] = tell) -> None:
        self.model, self.tokenizer, self.book, self.seed, self.say = model, tokenizer, book, seed, say
        self.stage = Stage(model)
        self.device: torch.device = model.device
        self.clock = Clock(self.device)

    def ids(self, batch: int, length: int) -> torch.Tensor:
        """Random tokens [batch, length], the same for every contender."""
        generator = torch.Generator().manual_seed(self.seed)
        return torch.randint(self.model.config.vocab_size, (batch, length), generator=generator).to(self.device)

    def text(self, length: int) -> torch.Tensor:
        """Real text, repeated as needed, [1, at least length]; random tokens where there is no tokenizer."""
        if self.tokenizer is None:
            return self.ids(1, length)
        lines = resolve_path(_TEXT, "text").read_text(encoding="utf-8").splitlines()
        text = "\n\n".join(json.loads(line)["document"] for line in lines)
        ids = self.tokenizer(text, return_tensors="pt").input_ids
        return ids.repeat(1, -(-length // ids.shape[1])).to(self.device)

    def point(self, section: str, key: Mapping[str, Any], measure: Callable[[], dict[str, Any]]) -> None:
        """Measure a point unless the book has it.

        Raises:
            OutOfTimeError: no point is to begin any more.
        """
        if self.book.find(section, key) is not None:
            return
        self.book.check_time()
        begin = time.perf_counter()
        row = {**key, **attempt(measure), "took_s": round(time.perf_counter() - begin, 2)}
        self.book.add(section, row)
        where = ", ".join(f"{name} {value}" for name, value in key.items())
        what = row.get("failed") or f"{row['took_s']:.1f} s"
        self.say(f"{section}: {where}: {what}")

    def contender_point(
        self, section: str, contender: Contender, key: Mapping[str, Any], measure: Callable[[], dict[str, Any]]
    ) -> None:
        """`point` for a contender, with the model in its state; the key is extended by the contender's name."""

        def staged() -> dict[str, Any]:
            self.stage.set(contender)
            return measure()

        self.point(section, {**key, "method": contender.name}, staged)
