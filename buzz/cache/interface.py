"""What transformers asks of a cache besides a call: rows in another order, sizes, and what cannot be had."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NoReturn

import torch
from transformers.cache_utils import Cache

from buzz.cache.layer import UNPATCHED
from buzz.policies.base import LONGEST
from buzz.policies.numbers import integer, truth
from buzz.policies.parameters import integer_within
from buzz.rows import Rows
from buzz.words import shown

UNCROPPED = (
    "a BeehiveCache cannot be cropped, as assisted decoding wants it: what an eviction dropped is gone, so no earlier "
    "state can come back (docs/limits.md)"
)


class TransformersCache(Cache):
    """A transformers cache whose columns are not its slots: what follows from `get_seq_length`, `tokens` and `take`."""

    @property
    def tokens(self) -> list[int]:
        """Tokens that each row has seen, pads not counted."""
        raise NotImplementedError

    def take(self, rows: torch.Tensor | Sequence[Any]) -> None:
        """Make row i what row rows[i] was; their number may change. See `named_rows`.

        Raises:
            ValueError: no row would be left, or there is no such row. TypeError: these are no rows.
        """
        raise NotImplementedError

    def reorder_cache(self, beam_idx: torch.Tensor | Sequence[Any]) -> None:
        """Make row i what row beam_idx[i] was (beam search); raises as `take`."""
        self.take(beam_idx)

    def batch_repeat_interleave(self, repeats: int) -> None:
        """Repeat every row so often.

        Raises:
            TypeError: that is no integer. ValueError: it is less than 1.
        """
        times = integer_within("repeats", repeats, 1, LONGEST)
        self.take([row for row in range(len(self.tokens)) for _ in range(times)])

    def batch_select_indices(self, indices: torch.Tensor | Sequence[Any]) -> None:
        """Keep these rows, by index or by a boolean mask; raises as `take`."""
        self.take(indices)

    def get_mask_sizes(self, query_length: int, layer_idx: int = 0) -> tuple[int, int]:
        return self.get_seq_length() + query_length, 0

    def get_max_length(self, layer_idx: int | None = None) -> int:
        return -1

    def update(self, *args: Any, **kwargs: Any) -> NoReturn:
        raise RuntimeError(UNPATCHED)

    def crop(self, *args: Any, **kwargs: Any) -> NoReturn:
        raise NotImplementedError(UNCROPPED)


def named_rows(given: Any, rows: int) -> Rows:
    """The rows of a batch of so many that a tensor or a list names: by indices, of which negative ones count from the
    end, or by a bool for each row, true for those that stay.

    Raises:
        TypeError: it has neither. ValueError: there is no such row, or there are more or fewer bools than rows.
    """
    listed = given.tolist() if hasattr(given, "tolist") else given
    named = list(listed) if isinstance(listed, Sequence) and not isinstance(listed, str) else [None]
    stays = [truth(one) for one in named]
    if named and None not in stays:
        if len(stays) != rows:
            raise ValueError(f"the cache holds {rows} rows, the mask of those that stay has {len(stays)}")
        return Rows(row for row, stay in enumerate(stays) if stay)
    indices = [integer(one) for one in named]
    found = [index for index in indices if index is not None]
    if len(found) < len(indices):
        raise TypeError(f"rows are named by a list of indices, or of a bool for each row, got {shown(given)}")
    for index in found:
        if not -rows <= index < rows:
            raise ValueError(f"the cache holds {rows} rows, there is no row {shown(index)}")
    return Rows(index % rows for index in found)


__all__ = ["TransformersCache", "named_rows"]
