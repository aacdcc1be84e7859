"""Bootstrap intervals and paired randomisation tests, on arrays alone.

Everything that has the same number of rows shares the same draws. So the resampled figures of two methods over the
same samples are paired: their difference, or ratio, draw by draw is the paired bootstrap.
"""

from __future__ import annotations

from typing import Any

import numpy as np

RESAMPLES = 10_000
_BLOCK = 4_000_000  # draws made, or turned into floats, at a time


class Resampler:
    """Draws of a seed, kept by number of rows.

    Args:
        seed: equal seeds give equal draws.
        resamples: bootstrap samples, and random assignments of a test.
    """

    def __init__(self, seed: int = 0, resamples: int = RESAMPLES) -> None:
        self.seed, self.resamples = seed, resamples
        self._counts: dict[int, np.ndarray] = {}
        self._signs: dict[int, np.ndarray] = {}

    def sums(self, values: Any) -> np.ndarray:
        """Column sums of rows drawn with replacement, as many as there are.

        Args:
            values: [n, columns] floats, n >= 1.

        Returns:
            float64 [resamples, columns].
        """
        values = np.asarray(values, dtype=np.float64)
        n = len(values)
        if n not in self._counts:
            self._counts[n] = self._draw_counts(n)
        return _product(self._counts[n], values)

    def p_values(self, differences: Any) -> np.ndarray:
        """Two-sided p-values of a paired randomisation test.

        If it made no difference which of two methods gave which result, the sign of every row's difference would be
        a fair coin. With D the sum of the differences and D* their sum under random signs,
        p = (1 + number of draws with |D*| >= |D|) / (1 + draws). So p is never 0, it is 1 where nothing differs, and
        few rows cannot give a small p (one row: 1, two: about 1/2).

        Args:
            differences: [n, columns] floats, n >= 1: one method's result minus the other's.

        Returns:
            float64 [columns], each above 0 and up to 1; NaN where a difference is not finite.
        """
        differences = np.asarray(differences, dtype=np.float64)
        n = len(differences)
        if n not in self._signs:
            generator = np.random.default_rng([self.seed, n, 1])
            self._signs[n] = 2 * generator.integers(0, 2, size=(self.resamples, n), dtype=np.int8) - 1
        drawn, measured = np.abs(_product(self._signs[n], differences)), np.abs(differences.sum(axis=0))
        # The same sum in another order differs in its last digits; it must count as equal.
        slack = 1e-12 * np.abs(differences).sum(axis=0)
        extreme = (drawn >= measured - slack).sum(axis=0)
        return np.where(np.isfinite(measured), (1 + extreme) / (1 + self.resamples), np.nan)

    def _draw_counts(self, n: int) -> np.ndarray:
        """How often each resample has each row, uint8 [resamples, n]; a sum or mean needs no more."""
        generator = np.random.default_rng([self.seed, n, 0])
        block = max(1, _BLOCK // n)
        counts = []
        for start in range(0, self.resamples, block):
            rows = min(block, self.resamples - start)
            drawn = generator.integers(0, n, size=(rows, n)) + n * np.arange(rows)[:, None]
            # No count comes near 255: that of a row is about Poisson with mean 1.
            counts.append(np.bincount(drawn.ravel(), minlength=rows * n).reshape(rows, n).astype(np.uint8))
        return np.concatenate(counts)


def _product(small: np.ndarray, values: np.ndarray) -> np.ndarray:
    """Matrix product of one-byte integers [m, n] with floats [n, columns], in float64, a block of rows at a time."""
    block = max(1, _BLOCK // small.shape[1])
    parts = [small[start : start + block].astype(np.float64) @ values for start in range(0, len(small), block)]
    return np.concatenate(parts)


def p_below(figures: np.ndarray, bound: float) -> float:
    """One-sided bootstrap p-value of a figure being below a bound: the share of resampled figures that are not.

    p = (1 + number of figures >= bound) / (1 + figures), so it is never 0. A handful of rows has few resamples that
    differ, and may give a small p for no reason; `Resampler.p_values` does not.

    Args:
        figures: resampled, float64 [resamples].
    """
    return float((1 + (figures >= bound).sum()) / (1 + len(figures)))


def ci95(figures: Any) -> np.ndarray:
    """95% percentile intervals of resampled figures [resamples, ...]: float64 [2, ...], lower and upper ends."""
    return np.percentile(figures, [2.5, 97.5], axis=0)
