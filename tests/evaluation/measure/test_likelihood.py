"""The likelihood of an answer against a computation sample by sample."""

from __future__ import annotations

import pytest
import torch

import buzz
from buzz.evaluation.errors import ConfigError
from buzz.evaluation.measure.likelihood import answer_nll
from tests.evaluation.toys import POLICIES, Numbers, Toy, job, model_of, naive_logits, numbers

PROMPTS = [numbers(length, length) for length in (30, 14, 2, 22, 1)]
ANSWERS = [numbers(length, 40 + length) for length in (3, 7, 5, 1, 4)]


def jobs_of(policy):
    return [job(prompt, policy, " ".join(map(str, answer))) for prompt, answer in zip(PROMPTS, ANSWERS, strict=True)]


def measured(model, policy, positions):
    with buzz.patch_model(model):
        return answer_nll(model, Numbers(bos=1), Toy(), jobs_of(policy), positions)  # no bos before an answer


def mean_nll(logits: torch.Tensor, answer: list[int]) -> float:
    return float(torch.nn.functional.cross_entropy(logits.double(), torch.tensor(answer)))


@pytest.mark.parametrize("family", ["llama", "opt"])
@pytest.mark.parametrize("positions", ["cache", "original"])
@pytest.mark.parametrize("policy", list(POLICIES))
def test_nll_equals_that_of_each_sample_alone(family, positions, policy):
    model = model_of(family)
    found = measured(model, POLICIES[policy], positions)
    for nll, prompt, answer in zip(found, PROMPTS, ANSWERS, strict=True):
        with buzz.patch_model(model):
            if len(prompt) > 1:
                logits, _ = naive_logits(model, POLICIES[policy], positions, prompt[:-1], [prompt[-1], *answer[:-1]])
                logits = logits[1:]
            else:
                logits, _ = naive_logits(model, POLICIES[policy], positions, prompt, answer[:-1])
        assert nll == pytest.approx(mean_nll(logits, answer), rel=1e-4)


@pytest.mark.parametrize("family", ["llama", "opt"])
def test_the_full_cache_gives_what_the_model_says(family):
    model = model_of(family)
    for nll, prompt, answer in zip(measured(model, POLICIES["full"], None), PROMPTS, ANSWERS, strict=True):
        with torch.no_grad():
            logits = model(torch.tensor([prompt + answer])).logits[0, len(prompt) - 1 : -1]
        assert nll == pytest.approx(mean_nll(logits, answer), rel=1e-4)


def test_the_first_token_comes_from_the_compressed_cache():
    model = model_of("llama")
    prompt = numbers(40, 1)
    short = [job(prompt, POLICIES[policy], "17") for policy in ("full", "streaming")]
    with buzz.patch_model(model):
        full, evicted = (answer_nll(model, Numbers(), Toy(), [one], None)[0] for one in short)
    assert abs(full - evicted) > 1e-3


def test_an_answer_past_the_models_positions_is_cut():
    model = model_of("opt")  # 256 positions
    prompt, answer = numbers(250, 5), numbers(20, 6)
    with buzz.patch_model(model):
        one = job(prompt, POLICIES["full"], " ".join(map(str, answer)))
        (nll,) = answer_nll(model, Numbers(), Toy(), [one], "original")
    with torch.no_grad():
        logits = model(torch.tensor([prompt + answer[:6]])).logits[0, 249:]
    assert nll == pytest.approx(mean_nll(logits, answer[:7]), rel=1e-4)


@pytest.mark.parametrize("answer", [None, ""])
def test_a_sample_without_an_answer_is_refused(answer):
    model = model_of("llama")
    with buzz.patch_model(model), pytest.raises(ConfigError, match=r"sample 'x' has no answer"):
        answer_nll(model, Numbers(), Toy(), [job([5, 6], POLICIES["full"], answer, "x")], None)
