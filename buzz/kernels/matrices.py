"""What products with up to three matrices have in common before they are launched."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import torch


class Matrices(NamedTuple):
    """rows: of each matrix. biases: one or none of each. biased: their elements, 0 where there is none."""

    rows: list[int]
    biases: list[torch.Tensor | None]
    biased: list[int]


def fitting(
    weights: Sequence[torch.Tensor], biases: Sequence[torch.Tensor | None] | None, width: int, gated: bool, what: str
) -> Matrices:
    """Weights [rows, width] and their biases [rows] or None, if they fit together.

    Args:
        gated: there must be two matrices of as many rows. what: is multiplied, as an error calls it.

    Raises:
        ValueError: they do not.
    """
    rows = [len(weight) for weight in weights]
    if any(weight.shape[1] != width for weight in weights) or (gated and (len(rows) != 2 or len(set(rows)) > 1)):
        shapes = ", ".join(str(tuple(weight.shape)) for weight in weights)
        raise ValueError(f"matrices {shapes} do not fit {what}{' and a gate' if gated else ''}")
    all_biases: list[torch.Tensor | None] = list([None] * len(rows) if biases is None else biases)
    biased = [0 if bias is None else len(bias) for bias in all_biases]
    if len(biased) != len(rows) or any(n not in (0, size) for n, size in zip(biased, rows, strict=True)):
        raise ValueError(f"biases of {biased} elements do not fit matrices of {rows} rows")
    return Matrices(rows, all_biases, biased)


__all__ = ["Matrices", "fitting"]
