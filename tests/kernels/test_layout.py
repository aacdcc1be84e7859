"""Kernels refuse tensors that do not lie in memory as they read them."""

from __future__ import annotations

import pytest
import torch

from buzz.rows import Rows

pytest.importorskip("triton")

from buzz.kernels import deal, gather, product, received, recency, rotation, share, shift, skinny

NUMBERS, PLACES = torch.zeros(2, 4, 8, 16), torch.zeros(2, 8, dtype=torch.int64)


def turned(tensor):
    """The same numbers, the last axis but one contiguous."""
    return tensor.transpose(-1, -2).contiguous().transpose(-1, -2)


def call_received(**other):
    q, k, lse = NUMBERS, NUMBERS, NUMBERS[..., 0].contiguous()
    rows = Rows([0, 0])
    tensors = {"q": q, "k": k, "lse": lse, **other}
    return received.received(**tensors, starts=rows, firsts=rows, counts=Rows([8, 8]), scale=1.0)


def call_gather(**other):
    slots = PLACES[:1, None].contiguous().expand(2, 4, -1)
    gather.gather_slots(**{"source": NUMBERS, "slots": slots, "target": NUMBERS.clone(), **other})


def call_pack(**other):
    gather.pack_slots(
        **{"buffer": NUMBERS.clone(), "slots": PLACES[:, None].expand(2, 4, -1), **other}, rows=PLACES[:, 0]
    )


def call_count(**other):
    lies = {"begin": PLACES[:, :4], "length": PLACES[:, :4]}
    deal.count_stays(**{"stay": torch.zeros(2, 32, dtype=torch.bool), **lies, **other})


def call_list(**other):
    lies = dict.fromkeys(("begin", "length", "before", "to"), PLACES[:, :4].contiguous())
    deal.list_stays(**{"stay": torch.zeros(2, 32, dtype=torch.bool), **lies, **other}, most=3)


def call_move(**other):
    rows, target = PLACES[:, 0].contiguous(), torch.zeros(2, 32, 16)
    deal.move_slots(
        **{"source": NUMBERS, "order": PLACES, "target": target, "goal": PLACES, **other}, rows=rows, into=rows
    )


def call_weigh(**other):
    lies = {"begin": PLACES[:, :4], "length": PLACES[:, :4], "inverse": torch.ones(2, 4)}
    recency.weigh(**{"worth": torch.zeros(2, 32), **lies, **other})


def call_rotate(**other):
    rotation.rotate(
        **{"x": NUMBERS.half(), "cos": torch.zeros(8, 16).half(), "sin": torch.zeros(8, 16).half(), **other}
    )


def call_share(**other):
    lies = {"begin": PLACES[:, :4], "length": PLACES[:, :4], "least": 0}
    how = {"layers": 1, "total": 4, "sink": 0, "window": 0, "most": 8, "layer_most": None}
    share.share_out(**{"worth": torch.zeros(2, 32), **lies, **other}, **how)


def call_shift(**other):
    pools = torch.zeros(2, 2, 8, 16)
    shift.shift_slots(
        **{"keys": pools[0], "values": pools[1], "goals": PLACES, **other}, rows=PLACES[:, 0].contiguous()
    )


def call_skinny(x=NUMBERS[0, 0], weight=NUMBERS[0, 1]):
    skinny.skinny_product(x, [weight])


def call_product(x=NUMBERS[0, 0, 0], weight=NUMBERS[0, 1]):
    product.product(x, [weight])


WHOLE = torch.zeros(2, 32)
CASES = [
    *((call_received, name, turned(NUMBERS)) for name in ("q", "k")),
    (call_received, "lse", turned(NUMBERS[..., 0].contiguous())),
    *((call_gather, name, turned(NUMBERS)) for name in ("source", "target")),
    (call_gather, "slots", turned(PLACES[:, None].repeat(1, 4, 1))),
    (call_pack, "buffer", turned(NUMBERS)),
    (call_pack, "slots", turned(PLACES[:, None].repeat(1, 4, 1))),
    *((call, "stay", turned(WHOLE.bool())) for call in (call_count, call_list)),
    *((call, name, turned(PLACES)[:, :4]) for call in (call_count, call_list, call_weigh, call_share)
      for name in ("begin", "length")),
    *((call_list, name, turned(PLACES[:, :4])) for name in ("before", "to")),
    (call_move, "source", turned(NUMBERS)),
    (call_move, "target", turned(torch.zeros(2, 32, 16))),
    *((call_move, name, turned(PLACES)) for name in ("order", "goal")),
    *((call, "worth", turned(WHOLE)) for call in (call_weigh, call_share)),
    (call_weigh, "inverse", turned(torch.ones(2, 4))),
    (call_rotate, "x", turned(NUMBERS.half())),
    *((call_rotate, name, turned(torch.zeros(8, 16).half())) for name in ("cos", "sin")),
    (call_share, "least", torch.zeros(8, dtype=torch.int64)[::2]),
    *((call_shift, name, turned(torch.zeros(2, 8, 16))) for name in ("keys", "values")),
    (call_shift, "goals", turned(PLACES)),
    *((call_skinny, name, turned(NUMBERS[0, 0])) for name in ("x", "weight")),
    (call_product, "weight", turned(NUMBERS[0, 0])),
    (call_product, "x", torch.zeros(32)[::2]),
]  # fmt: skip


@pytest.mark.parametrize(("call", "name", "other"), CASES, ids=lambda value: getattr(value, "__name__", None))
def test_what_lies_otherwise_is_refused_by_its_name(call, name, other):
    with pytest.raises(ValueError, match=rf"^{name}(s\[0\])? .* must be contiguous.*, got strides"):
        call(**{name: other})
