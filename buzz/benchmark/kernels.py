"""Section `kernels`: attention of one layer, alone, with its error beside it."""

from __future__ import annotations

import statistics
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch.nn.attention import SDPBackend, sdpa_kernel

from buzz.attention import attend
from buzz.attention.step import attend_step
from buzz.benchmark.bench import Bench
from buzz.benchmark.clocks import captured, timed
from buzz.benchmark.config import Kernels
from buzz.cache.call import Shape
from buzz.kernels.launch import Launch, Tiles
from buzz.policies import ScoreSpec
from buzz.rows import Rows

_INNER = 5e-3  # seconds of calls in one measurement
_CHUNK_ELEMENTS = 1 << 27  # logits of a chunk of the reference
_SETS_BYTES = 256 << 20  # inputs of the decode kernels, so that no cache of the device holds them
_MOST_SETS = 32
_EVERYTHING = ScoreSpec(accumulate=True, queries=None)


@dataclass(frozen=True)
class Heads:
    """Query heads, key and value heads, and their width."""

    queries: int
    keys: int
    dim: int

    @classmethod
    def of(cls, config: Any) -> Heads:
        shape = Shape.of(config)
        return cls(config.num_attention_heads, shape.heads, shape.head_dim)


def kernels(bench: Bench, config: Kernels) -> None:
    """A prompt's attention by length, and one token's by cached slots and batch; float32 statistics in all of them."""
    heads = Heads.of(bench.model.config)
    for length in config.lengths:
        cut = {what: None for what in PROMPT} | {f"{PROMPT[-1]}, {_said(tiles)}": tiles for tiles in config.tiles}
        if all(bench.book.find("kernels", {"kind": "prompt", "length": length, "what": what}) for what in cut):
            continue
        inputs = _Prompt.make(bench, heads, length)
        for what, tiles in cut.items():

            def measure_prompt(what=what, tiles=tiles, inputs=inputs) -> dict[str, Any]:
                return inputs.measure(what if tiles is None else PROMPT[-1], config.repeats, tiles)

            bench.point("kernels", {"kind": "prompt", "length": length, "what": what}, measure_prompt)
    for batch in config.batches:
        for slots in config.cached:
            steps = {what: None for what in STEP} | {f"{STEP[-1]}, {_said(cut)}": cut for cut in config.launches}
            for what, launch in steps.items():
                key = {"kind": "step", "length": slots, "batch": batch, "what": what}

                def measure(what=what, launch=launch, slots=slots, batch=batch) -> dict[str, Any]:
                    return _step(
                        bench, heads, slots, batch, what if launch is None else STEP[-1], config.repeats, launch
                    )

                bench.point("kernels", key, measure)


def _said(cut: Tiles | Launch) -> str:
    """What is not as by default."""
    own = {name: value for name, value in vars(cut).items() if value != getattr(type(cut)(), name)}
    return " ".join(f"{name}={value}" for name, value in own.items()) or "default"


# --- a prompt --------------------------------------------------------------------------------------------------------

PROMPT = ("flash", "cudnn", "attend, scores", "scores alone")
_BACKENDS = {"flash": SDPBackend.FLASH_ATTENTION, "cudnn": SDPBackend.CUDNN_ATTENTION}


