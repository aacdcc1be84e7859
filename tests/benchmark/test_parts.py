"""The arithmetic of the benchmark: what steps, evictions, searches and profiles come to."""

from __future__ import annotations

import itertools

import pytest
import torch

import buzz
from buzz.benchmark.clocks import Clock, Marks, attempt, generate, timed
from buzz.benchmark.config import SHAPES, BenchModel
from buzz.benchmark.decoding import ENDLESS, WARM, slots_seen, step_figures, steps_to_measure
from buzz.benchmark.kernels import reference
from buzz.benchmark.model import load, weight_bytes
from buzz.benchmark.prompts import largest
from buzz.benchmark.tables import section_lines
from buzz.benchmark.waits import Watched, count_calls
from buzz.cache import Shape
from buzz.evaluation.errors import ConfigError
from buzz.evaluation.memory import token_bytes
from tests.conftest import tiny_llama, tokens

CPU = Clock(torch.device("cpu"))


# --- steps and evictions ---------------------------------------------------------------------------------------------


def cycle(evict_in_next_step: bool) -> tuple[list[float], list[int]]:
    """Four cycles of ten steps of 10 ms, with an eviction of 5 ms in each; lengths before and after every step."""
    times, lengths = [0.010] * 41, [10]
    for step in range(41):
        evicted = step % 10 == 9
        lengths.append(10 if evicted else lengths[-1] + 1)
        if evicted:
            times[step + evict_in_next_step] += 0.005
    return times, lengths


def test_answers_of_a_fixed_length_have_no_end_of_sequence():
    model = tiny_llama()
    model.generation_config.eos_token_id = list(range(model.config.vocab_size))
    how = {"max_new_tokens": 5, "do_sample": False}
    assert model.generate(tokens(1, 4), **how).shape[1] == 5
    assert model.generate(tokens(1, 4), **how, **ENDLESS).shape[1] == 9


@pytest.mark.parametrize("late", [False, True])
def test_share_of_evictions(late):
    figures = step_figures(*cycle(late))
    assert figures["evictions"] == 4
    assert figures["ms_median"] == pytest.approx(10)
    assert figures["eviction_ms"] == pytest.approx(5)
    assert figures["ms_mean"] == pytest.approx(10.5)  # over whole cycles: 105 ms a cycle of ten
    assert figures["eviction_share"] == pytest.approx(5 / 105)


def test_without_evictions_the_mean_is_over_all_steps():
    figures = step_figures([0.01, 0.03, 0.02], [5, 6, 7, 8])
    assert figures["ms_mean"] == pytest.approx(20)
    assert figures["ms_slowest"] == pytest.approx(30)
    assert figures["mean_length"] == 7  # 6, 7 and 8 slots take part in the three steps
    assert figures["eviction_share"] is None


def test_evictions_in_every_step_have_no_share():
    figures = step_figures([0.01] * 6, [8] * 7)
    assert figures["evictions"] == 6
    assert figures["eviction_share"] is None


def test_steps_hold_three_evictions():
    policy = buzz.make_policy("buzz", sink=2, window=8, stride=3, threshold=12)
    n = steps_to_measure(policy, [100], least=4)
    trace = policy.trace(100, WARM + n)[WARM:]
    evictions = sum(after <= before for before, after in itertools.pairwise(trace))
    assert evictions == 3
    assert trace[-1] <= trace[-2]  # the last step is the third one
    assert steps_to_measure(policy, [100], least=n + 5) == n + 5
    assert steps_to_measure(buzz.make_policy("full"), [100], least=7) == 7
    assert steps_to_measure(None, [100], least=7) == 7


# --- generate() watched ----------------------------------------------------------------------------------------------


def test_marks_end_after_their_steps():
    model = tiny_llama()
    model.generation_config.eos_token_id = None
    marks = Marks(CPU, warm=2, steps=5)
    generate(model, tokens(2, 7), None, 50, marks)
    assert len(marks.times()) == 5
    assert min(marks.times()) > 0


