"""What a cache tells of itself: lengths, bytes, figures."""

from __future__ import annotations

from typing import Any

from buzz.cache.calls import Calls
from buzz.cache.figures import Curve
from buzz.cache.interface import TransformersCache
from buzz.cache.storage import Storage
from buzz.policies.parameters import integer_within
from buzz.words import shown


class CacheView(TransformersCache):
    """A cache as far as it is looked at.

    Attributes:
        integers: what is known of its calls without looking at a tensor. storage: what all layers hold.
    """

    integers: Calls
    storage: Storage

    def get_seq_length(self, layer_idx: int = 0) -> int:
        """Columns *seen*, pads included, so that a second turn of generate() continues in the right place."""
        return self.integers.columns.seen

    @property
    def lengths(self) -> list[int]:
        """Cached tokens of each row (of the first layer that the policy decides over, where layers differ)."""
        return self.integers.lengths(self.integers.counted[0])

    def layer_lengths(self, layer: int) -> list[int]:
        """Cached tokens of each row in one layer, counted from 0.

        Raises:
            TypeError: that is no integer. ValueError: there is no such layer.
        """
        return self.integers.lengths(integer_within("layer", layer, 0, len(self.layers) - 1))

    @property
    def tokens(self) -> list[int]:
        """Tokens that each row has seen, pads not counted."""
        return list(self.integers.tokens)

    @property
    def nbytes(self) -> int:
        """Bytes allocated for keys, values and scores in all layers."""
        return self.storage.nbytes

    @property
    def calls(self) -> int:
        """Calls so far."""
        return self.integers.figures.calls

    @property
    def curve(self) -> Curve | None:
        """If set to a `Curve`, every later call is recorded there.

        Raises:
            TypeError: it is no `Curve`.
        """
        return self.integers.curve

    @curve.setter
    def curve(self, curve: Curve | None) -> None:
        if not isinstance(curve, Curve | None):
            raise TypeError(f"curve must be a buzz.cache.Curve, or None, got {shown(curve)}")
        self.integers.curve = curve

    def stats(self) -> dict[str, Any]:
        """Cache figures so far.

        Returns:
            mean_tokens, peak_tokens: per row, cached tokens after each one-token call (after the prompt, if there was
            none), and evictions: per row, all three the mean over the layers that the policy decides over; calls:
            number of calls; nbytes: bytes allocated now for keys, values and scores in all layers; mean_nbytes,
            peak_nbytes: after each one-token call (now, if there was none); longest_head, shortest_head: per row,
            cached tokens now of the head with the most and the fewest, in the layers that the policy decides over.
        """
        heads = self.storage.head_lengths()
        ends = {"longest_head": list(map(max, heads)), "shortest_head": list(map(min, heads))}
        return {**self.integers.stats(self.nbytes), **ends}


__all__ = ["CacheView"]
