"""Tensor parallelism: every process projects, attends and caches for some of the heads.

transformers (`tp_plan`) makes the weights DTensors and replaces the forward of the projections, which take whole hidden
states and give the heads of their process as plain tensors, and the other way round. A layer's heads work on their own,
so nothing else changes, except for a policy that looks at all heads before it evicts.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
import torch.distributed as dist


class SpreadHeads:
    """`Heads` spread over a process group, equally many to a process.

    Every process gathers the same scores and chooses by them in the same arithmetic, which is that of one process with
    all heads: ties included, all choose alike.

    Args:
        total: KV heads of a layer, of all processes together.
        group: the processes.
    """

    def __init__(self, total: int, group: dist.ProcessGroup) -> None:
        self._total, self._group = total, group

    def __deepcopy__(self, memo: dict[int, Any]) -> SpreadHeads:
        """A copied cache belongs to the same processes."""
        return self

    def select(self, choose: Callable[[torch.Tensor], torch.Tensor], scores: torch.Tensor) -> torch.Tensor:
        here = scores.shape[1]
        if here == self._total:  # the weights are spread, but not by heads
            return choose(scores)
        scores = scores.contiguous()
        parts = [torch.empty_like(scores) for _ in range(dist.get_world_size(self._group))]
        dist.all_gather(parts, scores, group=self._group)
        slots = choose(torch.cat(parts, dim=1))  # [R, H or 1, kept] by [R, H, L]
        first = dist.get_rank(self._group) * here
        return slots if slots.shape[1] == 1 else slots[:, first : first + here]


def spread_heads(attention: Any, total: int) -> SpreadHeads | None:
    """How the KV heads of an attention module, `total` of them, are spread over processes; None: not."""
    weight: Any = next((p for p in attention.parameters() if is_spread(p)), None)
    if weight is None:
        return None
    mesh = weight.device_mesh
    if mesh.ndim == 1:
        group = mesh.get_group()
    elif "tp" in (mesh.mesh_dim_names or ()):
        group = mesh.get_group("tp")
    else:  # weights are brought together before they are used
        return None
    return SpreadHeads(total, group)


def is_spread(weight: Any) -> bool:
    """Whether a weight is a DTensor, of which a process may hold a part."""
    return hasattr(weight, "device_mesh")


def local(weight: torch.Tensor) -> torch.Tensor:
    """The part of a weight that this process holds: all of a plain one."""
    return weight.detach().to_local() if is_spread(weight) else weight  # type: ignore[attr-defined]
