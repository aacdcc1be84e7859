"""Positions: rotary angles, in tables for slots 0, 1, 2, ..., and learned positions."""

from __future__ import annotations

import copy
import inspect
from typing import Any

import torch
from torch import nn

from buzz.cache import Call
from buzz.kernels.device import HALF, is_large, runs_triton
from buzz.models.untouched import is_watched

# Rope types whose angles depend on how far a call reaches, so that a table of one call is wrong for another.
_LENGTH_DEPENDENT = ("dynamic", "longrope")
_ROUND = 1024

Table = tuple[torch.Tensor, torch.Tensor]


def rotate(x: torch.Tensor, cos: torch.Tensor, sin: torch.Tensor) -> torch.Tensor:
    """Rotate x [B, H, L, D]; cos and sin are [..., L, D] as `Rotary` gives them.

    Products are rounded before they are added, as transformers does it, so that equal angles give equal bits; but of
    many tokens on a GPU in half precision the sum alone is rounded, in one kernel.
    """
    if x.dim() == 4 and x.dtype in HALF and x.stride(-1) == 1 and is_large(x) and runs_triton(x):
        from buzz.kernels import rotation

        return rotation.rotate(x, cos, sin)
    return x.roll(x.shape[-1] // 2, dims=-1).mul_(sin).add_(x * cos)


class Rotary:
    """Positions of a backbone that rotates queries and keys, and the angles of its rotary embedding.

    All angles are given in one form: cosines and sines as wide as a head, which turn the halves of a head against each
    other, sin's first half negated. Where a family rotates the first part of a head alone, the dimensions are brought
    into an order (`ordered`) in which that is such a rotation too, by no angle in the other dimensions: products of
    queries and keys are the same in any order.

    Tables are kept per kind of layer, device and dtype, until `renew` finds that frequencies have changed or another
    module has taken the place of the rotary embedding.
    """

    known: int | None = None  # positions that the backbone has: any

    def __init__(self, backbone: Any) -> None:
        self._backbone = backbone
        self._widths = _widths(backbone.rotary_emb)
        self._tables: dict[Any, Table] = {}
        self._twins: dict[torch.device, Any] = {}
        self._made_by: Any = None
        self._changes = 0

    def __getstate__(self) -> dict[str, Any]:
        """What is copied and pickled: the tables are made anew."""
        return {**vars(self), "_tables": {}, "_twins": {}, "_made_by": None, "_changes": 0}

    @property
    def constant(self) -> bool:
        """Whether the angles are the same for calls of any length."""
        rope = getattr(self._backbone.rotary_emb, "rope_type", "default")  # of each kind of layer, where these differ
        return not any(kind in str(rope) for kind in _LENGTH_DEPENDENT)

    def renew(self) -> int:
        """Before a call: forget tables that would be others now. Returns how often that has happened."""
        made_by = _state(self._backbone.rotary_emb)
        if made_by != self._made_by:
            self._tables, self._twins, self._made_by, self._changes = {}, {}, made_by, self._changes + 1
            self._widths = _widths(self._backbone.rotary_emb)
        return self._changes

    def ids(self, call: Call, by_slot: bool, given: torch.Tensor | None, device: torch.device) -> torch.Tensor:
        """position_ids for the backbone in a call: int64 [1 or B, width].

        Args:
            by_slot: whether a cache's slots are the positions. given: those of the caller, if there are any.
        """
        if by_slot:
            return call.query_slots(device)  # nobody reads the angles; small positions keep dynamic ropes quiet
        return call.query_columns(device) if given is None else given  # as the backbone counts, pads included

    def ordered(self, attention: Any, x: torch.Tensor) -> torch.Tensor:
        """Queries or keys [..., D] of a layer, with their dimensions in the order that the angles are for."""
        rotated = self._widths[self._kind(attention)]
        rest = x.shape[-1] - rotated
        if not rest:
            return x
        half, middle = rotated // 2, rotated + rest // 2
        return torch.cat([x[..., :half], x[..., rotated:middle], x[..., half:rotated], x[..., middle:]], dim=-1)

    def table(self, attention: Any, n: int, like: torch.Tensor) -> Table:
        """cos and sin [at least n, D] for the slots of a layer, in the dtype and on the device of `like`."""
        key = (self._kind(attention), like.device, like.dtype)
        if key in self._tables and len(self._tables[key][0]) >= n:
            return self._tables[key]
        kept = self.constant and not is_watched(self._backbone.rotary_emb)  # hooks may do anything
        size = -(-n // _ROUND) * _ROUND if kept else n
        with torch.inference_mode(False), torch.no_grad():  # normal tensors: they outlive an inference-mode call
            positions = torch.arange(size, device=like.device)[None]
            empty = torch.empty(0, dtype=like.dtype, device=like.device)
            rotary = self._on(like.device)
            cos, sin = (t[0] for t in self._angles(empty, positions, self._kind(attention), rotary))
            table = _whole(cos, sin, attention.head_dim)
        if kept:
            self._tables[key] = table
        return table

    def at(self, attention: Any, positions: torch.Tensor, like: torch.Tensor) -> Table:
        """cos and sin [B, L, D] of any positions, int64 [B, L], in the dtype and on the device of `like`."""
        rotary = self._on(like.device)
        cos, sin = self._angles(like.new_empty(0), positions.to(like.device), self._kind(attention), rotary)
        return _whole(cos, sin, attention.head_dim)

    def given(self, attention: Any, kwargs: dict[str, Any]) -> Table:
        """cos and sin [1 or B, L, D] of a call's own positions, as the backbone hands them to a layer."""
        cos, sin = kwargs["position_embeddings"]
        return _whole(cos, sin, attention.head_dim)

    def step_inputs(self, hidden: torch.Tensor, positions: torch.Tensor, slots: bool) -> tuple[torch.Tensor, list[Any]]:
        """What goes into the first layer of a decode step, and the keyword arguments of each layer.

        Args:
            hidden: [B, 1, width], the embedded tokens. positions: int64 [B, 1]. slots: whether those are slots, to
                which attention rotates by itself.
        """
        layers = self._backbone.layers
        if slots:
            return hidden, [{}] * len(layers)
        kinds, rotary = [self._kind(layer.self_attn) for layer in layers], self._on(hidden.device)
        angles = {kind: self._angles(hidden, positions, kind, rotary) for kind in dict.fromkeys(kinds)}
        return hidden, [{"position_embeddings": angles[kind]} for kind in kinds]

    def _on(self, device: torch.device) -> Any:
        """The rotary embedding with its frequencies on a device, wherever the model has them."""
        rotary = self._backbone.rotary_emb
        if all(buffer is None or buffer.device == device for buffer in rotary._buffers.values()):
            return rotary
        if device not in self._twins:
            self._twins[device] = _elsewhere(rotary, device)
        return self._twins[device]

    def _angles(self, like: torch.Tensor, positions: torch.Tensor, kind: str | None, rotary: Any) -> Table:
        return rotary(like, positions) if kind is None else rotary(like, positions, kind)

    def _kind(self, attention: Any) -> str | None:
        """The kind of a layer, where the rotary embedding has angles for each."""
        return None if None in self._widths else attention.layer_type


class Learned:
    """Learned absolute positions, added to the input, so that cached keys stay as they were made."""

    constant = True

    def __init__(self, backbone: Any) -> None:
        self._backbone = backbone

    @property
    def known(self) -> int:
        """Positions that the backbone has."""
        table = self._backbone.embed_positions
        return table.num_embeddings - table.offset

    def renew(self) -> int:
        """As of `Rotary`; nothing is remembered."""
        return 0

    def ids(self, call: Call, by_slot: bool, given: torch.Tensor | None, device: torch.device) -> torch.Tensor:
        """As of `Rotary`. `positions: cache` gives the next token the cache length, which keeps an endless stream
        inside the table.

        Raises:
            ValueError: the call needs more positions than there are.
        """
        if by_slot:
            positions, last = call.query_slots(device), call.last_slot
        else:
            positions, last = call.query_positions(device), call.last_position
            if given is not None:
                positions, last = given, int(given.max())
        if last >= self.known:
            raise ValueError(
                f"this OPT model has {self.known} positions, the call needs {last + 1}: "
                "use positions='cache' with a bounded policy, and generate(prefill_chunk_size=...) for long prompts"
            )
        return positions

    def step_inputs(self, hidden: torch.Tensor, positions: torch.Tensor, slots: bool) -> tuple[torch.Tensor, list[Any]]:
        """As of `Rotary`."""
        # Calls that change nothing may come after a row's last position.
        positions = positions.clamp(max=self.known - 1)
        hidden = hidden + self._backbone.embed_positions(None, 0, position_ids=positions)
        return hidden, [{}] * len(self._backbone.layers)


def _whole(cos: torch.Tensor, sin: torch.Tensor, width: int) -> Table:
    """Angles [..., rotated] as wide as a head, for dimensions as `ordered`, with the signs that `rotate` needs."""
    half, rest = cos.shape[-1] // 2, (width - cos.shape[-1]) // 2
    if not rest:
        return cos, torch.cat([-sin[..., :half], sin[..., half:]], dim=-1)
    ones, zeros = cos.new_ones(*cos.shape[:-1], rest), sin.new_zeros(*sin.shape[:-1], rest)
    cos = torch.cat([cos[..., :half], ones, cos[..., half:], ones], dim=-1)
    return cos, torch.cat([-sin[..., :half], zeros, sin[..., half:], zeros], dim=-1)


def _widths(rotary: Any) -> dict[str | None, int]:
    """Dimensions of a head that are rotated: for each kind of layer, or by None for all where these are alike."""
    if "layer_type" not in inspect.signature(type(rotary).forward).parameters:
        return {None: 2 * len(rotary.inv_freq)}
    return {kind: 2 * len(getattr(rotary, f"{kind}_inv_freq")) for kind in rotary.layer_types}


def _elsewhere(rotary: nn.Module, device: torch.device) -> nn.Module:
    """A module like it whose buffers are on a device, without what accelerate does around its forward."""
    twin = copy.copy(rotary)
    for name in ("forward", "_old_forward", "_hf_hook"):
        vars(twin).pop(name, None)
    with torch.inference_mode(False):
        twin._buffers = {name: None if b is None else b.to(device) for name, b in rotary._buffers.items()}
    return twin


def _state(rotary: nn.Module) -> Any:
    """What a rotary embedding's angles depend on. Its few frequencies stand with their values: any way to change them
    is noticed."""
    own = vars(rotary)
    tensors = [t for t in (*rotary._buffers.values(), *rotary._parameters.values()) if t is not None]
    values = [(t.device, t.dtype, t.tolist()) for t in tensors]
    hooks = [*rotary._forward_hooks.values(), *rotary._forward_pre_hooks.values()]
    scaling = {name: value for name, value in own.items() if name.endswith("attention_scaling")}
    return rotary, type(rotary).forward, own.get("forward"), scaling, hooks, values
