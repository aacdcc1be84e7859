"""Tensor parallelism: every process projects, attends and caches for some of the heads.

transformers (`tp_plan`) makes the weights DTensors and replaces the forward of the projections, which take whole hidden
states and give the heads of their process as plain tensors, and the other way round. A layer's heads work on their own,
so nothing else changes, except for a policy that looks at all heads before it evicts. Where a plan gathers what is
projected (one projection for q, k and v, or a norm over all heads), every process has all heads, and chooses by itself.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable
from types import FunctionType
from typing import Any

import torch
import torch.distributed as dist

_LARGE = 1 << 20  # bytes, from which on to send less is worth a kernel more, between two GPUs (docs/results/speed.md)


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
        if here == self._total:  # what they give was gathered
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
    group = _group(weight)
    return None if group is None else SpreadHeads(total, group)


def _group(weight: Any) -> dist.ProcessGroup | None:
    """The processes that a weight is spread over; None: it is brought together before it is used."""
    mesh = weight.device_mesh
    if mesh.ndim == 1:
        return mesh.get_group()
    return mesh.get_group("tp") if "tp" in (mesh.mesh_dim_names or ()) else None


def is_spread(weight: Any) -> bool:
    """Whether a weight is a DTensor, of which a process may hold a part."""
    return hasattr(weight, "device_mesh")


def has_spread(*modules: Any) -> bool:
    """Whether a weight of some modules is spread, so that processes which make the same calls wait for each other."""
    return any(is_spread(weight) for module in modules for weight in module.parameters())


def local(weight: Any) -> Any:
    """The part of a weight that this process holds: all of a plain one; None of None."""
    return weight.detach().to_local() if is_spread(weight) else weight


# Steps that run past the modules' forwards have to do what transformers does around these. It puts a function there,
# whose `self` says what that is.


def gives_its_part(linear: Any) -> bool:
    """Whether a projection takes whole vectors, and gives what the rows of this process make of them."""
    style = _style(linear)
    return type(style).__name__ == "ColwiseParallel" and style.output_layouts.is_shard(-1) and style.use_local_output


def is_summed(linear: Any) -> bool:
    """Whether a projection takes what the other kind gives, and the processes' results are added up."""
    style = _style(linear)
    if type(style).__name__ != "RowwiseParallel":
        return False
    return style.input_layouts.is_shard(-1) and style.output_layouts.is_replicate()


def is_whole_in_each(module: Any) -> bool:
    """Whether transformers has prepared a module for training alone: every process has all of it."""
    return (forward := _spread_forward(module)) is not None and forward.__qualname__.startswith("ReplicatedWithGrad")


def _style(module: Any) -> Any:
    """What transformers does around a module whose weights it has spread; None: nothing that is known."""
    forward = _spread_forward(module)
    return None if forward is None else inspect.getclosurevars(forward).nonlocals.get("self")


def _spread_forward(module: Any) -> FunctionType | None:
    """The function that transformers has put in the place of a module's forward; None: none for this one.

    That of a deep copy is still for the module that was copied, with its weights.
    """
    forward = vars(module).get("forward")
    if not isinstance(forward, FunctionType) or not forward.__module__.startswith("transformers.distributed."):
        return None
    return forward if inspect.getclosurevars(forward).nonlocals.get("module") is module else None


def summed(linear: Any, parts: torch.Tensor) -> torch.Tensor:
    """Parts [S, ...] of what a projection gives, whose sum is that of all processes' parts, if its weight is spread."""
    if is_spread(linear.weight):
        group = _group(linear.weight)
        uneven = linear.in_features % dist.get_world_size(group)  # then processes may have unequally many parts
        if uneven or parts.nbytes >= _LARGE:
            parts = parts.sum(dim=0, keepdim=True)
        dist.all_reduce(parts, group=group)
    return parts
