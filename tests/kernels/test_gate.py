"""The gate of an MLP against PyTorch's functions: on a GPU where there is one, else interpreted."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F

pytest.importorskip("triton")

from buzz.kernels.gate import silu_gate_

DEVICE = "cuda" if torch.cuda.is_available() else "cpu"


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_gate(dtype):
    gate, up = (torch.randn(3, 1111, device=DEVICE).mul(3).to(dtype) for _ in range(2))
    expected = F.silu(gate) * up
    got = silu_gate_(gate, up)
    assert got is gate
    torch.testing.assert_close(got, expected, rtol=2 * torch.finfo(dtype).eps, atol=0)


def test_gate_of_other_shapes():
    x = torch.zeros(4, 6, dtype=torch.bfloat16)
    for gate, up in ((x, x[:2]), (x[:, :3], x[:, :3])):
        with pytest.raises(ValueError, match="contiguous and alike"):
            silu_gate_(gate, up)
