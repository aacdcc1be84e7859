"""Kernels that start before the one before them has ended (programmatic dependent launch, on Hopper and later).

Between two short kernels a GPU runs empty for a microsecond or two. A kernel that is launched early uses them: it may
fetch what no kernel of the chain writes, nor the one that the chain begins after, and waits before it reads or writes
anything else. Every kernel of a chain must wait, so that the end of one means the end of all before it.
"""

from __future__ import annotations

import functools
from typing import Any

import torch
import triton
import triton.language as tl


@triton.jit
def let_next_start():
    """The next kernel may start once all programs of this one have come here; a hint."""
    tl.inline_asm_elementwise(
        "griddepcontrol.launch_dependents; // $0", "=r", [], dtype=tl.int32, is_pure=False, pack=1
    )


@triton.jit
def wait_for_last():
    """Go on once the kernels before this one have ended, and what they wrote is there."""
    tl.inline_asm_elementwise("griddepcontrol.wait; // $0", "=r", [], dtype=tl.int32, is_pure=False, pack=1)


@functools.cache
def early_launch(device: torch.device) -> dict[str, Any]:
    """Options of a launch that may be early; none where the device or Triton does not know how."""
    if device.type != "cuda" or torch.cuda.get_device_capability(device)[0] < 9:
        return {}
    from triton.backends.nvidia.compiler import CUDAOptions

    return {"launch_pdl": True} if "launch_pdl" in CUDAOptions.__dataclass_fields__ else {}
