"""The Triton kernel against torch.gather: on a GPU where there is one, else interpreted."""

from __future__ import annotations

import pytest
import torch

pytest.importorskip("triton")

from buzz.kernels.gather import gather_slots, pack_slots

DEVICE = "cuda" if torch.cuda.is_available() else "cpu"


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize(("rows", "heads"), [(1, 1), (1, 3), (2, 1), (2, 3)])
@pytest.mark.parametrize(("kept", "dim"), [(1, 16), (33, 80), (70, 24)])
def test_slots(rows, heads, kept, dim, dtype):
    source = torch.randn(2, 71, 3, dim, device=DEVICE).to(dtype).transpose(1, 2)  # as a projection leaves it
    order = torch.rand(rows, heads, 71, device=DEVICE).argsort(-1)
    slots = order[..., :kept].sort(-1).values
    buffer = torch.full((2, 3, kept + 2, dim), torch.nan, device=DEVICE, dtype=dtype)
    gather_slots(source, slots, buffer[:, :, :kept])
    expected = source.gather(2, slots[..., None].expand(2, 3, -1, dim))
    assert torch.equal(buffer[:, :, :kept], expected)
    assert buffer[:, :, kept:].isnan().all()


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize(("slot_rows", "slot_heads"), [(1, 1), (2, 1), (2, 3)])
@pytest.mark.parametrize(("kept", "dim"), [(1, 16), (33, 80), (70, 24)])
def test_slots_come_to_the_front(slot_rows, slot_heads, kept, dim, dtype):
    buffer = torch.randn(3, 3, 75, dim, device=DEVICE).to(dtype)
    slots = torch.rand(slot_rows, slot_heads, 71, device=DEVICE).argsort(-1)[..., :kept].sort(-1).values
    rows, before = torch.tensor([2, 0], device=DEVICE), buffer.clone()
    pack_slots(buffer, slots, rows)
    expected = before[rows].gather(2, slots[..., None].expand(2, 3, -1, dim))
    assert torch.equal(buffer[rows][:, :, :kept], expected)
    assert torch.equal(buffer[rows][:, :, kept:], before[rows][:, :, kept:])
    assert torch.equal(buffer[1], before[1])
