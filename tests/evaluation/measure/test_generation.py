"""Greedy answers of ragged batches, each row under a policy of its own, and what the records say of the cache."""

from __future__ import annotations

from itertools import pairwise
from types import SimpleNamespace

import pytest
import torch
from transformers import Gemma3TextConfig

import buzz
from buzz.evaluation.measure import generation
from buzz.evaluation.measure.batch import CURVE_POINTS, Held, cache_figures, new_cache
from buzz.evaluation.measure.generation import encode_question, generate_batch
from buzz.evaluation.memory import full_means, slot_bytes
from buzz.evaluation.tasks import Sample
from tests.evaluation.tiny import byte_tokenizer
from tests.evaluation.toys import END, POLICIES, Numbers, Toy, job, model_of, naive_logits, numbers


def naive_answer(model, policy, positions, prompt: list[int], most: int) -> list[int]:
    """Token by token, each found by reading all before it through a new cache."""
    answer: list[int] = []
    while len(answer) < most and END not in answer:
        logits, _ = naive_logits(model, policy, positions, prompt, answer)
        answer.append(int(logits[-1].argmax()))
    return answer


def set_end(model, answers: list[list[int]]) -> int:
    """Make an end of a token that one answer says in its middle and another never says; returns its row."""
    row, token = next(
        (row, token)
        for row, ids in enumerate(answers)
        for at, token in enumerate(ids)
        if 1 < at < len(ids) - 1 and token not in ids[:at] and any(token not in other for other in answers)
    )
    model.generation_config.eos_token_id = [END, token]
    return row


@pytest.mark.parametrize("family", ["llama", "opt"])
@pytest.mark.parametrize("positions", ["cache", "original"])
@pytest.mark.parametrize("policy", ["full", "streaming", "buzz"])
def test_a_ragged_batch_answers_as_each_row_alone(family, positions, policy):
    model = model_of(family)
    jobs = [job(numbers(length, length), POLICIES[policy]) for length in (33, 12, 24)]
    with buzz.patch_model(model):
        records = generate_batch(model, Numbers(), Toy(), jobs, positions, 14)
        calls = max(record["new_tokens"] for record in records) - 1
        for one, record in zip(jobs, records, strict=True):
            answer = naive_answer(model, one.policy, positions, one.prompt.ids, 14)
            assert record["output_ids"] == answer
            assert record["output"] == " ".join(str(token) for token in answer if token != END)
            trace = one.policy.trace(len(one.prompt.ids), calls)
            assert tokens_of(record) == figures_of(trace, len(one.prompt.ids), len(answer))
            assert record["metrics"] == {"words": len(record["output"].split())}


def test_each_row_has_a_policy_of_its_own():
    model = model_of("llama")
    prompts = [numbers(length, length) for length in (40, 25, 31)]
    policies = [buzz.make_policy("buzz", sink=2, window=6, stride=s, threshold=t) for s, t in [(3, 5), (5, 9), (3, 12)]]
    jobs = [job(ids, policy) for ids, policy in zip(prompts, policies, strict=True)]
    with buzz.patch_model(model):
        together = generate_batch(model, Numbers(), Toy(), jobs, None, 20)
        alone = [generate_batch(model, Numbers(), Toy(), [one], None, 20)[0] for one in jobs]
    for record, single in zip(together, alone, strict=True):
        same = {"seconds": 0, "cache": None}
        assert record | same == single | same
        assert tokens_of(record) == tokens_of(single)
    assert [record["policy"]["stride"] for record in together] == [3, 5, 3]
    assert len({record["cache"]["mean_tokens"] for record in together}) == 3


def figures_of(lengths, prompt_tokens, new_tokens):
    """What a record says of tokens, where heads are equal, after the prompt and each of the batch's calls.

    Of the calls after the row's own end only the lengths of heads tell, which are those that the cache has at last.
    """
    held = Held(lengths, lengths, {"longest_head": lengths[-1], "shortest_head": lengths[-1]})
    return tokens_of(
        {"cache": cache_figures(held, prompt_tokens, new_tokens, lambda grown: (sum(grown) / len(grown), 0))}
    )


def tokens_of(record):
    """Without bytes: the share of a row depends on the rows beside it."""
    return {key: value for key, value in record["cache"].items() if "bytes" not in key}


def test_a_row_ends_at_its_own_end():
    model, policy = model_of("llama"), POLICIES["streaming"]
    jobs = [job(numbers(length, length), policy) for length in (20, 28, 15, 22)]
    with buzz.patch_model(model):
        said = [record["output_ids"] for record in generate_batch(model, Numbers(), Toy(), jobs, None, 12)]
        row = set_end(model, said)
        ended = generate_batch(model, Numbers(), Toy(), jobs, None, 12)
    end = said[row].index(model.generation_config.eos_token_id[1])
    assert ended[row]["output_ids"] == said[row][: end + 1]  # the end itself included
    assert ended[row]["output"] == " ".join(map(str, said[row][:end]))
    assert ended[row]["new_tokens"] == end + 1
    tokens = len(jobs[row].prompt.ids)
    assert tokens_of(ended[row]) == figures_of(policy.trace(tokens, 11), tokens, end + 1)
    assert max(record["new_tokens"] for record in ended) == 12


