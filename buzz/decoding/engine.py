"""Decoding in static memory: which models and caches can, and in which buffers."""

from __future__ import annotations

import threading
import weakref
from collections.abc import Iterable, Iterator, Sequence
from typing import Any

import torch
from torch import nn

from buzz.cache import BeehiveCache, Shape
from buzz.cache.offer import Offer
from buzz.cache.pool import Pool
from buzz.cache.stack import Stack
from buzz.decoding.arena import Arena, Run, Session
from buzz.decoding.sizes import Key, Sizes
from buzz.decoding.step import Place, StaticStep, stretches_of
from buzz.models.devices import Devices
from buzz.models.family import Family
from buzz.models.positions import Learned, Rotary
from buzz.models.tensor_parallel import has_spread, local, spread_heads
from buzz.models.untouched import forward_of, is_watched
from buzz.policies import Scope

_ARENAS = 4  # kept at most
_IDLE_SHARE = 8  # arenas that no cache lives in may fill one part in so many of a device's memory
_SETTINGS = frozenset({bool, int, float, str})
_LISTS = frozenset({list, tuple, dict})
_OWN = frozenset(vars(nn.Module())) - {"training"}  # what every module has, and no setting


class Engine:
    """The static buffers of one patched model. One cache at a time lives in an arena; others keep theirs outside."""

    def __init__(
        self, model: Any, family: Family, backbones: Sequence[Any], positions: Rotary | Learned, run: Run
    ) -> None:
        self.model, self._family, self._positions, self.run = model, family, positions, run
        self._backbone: Any = backbones[0] if len(backbones) == 1 else None
        self._empty()

    def _empty(self) -> None:
        self._arenas: dict[Key, Arena] = {}
        self._sizes = Sizes()
        self._facts: list[Any] = []
        self.told: set[str] = set()  # reasons that were given once
        self.lock = threading.Lock()  # held while a cache is being fed

    def __getstate__(self) -> dict[str, Any]:
        """What is copied and pickled with a model: the copy has arenas of its own."""
        return {name: vars(self)[name] for name in ("model", "_family", "_positions", "run", "_backbone")}

    def __setstate__(self, state: dict[str, Any]) -> None:
        self._empty()
        vars(self).update(state)

    @property
    def device(self) -> torch.device:
        return next(self.model.parameters()).device

    @property
    def shape(self) -> Shape:
        """Of the caches that the model takes."""
        return Shape.of(self._backbone.config)

    def check(self, cache: BeehiveCache) -> None:
        """Whether the model takes a cache.

        Raises:
            ValueError: it was built for models of another shape, or its heads share slots that cannot be in one place.
        """
        cache.check(self.shape)
        spread = spread_heads(self._attention[0], self.shape.heads) is not None
        cache.check_place((next(layer.parameters()).device for layer in self._backbone.layers), spread)

    def clear(self) -> None:
        """Give the buffers back; a cache that lives in some keeps those."""
        self._arenas.clear()

    def obstacle(self) -> str | None:
        """What about the model keeps it from static memory; None: nothing."""
        model, family, backbone = self.model, self._family, self._backbone
        kind = family.kind("ForCausalLM")
        if backbone is None or type(model) is not kind or forward_of(model) is not None:
            return f"{type(model).__name__} is not an untouched {family.class_name('ForCausalLM')}"
        if type(backbone).forward is not family.kind("Model").forward or not self._positions.constant:
            return "its backbone is not the family's own, or its rotary angles depend on the length"
        if model.training:
            return "it is in training mode"
        if getattr(model, "hf_quantizer", None) is not None:
            return "it is quantised"
        modules = list(model.modules())
        if (foreign := _foreign(modules)) is not None:
            return foreign
        parts = [model.get_output_embeddings(), *(part for a in self._attention for part in a.children())]
        if not all(isinstance(getattr(part, "weight", None), torch.Tensor) for part in parts):
            return "its projections or its head have no weight of their own"
        dtypes = {next(attention.parameters()).dtype for attention in self._attention}
        if len(dtypes) > 1:
            return "its layers have several dtypes"
        if self._devices is None:
            return "a layer, or what comes before or after them all, is on several devices"
        own = {model: (0, 1)}
        if any(is_watched(module, *own.get(module, (0, 0))) for module in modules):
            return "its modules have hooks, which a captured step would not call"
        return None

    @property
    def _devices(self) -> Devices | None:
        return Devices.of(self._backbone, self.model.get_output_embeddings())

    @property
    def _attention(self) -> list[Any]:
        return [layer.self_attn for layer in self._backbone.layers]

    def refresh(self) -> None:
        """Forget arenas whose steps are not those of the model as it is: it was moved, cast, rebuilt or set anew."""
        facts = [self._positions.renew(), *_facts(self.model)]
        if facts != self._facts:
            self.clear()
            self._facts = facts

    # Arenas.

    def reserve(self, cache: BeehiveCache, rows: int, columns: int, steps: int) -> None:
        """Before a first prompt of so many columns: let its compressed keys and values be put where they will stay."""
        first = {s: [p.advance(columns) for p in cache.integers.row_policies(s, rows)] for s in cache.integers.groups}
        self._lend(cache, self._sizes.key(cache, rows, first, steps, columns))

    def session(self, cache: BeehiveCache, rows: int, steps: int) -> Session | None:
        """Static memory for a cache that will be fed about so many tokens more; None: it does not fit any yet.

        The cache has moved in; `Session.begin` comes next.
        """
        if not all(layer.is_initialized for layer in cache.layers):
            return None  # it has seen nothing but pads
        states = {schedule: cache.integers.states(schedule) for schedule in cache.integers.groups}
        arena = self._lend(cache, self._sizes.key(cache, rows, states, steps, max(cache.tokens)))
        session = Session(arena, cache, self._positions.known)
        if not session.has_room():
            return None
        cache.storage.move_in()
        for other in self._arenas.values():  # one that became too small
            if other is not arena and other.holder is not None and other.holder() is cache:
                other.holder = None
        return session

    def next_positions(self, cache: BeehiveCache) -> torch.Tensor | None:
        """The positions, int64 [1], that the next tokens have where a call gives none: columns, pads included; None:
        as many as each row has seen (`Session.begin`)."""
        return None if isinstance(self._positions, Learned) else torch.tensor([cache.get_seq_length()])

    def _lend(self, cache: BeehiveCache, key: Key) -> Arena:
        """An arena that serves a key, offered to a cache; another one that lives there must leave."""
        mine = [k for k, a in self._arenas.items() if a.holder is not None and a.holder() is cache and k.serves(key)]
        if mine:
            key = mine[-1]
        arena = self._arenas.pop(key, None)
        if arena is None or arena.is_in_use(cache):
            arena = self._new(cache, key)
        self._arenas[key] = arena  # the last one is the one that was used last
        if arena.holder is not None and (holder := arena.holder()) not in (None, cache):
            holder.storage.leave()
        arena.holder = weakref.ref(cache)
        cache.storage.offer(arena.offers)
        return arena

    def _new(self, cache: BeehiveCache, key: Key) -> Arena:
        self._make_room()
        try:
            return self._build(cache, key)
        except torch.OutOfMemoryError:
            if has_spread(self.model) or not self._drop_idle():
                raise
        return self._build(cache, key)

    def _make_room(self) -> None:
        """Let go of the arenas that were not used for longest."""
        if has_spread(
            self.model
        ):  # all processes let go of the same ones, whatever they have forgotten or have room for
            while len(self._arenas) >= _ARENAS:
                del self._arenas[next(iter(self._arenas))]
            return
        total = torch.cuda.get_device_properties(self.device).total_memory if self.device.type == "cuda" else None
        idle = self._idle()
        while idle and total is not None and sum(self._arenas[k].nbytes for k in idle) > total // _IDLE_SHARE:
            del self._arenas[idle.pop(0)]
        while len(self._arenas) >= _ARENAS:
            del self._arenas[idle.pop(0) if idle else next(iter(self._arenas))]

    def _idle(self) -> list[Key]:
        """The arenas that no cache lives in, the one that was not used for longest first."""
        return [k for k, a in self._arenas.items() if a.holder is None or a.holder() is None]

    def _drop_idle(self) -> bool:
        """Free all idle arenas; whether there were any."""
        idle = self._idle()
        for key in idle:
            del self._arenas[key]
        if idle and self.device.type == "cuda":
            torch.cuda.empty_cache()
        return bool(idle)

    def _build(self, cache: BeehiveCache, key: Key) -> Arena:
        devices = self._devices
        assert devices is not None
        like, offers = self._keys(devices), list[Offer]()
        for device, stretch in stretches_of(devices):
            for schedule in dict.fromkeys(key.schedules[layer] for layer in stretch):
                members = [layer for layer in stretch if key.schedules[layer] == schedule]
                how = key.capacities[schedule], key.scores[schedule], key.scopes[schedule]
                offers.append(Offer(_buffers(len(members), key.rows, like.to(device), *how), members))
        places: dict[int, Place] = {}
        for buffers, numbers in offers:
            schedule = key.schedules[numbers[0]]
            most = min(key.longest[schedule], buffers.keys.shape[-2])  # few heads hold less than a bound may say
            for member, layer in enumerate(numbers):
                table = self._table(layer, most, buffers.keys) if key.slot_positions else None
                rest = key.bases[layer], table, key.received[schedule], most
                places[layer] = Place(buffers, member, schedule, cache.window(layer), *rest)
        head, layers = self.model.get_output_embeddings(), [places[layer] for layer in range(len(places))]
        slots = key.slot_positions
        step = StaticStep(self._family, self._positions, self._backbone, head, devices, layers, slots)
        return Arena(offers, step, self.run.prepare(step))

    def _keys(self, devices: Devices) -> torch.Tensor:
        """Keys [1, 1, H, D] of one token, as the heads of this process give them."""
        first = self._attention[0]
        with torch.inference_mode(False), torch.no_grad():
            dtype, width = self.model.get_input_embeddings().weight.dtype, self._backbone.config.hidden_size
            hidden = torch.zeros(1, 1, width, dtype=dtype, device=devices.layers[0])
            return self._family.project(self._family, first, hidden)[1]

    def _table(self, layer: int, slots: int, like: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor] | None:
        """The rotation of a layer's slots; None: it rotates none."""
        attention, positions = self._attention[layer], self._positions
        if not isinstance(positions, Rotary) or not self._family.rotates(attention):
            return None
        return positions.table(attention, slots, like)