def test_marks_end_when_the_time_is_over():
    model = tiny_llama()
    model.generation_config.eos_token_id = None
    marks = Marks(CPU, warm=1, steps=40, seconds=1e-9)
    generate(model, tokens(1, 7), None, marks.tokens, marks)
    assert len(marks.times()) == 1


def test_marks_ignore_a_loop_that_comes_once_more():
    marks, ids = Marks(CPU, warm=0, steps=2), tokens(2, 3)
    answers = [marks(ids, None).tolist() for _ in range(4)]
    assert answers == [[False] * 2, [False] * 2, [True] * 2, [True] * 2]
    assert len(marks.times()) == 2


def test_waits_are_counted_between_steps():
    model = tiny_llama()
    model.generation_config.eos_token_id = None
    reads = 3

    def wait(module, args, output):
        for _ in range(reads):
            output.last_hidden_state.sum().item()

    model.model.register_forward_hook(wait)
    watched = Watched(CPU, warm=2, steps=4)
    generate(model, tokens(1, 7), None, watched.tokens, watched)
    calls = watched.calls()
    assert calls["drains_per_step"] == calls["event_waits_per_step"] == 0  # no CUDA runtime here
    assert reads <= calls["calls"]["aten::item"] <= reads + 3  # generate() has some of its own


def test_an_early_end_is_no_profile():
    model = tiny_llama()
    model.generation_config.eos_token_id = None
    watched = Watched(CPU, warm=2, steps=4)
    generate(model, tokens(1, 7), None, 2, watched)
    with pytest.raises(RuntimeError, match="ended after 2 tokens"):
        watched.calls()


def test_which_calls_count():
    events = [
        ("cudaStreamSynchronize", 0.5),  # before
        ("cudaStreamSynchronize", 2.0),
        ("cudaLaunchKernel", 2.1),
        ("Memcpy DtoH (Device -> Pageable)", 2.2),
        ("Memcpy DtoH (Device -> Pinned)", 2.3),
        ("Memcpy HtoD (Pageable -> Device)", 2.3),
        ("cudaEventSynchronize", 2.4),
        ("aten::item", 3.0),
        ("cudaDeviceSynchronize", 9.0),  # the profiler's own, after
    ]
    counts = {"cudaStreamSynchronize": 1, "cudaEventSynchronize": 1, "Memcpy DtoH": 2, "aten::item": 1}
    assert count_calls(events, 1.0, 4.0) == counts


# --- failures and searches -------------------------------------------------------------------------------------------


def raising(error: BaseException):
    def call(*args, **kwargs):
        raise error

    return call


def test_failures_are_results():
    assert attempt(lambda: {"ms": 1.0}) == {"ms": 1.0}
    assert attempt(raising(torch.OutOfMemoryError("CUDA out of memory. Tried"))) == {"failed": "out of memory"}
    assert attempt(raising(RuntimeError("CUBLAS_STATUS_ALLOC_FAILED"))) == {"failed": "out of memory"}
    assert attempt(raising(ValueError("no such\nthing"))) == {"failed": "ValueError: no such thing"}
    with pytest.raises(KeyboardInterrupt):
        attempt(raising(KeyboardInterrupt()))


@pytest.mark.parametrize("known", [False, True], ids=["doubling", "by memory"])
@pytest.mark.parametrize("room", [0, 1, 3, 4, 5, 17, 100, 300])
def test_largest_batch(room, known):
    tried = []

    def fits(batch):
        tried.append(batch)
        return batch <= room, batch / room if known and batch <= room else None

    found = largest(fits, start=4, limit=256)
    assert found <= room
    assert found >= int(min(room, 256) * (0.9 if known else 15 / 16))
    assert len(tried) == len(set(tried)) <= 14
    assert max(tried) <= 256


def test_timed_repeats_within_its_time():
    calls = []
    assert len(timed(lambda: calls.append(1), CPU, repeats=5)) == 5
    assert len(calls) == 6  # one does not count
    assert len(timed(lambda: None, CPU, repeats=50, seconds=1e-9)) == 3
    assert len(timed(lambda: None, CPU, repeats=2, seconds=1e-9)) == 2


