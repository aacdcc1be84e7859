"""Section `ceilings`: what the machine can do at most."""

from __future__ import annotations

import statistics
from typing import Any

import torch

from buzz.benchmark.bench import Bench
from buzz.benchmark.clocks import timed
from buzz.benchmark.config import Ceilings


def ceilings(bench: Bench, config: Ceilings) -> None:
    """Bandwidth of a copy on the device, and rate of a large matrix product in the model's dtype."""

    def copy() -> dict[str, Any]:
        # Random bytes: constant ones can be faster.
        source = torch.randint(256, (config.copy_mib << 20,), dtype=torch.uint8, device=bench.device)
        target = torch.empty_like(source)
        taken = statistics.median(timed(lambda: target.copy_(source), bench.clock, config.repeats))
        return {"ms": 1e3 * taken, "gb_per_s": 2 * source.numel() / taken / 1e9}

    def matmul() -> dict[str, Any]:
        n = config.matmul
        a, b = (torch.randn(n, n, device=bench.device, dtype=bench.model.dtype) for _ in range(2))
        taken = statistics.median(timed(lambda: a @ b, bench.clock, config.repeats))
        return {"ms": 1e3 * taken, "tflop_per_s": 2 * n**3 / taken / 1e12}

    bench.point("ceilings", {"what": "copy"}, copy)
    bench.point("ceilings", {"what": "matmul"}, matmul)
