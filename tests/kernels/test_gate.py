"""The gate of an MLP against PyTorch's functions: on a GPU where there is one, else interpreted."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F

pytest.importorskip("triton")

from buzz.kernels.gate import gate_

DEVICE = "cuda" if torch.cuda.is_available() else "cpu"


def gelu_tanh(x):
    return F.gelu(x, approximate="tanh")


@pytest.mark.filterwarnings("ignore:overflow encountered in exp")
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
@pytest.mark.parametrize(("how", "function"), [((), F.silu), (("silu",), F.silu), (("gelu_tanh",), gelu_tanh)])
def test_gate(how, function, dtype):
    gate, up = (torch.randn(3, 1111, device=DEVICE).mul(3).to(dtype) for _ in range(2))
    gate[0, :5] = torch.tensor([0.0, 60.0, -60.0, 900.0, -900.0])
    expected = function(gate.double()).to(dtype) * up
    got = gate_(gate, up, *how)
    assert got is gate
    # What is all but closed: a few of the smallest numbers there are, and 1 + tanh in float64.
    least = torch.finfo(dtype).eps * torch.finfo(dtype).smallest_normal
    torch.testing.assert_close(got, expected, rtol=2 * torch.finfo(dtype).eps, atol=16 * least + 1e-12)


def test_gate_of_other_shapes():
    x = torch.zeros(4, 6, dtype=torch.bfloat16)
    for gate, up in ((x, x[:2]), (x[:, :3], x[:, :3])):
        with pytest.raises(ValueError, match="contiguous and alike"):
            gate_(gate, up)
