"""Kernels refuse tensors that do not lie in memory as they read them."""

from __future__ import annotations

import pytest
import torch

from buzz.rows import Rows

pytest.importorskip("triton")

from buzz.kernels import deal, gather, norm, product, received, recency, rotation, share, shift, skinny, step

NUMBERS, TABLE, VECTOR = torch.zeros(2, 4, 8, 16), torch.zeros(8, 16), torch.zeros(16)
SLOTS, ROWS, WORTH = torch.zeros(2, 8, dtype=torch.int64), torch.zeros(2, dtype=torch.int64), torch.zeros(2, 32)
HEADS = torch.zeros(2, 4, dtype=torch.int64)  # where they begin, how many slots they have
EVERY = torch.zeros(2, 4, 8, dtype=torch.int64)  # slots of every head


def turned(tensor):
    """The same numbers, the last axis not contiguous."""
    return torch.stack([tensor, tensor], dim=-1)[..., 0]


def call_received(**other):
    rows = Rows([0, 0])
    tensors = {"q": NUMBERS, "k": NUMBERS, "lse": NUMBERS[..., 0].contiguous(), **other}
    received.received(**tensors, starts=rows, firsts=rows, counts=Rows([8, 8]), scale=1.0)


def call_gather(**other):
    gather.gather_slots(**{"source": NUMBERS, "slots": EVERY, "target": NUMBERS.clone(), **other})


def call_pack(**other):
    gather.pack_slots(**{"buffer": NUMBERS.clone(), "slots": EVERY, "rows": ROWS, **other})


def call_count(**other):
    deal.count_stays(**{"stay": WORTH.bool(), "begin": HEADS, "length": HEADS, **other})


def call_list(**other):
    lies = dict.fromkeys(("begin", "length", "before", "to"), HEADS)
    deal.list_stays(**{"stay": WORTH.bool(), **lies, **other}, most=3)


def call_move(**other):
    places = {"order": SLOTS, "goal": SLOTS, "rows": ROWS, "into": ROWS}
    deal.move_slots(**{"source": NUMBERS, "target": torch.zeros(2, 32, 16), **places, **other})


def call_weigh(**other):
    recency.weigh(**{"worth": WORTH, "begin": HEADS, "length": HEADS, "inverse": torch.ones(2, 4), **other})


def call_rotate(**other):
    rotation.rotate(**{"x": NUMBERS.half(), "cos": TABLE.half(), "sin": TABLE.half(), **other})


def call_share(**other):
    how = {"layers": 1, "total": 4, "sink": 0, "window": 0, "least": 0, "most": 8, "layer_most": None}
    share.share_out(**{"worth": WORTH, "begin": HEADS, "length": HEADS, **how, **other})


def call_shift(**other):
    keys, values = torch.zeros(2, 2, 8, 16)
    shift.shift_slots(**{"keys": keys, "values": values, "goals": SLOTS, "rows": ROWS, **other})


def call_skinny(x=TABLE, weight=TABLE, bias=None):
    skinny.skinny_product(x, [weight], biases=[bias])


def call_product(x=VECTOR, weight=TABLE, bias=None, **other):
    product.product(x, [weight], biases=[bias], **other)


def call_norm(**other):
    norm.settle(TABLE.clone(), TABLE[None].clone(), **{"weight": VECTOR, **other})


def call_norm_heads(**other):
    weights = {"q_weight": VECTOR[:4].clone(), "k_weight": VECTOR[:4].clone(), **other}
    norm.norm_heads_(torch.zeros(2, 16), **weights, q_size=4, k_size=4, epsilon=1e-6)


def call_step(**other):
    q, k = NUMBERS[:, :, 0].clone(), NUMBERS[:, :, 0].clone()
    held = {"keys": NUMBERS.clone(), "values": NUMBERS.clone(), "scores": None, "lengths": ROWS.int()}
    step.attend(q, k, k, **{**held, **other}, scale=1.0)


CASES = [
    *((call_received, name, NUMBERS) for name in ("q", "k")),
    (call_received, "lse", NUMBERS[..., 0]),
    *((call_gather, name, NUMBERS) for name in ("source", "target")),
    *((call, "slots", EVERY) for call in (call_gather, call_pack)),
    (call_pack, "buffer", NUMBERS),
    *((call, "rows", ROWS) for call in (call_pack, call_move, call_shift)),
    *((call, "stay", WORTH.bool()) for call in (call_count, call_list)),
    *((call, name, HEADS) for call in (call_count, call_list, call_weigh, call_share) for name in ("begin", "length")),
    *((call_list, name, HEADS) for name in ("before", "to")),
    (call_move, "source", NUMBERS),
    (call_move, "target", torch.zeros(2, 32, 16)),
    *((call_move, name, SLOTS) for name in ("order", "goal")),
    (call_move, "into", ROWS),
    *((call, "worth", WORTH) for call in (call_weigh, call_share)),
    (call_weigh, "inverse", torch.ones(2, 4)),
    (call_rotate, "x", NUMBERS.half()),
    *((call_rotate, name, TABLE.half()) for name in ("cos", "sin")),
    (call_share, "least", torch.zeros(4, dtype=torch.int64)),
    *((call_shift, name, torch.zeros(2, 8, 16)) for name in ("keys", "values")),
    (call_shift, "goals", SLOTS),
    (call_skinny, "x", TABLE),
    (call_product, "x", VECTOR),
    *((call, name, own) for call in (call_skinny, call_product)
      for name, own in (("weight", TABLE), ("bias", torch.zeros(8)))),
    (call_product, "addend", torch.zeros(8)),
    (call_product, "norm", VECTOR),
    *((call_norm, name, VECTOR) for name in ("weight", "bias")),
    *((call_norm_heads, name, VECTOR[:4]) for name in ("q_weight", "k_weight")),
    *((call_step, name, NUMBERS) for name in ("keys", "values")),
    (call_step, "scores", NUMBERS[..., 0]),
    (call_step, "lengths", ROWS.int()),
    *((call_step, name, TABLE) for name in ("cos", "sin")),
]  # fmt: skip


@pytest.mark.parametrize(("call", "name", "own"), CASES, ids=lambda value: getattr(value, "__name__", None))
def test_what_lies_otherwise_is_refused_by_its_name(call, name, own):
    with pytest.raises(ValueError, match=rf"^{name}(es)?(s)?(\[0\])? .* must be contiguous.*, got strides"):
        call(**{name: turned(own)})
