"""BeehiveCache: a transformers cache that evicts by a policy, row by row, in bounded memory."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Sequence
from typing import Any, NoReturn

import torch
from transformers import PreTrainedConfig
from transformers.cache_utils import Cache

from buzz.cache.call import Call, Shape, Slots
from buzz.cache.columns import Columns
from buzz.cache.figures import Curve, Figures
from buzz.cache.heads import Heads
from buzz.cache.layer import UNPATCHED, BeehiveLayer, Memory, settle
from buzz.cache.schedule import Eviction, PerRow, Schedule
from buzz.cache.stacked import StackedCalls
from buzz.policies import Policy, make_policy
from buzz.policies.window import SlidingWindow
from buzz.rows import Rows

POSITIONS = ("cache", "original")
_TOGETHER = 6144  # tokens of a first prompt, over all rows and layers, that wait to be compacted together


class BeehiveCache(StackedCalls, Cache):
    """A KV cache that keeps what its policy keeps. For inference; the model must be patched (`buzz.patch_model`).

    Rows are left-aligned and ragged: row b holds slots 0 .. lengths[b] - 1, pads never enter, and every row evicts as
    it would alone. The schedule is Python integers. Buffers grow with need and are compacted in place; a prompt is
    compacted layer by layer, so the full-length keys and values of one layer at most exist at a time (of several
    layers, if those have no more than 6144 tokens).

    A layer with a sliding window keeps this window and nothing else, whatever the policy asks. So the policy decides
    over the layers of full attention, and lengths and figures in tokens speak of those: `lengths`, `stats()`, `curve`,
    `budget`. Where all layers have a window, they speak of all. Bytes are always those of all layers.

    Args:
        policy: an eviction policy or its name, one policy per layer (those for layers with a sliding window are not
            used), or one per batch row (`PerRow`).
        config: the model, or its configuration.
        positions: "cache": a key is rotated to its slot, so positions never exceed the cache length; "original":
            keys keep the position they had in the text. None: "cache" for rotary models, else "original".
        capacity: slots to allocate per row at least; None: as many as are needed, some more as it grows.
        budget: mean cached tokens per head in the long run that the policy is fitted to (`Policy.from_budget`).

    Attributes:
        on_evict: if set, called as `on_evict(layer, eviction, slots)` in every eviction, before anything moves: slots
            int64 [rows of the eviction or 1, H or 1, kept] are those that stay.
        curve: if set to a `Curve`, every later call is recorded there.
        heads: how the heads are spread over processes, which the patched model says; None: they are all here.

    Raises:
        ValueError: as many policies as layers are needed; no such policy; positions unknown; layers that are neither
            of full nor of sliding attention. TypeError: not a policy, no model and no configuration.
    """

    def __init__(
        self,
        policy: str | Policy | PerRow | Sequence[Policy],
        config: PreTrainedConfig | torch.nn.Module,
        positions: str | None = None,
        capacity: int | None = None,
        *,
        budget: int | None = None,
    ) -> None:
        config = _text_config(config)
        n = config.num_hidden_layers
        policies = _per_layer(policy, budget, n)
        if positions is None:
            positions = "cache" if getattr(config, "rope_parameters", None) else "original"
        if positions not in POSITIONS:
            raise ValueError(f"positions must be one of {', '.join(POSITIONS)}, got {positions!r}")
        if capacity is not None and (type(capacity) is not int or capacity < 1):
            raise ValueError(f"capacity must be an integer of at least 1, got {capacity!r}")
        self._shape = Shape.of(config)
        policies, self._decided = _beside_windows(policies, self._shape.windows)
        self.on_evict: Callable[[int, Eviction, torch.Tensor], None] | None = None
        self.heads: Heads | None = None
        self.positions = positions
        self.least = capacity or 0
        # Layers with equal policies share one schedule, named by the first of these layers.
        self._policies: list[Policy | PerRow] = list(policies)
        self._owner = [self._policies.index(p) for p in policies]
        self._alike = len({self._owner[i] for i in self._decided}) == 1
        self.curve: Curve | None = None
        self._columns, self._memory = Columns(), Memory()
        self._stacks = {}
        self._clear()
        # A layer knows nothing of its cache, so that a cache is freed at once when its last user lets it go.
        super().__init__(layers=[BeehiveLayer(self._columns, self._memory) for _ in range(n)])

    def window(self, layer: int) -> int | None:
        """Tokens that a query of one layer sees at most, its own included; None: all before it."""
        return self._shape.windows[layer]

    def least_slots(self, layer: int) -> int:
        """Slots to allocate in one layer at least: `least`, or all that its sliding window can ever use."""
        policy = self._policies[layer]
        return min(self.least, policy.peak(0) or 0) if isinstance(policy, SlidingWindow) else self.least

    def logn_base(self, layer: int) -> float | None:
        """Base of the log-n scaling of one layer; None: off, as in all layers with a sliding window."""
        policy = self._policies[layer]
        return (policy.policies[0] if isinstance(policy, PerRow) else policy).logn_base

    def _clear(self) -> None:
        self._schedules: dict[int, Schedule] = {}
        self._columns.clear()
        self._tokens: list[int] = []  # tokens of each row, pads excluded
        self._call: Call | None = None  # the open one
        self.last_call: Call | None = None
        self._touched = False  # whether the open call has appended anything
        self._passed = 0  # layers that it has passed
        self._waiting: list[int] = []  # those of them that are still to be settled
        self._figures = Figures()
        if self.curve is not None:
            self.curve = Curve()

    def check(self, shape: Shape) -> None:
        """Whether this is a cache for models of a shape.

        Raises:
            ValueError: it was built for another number of layers or KV heads, or another head width.
        """
        if shape != self._shape:
            raise ValueError(f"the cache was built for {self._shape}, this model has {shape} (docs/limits.md)")

    # One call: begin, then append and observe in every layer.

    def begin(self, rows: int, columns: int, mask: torch.Tensor | None = None) -> Call:
        """Open a call of `columns` tokens per row. The patched model does this; otherwise the first `append` does.

        Args:
            mask: [B or 1, columns], or [B or 1, at least columns seen + columns], nonzero where there is a token; None:
                everywhere. See `Columns.read`.

        Raises:
            RuntimeError: the call before was interrupted. ValueError: rows or mask do not fit; the mask says of columns
                that were seen something else than was said of them then.
        """
        if self._call is not None:
            raise RuntimeError("the call before was interrupted, so layers differ: reset() the cache and start again")
        if not self._schedules:
            self._schedules = {owner: Schedule(self._policies[owner], rows) for owner in set(self._owner)}
            self._tokens = [0] * rows
        if rows != len(self._tokens):
            raise ValueError(f"the cache holds {len(self._tokens)} rows, the call has {rows}")
        tokens = None if mask is None else self._columns.read(mask, rows, columns)
        order, counts = None, [columns] * rows
        if tokens is not None:
            order = (~tokens).long().argsort(dim=1, stable=True)
            counts = tokens.sum(dim=1).tolist()
        steps = {owner: schedule.open(counts, self.heads) for owner, schedule in self._schedules.items()}
        self._touched = False
        self._call = self.last_call = Call(columns, counts, steps, tokens, order)
        return self._call

    @property
    def is_in_call(self) -> bool:
        """Whether a call is open."""
        return self._call is not None

    def cancel(self) -> None:
        """Forget the open call, if no layer has appended anything yet."""
        if not self._touched:
            self._call = None

    def append(self, k: torch.Tensor, v: torch.Tensor, layer: int) -> Slots:
        """Take in the keys and values [B, H, L, D] of a call in one layer, valid columns at the left."""
        call, store = self._call or self.begin(k.shape[0], k.shape[2]), self.layers[layer]
        if store.is_initialized and store.keys.dtype != k.dtype:
            raise ValueError(f"the cache holds {store.keys.dtype} keys, the call gives {k.dtype}: reset() the cache")
        self._touched = True
        step = call.steps[self._owner[layer]]
        keys, values = store.append(k, v, step, self.least_slots(layer))
        return Slots(keys, values, step.starts, step.counts, step.spec, self._shape.windows[layer])

    def skip(self, layer: int) -> bool:
        """Whether the open call has no token in any row, so that a layer has nothing to do and has passed it."""
        if self._call is None or not self._call.empty:
            return False
        self._pass(self._call)
        return True

    def observe(self, scores: torch.Tensor | None, layer: int) -> None:
        """One layer is done: take in what its slots received, float32 [B, H, S] if asked for. The last ends the call.

        A prompt is compacted here: a long one layer by layer, a short one several layers together, which costs the
        host less. In decoding all layers evict together at the end.
        """
        call = self._call
        if call is None:
            raise RuntimeError("observe() without append()")
        self.layers[layer].observe(scores, call.steps[self._owner[layer]])
        if call.columns > 1:
            if not self._may_join(layer, call):
                self._settle_waiting(call)
            self._waiting.append(layer)
            if layer == len(self.layers) - 1 or not self._may_join(layer, call):  # nor may one like it
                self._settle_waiting(call)
        self._pass(call)

    def _pass(self, call: Call) -> None:
        self._passed += 1
        if self._passed == len(self.layers):
            self._end(call)

    def _may_join(self, layer: int, call: Call) -> bool:
        """Whether a layer may be compacted together with those that wait."""
        if not self._waiting:
            return True
        first, other = self.layers[self._waiting[0]], self.layers[layer]
        if not first.borrowed or self._owner[layer] != self._owner[self._waiting[0]]:
            return False
        alike = (first.keys.shape, first.keys.device) == (other.keys.shape, other.keys.device)
        return alike and (len(self._waiting) + 1) * len(call.counts) * call.width <= _TOGETHER

    def _settle_waiting(self, call: Call) -> None:
        layers, self._waiting = self._waiting, []
        step, least = call.steps[self._owner[layers[0]]], self.least_slots(layers[0])
        settle([self.layers[i] for i in layers], step, least, self._watch(layers))

    def _end(self, call: Call) -> None:
        if call.columns == 1:
            stacked = self._evict_stacks(call) if self._stacks else set()
            for layer, owner in enumerate(self._owner):
                if owner not in stacked:
                    settle([self.layers[layer]], call.steps[owner], self.least_slots(layer), self._watch([layer]))
        for owner, schedule in self._schedules.items():
            schedule.close(call.steps[owner])
        self._columns.add(len(self._tokens), call.columns, call.tokens)
        self._tokens = [seen + count for seen, count in zip(self._tokens, call.counts, strict=True)]
        self._call, self._passed = None, 0
        lengths, nbytes = self._mean_lengths(), self.nbytes
        self._figures = self._figures.after(lengths, nbytes, step=call.columns == 1)
        if self.curve is not None:
            self.curve.add(lengths, nbytes)

    def query_slots(self, layer: int, device: torch.device) -> slice | torch.Tensor:
        """Index into a table by slot that gives the rows of the open call's queries.

        A slice where all rows agree, else int64 [B, 1, width]; past a row's end, any slot of the call.
        """
        assert self._call is not None
        step = self._call.steps[self._owner[layer]]
        if step.uniform:
            return slice(step.starts[0], step.starts[0] + self._call.width)
        return step.positions(self._call.width, device)[:, None]

    def slot_ids(self, device: torch.device) -> torch.Tensor:
        """Slot of each query of the open call, in the layer that `lengths` is of: int64 [1 or B, width]."""
        assert self._call is not None
        return self._call.steps[self._owner[self._decided[0]]].positions(self._call.width, device)

    def query_columns(self, device: torch.device) -> torch.Tensor:
        """Column of each query of the open call, pads and earlier calls counted: int64 [1 or B, width]."""
        assert self._call is not None
        call, first = self._call, self._columns.seen
        if call.order is None:
            return torch.arange(first, first + call.width, device=device)[None]
        return call.order[:, : call.width].to(device) + first

    def query_positions(self, device: torch.device) -> torch.Tensor:
        """Position in the text of each query of the open call, pads not counted: int64 [1 or B, width]."""
        assert self._call is not None
        same = len(set(self._tokens)) == 1
        starts = Rows(self._tokens[:1] if same else self._tokens).on(device)
        return starts[:, None] + torch.arange(self._call.width, device=device)

    @property
    def last_slot(self) -> int:
        """Highest slot that a query of the open call sits in, in the layer that `lengths` is of."""
        assert self._call is not None
        return max(self._call.steps[self._owner[self._decided[0]]].ends) - 1

    @property
    def last_position(self) -> int:
        """Highest position in the text of a query of the open call."""
        assert self._call is not None
        return max(seen + count for seen, count in zip(self._tokens, self._call.counts, strict=True)) - 1

    # What is cached.

    @property
    def lengths(self) -> list[int]:
        """Cached tokens of each row (of the first layer that the policy decides over, where layers differ)."""
        return self.layer_lengths(self._decided[0])

    def layer_lengths(self, layer: int) -> list[int]:
        """Cached tokens of each row in one layer."""
        return [length for length, _ in self._schedules[self._owner[layer]].states] if self._schedules else []

    def _mean_lengths(self) -> list[float]:
        """Cached tokens of each row, the mean over the layers decided over (integers where all of them agree)."""
        if self._alike:
            return list(self.lengths)
        layers = [self.layer_lengths(i) for i in self._decided]
        return [sum(row) / len(layers) for row in zip(*layers, strict=True)]

    @property
    def nbytes(self) -> int:
        """Bytes allocated for keys, values and scores in all layers."""
        return self._memory.nbytes

    @property
    def calls(self) -> int:
        """Calls so far."""
        return self._figures.calls

    def stats(self) -> dict[str, Any]:
        """Cache figures so far.

        Returns:
            mean_tokens, peak_tokens: per row, cached tokens after each one-token call (after the prompt, if there was
            none), and evictions: per row, all three the mean over the layers that the policy decides over; calls:
            number of calls; nbytes: bytes allocated now for keys, values and scores in all layers; mean_nbytes,
            peak_nbytes: after each one-token call (now, if there was none).
        """
        figures, nbytes = self._figures, self.nbytes
        decided = [self._owner[layer] for layer in self._decided]
        evictions = [self._schedules[owner].evictions for owner in decided] if self._schedules else []
        return {
            "mean_tokens": figures.mean_lengths,
            "peak_tokens": figures.peak_lengths,
            "evictions": [sum(row) / len(row) for row in zip(*evictions, strict=True)],
            "calls": figures.calls,
            "nbytes": nbytes,
            "mean_nbytes": figures.byte_sum / figures.steps if figures.steps else nbytes,
            "peak_nbytes": figures.byte_peak if figures.steps else nbytes,
        }

    def __repr__(self) -> str:
        policies = list(dict.fromkeys(self._policies[layer] for layer in self._decided))
        policy = repr(policies[0]) if len(policies) == 1 else f"[{', '.join(map(repr, policies))}]"
        lengths = f"lengths={self.lengths}, seen={self._columns.seen}, {self.nbytes / 2**20:.2f} MiB"
        return f"BeehiveCache({policy}, positions={self.positions!r}, {lengths})"

    # The interface of transformers.Cache.

    def get_seq_length(self, layer_idx: int = 0) -> int:
        """Columns *seen*, pads included, so that a second turn of generate() continues in the right place."""
        return self._columns.seen

    def get_mask_sizes(self, query_length: int, layer_idx: int = 0) -> tuple[int, int]:
        return self._columns.seen + query_length, 0

    def get_max_length(self, layer_idx: int | None = None) -> int:
        return -1

    def update(self, *args: Any, **kwargs: Any) -> NoReturn:
        raise RuntimeError(UNPATCHED)

    def reset(self) -> None:
        """Forget everything and give the memory back."""
        self._clear()
        for layer in self.layers:
            layer.reset()

    def reorder_cache(self, beam_idx: torch.Tensor) -> None:
        """Make row i what row beam_idx[i] was (beam search)."""
        self._take(beam_idx)

    def batch_repeat_interleave(self, repeats: int) -> None:
        """Repeat every row."""
        self._take(torch.arange(len(self._tokens)).repeat_interleave(repeats))

    def batch_select_indices(self, indices: torch.Tensor) -> None:
        """Keep these rows, by index or by a boolean mask."""
        self._take(torch.arange(len(self._tokens), device=indices.device)[indices])

    def _take(self, rows: torch.Tensor) -> None:
        if not self._schedules:
            return
        taken = rows.tolist()
        if not taken:
            raise ValueError("no row of the cache would be left: reset() it instead")
        for layer in self.layers:
            layer.take(rows)
        for schedule in self._schedules.values():
            schedule.take(taken)
        self._tokens = [self._tokens[row] for row in taken]
        self._columns.take(taken)
        self._figures = self._figures.take(taken)
        if self.curve is not None:
            self.curve.take(taken)

    def crop(self, *args: Any, **kwargs: Any) -> NoReturn:
        raise NotImplementedError(
            "a BeehiveCache cannot be cropped, as assisted decoding wants it: what an eviction dropped is gone, so no "
            "earlier state can come back (docs/limits.md)"
        )


def _text_config(config: Any) -> Any:
    """The configuration of the text model, of a model or a configuration."""
    found = config
    while not isinstance(found, PreTrainedConfig | None):  # a model, perhaps in wrappers
        found = getattr(found, "config", None) or getattr(found, "module", None)
    if not isinstance(found, PreTrainedConfig):
        raise TypeError(
            f"BeehiveCache(policy, model) needs a model or its configuration, got {type(config).__name__} in its place"
        )
    return found.get_text_config(decoder=True)


def _per_layer(policy: Any, budget: int | None, layers: int) -> list[Policy | PerRow]:
    """The policy of each layer, for what a user may give as `policy`."""
    if isinstance(policy, str):
        policy = make_policy(policy)
    if budget is not None:
        if not isinstance(policy, Policy):
            raise TypeError("budget= goes with one policy or its name; fit others with Policy.from_budget")
        if isinstance(budget, float) and 0 < budget <= 1:
            raise ValueError(f"budget= is a number of tokens, got the share {budget}: multiply it by the prompt's")
        policy = policy.from_budget(budget)
    if isinstance(policy, Policy | PerRow):
        return list(policy.per_layer(layers))
    if not isinstance(policy, Sequence) or not all(isinstance(p, Policy | PerRow) for p in policy):
        raise TypeError(
            f"policy must be a buzz policy, its name, or one per layer (buzz.make_policy), got {type(policy).__name__}"
        )
    if len(policy) != layers:
        raise ValueError(f"the model has {layers} layers, got {len(policy)} policies")
    return list(policy)


def _beside_windows(
    policies: Sequence[Policy | PerRow], windows: Sequence[int | None]
) -> tuple[list[Policy | PerRow], list[int]]:
    """What all layers keep, those with a sliding window that window; and the layers that the policies decide over."""
    decided = [layer for layer, window in enumerate(windows) if window is None]
    if not decided and any(policy.name != "full" for policy in policies):
        sizes = " or ".join(str(window) for window in dict.fromkeys(windows))
        warnings.warn(
            f"every layer of this model has a sliding window of {sizes} tokens, which it keeps: the policy decides "
            "nothing",
            stacklevel=3,
        )
    kept = [p if w is None else SlidingWindow(w) for p, w in zip(policies, windows, strict=True)]
    return kept, decided or list(range(len(windows)))
