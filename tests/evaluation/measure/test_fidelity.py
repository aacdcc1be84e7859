"""Fidelity against a computation sample by sample."""

from __future__ import annotations

import pytest
import torch

import buzz
from buzz.evaluation.measure.fidelity import fidelity, full_logits
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
