"""Rotary position embeddings: rotation, and tables of angles for positions 0, 1, 2, ..."""

from __future__ import annotations

from typing import Any

import torch
from torch import nn

from buzz.kernels.device import HALF, is_large, runs_triton
from buzz.models.untouched import is_watched

# Rope types whose angles depend on how far a call reaches, so that a table of one call is wrong for another.
_LENGTH_DEPENDENT = ("dynamic", "longrope")
_ROUND = 1024


def rotate(x: torch.Tensor, cos: torch.Tensor, sin: torch.Tensor) -> torch.Tensor:
    """Rotate x [B, H, L, D]; cos and sin are [..., L, D] as `RotaryTable` and `signed` give them.

    Products are rounded before they are added, as transformers does it, so that equal angles give equal bits; but of
    many tokens on a GPU in half precision the sum alone is rounded, in one kernel.
    """
    if x.dim() == 4 and x.dtype in HALF and x.stride(-1) == 1 and is_large(x) and runs_triton(x):
        from buzz.kernels import rotation

        return rotation.rotate(x, cos, sin)
    return x.roll(x.shape[-1] // 2, dims=-1).mul_(sin).add_(x * cos)


def signed(sin: torch.Tensor) -> torch.Tensor:
    """The sines [..., D] with the first half negated: the sign that the swapped halves of `rotate` need."""
    half = sin.shape[-1] // 2
    return torch.cat([-sin[..., :half], sin[..., half:]], dim=-1)


class RotaryTable:
    """Cosines and sines of a backbone's rotary embedding for positions 0 .. n - 1, kept per device and dtype.

    They are kept until `renew` finds that its frequencies have changed or another module has taken its place.
    """

    def __init__(self, backbone: Any) -> None:
        self._backbone = backbone
        self._tables: dict[tuple[torch.device, torch.dtype], tuple[torch.Tensor, torch.Tensor]] = {}
        self._made_by: Any = None
        self._changes = 0

    def __getstate__(self) -> dict[str, Any]:
        """What is copied and pickled: the tables are made anew."""
        return {"_backbone": self._backbone, "_tables": {}, "_made_by": None, "_changes": 0}

    @property
    def constant(self) -> bool:
        """Whether the angles are the same for calls of any length."""
        rope = getattr(self._backbone.rotary_emb, "rope_type", "default")
        return not any(kind in str(rope) for kind in _LENGTH_DEPENDENT)

    def renew(self) -> int:
        """Before a call: forget tables that would be others now. Returns how often that has happened."""
        made_by = _state(self._backbone.rotary_emb)
        if made_by != self._made_by:
            self._tables, self._made_by, self._changes = {}, made_by, self._changes + 1
        return self._changes

    def get(self, n: int, like: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """cos and signed sin [at least n, D] in the dtype and on the device of `like`."""
        key = (like.device, like.dtype)
        if key in self._tables and len(self._tables[key][0]) >= n:
            return self._tables[key]
        rotary = self._backbone.rotary_emb
        kept = self.constant and not is_watched(rotary)  # hooks may do anything
        size = -(-n // _ROUND) * _ROUND if kept else n
        with torch.inference_mode(False), torch.no_grad():  # normal tensors: they outlive an inference-mode call
            positions = torch.arange(size, device=like.device)[None]
            table = rotary(torch.empty(0, dtype=like.dtype, device=like.device), position_ids=positions)
            cos, sin = (t[0].to(like.device) for t in table)
            sin = signed(sin)
        if kept:
            self._tables[key] = (cos, sin)
        return cos, sin


def _state(rotary: nn.Module) -> Any:
    """What a rotary embedding's angles depend on. Its few frequencies stand with their values: any way to change them
    is noticed."""
    own = vars(rotary)
    tensors = [t for t in (*rotary._buffers.values(), *rotary._parameters.values()) if t is not None]
    values = [(t.device, t.dtype, t.tolist()) for t in tensors]
    hooks = [*rotary._forward_hooks.values(), *rotary._forward_pre_hooks.values()]
    return rotary, type(rotary).forward, own.get("forward"), own.get("attention_scaling"), hooks, values