# --- the model and its bytes -----------------------------------------------------------------------------------------


def test_a_shape_is_made_with_its_weights():
    model, tokenizer, info = load(BenchModel(shape="tiny", device="cpu"), seed=3)
    again, _, _ = load(BenchModel(shape="tiny", device="cpu", dtype="bfloat16"), seed=3)
    assert tokenizer is None
    assert info["shape"] == "tiny"
    assert again.dtype == torch.bfloat16
    assert model.generation_config.eos_token_id == 128  # no token: nothing ends, but a loop has to look
    weights = model.model.layers[0].self_attn.q_proj.weight
    assert 0.01 < weights.std() < 0.03
    assert model.model.norm.weight.unique().tolist() == [1.0]
    logits = model(torch.arange(9)[None]).logits
    assert logits.isfinite().all()
    assert logits.std() > 0.01


def test_bytes():
    model, _, _ = load(BenchModel(shape="tiny", device="cpu"), seed=0)
    shape = SHAPES["tiny"]
    embeddings = shape["vocab_size"] * shape["hidden_size"]
    assert weight_bytes(model) == 4 * (model.num_parameters() - embeddings)
    assert token_bytes(model) == 2 * 2 * 2 * 16 * 4  # k and v, layers, heads, their width, float32


def test_a_shape_too_large_for_the_memory(monkeypatch):
    from transformers import LlamaForCausalLM

    monkeypatch.setattr(LlamaForCausalLM, "_from_config", raising(torch.OutOfMemoryError("CUDA out of memory")))
    with pytest.raises(ConfigError, match=r"model\.shape: tiny does not fit into the free memory of cpu"):
        load(BenchModel(shape="tiny", device="cpu"), seed=0)


# --- the reference of the kernels ------------------------------------------------------------------------------------


@pytest.mark.parametrize("groups", [1, 4])
def test_reference_of_a_prompt(groups, monkeypatch):
    monkeypatch.setattr("buzz.benchmark.kernels._CHUNK_ELEMENTS", 300)  # several chunks
    generator = torch.Generator().manual_seed(groups)
    q = torch.randn(1, 2 * groups, 21, 8, generator=generator)
    k, v = (torch.randn(1, 2, 21, 8, generator=generator) for _ in range(2))
    output, scores, lse = reference(q, k, v, 0.3)
    many = (t.repeat_interleave(groups, 1).double() for t in (k, v))
    keys, values = many
    hidden = torch.ones(21, 21, dtype=torch.bool).triu(1)
    logits = (q.double() @ keys.transpose(2, 3) * 0.3).masked_fill(hidden, -torch.inf)
    probs = logits.softmax(-1)
    torch.testing.assert_close(output, (probs @ values).float())
    torch.testing.assert_close(lse, logits.logsumexp(-1).float())
    torch.testing.assert_close(scores, probs.sum(2).unflatten(1, (2, groups)).sum(2).float())


# --- tables ----------------------------------------------------------------------------------------------------------


def test_tables_have_ratios_and_reasons():
    rows = [
        {"length": 2048, "method": "dynamic", "ms": 20.0, "peak_gib": 2.0},
        {"length": 1024, "method": "dynamic", "ms": 8.0, "peak_gib": 1.0},
        {"length": 2048, "method": "eager", "failed": "out of memory"},
        {"length": 1024, "method": "buzz", "ms": 6.0, "peak_gib": 0.5},
    ]
    lines = section_lines("prefill", rows)
    assert lines.index("**length 1024**") < lines.index("**length 2048**")
    assert "| buzz | 6.0 | 0.750 | 0.50 | 0.500 |" in lines
    assert "| eager | out of memory | - | - | - |" in lines


def test_a_step_reads_no_more_of_a_layer_than_its_window():
    shape = Shape(layers=3, heads=2, head_dim=4, windows=(512, None, 512))
    assert slots_seen(shape, 430.5, 4096) == [512, 430.5, 512]
    assert slots_seen(shape, 430.5, 100) == [100, 430.5, 100]
