"""One token per row against static memory: the reference and Triton against a float64 loop over rows and heads."""

from __future__ import annotations

import importlib.util
import math
import statistics
from dataclasses import dataclass, fields, replace

import pytest
import torch

from buzz.attention import naive as reference
from buzz.attention.step import attend_step

CUDA = torch.cuda.is_available()
DEVICE = "cuda" if CUDA else "cpu"
needs_triton = pytest.mark.skipif(importlib.util.find_spec("triton") is None, reason="needs triton")


@dataclass
class Case:
    """Arguments of `attend_step` by name; keys, values and scores are views of the middle layer of larger buffers."""

    q: torch.Tensor
    k: torch.Tensor
    v: torch.Tensor
    keys: torch.Tensor
    values: torch.Tensor
    scores: torch.Tensor | None
    lengths: torch.Tensor
    cos: torch.Tensor | None = None
    sin: torch.Tensor | None = None
    live: torch.Tensor | None = None

    def copy(self, device: str = "cpu") -> Case:
        return Case(**{f.name: _copy(getattr(self, f.name), device) for f in fields(self)})

    def run(self, function, **how) -> torch.Tensor:
        return function(**{f.name: getattr(self, f.name) for f in fields(self)}, **how)

    @property
    def cache(self) -> tuple[torch.Tensor | None, ...]:
        return self.keys, self.values, self.scores


def _copy(tensor: torch.Tensor | None, device: str) -> torch.Tensor | None:
    """A copy in a buffer of three layers, where the tensor is a view of one."""
    if tensor is None:
        return None
    if tensor._base is None:
        return tensor.to(device, copy=True)
    return tensor._base.to(device, copy=True)[1]


