"""Tokens that are given, not chosen, in static memory: what `loop.py` is for `generate()`, for whoever reads a text."""

from __future__ import annotations

import torch

from buzz.cache import BeehiveCache
from buzz.decoding.arena import Session
from buzz.decoding.engine import Engine
from buzz.models.shares import give_shares

WORTH = 512  # steps of the same rows: in fewer a capture costs more than it saves


class Feed:
    """Feeds one cache; others can be fed by the same engine once this one has stopped.

    Args:
        engine: of the patched model that has filled the cache.
        worth: fewer steps than this are refused.
    """

    def __init__(self, engine: Engine, cache: BeehiveCache, worth: int | None = None) -> None:
        self._engine, self._cache, self._worth = engine, cache, WORTH if worth is None else worth
        self._session: Session | None = None
        self._refused = False  # by something that will not change

    def __call__(self, tokens: torch.Tensor, left: int, positions: torch.Tensor | None) -> torch.Tensor | None:
        """The next step.

        Args:
            tokens: int64 [B]. left: steps that these rows still have, this one included.
            positions: int64 [B, 1], of the tokens in the text, looked at where a stretch of steps begins; None: those
                that they have where the model is called without any.

        Returns:
            Logits float32 [B, vocabulary], overwritten by the next step; None: nothing was fed, since static memory
            cannot be had, or is not worth it for what is left.
        """
        if self._session is None or not self._session.has_room():
            self.stop()
            if not self._start(len(tokens), left, positions):
                return None
        assert self._session is not None
        self._session.feed(tokens, None)
        self._session.finish()
        return self._session.logits

    def _start(self, rows: int, left: int, positions: torch.Tensor | None) -> bool:
        engine = self._engine
        if self._refused or left < self._worth:
            return False
        self._refused = not engine.run.usable(engine.device) or engine.obstacle() is not None
        if self._refused or not engine.lock.acquire(blocking=False):
            return False
        try:
            engine.check(self._cache)
            give_shares(self._cache, engine.model)
            engine.refresh()
            session = engine.session(self._cache, rows, left)
            if session is not None:
                session.begin(engine.next_positions(self._cache) if positions is None else positions[:, 0])
                if session.has_room():
                    self._session = session
            self._refused = self._session is None
        finally:
            if self._session is None:
                engine.lock.release()
        return self._session is not None

    def stop(self) -> None:
        """The rows change, or the text is read: others may use the engine. Doing it again changes nothing."""
        if self._session is not None:
            self._session = None
            self._engine.lock.release()
