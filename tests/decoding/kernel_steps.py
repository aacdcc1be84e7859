"""Steps by kernels of our own: on a GPU where there is one, else interpreted."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch

from buzz.decoding import step as steps
from buzz.decoding.step import MODULES


class Kernels:
    """Runs steps by their kernels, on any device; `steps` of them so far. needed: fails where there are none."""

    def __init__(self, needed: bool = True) -> None:
        self._needed, self.steps = needed, 0

    def usable(self, device: torch.device) -> bool:
        return True

    def prepare(self, step: Any) -> Callable[[], None]:
        stages = step.kernel_stages()
        if stages is None and self._needed:
            raise ValueError("there are no kernels for the step")

        def run() -> None:
            self.steps += 1
            step(stages or MODULES)

        return run


def everywhere(put: Callable[[Any, str, Any], object], cuda: bool) -> None:
    """Let kernels run on any device, with few programs to interpret; in float32 of a few rows, too, to compare all
    digits.

    Args:
        put: as setattr.
    """
    from buzz.kernels.product import Cut
    from buzz.kernels.skinny import Tile

    if not cuda:
        put(steps, "runs_triton", lambda x: True)
        put(Cut, "of", lambda *what, **how: Cut(rows=32, columns=64))
        put(Tile, "of", lambda *what, **how: Tile(rows=32, columns=32, parts=2, stages=1))
    put(steps, "HALF", (*steps.HALF, torch.float32, torch.float64))