def make(
    lengths: list[int],
    *,
    group: int = 1,
    heads: int = 2,
    dim: int = 16,
    slots: int | None = None,
    dtype: torch.dtype = torch.float32,
    rotate: bool = True,
    scored: bool = True,
    live: int | None = None,
    seed: int = 0,
) -> Case:
    generator = torch.Generator().manual_seed(dim + group + sum(lengths) + seed)
    rows, slots = len(lengths), slots or max(lengths) + 3

    def random(*shape: int) -> torch.Tensor:
        return torch.randn(*shape, generator=generator).to(dtype)

    angles = torch.outer(torch.arange(slots + 5), 0.1 ** (torch.arange((dim + 1) // 2) / dim)).repeat(1, 2)
    return Case(
        q=random(rows, group * heads, dim),
        k=random(rows, heads, dim),
        v=random(rows, heads, dim),
        keys=random(3, rows, heads, slots, dim)[1],
        values=random(3, rows, heads, slots, dim)[1],
        scores=torch.rand(3, rows, heads, slots, generator=generator)[1] if scored else None,
        lengths=torch.tensor(lengths, dtype=torch.int32),
        cos=angles.cos().to(dtype) if rotate else None,
        sin=(angles.sin() * torch.tensor([-1.0, 1.0]).repeat_interleave((dim + 1) // 2)).to(dtype) if rotate else None,
        live=None if live is None else torch.tensor([live], dtype=torch.int32),
    )


def naive(
    case: Case,
    scale: float,
    logn_base: float | None = None,
    window: int | None = None,
    of: str = "sum",
    beyond: int = 0,
) -> tuple[torch.Tensor, torch.Tensor]:
    """Output [B, Hq, D] and what every slot receives [B, Hkv, C], in float64, one row and head at a time."""
    rows, heads, slots, dim = case.keys.shape
    group = case.q.shape[1] // heads
    output = torch.zeros(rows, heads * group, dim, dtype=torch.float64)
    received = torch.zeros(rows, heads, slots, dtype=torch.float64)

    def rotated(x: torch.Tensor, slot: int) -> torch.Tensor:
        if case.cos is None or case.sin is None:
            return x
        swapped = torch.cat([x[dim // 2 :], x[: dim // 2]])
        return x * case.cos[slot].double() + swapped * case.sin[slot].double()

    for b, n in enumerate(case.lengths.tolist()):
        begin = 0 if window is None else max(0, n + 1 - window)
        factor = scale if logn_base is None else scale * math.log(n + 1) / math.log(logn_base)
        for h in range(heads):
            keys = [*case.keys[b, h, :n].double(), case.k[b, h].double()]
            keys = torch.stack([rotated(key, j) for j, key in enumerate(keys)])[begin:]
            values = torch.cat([case.values[b, h, :n].double(), case.v[b, h].double()[None]])[begin:]
            given = []
            for i in range(h * group, (h + 1) * group):
                given.append(torch.softmax(keys @ rotated(case.q[b, i].double(), n) * factor, dim=0))
                output[b, i] = given[-1] @ values
            for j in range(begin, n + 1):
                probs = [float(p[j - begin]) for p in given]
                if beyond == 0 or n - j > beyond:
                    received[b, h, j] = {"sum": sum, "mean": statistics.fmean, "largest": max}[of](probs)
    return output, received


def check(
    function,
    case: Case,
    *,
    tolerance: float = 1e-5,
    logn_base: float | None = None,
    window: int | None = None,
    of: str = "sum",
    beyond: int = 0,
    **how,
) -> None:
    """Output, what was written and the scores are right, nothing else changes, and a second run gives the same bits."""
    scale = case.q.shape[-1] ** -0.5
    output, received = naive(case, scale, logn_base, window, of, beyond)
    how |= {"scale": scale, "logn_base": logn_base, "window": window, "of": of, "beyond": beyond}
    after, again = case.copy(DEVICE), case.copy(DEVICE)
    got = after.run(function, **how)
    assert got.dtype == case.q.dtype
    assert got.shape == case.q.shape
    assert (got.cpu() - output).norm() < tolerance * output.norm()
    expected = case.copy()
    for b, n in enumerate(case.lengths.tolist()):
        expected.keys[b, :, n], expected.values[b, :, n] = case.k[b], case.v[b]
    assert torch.equal(after.keys._base.cpu(), expected.keys._base)
    assert torch.equal(after.values._base.cpu(), expected.values._base)
    assert torch.equal(after.lengths.cpu(), case.lengths)
    if case.scores is not None:
        gained = after.scores.cpu().double() - case.scores
        if of == "largest":
            received = received.maximum(case.scores.double()) - case.scores
        if case.live is not None and not case.live:
            assert torch.equal(after.scores.cpu(), case.scores)
        else:
            assert (gained - received).norm() <= max(tolerance, 1e-5) * received.norm()
        for b, n in enumerate(case.lengths.tolist()):
            assert not gained[b, :, n + 1 :].any()
            assert not beyond or not gained[b, :, max(0, n - beyond) :].any()
            assert window is None or not gained[b, :, : max(0, n + 1 - window)].any()
        assert torch.equal(after.scores._base[::2].cpu(), case.scores._base[::2])  # the other layers
    if repeats(function):
        assert torch.equal(again.run(function, **how), got)
        assert all(a is None or torch.equal(a, b) for a, b in zip(after.cache, again.cache, strict=True))


def repeats(function) -> bool:
    """Whether a second run is worth its time: Triton's interpreter runs one program after another, always the same."""
    return CUDA or function not in (triton_step, triton_alone)


def triton_step(**arguments) -> torch.Tensor:
    """The Triton kernels, on the GPU or in Triton's interpreter."""
    from buzz.kernels.step import Launch, attend

    return attend(**{"launch": Launch(slots=8, splits=3, score_slots=16), **arguments})


def triton_alone(**arguments) -> torch.Tensor:
    """One program a head, in one kernel."""
    from buzz.kernels.step import Launch

    return triton_step(**arguments, launch=Launch(slots=8, splits=1))


FUNCTIONS = [
    pytest.param(attend_step, id="step"),
    pytest.param(reference.attend_step, id="naive"),
    pytest.param(triton_step, id="triton", marks=needs_triton),
    pytest.param(triton_alone, id="alone", marks=needs_triton),
]
every_function = pytest.mark.parametrize("function", FUNCTIONS)


@every_function
@pytest.mark.parametrize("rotate", [True, False])
@pytest.mark.parametrize(("group", "dim"), [(1, 16), (3, 64), (1, 80), (4, 80), (4, 128)])
def test_groups_and_dimensions(function, group, dim, rotate):
    check(function, make([19, 42], group=group, dim=dim, rotate=rotate))


@every_function
@pytest.mark.parametrize(("group", "dim"), [(1, 64), (3, 96), (8, 128), (1, 256), (8, 256)])
def test_more_groups_and_dimensions(function, group, dim):
    check(function, make([6, 21], group=group, dim=dim))


@every_function
@pytest.mark.parametrize("lengths", [[0], [0, 1, 7], [8, 9, 23], [24, 25, 47], [47, 0, 5]])
def test_lengths(function, lengths):
    check(function, make(lengths, group=3, slots=48))  # 47: the last slot


@every_function
@pytest.mark.parametrize("dtype", [torch.float32, torch.float16])
@pytest.mark.parametrize(("group", "dim"), [(1, 16), (3, 80), (4, 64)])
def test_angles_of_the_tokens_themselves(function, group, dim, dtype):
    """Queries and keys are rotated and rounded before all else, and keys cached so."""
    case = make([19, 0, 42], group=group, dim=dim, dtype=dtype).copy(DEVICE)
    positions = torch.tensor([33, 7, 2])
    cos, sin = (t[positions.to(DEVICE)] for t in (case.cos, case.sin))

    def rotated(x):
        swapped = torch.cat([x[..., dim // 2 :], x[..., : dim // 2]], dim=-1).float()
        return (x.float() * cos[:, None].float() + swapped * sin[:, None].float()).to(dtype)

    plain = replace(case.copy(DEVICE), q=rotated(case.q), k=rotated(case.k), cos=None, sin=None)
    case = replace(case, cos=cos, sin=sin)
    how = {"scale": dim**-0.5, "beyond": 2, "of": "largest"}
    expected, got = plain.run(function, **how), case.run(function, **how, own=True)
    bound = 1e-5 if dtype == torch.float32 else 2e-3
    assert (got.double() - expected.double()).norm() < bound * expected.double().norm()
    for mine, others in zip(case.cache, plain.cache, strict=True):
        torch.testing.assert_close(mine, others, rtol=bound, atol=bound)


@every_function
@pytest.mark.parametrize("rotate", [True, False])
def test_without_scores(function, rotate):
    check(function, make([5, 30], group=4, rotate=rotate, scored=False))


@every_function
@pytest.mark.parametrize("window", [1, 9, 47])
@pytest.mark.parametrize(("group", "dim", "lengths"), [(1, 16, [0, 1, 46]), (3, 24, [8, 23, 9]), (4, 64, [30, 7, 24])])
def test_windows(function, group, dim, lengths, window):
    check(function, make(lengths, group=group, dim=dim, slots=48), window=window, logn_base=512)


@every_function
def test_windows_without_scores(function):
    check(function, make([5, 30], group=4, scored=False), window=12)
    check(function, make([5, 30], group=2, rotate=False), window=12)


@every_function
@pytest.mark.parametrize("group", [1, 4])
def test_a_window_as_wide_as_all_is_none(function, group):
    case = make([9, 30], group=group)
    without, wide = case.copy(DEVICE), case.copy(DEVICE)
    assert torch.equal(without.run(function, scale=0.25), wide.run(function, scale=0.25, window=33))
    assert torch.equal(without.scores, wide.scores)


@every_function
@pytest.mark.parametrize("lengths", [[0, 1], [30, 7]])
def test_log_n(function, lengths):
    check(function, make(lengths, group=2), logn_base=512)


@every_function
@pytest.mark.parametrize(("of", "live"), [("sum", 0), ("sum", 1), ("largest", 0)])
def test_live(function, live, of):
    check(function, make([20, 3], group=2, live=live), of=of)


@every_function
@pytest.mark.parametrize(
    ("of", "beyond", "window"),
    [
        *[("sum", 1, None), ("sum", 17, 20), ("mean", 0, None), ("mean", 17, None)],
        *[("largest", 0, None), ("largest", 1, None), ("largest", 17, 20), ("largest", 50, None)],
    ],
)
def test_means_and_largest_from_afar(function, beyond, window, of):
    case = make([0, 19, 42], group=3)
    case.scores *= 0.1  # so that some are the larger ones, and some are not
    check(function, case, of=of, beyond=beyond, window=window)


@every_function
@pytest.mark.parametrize(("dtype", "group"), [(torch.float16, 4), (torch.bfloat16, 1), (torch.bfloat16, 4)])
@pytest.mark.parametrize("rotate", [True, False])
def test_half_precision_keeps_float32_statistics(function, dtype, group, rotate):
    case = make([19, 42], group=group, dim=64, dtype=dtype, rotate=rotate)
    check(function, case, tolerance=4e-3 if dtype == torch.bfloat16 else 5e-4)
    # The output is rounded, the scores are not.
    received = naive(case, 0.125)[1]
    after = case.copy(DEVICE)
    after.run(function, scale=0.125)
    assert (after.scores.cpu().double() - case.scores - received).norm() < 1e-5 * received.norm()


@every_function
def test_odd_dimension_without_rotation(function):
    check(function, make([9, 4], dim=17, rotate=False))


@every_function
def test_slots_outermost(function):
    """Any strides, as long as the last axis is contiguous."""
    case = make([9, 14], group=2)
    expected, outside = case.copy(DEVICE), case.copy(DEVICE)
    outside.keys = outside.keys.transpose(0, 2).contiguous().transpose(0, 2)
    outside.values = outside.values.transpose(1, 2).contiguous().transpose(1, 2)
    outside.q = outside.q.transpose(1, 2).contiguous().transpose(1, 2)
    a, b = expected.run(function, scale=0.25), outside.run(function, scale=0.25)
    assert torch.allclose(a, b, atol=1e-6)
    assert all(torch.allclose(x, y, atol=1e-6) for x, y in zip(expected.cache, outside.cache, strict=True))


@every_function
def test_logits_of_any_size(function):
    """A softmax that is all but one-hot, and one far from zero."""
    case = make([40, 21], group=2, rotate=False)
    case.q *= 300
    check(function, case, tolerance=2e-5)
    case.keys += 50
    case.k += 50
    after = case.copy(DEVICE)
    assert after.run(function, scale=0.25).isfinite().all()
    assert after.scores.isfinite().all()


@every_function
def test_a_stream_of_steps(function):
    """Scores of several steps add up, and each step sees what the steps before wrote."""
    case = make([0, 6], group=2, slots=20)
    after, expected = case.copy(DEVICE), case.copy()
    for seed in range(6):
        token = make([0, 6], group=2, slots=20 + seed)
        output, received = naive(
            Case(token.q, token.k, token.v, *expected.cache, expected.lengths, case.cos, case.sin), 0.25
        )
        for b, n in enumerate(expected.lengths.tolist()):
            expected.keys[b, :, n], expected.values[b, :, n] = token.k[b], token.v[b]
        expected.scores += received
        expected.lengths += 1
        after.q, after.k, after.v = (t.to(DEVICE) for t in (token.q, token.k, token.v))
        assert torch.allclose(after.run(function, scale=0.25).cpu().double(), output, atol=1e-5)
        after.lengths += 1
    for got, want in zip(after.cache, expected.cache, strict=True):
        assert torch.allclose(got.cpu(), want, atol=1e-5)


@needs_triton
@pytest.mark.parametrize(
    ("group", "changes"),
    [
        (1, {"slots": 8, "splits": 1}),
        (2, {"slots": 4, "splits": 16}),  # more splits than tiles
        (1, {"slots": 1, "splits": 40}),  # more splits than one chunk of the second kernel
        (2, {"slots": 16, "splits": 2, "score_slots": 4}),
        (1, {"splits": 2, "dot": True}),
        (5, {"slots": 8, "splits": 2, "dot": False}),
        (16, {"slots": 16, "splits": 3}),
        (2, {"slots": 16, "splits": 2, "stages": 3, "warps": 8}),
        (1, {}),
        (4, {}),
    ],
)
@pytest.mark.parametrize("lengths", [[0, 44], [15, 16]])
def test_launches(group, changes, lengths):
    """How the work is cut up changes no result."""
    from buzz.kernels.step import Launch

    check(triton_step, make(lengths, group=group, heads=1, dim=24, slots=47), launch=Launch(**changes))


@needs_triton
@pytest.mark.parametrize("window", [None, 1, 5])
def test_garbage_that_is_not_seen_is_not_read(window):
    case = make([3, 11], group=2, slots=32)
    clean = case.copy(DEVICE)
    begins = [0 if window is None else max(0, n + 1 - window) for n in case.lengths.tolist()]
    for b, (begin, n) in enumerate(zip(begins, case.lengths.tolist(), strict=True)):
        for tensor in case.cache:
            tensor[b, :, n:] = tensor[b, :, :begin] = torch.nan
        case.scores[b, :, n] = clean.scores[b, :, n]
    dirty, how = case.copy(DEVICE), {"scale": 0.25, "window": window}
    assert torch.equal(dirty.run(triton_step, **how), clean.run(triton_step, **how))
    for b, (begin, n) in enumerate(zip(begins, case.lengths.tolist(), strict=True)):
        for got, want in zip(dirty.cache, clean.cache, strict=True):
            assert torch.equal(got[b, :, begin : n + 1], want[b, :, begin : n + 1])


@needs_triton
def test_last_axis_must_be_contiguous():
    case = make([3, 4])
    case.keys = case.keys.transpose(2, 3).contiguous().transpose(2, 3)
    with pytest.raises(ValueError, match="contiguous"):
        case.run(triton_step, scale=1.0)


@pytest.mark.parametrize(
    "changes",
    [
        {"k": torch.zeros(2, 3, 16)},
        {"v": torch.zeros(2, 2, 8)},
        {"q": torch.zeros(2, 3, 16)},
        {"values": torch.zeros(2, 2, 7, 16)},
        {"lengths": torch.zeros(1, dtype=torch.int32)},
        {"scores": torch.zeros(2, 4, 8)},
        {"cos": None},
        {"cos": torch.zeros(7, 16), "sin": torch.zeros(7, 16)},
        {"cos": torch.zeros(3, 16), "sin": torch.zeros(3, 16), "own": True},
        {"logn_base": 1.0},
        {"window": 0},
        {"of": "least"},
        {"beyond": -1},
        {"begin": torch.zeros(2, 2, dtype=torch.int32)},
        {"longest": 4},
    ],
    ids=lambda changes: "-".join(changes),
)
def test_refusals(changes):
    case = make([3, 5])
    arguments = {f.name: getattr(case, f.name) for f in fields(case)}
    with pytest.raises(ValueError):
        attend_step(**{**arguments, "scale": 1.0, **changes})


@pytest.mark.parametrize("scored", [True, False])
@pytest.mark.parametrize("rotate", [True, False])
@pytest.mark.parametrize("window", [(), (4,)])
def test_operator(scored, rotate, window):
    """What torch.compile believes about the operator is true: what it changes, its output's shape and dtype."""
    case = make([3, 5], group=2, rotate=rotate, scored=scored, live=1).copy(DEVICE)
    tensors = (case.q, case.k, case.v, case.keys, case.values, case.scores, case.lengths)
    torch.library.opcheck(
        torch.ops.buzz.attend_step.default,
        (*tensors, 0.25, 512.0 if scored else None, case.cos, case.sin, case.live, *window),
    )


@pytest.mark.parametrize("scored", [True, False])
@pytest.mark.parametrize("mode", [torch.no_grad, torch.inference_mode])
def test_compiled(scored, mode):
    """Two layers in one graph without a break: the same bits as without it, in buffers that both are views of."""
    case = make([3, 5], group=2, scored=scored, live=1)

    def layers(q, keys, values, scores, case):
        for i in (0, 2):
            how = {"cos": case.cos, "sin": case.sin, "live": case.live, "window": 4 if i else None}
            own = None if scores is None else scores[i]
            q = attend_step(q, case.k, case.v, keys[i], values[i], own, case.lengths, scale=0.25, **how)
        return q

    def run(function, case):
        buffers = [None if t is None else t._base for t in case.cache]
        with mode():
            return function(case.q, *buffers, case), *(t for t in buffers if t is not None)

    plainly = run(layers, case.copy(DEVICE))
    compiled = run(torch.compile(layers, backend="aot_eager", fullgraph=True), case.copy(DEVICE))
    assert all(torch.equal(a, b) for a, b in zip(plainly, compiled, strict=True))


@pytest.mark.cuda
@pytest.mark.skipif(not CUDA, reason="needs a CUDA device")
@pytest.mark.parametrize("slots", [1024, 8192, 33000])
@pytest.mark.parametrize(("heads", "group", "dim"), [(8, 1, 128), (2, 4, 128), (2, 8, 128), (2, 3, 80), (1, 16, 64)])
@pytest.mark.parametrize("window", [None, 1, 1000])
def test_long_caches(slots, heads, group, dim, window):
    case = make([slots - 1, slots // 3], group=group, heads=heads, dim=dim, slots=slots, dtype=torch.bfloat16)
    how = {"scale": dim**-0.5, "window": window}
    output, received = _on_device(case, **how)
    after, again = case.copy(DEVICE), case.copy(DEVICE)
    got = after.run(attend_step, **how)
    assert (got.double() - output).norm() < 1e-2 * output.norm()
    gained = after.scores.double() - case.scores.to(DEVICE)
    assert (gained - received).norm() < 1e-3 * received.norm()
    assert torch.equal(again.run(attend_step, **how), got)
    assert all(torch.equal(a, b) for a, b in zip(after.cache, again.cache, strict=True))


def _on_device(case: Case, **how) -> tuple[torch.Tensor, torch.Tensor]:
    """Output and what every slot receives in float64, by the reference; the scores start at zero."""
    case = case.copy(DEVICE)
    for name in ("q", "k", "v", "keys", "values", "cos", "sin"):
        setattr(case, name, getattr(case, name).double())
    case.scores = torch.zeros_like(case.scores)
    return case.run(reference.attend_step, **how), case.scores.double()


@pytest.mark.cuda
@pytest.mark.skipif(not CUDA, reason="needs a CUDA device")
def test_replayed_graph_follows_the_lengths():
    """A captured step reads lengths and `live` anew in every replay."""
    case = make([5, 900], group=4, dim=128, slots=1024, dtype=torch.bfloat16, live=1).copy(DEVICE)
    expected = case.copy(DEVICE)
    side = torch.cuda.Stream()
    side.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(side):
        case.copy(DEVICE).run(attend_step, scale=0.1)
    torch.cuda.current_stream().wait_stream(side)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        output = case.run(attend_step, scale=0.1)
    for live in (1, 1, 0, 1):
        case.live.fill_(live)
        expected.live.fill_(live)
        graph.replay()
        assert torch.equal(output, expected.run(attend_step, scale=0.1))
        assert all(torch.equal(a, b) for a, b in zip(case.cache, expected.cache, strict=True))
        case.lengths += live
        expected.lengths += live
