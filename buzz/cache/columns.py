"""Which columns of the calls so far hold tokens: what attention masks have said, and whether a later one agrees."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch


class Columns:
    """The columns that a cache has seen, pads included; its layers share it.

    Runs of pads are kept per row, so that a stream without pads costs nothing.

    Attributes:
        seen: their number.
    """

    def __init__(self) -> None:
        self.clear()

    def clear(self) -> None:
        """Nothing has been seen."""
        self.seen = 0
        self._pads: list[list[tuple[int, int]]] = []  # of each row, [start, end) of its runs of pads

    def read(self, mask: torch.Tensor, rows: int, columns: int) -> torch.Tensor | None:
        """Which columns of the next call hold tokens: bool [rows, columns], None if all do.

        Args:
            mask: [rows or 1, width], nonzero where there is a token. As wide as the call, or, from the first column
                that was seen on, as wide as all columns or wider (what lies beyond is not read, as transformers does).

        Raises:
            ValueError: it has another width; it says of columns that were seen what was not said of them then.
        """
        if not isinstance(mask, torch.Tensor) or mask.dim() != 2 or mask.shape[0] not in (1, rows):
            shape = tuple(mask.shape) if isinstance(mask, torch.Tensor) else type(mask).__name__
            raise ValueError(
                f"the attention mask must be [{rows}, columns], with a 1 for each token and a 0 for each pad, "
                f"got {shape}; masks with a pattern for each query, as of packed rows, do not fit (docs/limits.md)"
            )
        width, whole = mask.shape[1], self.seen + columns
        if width != columns and width < whole:
            wanted = f"{columns} or at least {whole}" if self.seen else f"at least {columns}"
            raise ValueError(
                f"the attention mask is {width} columns wide: the call has {columns} and the cache has seen "
                f"{self.seen}, so it must be {wanted} wide (docs/limits.md)"
            )
        tokens = mask.expand(rows, -1) != 0
        if width >= whole:
            if self.seen:
                self._compare(tokens[:, : self.seen])
            tokens = tokens[:, self.seen : whole]
        return None if bool(tokens.all()) else tokens

    def _compare(self, tokens: torch.Tensor) -> None:
        """Refuse what a mask says of columns that were seen, bool [rows, seen], if it is something else."""
        if not any(self._pads):
            if bool(tokens.all()):
                return
            known = torch.ones_like(tokens)
        else:
            known = self._known().to(tokens.device)
            if torch.equal(tokens, known):
                return
        row, column = (tokens != known).nonzero()[0].tolist()
        was, now = ("a token", "hides it") if known[row, column] else ("a pad", "shows it")
        raise ValueError(
            f"column {column} of row {row} was {was} when the cache took it in, and the attention mask of this call "
            f"{now}: a BeehiveCache takes in a column once. Give the mask that it was given, longer by this call, or "
            "one of this call's columns alone; generate() without a mask takes every pad id for a pad (docs/limits.md)"
        )

    def _known(self) -> torch.Tensor:
        """bool [rows, seen]."""
        known = torch.ones(len(self._pads), self.seen, dtype=torch.bool)
        for row, runs in enumerate(self._pads):
            for start, end in runs:
                known[row, start:end] = False
        return known

    def add(self, rows: int, columns: int, tokens: torch.Tensor | None) -> None:
        """A call is over: so many columns, bool [rows, columns] as `read` gave it."""
        if tokens is not None:
            self._pads = self._pads or [[] for _ in range(rows)]
            for runs, row in zip(self._pads, tokens.tolist(), strict=True):
                for start, end in _runs_of_pads(row):
                    if runs and runs[-1][1] == self.seen + start:
                        start = runs.pop()[0] - self.seen
                    runs.append((self.seen + start, self.seen + end))
        self.seen += columns

    def state(self) -> dict[str, Any]:
        """What has been seen, as JSON takes it."""
        return {"seen": self.seen, "pads": self._pads}

    def restore(self, state: Mapping[str, Any]) -> None:
        """Take in what `state` gave."""
        self.seen, self._pads = state["seen"], [[(start, end) for start, end in runs] for runs in state["pads"]]

    def take(self, rows: Sequence[int]) -> None:
        """Make row i what row rows[i] was."""
        if self._pads:
            self._pads = [list(self._pads[row]) for row in rows]


def _runs_of_pads(tokens: Sequence[bool]) -> list[tuple[int, int]]:
    """[start, end) of each run of false places."""
    runs: list[tuple[int, int]] = []
    for column, token in enumerate(tokens):
        if not token:
            if runs and runs[-1][1] == column:
                runs[-1] = (runs[-1][0], column + 1)
            else:
                runs.append((column, column + 1))
    return runs
