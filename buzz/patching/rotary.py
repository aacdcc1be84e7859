"""Rotary position embeddings: rotation, and tables of angles for positions 0, 1, 2, ..."""

from __future__ import annotations

import torch
from torch import nn

from buzz.device import HALF, is_large, runs_triton

# Rope types whose angles depend on how far a call reaches, so that a table of one call is wrong for another.
_LENGTH_DEPENDENT = ("dynamic", "longrope")
_ROUND = 1024


def rotate(x: torch.Tensor, cos: torch.Tensor, sin: torch.Tensor) -> torch.Tensor:
    """Rotate x [B, H, L, D]; cos and sin are [..., L, D] as `RotaryTable` and `signed` give them.

    Products are rounded before they are added, as transformers does it, so that equal angles give equal bits; but of
    many tokens on a GPU in half precision the sum alone is rounded, in one kernel.
    """
    if x.dim() == 4 and x.dtype in HALF and x.stride(-1) == 1 and is_large(x) and runs_triton(x):
        from buzz.attention import rotation

        return rotation.rotate(x, cos, sin)
    return x.roll(x.shape[-1] // 2, dims=-1).mul_(sin).add_(x * cos)


def signed(sin: torch.Tensor) -> torch.Tensor:
    """The sines [..., D] with the first half negated: the sign that the swapped halves of `rotate` need."""
    half = sin.shape[-1] // 2
    return torch.cat([-sin[..., :half], sin[..., half:]], dim=-1)


class RotaryTable:
    """Cosines and sines of a model's rotary embedding for positions 0 .. n - 1, kept per device and dtype."""

    def __init__(self, rotary: nn.Module) -> None:
        self._rotary = rotary
        rope = getattr(rotary, "rope_type", "default")
        self.constant = not any(kind in str(rope) for kind in _LENGTH_DEPENDENT)  # the same for calls of any length
        self._tables: dict[tuple[torch.device, torch.dtype], tuple[torch.Tensor, torch.Tensor]] = {}

    def get(self, n: int, like: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """cos and signed sin [at least n, D] in the dtype and on the device of `like`."""
        key = (like.device, like.dtype)
        if key in self._tables and len(self._tables[key][0]) >= n:
            return self._tables[key]
        size = -(-n // _ROUND) * _ROUND if self.constant else n
        with torch.inference_mode(False), torch.no_grad():  # normal tensors: they outlive an inference-mode call
            positions = torch.arange(size, device=like.device)[None]
            table = self._rotary(torch.empty(0, dtype=like.dtype, device=like.device), position_ids=positions)
            cos, sin = (t[0].to(like.device) for t in table)
            sin = signed(sin)
        if self.constant:
            self._tables[key] = (cos, sin)
        return cos, sin