@dataclass
class _Prompt:
    """Inputs of a prompt's attention and what float32 makes of them; the reference is made when it is first needed."""

    bench: Bench
    q: torch.Tensor  # [1, Hq, L, D]
    k: torch.Tensor  # [1, Hkv, L, D]
    v: torch.Tensor
    scale: float
    _exact: tuple[torch.Tensor, torch.Tensor, torch.Tensor] | None = None

    @classmethod
    def make(cls, bench: Bench, heads: Heads, length: int) -> _Prompt:
        torch.manual_seed(bench.seed)
        sizes = (heads.queries, heads.keys, heads.keys)
        how = {"device": bench.device, "dtype": bench.model.dtype}
        q, k, v = (torch.randn(1, n, length, heads.dim, **how) for n in sizes)
        return cls(bench, q, k, v, heads.dim**-0.5)

    @property
    def exact(self) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
        """Output, scores and log-sum-exps."""
        if self._exact is None:
            self._exact = reference(self.q, self.k, self.v, self.scale)
        return self._exact

    def measure(self, what: str, repeats: int, tiles: Tiles | None) -> dict[str, Any]:
        output, scores, lse = self.exact
        call = self._call(what, lse, tiles)
        got, received = call()
        taken = statistics.median(timed(call, self.bench.clock, repeats, inner=_INNER))
        length, dim = self.q.shape[2:]
        products = 1 if what == "scores alone" else 2
        return {
            "ms": 1e3 * taken,
            "tflop_per_s": products * self.q.shape[1] * length**2 * dim / taken / 1e12,  # causal: half of the square
            "output_error": None if got is None else relative_error(got, output),
            "score_error": None if received is None else relative_error(received, scores),
        }

    def _call(self, what: str, lse: torch.Tensor, tiles: Tiles | None) -> Callable[[], tuple[Any, Any]]:
        q, k, v, scale = self.q, self.k, self.v, self.scale
        zero, counts = Rows([0]), Rows([q.shape[2]])  # brought to the device once
        if what in _BACKENDS:
            grouped = q.shape[1] > k.shape[1]

            def fused() -> tuple[Any, Any]:
                with sdpa_kernel(_BACKENDS[what]):
                    output = F.scaled_dot_product_attention(q, k, v, is_causal=True, scale=scale, enable_gqa=grouped)
                return output, None

            return fused
        if what == "attend, scores":
            return lambda: attend(q, k, v, starts=zero, counts=counts, scale=scale, spec=_EVERYTHING)
        from buzz.kernels.received import received

        how = {"starts": zero, "firsts": zero, "counts": counts, "scale": scale, "tiles": tiles}
        return lambda: (None, received(q, k, lse, **how)[0])  # type: ignore[arg-type]


