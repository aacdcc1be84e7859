"""lm-eval with evicting caches: against its own model, against the policy's integers, and between batch sizes."""

from __future__ import annotations

import json
from types import SimpleNamespace
from typing import Any

import pytest

import buzz
from buzz.evaluation.errors import ConfigError

pytest.importorskip("lm_eval")

SMALL: dict[str, Any] = {"policy": "streaming", "budget": 12}


def answers(results: dict[str, Any]) -> dict[str, list[Any]]:
    """What the model gave for each document, by task."""
    return {task: [sample["resps"] for sample in samples] for task, samples in results["samples"].items()}


def flat(value: Any) -> list[Any]:
    return [x for part in value for x in flat(part)] if isinstance(value, list | tuple) else [value]


def near(one: dict[str, Any], other: dict[str, Any], task: str) -> bool:
    ours, theirs = flat(answers(one)[task]), flat(answers(other)[task])
    pairs = zip(ours, theirs, strict=True)
    return all(a == pytest.approx(b, rel=1e-6, abs=1e-4) if isinstance(a, float) else a == b for a, b in pairs)


@pytest.fixture(scope="module")
def hf(evaluate):
    return evaluate("hf")


@pytest.fixture(scope="module")
def streaming(evaluate, tmp_path_factory):
    log = tmp_path_factory.mktemp("log") / "deep" / "cache.jsonl"
    results = evaluate("buzz", 4, **SMALL, cache_log=str(log))
    return results, [json.loads(line) for line in log.read_text().splitlines()]


@pytest.fixture(scope="module")
def lm(evaluate, model_folder):
    """The model itself, by its name in lm-eval."""
    from lm_eval.api.registry import get_model

    def make(name: str, **arguments: Any) -> Any:
        common = {"pretrained": str(model_folder), "dtype": "float32", "device": "cpu", "batch_size": 2}
        return get_model(name)(**common, **arguments)

    return make


TASKS = ["buzz_choice", "buzz_answer", "buzz_rolling"]


@pytest.mark.parametrize("batch", [1, 4])
def test_the_full_cache_is_lm_evals_own_model(evaluate, hf, batch, recwarn):
    full = evaluate("buzz", batch, policy="full")
    for task in TASKS:
        assert near(full, hf, task), task
        for metric in {"acc,none", "exact_match,none", "word_perplexity,none"} & hf["results"][task].keys():
            assert full["results"][task][metric] == pytest.approx(hf["results"][task][metric], rel=1e-5)
    assert not [warning for warning in recwarn if "full cache" in str(warning.message)]
    told = full["config"]["buzz"]["tasks"]
    assert all(told[task]["evicted"] == 0 and told[task]["reduction"] == 1 for task in TASKS)


def test_an_evicting_cache_gives_other_numbers(hf, streaming):
    for task in TASKS:
        assert not near(streaming[0], hf, task), task


@pytest.mark.parametrize("policy", [SMALL, {"policy": "h2o", "budget": 0.4}, {"policy": "comb", "reduction": 3.0}])
def test_batches_change_nothing(evaluate, streaming, policy):
    tasks = "choice answer rolling" if policy is SMALL else "choice answer"
    together = streaming[0] if policy is SMALL else evaluate("buzz", 4, tasks, **policy)
    alone = evaluate("buzz", 1, tasks, **policy)
    for task in answers(alone):
        assert near(together, alone, task), task
        figures, others = (results["config"]["buzz"]["tasks"][task] for results in (together, alone))
        assert figures == pytest.approx(others, rel=1e-6)


def test_batches_as_large_as_fit(evaluate, streaming):
    found = evaluate("buzz", "auto", max_batch_size=2, **SMALL)
    for task in TASKS:
        assert near(found, streaming[0], task), task


def test_every_cache_is_as_long_as_the_policy_says(streaming):
    results, lines = streaming
    policy = buzz.POLICIES["streaming"].from_budget(12)
    for line in lines:
        trace = policy.trace(line["first_tokens"], line["steps"])
        expected = [[call, length] for call, length in enumerate(trace) if call or not line["steps"]]
        assert line["cache"]["curve"] == expected[-len(line["cache"]["curve"]) :]
        assert (line["evicted"], line["positions"]) == (True, "cache")
        assert line["policy"] == {"name": "streaming", "sink": 4, "window": 8}
    told = results["config"]["buzz"]
    assert told["method"] == {"policy": "streaming", "params": {}, "budget": 12}
    for task in TASKS:
        own = [line for line in lines if line["task"] == task]
        figures = told["tasks"][task]
        assert figures["requests"] == figures["evicted"] == len(own)
        assert figures["documents"] == len({line["doc_id"] for line in own}) == len(results["samples"][task])
        assert figures["mean_tokens"] == pytest.approx(sum(line["cache"]["mean_tokens"] for line in own) / len(own))
        assert figures["peak_tokens"] == max(line["cache"]["peak_tokens"] for line in own) == 12


