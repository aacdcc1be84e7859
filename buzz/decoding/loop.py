"""The loop of `generate()` in static memory: the host never waits for the device between two steps.

It gives what transformers' own loop gives, and leaves the cache as that one does. Whether all rows are finished is
known on the device first, so the host may start a step too many; such a step changes nothing, and is forgotten.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Mapping
from typing import Any, NamedTuple

import torch
from transformers.generation.stopping_criteria import MaxLengthCriteria, StoppingCriteriaList
from transformers.generation.utils import GenerateDecoderOnlyOutput

from buzz.cache import BeehiveCache
from buzz.decoding.arena import Session
from buzz.decoding.engine import Engine
from buzz.models.cache_argument import CACHE, as_argument

_STEPS = 512  # to expect where no criterion limits the length


def fit_to_prompt(cache: Any, input_ids: torch.Tensor, model_kwargs: Mapping[str, Any]) -> None:
    """Before a prompt is read: let a cache know all of it whose budget is a share of the prompt, as it may be read in
    chunks.

    Args:
        cache: of any kind.
        input_ids: int64 [B, columns] of all rows, beams and samples included. model_kwargs: as generate() has them.
    """
    if not isinstance(cache, BeehiveCache) or not cache.waits_for_prompt:
        return
    mask, embeds = model_kwargs.get("attention_mask"), model_kwargs.get("inputs_embeds")
    rows, columns = (input_ids if embeds is None else embeds).shape[:2]
    if mask is None:
        cache.fit([columns] * rows, lasting=False)
    elif isinstance(mask, torch.Tensor) and mask.dim() == 2 and len(mask) == rows:
        cache.fit((mask[:, :columns] != 0).sum(dim=1).tolist(), lasting=False)  # others are refused by the call


class _News(NamedTuple):
    """What the device will tell about one sampled token: whether it ended all rows, and the tokens themselves."""

    length: int  # of the text with it
    mark: Any  # the cache before it is fed
    finished: torch.Tensor  # bool, on the host
    tokens: torch.Tensor | None  # int64 [B], on the host
    ready: Any  # the event after which both are there


class _Mail:
    """News in the order of the tokens. Streams them, and stops at the first token that ends all rows."""

    def __init__(self, rows: int, device: torch.device, streamer: Any) -> None:
        self._device, self._cuda, self._streamer = device, device.type == "cuda", streamer
        # More than are ever on their way: one is read before the next but one is sent.
        self._slots = deque(self._slot(rows) for _ in range(4))
        self._sent: deque[_News] = deque()
        self.end: _News | None = None

    def _slot(self, rows: int) -> tuple[torch.Tensor, torch.Tensor, Any]:
        event = torch.cuda.Event() if self._cuda else None
        finished = torch.zeros((), dtype=torch.bool, pin_memory=self._cuda)
        return finished, torch.zeros(rows, dtype=torch.int64, pin_memory=self._cuda), event

    def send(self, unfinished: torch.Tensor, tokens: torch.Tensor, length: int, mark: Any) -> None:
        finished, copy, ready = self._slots[0]
        self._slots.rotate()
        finished.copy_(unfinished.max() == 0, non_blocking=True)
        if self._streamer is not None:
            copy.copy_(tokens, non_blocking=True)
        if ready is not None:
            ready.record(torch.cuda.current_stream(self._device))
        self._sent.append(_News(length, mark, finished, copy if self._streamer is not None else None, ready))

    def read(self, keep: int = 0) -> bool:
        """Wait for all news but the last `keep`; whether the end was among them."""
        while self.end is None and len(self._sent) > keep:
            news = self._sent.popleft()
            if news.ready is not None:
                news.ready.synchronize()
            if news.tokens is not None:
                self._streamer.put(news.tokens.clone())
            if bool(news.finished):
                self.end = news
        return self.end is not None


class Loop:
    """One call of `generate()`, as its `custom_generate`; for greedy decoding and sampling."""

    def __init__(self, engine: Engine, streamer: Any = None) -> None:
        self._engine, self._streamer = engine, streamer

    def __call__(
        self,
        model: Any,
        input_ids: torch.Tensor,
        logits_processor: Any,
        stopping_criteria: StoppingCriteriaList,
        generation_config: Any,
        **model_kwargs: Any,
    ) -> Any:
        cache: BeehiveCache = model_kwargs[CACHE]
        rows, n = input_ids.shape
        limits = [c.max_length for c in stopping_criteria if isinstance(c, MaxLengthCriteria)]
        limit = min(limits, default=None)
        certain = limit is not None and all(
            type(c) is MaxLengthCriteria for c in stopping_criteria
        )  # the host knows the end by itself
        steps = _STEPS if limit is None else limit - n
        fit_to_prompt(cache, input_ids, model_kwargs)
        if not cache.lengths:
            embeds = model_kwargs.get("inputs_embeds")
            self._engine.reserve(cache, rows, n if embeds is None else embeds.shape[1], steps)
        text = _Text(input_ids, n + max(1, steps))
        outputs = model._prefill(
            input_ids, generation_config, model_kwargs, is_first_iteration=not generation_config.is_assistant
        )
        logits = outputs.logits[:, -1].to(copy=True, dtype=torch.float32, device=input_ids.device)
        del outputs
        choose = _Choice(generation_config, logits_processor, stopping_criteria)
        mail = None if certain and self._streamer is None else _Mail(rows, input_ids.device, self._streamer)
        forward = _Forward(self._engine, model, cache, model_kwargs, steps)
        cache.integers.ahead = mail is not None
        try:
            while True:
                tokens, unfinished = choose(text, logits)
                if mail is not None:
                    mail.send(unfinished, tokens, text.length, cache.integers.mark())
                if limit is not None and text.length >= limit:
                    break
                if not forward.ready:
                    if mail is not None and mail.read():
                        break
                    if not forward.prepare(text):
                        logits = forward.plainly(text)
                        continue
                live = None if certain else unfinished.amax()
                if forward.feed(tokens, live) and mail is not None and mail.read():
                    break  # evicting what follows the end would change the cache
                logits = forward.finish()
                if mail is not None and mail.read(keep=1):
                    break
        finally:
            if mail is not None and mail.read():
                cache.rewind(mail.end.mark)  # type: ignore[union-attr]
                text.length = mail.end.length  # type: ignore[union-attr]
            cache.integers.ahead = False
        if self._streamer is not None:
            self._streamer.end()
        if generation_config.return_dict_in_generate:
            return GenerateDecoderOnlyOutput(sequences=text.ids.clone(), **as_argument(cache))
        return text.ids.clone()


class _Text:
    """Ids int64 [B, length] in memory for more."""

    def __init__(self, ids: torch.Tensor, capacity: int) -> None:
        self.length = ids.shape[1]
        self._ids = ids.new_empty(ids.shape[0], capacity, dtype=torch.int64)
        self._ids[:, : self.length] = ids

    @property
    def ids(self) -> torch.Tensor:
        return self._ids[:, : self.length]

    def append(self, tokens: torch.Tensor) -> None:
        if self.length == self._ids.shape[1]:
            self._ids = torch.cat([self._ids, torch.empty_like(self._ids)], dim=1)
        self._ids[:, self.length] = tokens
        self.length += 1


class _Choice:
    """The next tokens, and which rows go on."""

    def __init__(self, config: Any, processor: Any, criteria: StoppingCriteriaList) -> None:
        self._processor, self._criteria, self._sample = processor, criteria, config.do_sample
        self._pad = config._pad_token_tensor if any(hasattr(c, "eos_token_id") for c in criteria) else None
        self._unfinished: torch.Tensor | None = None

    def __call__(self, text: _Text, logits: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        # A copy for the processors: they may keep it, or write to it.
        scores = self._processor(text.ids, logits.clone()) if len(self._processor) else logits
        if self._sample:
            probs = scores.softmax(dim=-1)
            # The arithmetic of torch.multinomial, which on some devices also waits to check its input.
            tokens = probs.div_(torch.empty_like(probs).exponential_(1)).argmax(dim=-1)
        else:
            tokens = scores.argmax(dim=-1)
        unfinished = self._unfinished
        if unfinished is None:
            unfinished = torch.ones_like(tokens)
        if self._pad is not None:  # rows that are finished are padded
            tokens = tokens * unfinished + self._pad.to(tokens.device) * (1 - unfinished)
        text.append(tokens)
        self._unfinished = unfinished & ~self._criteria(text.ids, None)
        return tokens, self._unfinished


class _Forward:
    """Logits after one more token: from static memory where the cache fits, else from the model's own forward."""

    def __init__(self, engine: Engine, model: Any, cache: BeehiveCache, kwargs: dict[str, Any], steps: int) -> None:
        self._engine, self._model, self._cache, self._kwargs = engine, model, cache, kwargs
        self._session: Session | None = None
        self._behind = 1  # tokens that mask and positions in the keyword arguments do not know of
        self._steps = steps

    @property
    def ready(self) -> bool:
        """Whether the next token can be fed in static memory."""
        return self._session is not None and self._session.has_room()

    def prepare(self, text: _Text) -> bool:
        """Try to become ready."""
        rows = text.ids.shape[0]
        self._session = self._engine.session(self._cache, rows, max(self._steps, 1))
        if self._session is not None:
            self._catch_up()
            positions = self._kwargs.get("position_ids")
            self._session.begin(None if positions is None else positions[..., -1])
            if not self._session.has_room():
                self._session = None
        return self._session is not None

    def feed(self, tokens: torch.Tensor, live: torch.Tensor | None) -> bool:
        assert self._session is not None
        self._behind += 1
        self._steps -= 1
        return self._session.feed(tokens, live)

    def finish(self) -> torch.Tensor:
        assert self._session is not None
        self._session.finish()
        return self._session.logits

    def plainly(self, text: _Text) -> torch.Tensor:
        """One step by the model's own forward."""
        self._session = None
        self._catch_up()
        self._steps -= 1
        inputs = self._model.prepare_inputs_for_generation(text.ids, next_sequence_length=1, **self._kwargs)
        logits = self._model(**inputs, return_dict=True).logits[:, -1]
        self._behind = 1
        return logits.to(copy=True, dtype=torch.float32, device=text.ids.device)

    def _catch_up(self) -> None:
        if self._behind:
            self._kwargs = self._model._update_model_kwargs_for_generation(
                {}, self._kwargs, num_new_tokens=self._behind
            )
            self._behind = 0