def reference(
    q: torch.Tensor, k: torch.Tensor, v: torch.Tensor, scale: float
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Causal attention in float32, in chunks of queries.

    Args:
        q: [1, Hq, L, D]. k, v: [1, Hkv, L, D].

    Returns:
        output [1, Hq, L, D], scores [1, Hkv, L], natural log-sum-exps [1, Hq, L]; all float32.
    """
    heads, length = q.shape[1:3]
    q = q.float().unflatten(1, (k.shape[1], -1))  # [1, Hkv, G, L, D]
    kt, v = k.float().transpose(2, 3)[:, :, None], v.float()[:, :, None]
    at = torch.arange(length, device=q.device)
    outputs, lses = [], []
    scores = torch.zeros(1, k.shape[1], length, device=q.device)
    for rows in at.split(max(1, _CHUNK_ELEMENTS // (heads * length))):
        logits = (q[:, :, :, rows] @ kt).mul_(scale).masked_fill_(at > rows[:, None], -torch.inf)
        lse = logits.logsumexp(-1, keepdim=True)
        probs = logits.sub_(lse).exp_()
        outputs.append(probs @ v)
        lses.append(lse[..., 0])
        scores += probs.sum((2, 3))
    return torch.cat(outputs, 3).flatten(1, 2), scores, torch.cat(lses, 3).flatten(1, 2).contiguous()


def relative_error(got: torch.Tensor, exact: torch.Tensor) -> float:
    """|got - exact| / |exact|, of vectors."""
    return float((got.float() - exact).norm() / exact.norm())


# --- one token -------------------------------------------------------------------------------------------------------

STEP = ("sdpa", "attend_step", "attend_step, scores")


def _step(
    bench: Bench, heads: Heads, slots: int, batch: int, what: str, repeats: int, launch: Launch | None
) -> dict[str, Any]:
    """One token a row against `slots` cached ones, over several sets of buffers in turn, as the layers of a model."""
    dtype, device = bench.model.dtype, bench.device
    size = 2 * batch * heads.keys * (slots + 1) * heads.dim * dtype.itemsize
    sets = min(_MOST_SETS, -(-_SETS_BYTES // size)) if device.type == "cuda" else 1
    torch.manual_seed(bench.seed)
    how = {"device": device, "dtype": dtype}
    q = torch.randn(batch, heads.queries, heads.dim, **how)
    k, v = (torch.randn(batch, heads.keys, heads.dim, **how) for _ in range(2))
    keys, values = (torch.randn(sets, batch, heads.keys, slots + 1, heads.dim, **how) for _ in range(2))
    scale, scored = heads.dim**-0.5, what == "attend_step, scores"
    row: dict[str, Any] = {}
    if what == "sdpa":
        group = q.unflatten(1, (heads.keys, -1))  # [B, Hkv, G, D]: the heads of a group as queries

        def layer(i: int) -> torch.Tensor:
            return F.scaled_dot_product_attention(group, keys[i], values[i], scale=scale).flatten(1, 2)

        exact = F.scaled_dot_product_attention(group[:1].float(), keys[0, :1].float(), values[0, :1].float())
        error = relative_error(layer(0)[:1], exact.flatten(1, 2))
    else:
        scores = torch.zeros(sets, batch, heads.keys, slots + 1, device=device) if scored else None
        lengths = torch.full((batch,), slots, dtype=torch.int32, device=device)
        cos, sin = _angles(slots + 1, heads.dim, device)
        table = {"cos": cos.to(dtype), "sin": sin.to(dtype), "scale": scale}

        def layer(i: int) -> torch.Tensor:
            received = None if scores is None else scores[i]
            if launch is not None:
                from buzz.kernels import step as decode

                return decode.attend(q, k, v, keys[i], values[i], received, lengths, **table, launch=launch)
            return attend_step(q, k, v, keys[i], values[i], received, lengths, **table)

        row, error = _step_errors(layer, q, k, v, keys, values, scores, table)
        size += 2 * 4 * batch * heads.keys * (slots + 1) if scored else 0  # float32, read and written

    def call() -> None:
        for i in range(sets):
            layer(i)

    taken = statistics.median(timed(captured(call, device), bench.clock, repeats, inner=_INNER)) / sets
    copy, rate = bench.book.copy_bandwidth, size / taken / 1e9
    of_copy = None if copy is None else rate / copy
    return {"ms": 1e3 * taken, "gb_per_s": rate, "of_copy": of_copy, "output_error": error, "score_error": None, **row}


def _angles(length: int, dim: int, device: torch.device) -> tuple[torch.Tensor, torch.Tensor]:
    """cos and signed sin [length, D] of rotary positions, float32."""
    steps = torch.arange(length, device=device)[:, None] * 10000.0 ** -(torch.arange(0, dim, 2, device=device) / dim)
    return torch.cat([steps.cos()] * 2, 1), torch.cat([-steps.sin(), steps.sin()], 1)


def _step_errors(
    layer: Callable[[int], torch.Tensor],
    q: torch.Tensor,
    k: torch.Tensor,
    v: torch.Tensor,
    keys: torch.Tensor,
    values: torch.Tensor,
    scores: torch.Tensor | None,
    table: dict[str, Any],
) -> tuple[dict[str, Any], float]:
    """Errors of the first row of the first set, against float32 from the same numbers: scores' if any, and output's."""
    got = layer(0)[0]  # [Hq, D]
    cos, sin = table["cos"].float(), table["sin"].float()
    all_keys = torch.cat([keys[0, 0, :, :-1], k[0, :, None]], 1).float()  # [Hkv, C, D]
    all_values = torch.cat([values[0, 0, :, :-1], v[0, :, None]], 1).float()
    queries = _rotated(q[0].float(), cos[-1], sin[-1]).unflatten(0, (len(all_keys), -1))  # [Hkv, G, D]
    logits = queries @ _rotated(all_keys, cos, sin).transpose(1, 2) * table["scale"]
    probs = logits.softmax(-1)  # [Hkv, G, C]
    error = relative_error(got, (probs @ all_values).flatten(0, 1))
    return ({} if scores is None else {"score_error": relative_error(scores[0, 0], probs.sum(1))}), error


def _rotated(x: torch.Tensor, cos: torch.Tensor, sin: torch.Tensor) -> torch.Tensor:
    return x * cos + x.roll(x.shape[-1] // 2, -1) * sin
