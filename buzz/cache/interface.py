"""What transformers asks of a cache besides a call: rows in another order, sizes, and what cannot be had."""

from __future__ import annotations

from typing import Any, NoReturn

import torch
from transformers.cache_utils import Cache

from buzz.cache.layer import UNPATCHED


class TransformersCache(Cache):
    """A transformers cache whose columns are not its slots: what follows from `get_seq_length`, `tokens` and `take`."""

    @property
    def tokens(self) -> list[int]:
        """Tokens that each row has seen, pads not counted."""
        raise NotImplementedError

    def take(self, rows: torch.Tensor) -> None:
        """Make row i what row rows[i] was, int64 [rows to come]; their number may change.

        Raises:
            ValueError: no row would be left.
        """
        raise NotImplementedError

    def reorder_cache(self, beam_idx: torch.Tensor) -> None:
        """Make row i what row beam_idx[i] was (beam search)."""
        self.take(beam_idx)

    def batch_repeat_interleave(self, repeats: int) -> None:
        """Repeat every row."""
        self.take(torch.arange(len(self.tokens)).repeat_interleave(repeats))

    def batch_select_indices(self, indices: torch.Tensor) -> None:
        """Keep these rows, by index or by a boolean mask."""
        self.take(torch.arange(len(self.tokens), device=indices.device)[indices])

    def get_mask_sizes(self, query_length: int, layer_idx: int = 0) -> tuple[int, int]:
        return self.get_seq_length() + query_length, 0

    def get_max_length(self, layer_idx: int | None = None) -> int:
        return -1

    def update(self, *args: Any, **kwargs: Any) -> NoReturn:
        raise RuntimeError(UNPATCHED)

    def crop(self, *args: Any, **kwargs: Any) -> NoReturn:
        raise NotImplementedError(
            "a BeehiveCache cannot be cropped, as assisted decoding wants it: what an eviction dropped is gone, so no "
            "earlier state can come back (docs/limits.md)"
        )
