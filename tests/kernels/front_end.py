"""Every kernel goes through Triton's front end for a GPU that need not be there, as it is launched by its host code.

Triton's interpreter takes what the compiler refuses, such as a name whose type changes in a loop. Prints a line
for each: its name, and how many kinds of it were seen.

    python -m tests.kernels.front_end
"""

from __future__ import annotations

import itertools
import os

os.environ.pop("TRITON_INTERPRET", None)  # read when triton is imported

from collections import Counter
from types import SimpleNamespace
from typing import Any

import torch
import triton
from triton.backends.compiler import GPUTarget
from triton.compiler.compiler import make_backend
from triton.runtime import driver

from buzz.kernels import (
    deal,
    early,
    gate,
    gather,
    norm,
    product,
    received,
    recency,
    rotation,
    share,
    shift,
    skinny,
    step,
)
from buzz.rows import Rows

TARGET = GPUTarget("cuda", 90, 32)
MOST = (2**31 - 1, 65_535, 65_535)  # programs along each axis of a launch, on any CUDA device
SEEN: Counter[str] = Counter()


class NoDriver:
    """What a launch asks of a GPU."""

    def get_current_target(self) -> GPUTarget:
        return TARGET

    def get_current_device(self) -> int:
        return 0

    def get_current_stream(self, device: int) -> int:
        return 0


def front_end(src: Any, target: Any = None, options: Any = None, _env_vars: Any = None) -> Any:
    """In the place of `triton.compile`: the kernel's own types are checked, and nothing is made that could run."""
    backend = make_backend(TARGET)
    parsed = backend.parse_options({**(options or {}), **src.parse_options()})
    context = triton._C.libtriton.ir.context()
    triton._C.libtriton.ir.load_dialects(context)
    backend.load_dialects(context)
    src.make_ir(TARGET, parsed, backend.get_codegen_implementation(parsed), backend.get_module_map(), context)
    name = src.fn.__name__
    SEEN[name] += 1

    def run(*given: Any) -> None:
        grid = given[:3]
        if any(programs > most for programs, most in zip(grid, MOST, strict=True)):
            raise ValueError(f"{name}: a launch of {grid} programs, where a device takes {MOST}")

    return SimpleNamespace(run=run, function=None, packed_metadata=None, launch_metadata=lambda *a: None)


def attend(dtype: torch.dtype, group: int, splits: int, how: str, scored: bool) -> None:
    """A step's attention to 96 slots of two rows and two heads."""

    def zeros(*shape: int) -> torch.Tensor:
        return torch.zeros(*shape, dtype=dtype)

    keys, scores, lengths = zeros(2, 2, 96, 64), torch.zeros(2, 2, 96), torch.ones(2, dtype=torch.int32)
    angles = {"own": zeros(2, 64), "slots": zeros(96, 64), "turned pool": zeros(96, 64)}.get(how)
    more: dict[str, Any] = {"slots": {"of": "mean"}, "plain": {"logn_base": 512}}.get(how, {})
    if how.endswith("pool"):
        keys, scores, lengths = keys.flatten(1, 2), scores.flatten(1), lengths[:, None].repeat(1, 2)
        more = {"begin": lengths.clone(), "longest": 90, "of": "largest", "beyond": 3, "window": 50}
    q, kv = zeros(2, 2 * group, 64), zeros(2, 2, 64)
    step.attend(
        q, kv, kv, keys, keys.clone(), scores if scored else None, lengths, scale=0.1, cos=angles, sin=angles,
        own=how == "own", live=None if how == "own" else lengths.flatten()[:1], ahead=how != "plain",
        launch=step.Launch(splits=splits), **more,
    )  # fmt: skip


