"""BeehiveCache: a transformers cache that evicts by a policy, row by row, in bounded memory."""

from __future__ import annotations

import copy
import os
import weakref
from collections.abc import Iterable, Sequence
from typing import Any

import torch
from transformers import PreTrainedConfig

from buzz.cache.assignment import (
    in_order,
    policies_of_layers,
    positions_of_keys,
    refuse_shares,
    refuse_spread_heads,
    spread_over_layers,
    text_config,
)
from buzz.cache.budget import with_budget
from buzz.cache.call import Call, Shape, Slots
from buzz.cache.calls import Calls
from buzz.cache.copying import copy_layers, refuse_unsettled
from buzz.cache.echo import Copy, Hearing, heard
from buzz.cache.files import Setting, read, write
from buzz.cache.heads import Heads
from buzz.cache.identity import decoder_of
from buzz.cache.interface import named_rows
from buzz.cache.layer import BeehiveLayer, Memory
from buzz.cache.packing import unpack
from buzz.cache.per_row import PerRow
from buzz.cache.storage import OnEvict, Storage
from buzz.cache.view import CacheView
from buzz.policies import Asked, HeadShares, Policy
from buzz.policies.window import SlidingWindow
from buzz.words import shown

_BY_A_CALL, _FOR_GOOD = 1, 2  # what fixed a budget that is a share of the prompt