def test_cache_figures_of_a_single_new_token():
    assert cache_figures(Held([30, 31, 32], [900, 910, 920]), 50, 1, lambda lengths: (*lengths, 500)) == {
        **{"mean_tokens": 30, "peak_tokens": 30, "full_mean_tokens": 50},
        **{"mean_bytes": 900, "peak_bytes": 900, "full_mean_bytes": 500, "curve": [[0, 30]]},
    }


def test_cache_figures_are_of_the_samples_own_calls():
    full = {(51, 52): (51.5, 515)}
    assert cache_figures(Held([30, 31, 33, 99], [400, 400, 500, 999]), 50, 3, lambda grown: full[tuple(grown)]) == {
        **{"mean_tokens": 32, "peak_tokens": 33, "full_mean_tokens": 51.5, "curve": [[1, 31], [2, 33]]},
        **{"mean_bytes": 450, "peak_bytes": 500, "full_mean_bytes": 515},
    }


def toy(**changes):
    """What is asked of a model: two layers of one head of 8, bfloat16, so 32 bytes a token and layer."""
    sizes = {"num_hidden_layers": 2, "num_attention_heads": 2, "num_key_value_heads": 1, "head_dim": 8}
    return SimpleNamespace(config=Gemma3TextConfig(**sizes, **changes), dtype=torch.bfloat16)


def test_a_full_cache_keeps_no_more_of_a_window_than_can_be_seen():
    lengths = [6, 7, 8, 9]  # in a window of 8: 6, 7, 7, 7
    full, sliding = ["full_attention"], ["sliding_attention"]
    assert full_means(toy(layer_types=full * 2), lengths) == (7.5, 7.5 * 64)
    assert full_means(toy(layer_types=sliding + full, sliding_window=8), lengths) == (7.5, (7.5 + 6.75) * 32)
    assert full_means(toy(layer_types=sliding * 2, sliding_window=8), lengths) == (6.75, 6.75 * 64)


def test_a_window_has_no_scores():
    model = toy(layer_types=["sliding_attention", "full_attention"], sliding_window=8)
    assert slot_bytes(model, POLICIES["h2o"]) == 64 + 4


@pytest.mark.parametrize("family", ["llama", "opt"])
@pytest.mark.parametrize("name", list(POLICIES))
def test_bytes_are_those_of_the_tensors_that_the_cache_holds(family, name, monkeypatch):
    """Counted from outside, after every call, tensor by tensor; alone, a row's share is all of it."""
    model, one = model_of(family), job(numbers(30, 1), POLICIES[name])
    seen, caches = [], []
    monkeypatch.setattr(generation, "new_cache", lambda *given: caches.append(new_cache(*given)) or caches[-1])

    def count(*_):
        layers = caches[0].layers
        tensors = [getattr(layer, key, None) for layer in layers for key in ("keys", "values", "scores")]
        seen.append(sum(t.numel() * t.element_size() for t in tensors if t is not None))

    with buzz.patch_model(model):
        model.register_forward_hook(count)
        (record,) = generate_batch(model, Numbers(), Toy(), [one], None, 20)
    own = seen[1 : record["new_tokens"]]
    assert record["cache"]["mean_bytes"] == sum(own) / len(own)
    assert record["cache"]["peak_bytes"] == max(own)
    config = model.config
    heads = getattr(config, "num_key_value_heads", None) or config.num_attention_heads
    token = 2 * config.num_hidden_layers * heads * (config.hidden_size // config.num_attention_heads) * 4
    assert record["cache"]["full_mean_bytes"] == token * record["cache"]["full_mean_tokens"]
    assert slot_bytes(model, POLICIES[name]) == token + 4 * heads * config.num_hidden_layers * (name in ("h2o", "buzz"))


@pytest.mark.parametrize("calls", [2, 255, 256, 257, 1000])
def test_the_curve_has_both_ends_and_few_points(calls):
    curve = figures_of([1000 + call for call in range(calls + 1)], 1000, calls + 1)["curve"]
    assert len(curve) == min(calls, CURVE_POINTS)
    assert curve[0] == [1, 1001]
    assert curve[-1] == [calls, 1000 + calls]
    assert all(tokens == 1000 + call for call, tokens in curve)
    steps = {b[0] - a[0] for a, b in pairwise(curve)}
    assert min(steps) > 0
    assert max(steps) - min(steps) <= 1


def test_a_long_prompt_loses_its_middle():
    sample = Sample("a", "3 4 5 6 7 8 9", None, {})
    prompt = encode_question(Numbers(), sample, False, 4)
    assert (prompt.ids, prompt.truncated) == ([3, 4, 8, 9], True)
    assert encode_question(Numbers(), sample, False, 7).truncated is False


def test_an_answer_goes_on_after_its_prefix():
    tokenizer = byte_tokenizer()
    sample = Sample("a", "Who?", "a bee", {}, context="Wh", prefix="It was")
    assert sample.text == "Who? It was"
    assert Sample("b", "Who? ", "", {}, prefix="It was").text == "Who? It was"
    assert Sample("b", "Who?", "", {}).text == "Who?"
    raw = encode_question(tokenizer, sample, False, None)
    assert tokenizer.decode(raw.ids) == "Who? It was"
    chat = encode_question(tokenizer, sample, True, None)
    assert tokenizer.decode(chat.ids) == "<user>Who?<end><bot>It was"
    assert (raw.context, chat.context) == (2, 3)
    assert raw.hash == chat.hash != encode_question(tokenizer, Sample("a", "Who?", "a bee", {}), False, None).hash