def test_lines_belong_to_their_requests(streaming, hf):
    """A byte is a token here, so lengths tell which text a line is about."""
    results, lines = streaming
    for sample in results["samples"]["buzz_choice"]:
        own = [line for line in lines if line["task"] == "buzz_choice" and line["doc_id"] == sample["doc_id"]]
        assert [line["index"] for line in own] == list(range(len(sample["arguments"])))
        for line, (context, continuation) in zip(own, sample["arguments"], strict=True):
            assert (line["first_tokens"], line["steps"]) == (len(context) - 1, len(continuation))
    for sample in results["samples"]["buzz_answer"]:
        (line,) = [line for line in lines if line["task"] == "buzz_answer" and line["doc_id"] == sample["doc_id"]]
        assert line["first_tokens"] == len(sample["arguments"][0][0])
        assert line["steps"] <= 11
    for sample in results["samples"]["buzz_rolling"]:
        own = [line for line in lines if line["task"] == "buzz_rolling" and line["doc_id"] == sample["doc_id"]]
        length = len(sample["arguments"][0][0])
        assert len(own) == -(-length // 100)
        assert own[0]["first_tokens"] == 1
        assert sum(line["steps"] + 1 for line in own[:1]) == min(length, 100)


def test_a_cache_that_lets_go_of_nothing_is_told(evaluate):
    with pytest.warns(UserWarning, match="buzz_choice: the policy let go of nothing in any of 14 requests"):
        results = evaluate("buzz", tasks="choice", policy="h2o", budget=1000)
    assert results["config"]["buzz"]["tasks"]["buzz_choice"]["evicted"] == 0
    with pytest.warns(UserWarning, match="buzz_rolling: the policy let go of nothing"):
        evaluate("buzz", tasks="rolling", policy="snapkv", budget=8)  # it compresses prompts alone


def test_generation_stops_where_lm_eval_says(hf, streaming):
    """Tokens behind a stop sequence, or an end, are not the answer's."""
    from buzz.harness.model import BuzzLM
    from tests.evaluation.tiny import byte_tokenizer

    tokenizer = byte_tokenizer()
    ids = tokenizer("stop here and now")["input_ids"]
    model = SimpleNamespace(generation_config=SimpleNamespace(eos_token_id=[1, 3]))
    lm = SimpleNamespace(model=model, tokenizer=tokenizer)
    for stop, count in (([" and"], len("stop here and")), (["e h", "p"], 4), (["x", ""], len(ids))):
        assert BuzzLM._own_tokens(lm, ids, stop) == count
    assert BuzzLM._own_tokens(lm, [*ids[:3], 3, 0, 0], ["here"]) == 4
    model.generation_config.eos_token_id = None
    assert BuzzLM._own_tokens(lm, [*ids[:3], 3, 0, 0], []) == 6


def test_beams(lm):
    settings = {"num_beams": 2, "max_gen_toks": 6, "until": ["\n"]}
    requests = [request(i, context, settings) for i, context in enumerate(("river stone", "council market tunnel"))]
    full, own = lm("buzz", policy="full"), lm("hf")
    assert full.generate_until(requests, disable_tqdm=True) == own.generate_until(requests, disable_tqdm=True)
    assert full.get_model_info()["buzz"]["tasks"]["t"]["requests"] == 2


def request(doc: int, *args: Any) -> Any:
    from lm_eval.api.instance import Instance

    return Instance("generate_until", {}, args, 0, metadata=("t", doc, 1))


def test_a_model_that_is_there(model_folder, hf, evaluate):
    from transformers import AutoModelForCausalLM, AutoTokenizer

    model = AutoModelForCausalLM.from_pretrained(model_folder, dtype="float32")
    tokenizer = AutoTokenizer.from_pretrained(model_folder)
    results = evaluate("buzz", tasks="choice", pretrained=model, tokenizer=tokenizer, policy="full")
    assert near(results, hf, "buzz_choice")


def test_answers_that_were_kept_are_of_the_same_method(lm, tmp_path):
    from lm_eval.api.model import CachingLM

    def keep(name: str, path: str, **arguments: Any) -> None:
        answers = CachingLM(lm(name, **arguments), str(tmp_path / path))
        answers.loglikelihood([request(0, "river", " stone")])
        answers.dbdict.close()

    keep("buzz", "own.db", **SMALL)
    keep("buzz", "own.db", **SMALL)
    for path, arguments in (("own.db", {"policy": "streaming", "budget": 13}), ("other.db", SMALL)):
        keep("hf", "other.db")
        with pytest.raises(ConfigError, match=r"--use_cache: holds answers of another model or method"):
            keep("buzz", path, **arguments)
