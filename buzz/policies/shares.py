"""What each KV head of a model needs of the slots that all of them have together, measured beforehand."""

from __future__ import annotations

import functools
import hashlib
import json
import math
import os
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from buzz.policies.numbers import finite, number
from buzz.rows import Rows
from buzz.words import shown, told

_VERSION = 1  # of the file


@dataclass(frozen=True, repr=False)
class HeadShares:
    """Slots that each KV head needs, as a multiple of the mean, of the layers that a policy decides over.

    Which heads look far back is a property of a model, the same for all texts (DuoAttention, Xiao et al., arXiv
    2410.10819; KVzip's budgets that depend on no context, arXiv 2505.23416). `buzz.head_shares` measures it.

    Args:
        shares: of every layer those of its heads; above 0, and as many in every layer. They are scaled to a mean of 1.

    Raises:
        ValueError, TypeError: they are not such numbers.
    """

    shares: tuple[tuple[float, ...], ...]

    def __post_init__(self) -> None:
        if not isinstance(self.shares, list | tuple) or not all(isinstance(of, list | tuple) for of in self.shares):
            raise TypeError("head shares are a list for every layer, of one number for every KV head")
        numbers = [[number(share) for share in of] for of in self.shares]
        counts = sorted(set(map(len, numbers)))
        if len(counts) != 1 or not counts[0]:
            raise ValueError(f"head shares need layers of equally many KV heads, got layers of {counts or 'none'}")
        flat = [float(share) for of in numbers for share in of if share is not None and share > 0 and finite(share)]
        if len(flat) < len(numbers) * counts[0]:
            raise ValueError("head shares must be numbers above 0")
        mean, each = sum(flat) / len(flat), counts[0]
        if math.isclose(mean, 1, rel_tol=1e-12):  # they are scaled already, and stay as they are to the last bit
            mean = 1.0
        shares = tuple(share / mean for share in flat)
        if not min(shares):
            raise ValueError(f"head shares are too far apart, or too large, from {min(flat):g} to {max(flat):g}")
        object.__setattr__(self, "shares", tuple(shares[i : i + each] for i in range(0, len(shares), each)))

    @property
    def layers(self) -> int:
        """Their number."""
        return len(self.shares)

    @property
    def heads(self) -> int:
        """KV heads of a layer."""
        return len(self.shares[0])

    @property
    def digest(self) -> str:
        """Twelve hexadecimal digits that tell shares apart, to three decimals."""
        text = json.dumps([[round(share, 3) for share in of] for of in self.shares])
        return hashlib.sha256(text.encode()).hexdigest()[:12]

    def of_layers(self, layers: tuple[int, ...]) -> HeadShares:
        """Of some of the layers alone."""
        return self if layers == tuple(range(self.layers)) else HeadShares(tuple(self.shares[i] for i in layers))

    @functools.lru_cache(maxsize=64)  # noqa: B019 - frozen, and few
    def budgets(self, kept: int, least: int, most: int, times: int | None = None) -> Rows:
        """Slots of each head, layer after layer, where heads keep `kept` in the mean.

        A head has its share, but `least` at the least and `most` at the most; what these give or take is shared out
        like the rest. A layer that would have more than `times * kept` a head is cut to that in the same way. Rounded
        down, so together they may be a few fewer than `kept` a head, and with layers that were cut more.

        Args:
            least, most: not above, and not below, `kept`.
            times: at least 1; None: layers have no bound.
        """
        budgets = _fitted([share for of in self.shares for share in of], kept * self.layers * self.heads, least, most)
        if times is not None:
            room = times * kept * self.heads
            for layer, shares in enumerate(self.shares):
                own = slice(layer * self.heads, (layer + 1) * self.heads)
                if sum(budgets[own]) > room:
                    budgets[own] = _fitted(shares, room, least, most)
        return Rows(budgets)

    @functools.lru_cache(maxsize=256)  # noqa: B019 - so that what is on a device stays there
    def part(self, kept: int, least: int, most: int, times: int | None, first: int, heads: int) -> Rows:
        """`budgets` of so many heads, from one on."""
        return Rows(self.budgets(kept, least, most, times)[first : first + heads])

    def save(self, path: str | os.PathLike[str]) -> None:
        """Write them to a JSON file."""
        Path(path).write_text(json.dumps({"version": _VERSION, "head_shares": self.shares}) + "\n", encoding="utf-8")

    @classmethod
    def load(cls, path: str | os.PathLike[str]) -> HeadShares:
        """Read what `save` wrote.

        Raises:
            ValueError: it is no such file. OSError: it cannot be read; FileNotFoundError: there is none. TypeError: no
                path.
        """
        name, wanted = os.fspath(path), "HeadShares.save writes such a file"
        try:
            content: Any = json.loads(Path(name).read_text(encoding="utf-8"))
            found = content if isinstance(content, dict) else {}
            if found.get("version") != _VERSION:
                raise ValueError(f"its version is {shown(found.get('version'))}, this code reads {_VERSION}")
            return cls(found.get("head_shares", ()))
        except OSError as error:
            raise type(error)(f"{name}: it cannot be read ({error.strerror}); {wanted}") from None
        except (TypeError, ValueError, RecursionError) as error:
            raise ValueError(f"{name}: no file of head shares ({told(error)}); {wanted}") from None

    def __repr__(self) -> str:
        flat = [share for of in self.shares for share in of]
        return (
            f"HeadShares({self.layers} layers, {self.heads} KV heads each, "
            f"{min(flat):.2f} to {max(flat):.2f} of the mean, {self.digest})"
        )


def _fitted(shares: Sequence[float], total: int, least: int, most: int) -> list[int]:
    """Integers in proportion to shares, between two bounds, that come to a total at most."""
    low, high = 0.0, min(most / min(shares), sys.float_info.max)
    # Bisection, as all of them grow with the scale, until no number is left between the two.
    while low < (scale := low + (high - low) / 2) < high:
        if sum(min(max(scale * share, least), most) for share in shares) > total:
            high = scale
        else:
            low = scale
    # What bisection leaves just below an integer counts as this.
    return [int(min(max(low * share, least), most) + 1e-6) for share in shares]


__all__ = ["HeadShares"]
