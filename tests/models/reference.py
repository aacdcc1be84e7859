"""A model of any family whose attention is naive: keys and values in Python lists, evicted by the naive policies.

The modules of transformers do all but the attention itself, which is a function that is registered there. Rows are run
alone, in float64.
"""

from __future__ import annotations

import copy
import inspect
import math
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial

import torch
from transformers import PreTrainedModel
from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS

from tests.policies.naive import NaiveHead, queries_counted, shared_scores


class NaiveAttention:
    """Batch-1 attention of one layer: one query and one head at a time.

    Args:
        name, params: of the policy; `logn_base` is for attention itself. A layer with a window keeps what it is given.
        rotate: (x [n, D], positions) -> x rotated.
    """

    def __init__(self, name: str, params: dict, rotate: Callable):
        self.name, self.rotate = name, rotate
        self.base = params.get("logn_base")
        self.params = {key: value for key, value in params.items() if key != "logn_base"}
        self.window: int | None = None
        self.heads: list[NaiveHead] = []
        self.raw: list[dict] = []  # per head: label -> (key, value)
        self.seen = 0

    def __call__(self, q, k, v, scale, window, by_slot):
        """Output [Hq, n, D] of one call: q [Hq, n, D], k and v [Hkv, n, D].

        window: tokens that a query sees, None for all. by_slot: whether to rotate keys and queries to their slots.
        """
        n, kv_heads, self.window = q.shape[1], len(k), window
        if not self.heads:
            if window is not None:
                self.name, self.params, self.base = "full", {}, None
            self.heads = [NaiveHead(self.name, self.params) for _ in range(kv_heads)]
            self.raw = [{} for _ in range(kv_heads)]
        before = len(self.heads[0].slots)
        slots = before + n
        labels = list(range(self.seen, self.seen + n))
        first = n - queries_counted(self.name, self.params, n)
        scores = torch.zeros(1, kv_heads, slots, dtype=torch.float64)
        factor = math.log(slots) / math.log(self.base) if self.base else 1.0
        output, group = torch.zeros_like(q), len(q) // kv_heads
        if by_slot:
            q = torch.stack([self.rotate(x, range(before, slots)) for x in q])
        for h, head in enumerate(self.heads):
            self.raw[h].update({label: (k[h, i], v[h, i]) for i, label in enumerate(labels)})
            held = [self.raw[h][label] for label in head.slots + labels]
            keys, values = (torch.stack(vectors) for vectors in zip(*held, strict=True))
            if by_slot:
                keys = self.rotate(keys, range(slots))
            for i in range(n):
                end = before + i + 1
                start = 0 if window is None else max(0, end - window)
                for g in range(h * group, (h + 1) * group):
                    probs = torch.softmax(keys[start:end] @ q[g, i] * scale * factor, dim=0)
                    output[g, i] = probs @ values[start:end]
                    if i >= first:
                        scores[0, h, start:end] += probs
        for head, received in zip(self.heads, shared_scores(self.name, scores)[0], strict=True):
            head.call(labels, received.tolist())
        self.seen += n
        return output


class NaiveModel:
    """A float64 copy of a model with naive attention, for one row of text.

    Args:
        name, params: of the policy.
        positions: "original": transformers rotates to the token's position in the text. "cache": keys are kept as they
            are multiplied; in each call the key in slot j is rotated to position j, and a query to its own slot.
    """

    def __init__(self, model: PreTrainedModel, name: str = "full", params: dict | None = None, positions="original"):
        self.model, self.positions = copy.deepcopy(model).double(), positions
        backbone = self.model.get_decoder()
        self.attentions = []
        for module in (layer.self_attn for layer in backbone.layers):
            module.config._attn_implementation = "naive"
            attention = NaiveAttention(name, params or {}, partial(self._rotate, backbone, module))
            module.naive = partial(self._attend, attention)
            self.attentions.append(attention)
        self.home = sys.modules[type(module).forward.__module__]
        self.apply = getattr(self.home, "apply_rotary_pos_emb", None)
        self.seen = 0
        self.by_slot = False  # whether the module that is running has asked for rotation and not got it

    @torch.no_grad()
    def __call__(self, ids: torch.Tensor) -> torch.Tensor:
        """Logits [n, vocabulary] of one call of ids [1, n]."""
        start = self.lengths[0] if self.positions == "cache" else self.seen
        position_ids = torch.arange(start, start + ids.shape[1])[None]
        self.seen += ids.shape[1]
        with self._rotation():
            logits = self.model(ids, position_ids=position_ids, use_cache=False).logits[0]
        assert all(attention.seen == self.seen for attention in self.attentions)
        return logits

    @property
    def lengths(self) -> list[int]:
        """Tokens that each layer holds."""
        return [len(attention.heads[0].slots) if attention.heads else 0 for attention in self.attentions]

    def _rotate(self, backbone, module, x, positions):
        """x [n, D] rotated as a module does it, with the angles of its layer."""
        rotary = backbone.rotary_emb
        kind = (module.layer_type,) if "layer_type" in inspect.signature(rotary.forward).parameters else ()
        cos, sin = rotary(x, torch.tensor([list(positions)]), *kind)
        return self.apply(x[None, None], x[None, None], cos, sin)[0][0, 0]

    def _attend(self, attention, q, k, v, scale, window):
        by_slot, self.by_slot = self.by_slot, False
        return attention(q[0], k[0], v[0], scale, window, by_slot).transpose(0, 1)[None]

    @contextmanager
    def _rotation(self) -> Iterator[None]:
        """With positions "cache", the modules' rotation leaves q and k as they are."""
        if self.apply is None or self.positions == "original":
            yield
            return

        def later(q, k, *args, **kwargs):
            self.by_slot = True
            return q, k

        self.home.apply_rotary_pos_emb = later
        try:
            yield
        finally:
            self.home.apply_rotary_pos_emb = self.apply


def _attention(module, q, k, v, mask, scaling, sliding_window=None, **_):
    """What the modules call; windows are theirs, masks are not needed."""
    return module.naive(q, k, v, scaling, sliding_window), None


ALL_ATTENTION_FUNCTIONS.register("naive", _attention)
