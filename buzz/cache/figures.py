"""What is told of a cache's calls: running figures, which do not grow with a stream, and the curve if it is wanted."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import NamedTuple


class Figures(NamedTuple):
    """Running figures of a cache's calls; immutable, so that an earlier state is at hand by keeping it.

    Lengths are cached tokens, one number per row, the mean over layers.

    calls: so far. last: lengths after the last call. steps: one-token calls. length_sums, length_peaks: of each row,
    lengths after these. byte_sum, byte_peak: bytes allocated after these.
    """

    calls: int = 0
    last: tuple[float, ...] = ()
    steps: int = 0
    length_sums: tuple[float, ...] = ()
    length_peaks: tuple[float, ...] = ()
    byte_sum: int = 0
    byte_peak: int = 0

    def after(self, lengths: Sequence[float], nbytes: int, step: bool) -> Figures:
        """The figures once a call has left these lengths and so many allocated bytes; step: it was of one token."""
        last = tuple(lengths)
        if not step:
            return self._replace(calls=self.calls + 1, last=last)
        first = not self.steps
        return Figures(
            self.calls + 1,
            last,
            self.steps + 1,
            last if first else tuple(a + b for a, b in zip(self.length_sums, last, strict=True)),
            last if first else tuple(map(max, self.length_peaks, last)),
            self.byte_sum + nbytes,
            max(self.byte_peak, nbytes),
        )

    def take(self, rows: Sequence[int]) -> Figures:
        """Make row i what row rows[i] was."""
        last, sums, peaks = (
            tuple(row[i] for i in rows) if row else () for row in (self.last, self.length_sums, self.length_peaks)
        )
        return self._replace(last=last, length_sums=sums, length_peaks=peaks)

    @property
    def mean_lengths(self) -> list[float]:
        """Of each row, over the one-token calls; after the last call, if there was none."""
        return [total / self.steps for total in self.length_sums] if self.steps else list(self.last)

    @property
    def peak_lengths(self) -> list[float]:
        """As `mean_lengths`, the most."""
        return list(self.length_peaks if self.steps else self.last)


@dataclass
class Curve:
    """What a cache held after every call, for those who want to see all of it: `cache.curve = Curve()` records.

    It grows with the number of calls.

    Attributes:
        lengths: a call's cached tokens of each row, the mean over layers.
        row_bytes: a call's allocated bytes of keys, values and scores in all layers, over the number of rows.
    """

    lengths: list[list[float]] = field(default_factory=list)
    row_bytes: list[float] = field(default_factory=list)

    def __len__(self) -> int:
        return len(self.lengths)

    def add(self, lengths: Sequence[float], nbytes: int) -> None:
        """A call is over."""
        self.lengths.append(list(lengths))
        self.row_bytes.append(nbytes / len(lengths))

    def cut(self, calls: int) -> None:
        """Forget all calls but the first so many."""
        del self.lengths[calls:], self.row_bytes[calls:]

    def take(self, rows: Sequence[int]) -> None:
        """Make row i what row rows[i] was, in all calls."""
        self.lengths = [[lengths[row] for row in rows] for lengths in self.lengths]


__all__ = ["Curve", "Figures"]