class BeehiveCache(CacheView):
    """A KV cache that keeps what its policy keeps. For inference; the model must be patched (`buzz.patch_model`).

    Rows are left-aligned and ragged: row b holds slots 0 .. lengths[b] - 1, pads never enter, and every row evicts as
    it would alone. The schedule is Python integers. Buffers grow with need and are compacted in place; a prompt is
    compacted layer by layer, so the full-length keys and values of one layer at most exist at a time (of several
    layers, if those have no more than 6144 tokens).

    A layer with a sliding window keeps this window and nothing else, whatever the policy asks. So the policy decides
    over the layers of full attention, and lengths and figures in tokens speak of those: `lengths`, `stats()`, `curve`,
    `budget`. Where all layers have a window, they speak of all. Bytes are always those of all layers.

    `BeehiveCache(model, "comb", budget=0.4)` and `BeehiveCache("comb", model, budget=0.4)` are the same.

    Args:
        policy: an eviction policy or its name, one policy per layer (those for layers with a sliding window are not
            used), or one per batch row (`PerRow`).
        config: the model, or its configuration.
        positions: "cache": a key is rotated to its slot, so positions never exceed the cache length; "original":
            keys keep the position they had in the text. None: what the policy prefers (`Policy.positions`), or else
            "cache" for rotary models and "original" for others.
        capacity: slots to allocate per row at least; None: as many as are needed, some more as it grows.
        budget: mean cached tokens per head in the long run that the policy is fitted to (`Policy.from_budget`); or a
            share of the prompt, a float between 0 and 1: of each row's own, fixed by the first call (`fit`) until the
            cache is reset.
        shares: of the model's heads, for a policy that needs them (`Policy.measured`); None: those of the patched model
            that fills it, measured once, when it is first called with such a cache (`buzz.head_shares`).

    Attributes:
        on_evict: if set, called as `on_evict(layer, eviction, slots)` in every eviction, before anything moves: slots
            int64 [rows of the eviction or 1, H or 1, kept] are those that stay. Of heads that share, [.., H, W], W at
            least what the longest of them keeps: those of a head that keeps fewer end in -1.
        heads: how the heads are spread over processes, which the patched model says; None: they are all here.
        hearing: of the open call, if it is one that is read twice.
        integers: what is known of its calls without looking at a tensor. storage: what all layers hold.

    Raises:
        ValueError: as many policies as layers are needed; no such policy; a budget that is neither tokens nor a share,
            or too small; positions unknown; layers that are neither of full nor of sliding attention; shares of another
            model. TypeError: not a policy, no model and no configuration, no number, no shares.
    """

    def __init__(
        self,
        policy: str | Policy | PerRow | Sequence[Policy | PerRow] | PreTrainedConfig | torch.nn.Module,
        config: PreTrainedConfig | torch.nn.Module | str | Policy | PerRow | Sequence[Policy | PerRow],
        positions: str | None = None,
        capacity: int | None = None,
        *,
        budget: float | None = None,
        shares: HeadShares | None = None,
    ) -> None:
        policy, config = in_order(policy, config)
        config = text_config(config)
        if capacity is not None and (type(capacity) is not int or capacity < 1):
            raise ValueError(f"capacity must be an integer of at least 1, got {capacity!r}")
        self._shape = Shape.of(config)
        policy, self._budget = with_budget(policy, budget)
        policies = policies_of_layers(policy, self._shape, stacklevel=2)
        self.heads: Heads | None = None
        self.positions = positions_of_keys(positions, policies, self._shape, config)
        self._capacity, self._lent = capacity or 0, False
        self._shares: HeadShares | None = None
        self._filler: weakref.ref[torch.nn.Module] | None = None
        super().__init__(layers=[])
        self._build(Calls(policies, self._shape.decided))
        self.shares = shares

    def _build(self, integers: Calls) -> None:
        """Have empty layers for some calls; nobody watches them."""
        policies = [integers.policy(layer) for layer in range(self._shape.layers)]
        most = self._capacity
        self._least = [min(most, p.peak(0) or 0) if isinstance(p, SlidingWindow) else most for p in policies]
        self.integers, memory = integers, Memory()
        self.hearing: Hearing | None = None
        # A layer knows nothing of its cache, so that a cache is freed at once when its last user lets it go.
        self.layers = [BeehiveLayer(integers.columns, memory) for _ in policies]
        self.storage = Storage(integers, self.layers, memory, self._least)
        self.storage.measure(self._shares)
        self._fits = 0  # the budget waits for its prompt

    @property
    def on_evict(self) -> OnEvict | None:
        """Who watches the evictions.

        Raises:
            TypeError: it cannot be called.
        """
        return self.storage.on_evict

    @on_evict.setter
    def on_evict(self, watch: OnEvict | None) -> None:
        if watch is not None and not callable(watch):
            raise TypeError(f"on_evict must be a function of (layer, eviction, slots), or None, got {shown(watch)}")
        self.storage.on_evict = watch

    @property
    def shares(self) -> HeadShares | None:
        """Of the heads of the layers that the policy decides over; None: they are not known yet.

        Raises:
            ValueError: they are of another model. TypeError: they are none.
        """
        return self._shares

    @shares.setter
    def shares(self, shares: HeadShares | None) -> None:
        if shares is not None:
            refuse_shares(shares, self._shape)
        self.storage.measure(shares)
        self._shares, self._lent = shares, False

    def lend(self, shares: HeadShares) -> None:
        """Let these be its shares until it is reset: those of the model that fills it."""
        self.shares, self._lent = shares, True

    @property
    def is_unmeasured(self) -> bool:
        """Whether the policy needs head shares and there are none."""
        return self.storage.is_unmeasured

    # A budget that is a share of the prompt.

    @property
    def waits_for_prompt(self) -> bool:
        """Whether the budget is a share of a prompt that has not come yet."""
        return self._budget is not None and not self._fits and self.integers.is_empty

    def fit(self, tokens: Sequence[int], *, lasting: bool = True) -> None:
        """Fix a budget that is a share of the prompt, where a prompt is read in several calls: otherwise the first call
        is the prompt. `generate()` does this. After the first call, and with other budgets, nothing changes.

        Args:
            tokens: of each row's whole prompt, pads not counted.
            lasting: until the cache is reset; else as well until a first call is refused.

        Raises:
            ValueError: a row has no prompt, or there is no budget that the policy can be fitted to.
        """
        if self._budget is not None and self.integers.is_empty:
            self._refit(self._budget.fitted(tokens))
            self._fits = _FOR_GOOD if lasting else _BY_A_CALL

    def _refit(self, policy: Policy | PerRow | None) -> None:
        """Have this policy; None: the one that waits for a prompt. Nothing must have been seen."""
        assert self._budget is not None
        curve, watch = self.curve, self.on_evict
        self._build(Calls(spread_over_layers(policy or self._budget.policy, self._shape), self._shape.decided))
        self.curve, self.on_evict = curve, watch

    # What it was built for.

    def check(self, shape: Shape) -> None:
        """Whether this is a cache for models of a shape.

        Raises:
            ValueError: it was built for another number of layers or KV heads, another head width or other windows.
        """
        if shape != self._shape:
            raise ValueError(f"the cache was built for {self._shape}, this model has {shape} (docs/limits.md)")

    def filled_by(self, backbone: torch.nn.Module) -> None:
        """A call of this model comes: what is saved is the model's.

        Raises:
            ValueError: the cache holds what another model has read, which is still there.
        """
        filler = None if self._filler is None else self._filler()
        if filler is not None and filler is not backbone and not self.integers.is_empty:
            raise ValueError(
                "another model has filled the cache: reset() it, or take a cache of its own (docs/limits.md)"
            )
        if filler is not backbone:
            self._filler = weakref.ref(backbone)

    def __getstate__(self) -> dict[str, Any]:
        """What is pickled: not the model."""
        return {**vars(self), "_filler": None}

    def check_place(self, devices: Iterable[torch.device], spread: bool) -> None:
        """Whether heads that share their slots are where they can.

        Args:
            devices: of each layer of the model, looked at only where they matter.
            spread: whether processes have some of a layer's heads each.

        Raises:
            ValueError: no.
        """
        refuse_spread_heads(map(self.integers.policy, range(len(self.layers))), devices, spread)

    def window(self, layer: int) -> int | None:
        """Tokens that a query of one layer sees at most, its own included; None: all before it."""
        return self._shape.windows[layer]

    def logn_base(self, layer: int) -> float | None:
        """Base of the log-n scaling of one layer; None: off, as in all layers with a sliding window."""
        return self.integers.policy(layer).logn_base

    # One call: begin, then append and observe in every layer.

    def begin(self, rows: int, columns: int, mask: torch.Tensor | None = None) -> Call:
        """Open a call of `columns` tokens per row; see `Calls.begin`.

        The patched model does this; otherwise the first `append` does. A call that is read twice (`hearing`) ends with
        `end_copies`. A budget that waits for its prompt takes this call for it.
        """
        if self.waits_for_prompt:
            tokens = None if mask is None else self.integers.columns.read(mask, rows, columns)
            self.fit([columns] * rows if tokens is None else tokens.sum(dim=1).tolist(), lasting=False)
        call = self.integers.begin(rows, columns, mask, self.heads)
        if columns > 1:
            hearing = Hearing(call, self.integers.schedule_of)
            self.hearing = hearing if hearing.copies else None
        return call

    @property
    def is_in_call(self) -> bool:
        """Whether a call is open."""
        return self.integers.open is not None

    def cancel(self) -> None:
        """Forget the open call, if no layer has appended anything yet, or if it still waits for its copy to be read."""
        if self.hearing is not None:
            self.storage.take_back(self.hearing)
            self.hearing = None
            self.integers.touched = False  # what was appended lies behind all slots, and no score was added
            for layer in self.layers if not any(self.tokens) else ():
                layer.reset()
        self.integers.cancel()
        if self._fits == _BY_A_CALL and self.integers.is_empty:
            self._refit(None)

    def append(self, k: torch.Tensor, v: torch.Tensor, layer: int) -> Slots:
        """Take in the keys and values [B, H, L, D] of a call in one layer, valid columns at the left."""
        calls, store = self.integers, self.layers[layer]
        call = calls.open or self.begin(k.shape[0], k.shape[2])
        if store.is_initialized and store.dtype != k.dtype:
            raise ValueError(f"the cache holds {store.dtype} keys, the call gives {k.dtype}: reset() the cache")
        if store.is_initialized and store.device != k.device:
            raise ValueError(
                f"the cache holds what layer {layer} has cached on {store.device}, the layer is on {k.device} now: "
                "reset() the cache"
            )
        calls.touched = True
        return self.storage.append(call, layer, k, v, self._shape.windows[layer], self.hearing)

    def skip(self, layer: int) -> bool:
        """Whether the open call has no token in any row, so that a layer has nothing to do and has passed it."""
        call = self.integers.open
        if call is None or not call.empty:
            return False
        if self.integers.pass_layer():
            self._end(call)
        return True

    def asked(self, layer: int) -> frozenset[str]:
        """What `observe` must be given of the open call in a layer, beside scores: "queries", "projected"."""
        call = self.integers.open
        assert call is not None
        return call.steps[self.integers.schedule_of[layer]].reads_of_call

    def observe(self, scores: torch.Tensor | None, layer: int, asked: Asked | None = None) -> None:
        """One layer is done: take in what its slots received, float32 [B, H, S] if asked for. The last ends the call.

        A prompt is compacted here: a long one layer by layer, a short one several layers together, which costs the
        host less. In decoding all layers evict together at the end.

        Args:
            asked: what `asked` names, else None.
        """
        call = self.integers.open
        if call is None:
            raise RuntimeError("observe() without append()")
        calls, store = self.integers, self.layers[layer]
        schedule = calls.schedule_of[layer]
        step, hearing = call.steps[schedule], self.hearing
        if hearing is not None:
            hearing.take(layer, scores, store.ends(step), step)
            if call is hearing.call:
                store.asked = asked
            if calls.pass_layer():
                if call is hearing.call:
                    self.storage.hold(hearing)
                calls.turn(hearing.call)
            return
        if step.echoes and step.scores:
            scores = heard(step, scores, store.nothing(step))
        store.observe(scores, step)
        store.asked = asked
        self.storage.pass_layer(call, layer)
        if calls.pass_layer():
            self._end(call)

    # A call that is read twice: once all layers have passed it, each of `hearing.copies` is another call.

    def begin_copy(self, copy: Copy) -> Call:
        """Open the call of one of `hearing.copies`, which ends with its last layer and leaves nothing behind."""
        assert self.hearing is not None
        call = self.hearing.repeat(copy)
        self.integers.turn(call)
        return call

    def end_copies(self) -> None:
        """All copies have been read: all layers take in what was heard, evict, and the call ends."""
        hearing = self.hearing
        assert hearing is not None
        self.storage.take_back(hearing)
        self.hearing = None  # from here on an interruption is one
        self.storage.hear(hearing)
        self._end(hearing.call)

    def _end(self, call: Call, served: bool = False) -> None:
        """All layers have passed the call: run the evictions that are still due, and close it."""
        self.storage.end(call, served)
        self.integers.close(self.nbytes)

    def __repr__(self) -> str:
        lengths = f"lengths={self.lengths}, seen={self.get_seq_length()}, {self.nbytes / 2**20:.2f} MiB"
        if self._budget is not None and self.waits_for_prompt:
            what = f"{self._budget.policy.name!r}, budget={self._budget.share:g} of the prompt"
            return f"BeehiveCache({what}, positions={self.positions!r}, {lengths})"
        policies = list(dict.fromkeys(self.integers.policy(layer) for layer in self.integers.counted))
        policy = repr(policies[0]) if len(policies) == 1 else f"[{', '.join(map(repr, policies))}]"
        return f"BeehiveCache({policy}, positions={self.positions!r}, {lengths})"

    # Calls of one token that are served elsewhere, in buffers that layers share (`Storage.offer`): `begin`, whatever
    # writes its tokens and scores into the stacks, and `finish`. The cache's own calls work on stacks too.

    def finish(self) -> None:
        """End the open one-token call: its tokens are in the stacks, and so is what the slots received."""
        assert self.integers.open is not None
        self._end(self.integers.open, served=True)

    def rewind(self, mark: Any) -> None:
        """Forget the calls since `integers.mark()`: those wrote nothing that counts, and nothing was evicted."""
        self.integers.rewind(mark)
        self.storage.forget_lengths()

    # What changes it besides calls; the rest of transformers' interface follows from these (`TransformersCache`).

    def take(self, rows: torch.Tensor | Sequence[Any]) -> None:
        """Make row i what row rows[i] was; before the first call there is nothing to do. See `named_rows`.

        Raises:
            ValueError: no row would be left, or there is no such row. TypeError: these are no rows.
        """
        if self.integers.is_empty:
            return
        taken = named_rows(rows, len(self.tokens))
        if not taken:
            raise ValueError("no row of the cache would be left: reset() it instead")
        self.storage.take(taken)
        self.integers.take(taken)

    def copy(self) -> BeehiveCache:
        """Another cache with what this one holds, in memory of its own: what it holds, and the usual room.

        What is done with one of the two does not change the other, so a text that was read and compressed once can be
        asked about many times. The copy has the history up to here; nobody watches it (`on_evict`). `copy.deepcopy`
        and `copy.copy` do the same.

        Raises:
            RuntimeError: a call is open, or generate() is at work and a step ahead of what it has told.
        """
        refuse_unsettled(self.integers, "copied")
        twin, fits = type(self).__new__(type(self)), self._fits
        twin.__dict__.update(self.__dict__)
        twin._build(copy.deepcopy(self.integers))
        twin._fits = fits
        copy_layers(twin.integers, self.layers, twin.layers, twin._least)
        return twin

    def __copy__(self) -> BeehiveCache:
        return self.copy()

    def __deepcopy__(self, memo: dict[int, Any]) -> BeehiveCache:
        return self.copy()

    def save(self, folder: str | os.PathLike[str], model: torch.nn.Module | None = None) -> None:
        """Write the cache to a folder, for `load`: safetensors for tensors, JSON for the rest (`buzz.cache.files`).

        What is held is written, slot by slot, and the history up to here; of what was evicted nothing. The texts that
        were read are not in there: `generate()` wants their ids again.

        Args:
            model: the one that has filled the cache, where it does not know: after it was pickled.

        Raises:
            RuntimeError: a call is open, or generate() is a step ahead of what it has told. ValueError: nothing is
                held; the model is not there any more, has not filled the cache, or is spread over processes. TypeError:
                a policy has a parameter that cannot be saved. OSError: it cannot be written.
        """
        refuse_unsettled(self.integers, "saved")
        if not any(self.tokens):
            raise ValueError("the cache holds nothing that could be saved: read a text first")
        filler = None if self._filler is None else self._filler()
        if model is not None and filler is not None and decoder_of(model) is not decoder_of(filler):
            raise ValueError("another model has filled the cache: save it with that one (docs/limits.md)")
        model = filler if model is None else model
        if model is None:
            raise ValueError("the model that filled the cache is not there any more: name it, save(folder, model)")
        setting = Setting(self.positions, self._capacity, self._budget, self.shares, self._lent)
        write(folder, model, setting, self.integers, self.layers)

    @classmethod
    def load(
        cls, folder: str | os.PathLike[str], model: torch.nn.Module, policies: Iterable[type[Policy]] = ()
    ) -> BeehiveCache:
        """Read a cache that was saved, on the devices of the model that filled it, or of the same one loaded anew.

        Args:
            policies: classes of policies that are none of buzz's, if it has such.

        Raises:
            ValueError: a file is damaged, or of a newer format; another model, or with weights of another dtype; a
                policy that is not known. FileNotFoundError: a file is not there. TypeError: no model.
        """
        stored = read(folder, model, policies)
        setting = stored.setting
        cache = cls(stored.policies, model, setting.positions, setting.capacity or None, shares=setting.shares)
        cache._budget, cache._fits, cache._lent = setting.budget, _FOR_GOOD, setting.lent
        cache.integers.restore(stored.state, stored.rows)
        unpack(cache.integers, cache.layers, stored.packed, stored.pooled, cache._least)
        return cache

    def reset(self) -> None:
        """Forget everything and give the memory back; another model of the same shape may fill it then."""
        self.integers.clear()
        self.hearing = None
        self.storage.reset()
        if self._lent:
            self.shares = None
        if self._budget is not None:
            self._refit(None)