def launch_all() -> None:
    """One launch of every kind that differs by more than numbers."""
    half = {"dtype": torch.bfloat16}

    def random(*shape: int) -> torch.Tensor:
        return torch.zeros(*shape, **half)

    # A step's attention: with and without groups, in one split and in several, of equal heads and of pools.
    kinds = (
        (torch.bfloat16, torch.float32),
        (1, 4),
        (1, 3),
        ("slots", "own", "plain", "pool", "turned pool"),
        (True, False),
    )
    for dtype, group, splits, how, scored in itertools.product(*kinds):
        attend(dtype, group, splits, how, scored)
    # What a prompt receives.
    q, kv, lse = random(1, 8, 70, 64), random(1, 2, 70, 64), torch.zeros(1, 8, 70)
    for wanted in ((("sum", 0),), (("largest", 5), ("sum", 3))):
        received.received(q, kv, lse, starts=Rows([0]), firsts=Rows([0]), counts=Rows([70]), scale=0.1, wanted=wanted)
    # Products, norms and what is between them.
    weight, bias, row = random(96, 64), random(96), random(64)
    for gated in (False, True):
        weights = [weight, weight] if gated else [weight]
        product.product(row, weights, norm=row, epsilon=1e-6, gated=gated, biases=[bias] * len(weights))
        skinny.skinny_product(random(3, 64), weights, gated=gated, biases=[bias] * len(weights))
    skinny.skinny_parts(random(3, 64), weight)
    norm.settle(random(3, 64), torch.zeros(2, 3, 64), bias=row, factor=0.5, weight=row, epsilon=1e-6)
    norm.rms_norm(random(3, 64), row, 1e-6)
    norm.add_normed(random(3, 64), random(3, 64), row, 1e-6, weight=row)
    norm.norm_heads_(random(3, 64), row[:16], row[:16], 32, 16, 1e-6)
    gate.gate_(random(3, 64), random(3, 64), "gelu_tanh")
    rotation.rotate(random(2, 2, 5, 16), random(5, 16), random(5, 16))
    # Evictions.
    slots = torch.zeros(2, 1, 4, dtype=torch.int64)
    gather.gather_slots(random(2, 3, 9, 16), slots, random(2, 3, 4, 16))
    gather.pack_slots(random(2, 3, 9, 16), slots, torch.arange(2))
    begin, length = torch.tensor([[0, 9, 18]]).repeat(2, 1), torch.full((2, 3), 7)
    stay = torch.ones(2, 27, dtype=torch.bool)
    deal.list_stays(stay, begin, length, deal.count_stays(stay, begin, length), begin, 21)
    order = torch.zeros(2, 5, dtype=torch.int64)
    deal.move_slots(random(2, 3, 9, 16), order, torch.arange(2), random(2, 27, 16), order, torch.arange(2))
    shift.shift_slots(random(2, 27, 16), random(2, 27, 16), torch.zeros(2, 27, dtype=torch.int64), torch.arange(2))
    worth = torch.zeros(2, 27)
    for least, layer_most in ((3, 12), (torch.full((3,), 3), None)):
        share.share_out(worth, begin, length, 1, 15, sink=1, window=1, least=least, most=6, layer_most=layer_most)
    recency.weigh(worth, begin, length, 1 / length)


def launch_large() -> None:
    """What grows with a prompt, at 128k tokens of a model of 1,024 heads: launches that a device would take.

    Memory that nothing is written to costs nothing.
    """
    places, heads, tokens = 4_300_000, 1_024, 131_072  # of a pool that holds its shortlists and a chunk

    def empty(*shape: int) -> torch.Tensor:
        return torch.empty(*shape, dtype=torch.bfloat16)

    pool, goals, units = empty(1, places, 16), torch.empty(1, places, dtype=torch.int64), torch.zeros(1).long()
    shift.shift_slots(pool, pool, goals, units)
    begin = (torch.arange(heads) * (places // heads))[None]
    length = torch.full_like(begin, places // heads)
    stay = torch.empty(1, places, dtype=torch.bool)
    deal.list_stays(stay, begin, length, deal.count_stays(stay, begin, length), begin, places // 2)
    deal.move_slots(empty(1, 32, tokens, 16), goals, units, pool, goals, units)
    worth = torch.empty(1, places)
    share.share_out(worth, begin, length, 32, places // 2, sink=4, window=99, least=9, most=9_999, layer_most=None)
    recency.weigh(worth, begin, length, torch.empty(1, heads))
    prompt = empty(1, 32, tokens, 16)
    rotation.rotate(prompt, empty(tokens, 16), empty(tokens, 16))
    gather.gather_slots(prompt, torch.empty(1, 32, tokens, dtype=torch.int64), prompt)
    starts, counts = Rows([0]), Rows([tokens])
    received.received(prompt, prompt, torch.empty(1, 32, tokens), starts=starts, firsts=starts, counts=counts, scale=1)
    norm.rms_norm(empty(tokens, 64), empty(64), 1e-6)
    gate.gate_(empty(tokens, 64), empty(tokens, 64), "silu")


def main() -> int:
    driver.set_active(NoDriver())
    triton.compiler.compile = front_end
    for module in (step, product, skinny, norm):  # kernels that may start early do, as on a Hopper
        module.early_launch = lambda device: {"launch_pdl": True}
    assert early.early_launch is not step.early_launch
    launch_all()
    launch_large()
    print("\n".join(f"{name} {count}" for name, count in sorted(SEEN.items())))
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