def _buffers(
    layers: int, rows: int, like: torch.Tensor, capacity: int, scores: str | None, scope: Scope
) -> Stack | Pool:
    """For the layers of a schedule, with keys like [1, 1, H, D]."""
    heads, width = like.shape[2:]
    if scope == "head":
        return Stack(layers, rows, heads, capacity, width, dtype=like.dtype, device=like.device, scores=scores)
    return Pool(layers, layers if scope == "model" else 1, rows, heads, capacity, like, scores)


def _foreign(modules: Sequence[nn.Module]) -> str | None:
    """What on the modules' forwards a captured step would not call."""
    for module in modules:
        forward, own = forward_of(module), vars(module)
        if forward is None:
            continue
        if "_hf_hook" in own and forward is own["forward"]:
            return "accelerate has hooks on its modules that do more than bring inputs to where the weights are"
        written_in = getattr(getattr(forward, "__func__", forward), "__module__", None) or ""
        if not written_in.startswith(("buzz.", "transformers.")):
            return f"a {type(module).__name__} has a forward of its own"
    return None


def _facts(model: nn.Module) -> Iterator[Any]:
    """All that a captured step holds fast: the modules, where their tensors are, and their settings."""
    for module in model.modules():
        yield module
        for name, value in vars(module).items():
            kind = type(value)
            if name in _OWN or (kind not in _SETTINGS and kind not in _LISTS):
                continue
            if kind in _SETTINGS or all(type(v) in _SETTINGS for v in _items(value)):
                yield name, repr(value)
        buffers = [buffer for buffer in module._buffers.values() if buffer is not None]
        for tensor in (*module._parameters.values(), *buffers):
            if tensor is not None:
                yield local(tensor).data_ptr()


def _items(value: Any) -> Iterable[Any]:
    return value.values() if isinstance(value, dict) else value
