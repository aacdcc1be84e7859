"""Fidelity against a computation sample by sample."""

from __future__ import annotations

import pytest
import torch

import buzz
from buzz.evaluation.measure import fidelity as module
from buzz.evaluation.measure.fidelity import FullLogits, fidelity, follow_batch, full_logits
from tests.evaluation.toys import END, POLICIES, job, model_of, naive_logits, numbers

PROMPTS = [numbers(length, length) for length in (30, 14, 22, 1)]
ANSWERS = [numbers(9, 1), [*numbers(4, 2), END], [END], numbers(6, 3)]  # ragged; ends are tokens like all others
REFERENCES = [{"output_ids": ids, "output": " ".join(map(str, ids))} for ids in ANSWERS]


def full_distributions(model, prompt: list[int], answer: list[int]) -> torch.Tensor:
    """Float64 log-probabilities [T, V] of the model, not patched, for each token of an answer."""
    with torch.no_grad():
        logits = model(torch.tensor([prompt + answer])).logits[0]
    return logits[len(prompt) - 1 : -1].double().log_softmax(-1)


def measured(model, policy, positions):
    jobs = [job(prompt, policy) for prompt in PROMPTS]
    with buzz.patch_model(model):
        return fidelity(model, jobs, positions, REFERENCES, REFERENCES)


@pytest.mark.parametrize("family", ["llama", "opt"])
@pytest.mark.parametrize("positions", ["cache", "original"])
@pytest.mark.parametrize("policy", list(POLICIES))
def test_distances_equal_those_of_each_sample_alone(family, positions, policy):
    model = model_of(family)
    found = measured(model, POLICIES[policy], positions)
    for metrics, prompt, answer in zip(found, PROMPTS, ANSWERS, strict=True):
        p = full_distributions(model, prompt, answer)
        with buzz.patch_model(model):
            logits, _ = naive_logits(model, POLICIES[policy], positions, prompt, answer[:-1])
        q = logits.double().log_softmax(-1)
        kl = torch.nn.functional.kl_div(q, p, log_target=True, reduction="sum") / len(answer)
        assert metrics["fidelity_kl"] == pytest.approx(float(kl), rel=1e-3, abs=1e-6)
        assert metrics["fidelity_top1"] == pytest.approx(float((p.argmax(-1) == q.argmax(-1)).double().mean()))
        assert metrics["fidelity_rougeL"] == 1.0
    evicted = [metrics["fidelity_kl"] for metrics in found[:2]]
    if policy == "full":
        assert max(metrics["fidelity_kl"] for metrics in found) < 1e-6
        assert {metrics["fidelity_top1"] for metrics in found} == {1.0}
    else:
        assert min(evicted) > 1e-3
    assert 0 <= found[2]["fidelity_kl"] < 1e-6  # a single token is predicted before anything is evicted


def test_some_policy_disagrees_on_some_token():
    assert min(metrics["fidelity_top1"] for metrics in measured(model_of("llama"), POLICIES["buzz"], None)) < 1


@pytest.mark.parametrize("family", ["llama", "opt"])
def test_reference_logits_of_a_ragged_batch(family):
    model = model_of(family)
    with torch.inference_mode(), buzz.patch_model(model):
        block = full_logits(model, PROMPTS, ANSWERS)
    for row, (prompt, answer) in enumerate(zip(PROMPTS, ANSWERS, strict=True)):
        expected = full_distributions(model, prompt, answer).float()
        torch.testing.assert_close(block[row, : len(answer)].log_softmax(-1), expected, atol=1e-4, rtol=1e-4)


def test_half_precision_is_measured_in_float32():
    model = model_of("llama").to(torch.bfloat16)
    for metrics in measured(model, POLICIES["full"], "original"):
        assert 0 <= metrics["fidelity_kl"] < 0.02
        assert isinstance(metrics["fidelity_kl"], float)


@pytest.mark.parametrize(
    ("output", "reference", "expected"),
    [("", "", 1.0), ("", "\n", 1.0), ("a b", "", 0.0), ("a b c", "a b c", 1.0), ("a b c d", "a x b y", 0.5)],
)
def test_rouge_of_two_answers(output, reference, expected):
    model = model_of("llama")
    with buzz.patch_model(model):
        one = job(PROMPTS[1], POLICIES["full"])
        found = fidelity(model, [one], None, [{"output": output}], [{"output": reference, "output_ids": [5]}])
    assert found[0]["fidelity_rougeL"] == pytest.approx(expected, abs=1e-6)


@pytest.mark.parametrize("policy", ["full", "h2o", "buzz"])
def test_who_follows_is_as_near_as_who_answers(policy):
    model, jobs = model_of("llama"), [job(prompt, POLICIES[policy]) for prompt in PROMPTS]
    near = measured(model, POLICIES[policy], None)
    with buzz.patch_model(model):
        records = follow_batch(model, jobs, None, REFERENCES)
        for record, metrics, prompt, answer in zip(records, near, PROMPTS, ANSWERS, strict=True):
            assert record["metrics"] == {name: metrics[name] for name in ("fidelity_kl", "fidelity_top1")}
            assert (record["output_ids"], record["new_tokens"], record["prompt_tokens"]) == (
                answer,
                len(answer),
                len(prompt),
            )
            assert "output" not in record
            lengths = naive_logits(model, POLICIES[policy], None, prompt, answer[:-1])[1]
            own = lengths[1:] or lengths
            assert record["cache"]["mean_tokens"] == pytest.approx(sum(own) / len(own))


def test_the_full_caches_logits_are_computed_once(monkeypatch):
    model, computed = model_of("llama"), []
    real = module.full_logits
    monkeypatch.setattr(module, "full_logits", lambda *a: computed.append(1) or real(*a))
    jobs = [job(prompt, POLICIES["h2o"]) for prompt in PROMPTS]
    with buzz.patch_model(model):
        plain = fidelity(model, jobs, None, REFERENCES, REFERENCES)
        kept, none = FullLogits(model), FullLogits(model, most=100)
        for logits, calls in ((kept, 1), (none, 3)):
            computed.clear()
            for _ in range(3):
                assert fidelity(model, jobs, None, REFERENCES, REFERENCES, None, logits) == plain
            assert len(computed) == calls
        kept(PROMPTS[:2], ANSWERS[:2])  # another batch
        assert len(computed) == 4
