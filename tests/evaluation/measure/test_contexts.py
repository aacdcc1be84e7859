"""Contexts that are compressed before the question is read: against a computation row by row, call by call."""

from __future__ import annotations

import pytest
import torch

import buzz
from buzz.evaluation.errors import ConfigError
from buzz.evaluation.measure.batch import Job, Prompt, Reading, new_cache
from buzz.evaluation.measure.fidelity import fidelity
from buzz.evaluation.measure.generation import encode_question, generate_batch
from buzz.evaluation.measure.likelihood import answer_nll
from buzz.evaluation.tasks import Sample
from buzz.policies.sizes import mean_cached, walk
from tests.evaluation.tiny import byte_tokenizer
from tests.evaluation.toys import END, POLICIES, Numbers, Toy, model_of, numbers

PROMPTS = [numbers(length, length) for length in (33, 12, 24, 30)]
CONTEXTS = [26, 5, 23, 20]  # so questions have 7, 7, 1 and 10 tokens
ANSWERS = [numbers(length, 40 + length) for length in (3, 7, 5, 4)]
NAMES = [name for name in POLICIES if name != "buzz_fast"]


def jobs_of(policy):
    jobs = []
    for ids, context, answer in zip(PROMPTS, CONTEXTS, ANSWERS, strict=True):
        sample = Sample(f"s{len(ids)}", "", " ".join(map(str, answer)), {})
        jobs.append(Job(Prompt(sample, ids, "hash", False, context=context), policy))
    return jobs


def chunked(ids, chunk):
    return [ids[i : i + chunk] for i in range(0, len(ids), chunk)] if chunk else [ids]


def naive(model, policy, positions, calls):
    """One row alone: float32 logits [calls, V] after each call, and the cached tokens after it."""
    cache = buzz.BeehiveCache(policy, model.config, positions=positions)
    logits, lengths = [], []
    with torch.no_grad():
        for call in calls:
            logits.append(model(torch.tensor([call]), past_key_values=cache).logits[0, -1].float())
            lengths.append(cache.lengths[0])
    return torch.stack(logits), lengths


@pytest.mark.parametrize("family", ["llama", "opt"])
@pytest.mark.parametrize("positions", ["cache", "original"])
def test_chunks_of_unequal_prompts_are_read_as_each_row_alone(family, positions):
    model, policy = model_of(family), POLICIES["h2o"]
    rest = [ids[:3] for ids in ANSWERS]
    with buzz.patch_model(model):
        cache = new_cache(model, jobs_of(policy), positions)
        found = [logits for _, logits in Reading(model, cache, PROMPTS, rest, 7) if len(logits) == len(PROMPTS)]
        for row, (ids, answer) in enumerate(zip(PROMPTS, rest, strict=True)):
            calls = [*chunked(ids, 7), *([token] for token in answer)]
            logits, _ = naive(model, policy, positions, calls)
            together = torch.stack([step[row] for step in found])
            torch.testing.assert_close(together, logits[-len(answer) - 1 :], atol=1e-4, rtol=1e-4)


@pytest.mark.parametrize("chunk", [None, 6])
@pytest.mark.parametrize("positions", ["cache", "original"])
@pytest.mark.parametrize("name", ["full", "h2o", "buzz"])
def test_answers_are_those_of_each_row_alone(name, positions, chunk):
    model, policy = model_of("llama"), POLICIES[name]
    with buzz.patch_model(model):
        records = generate_batch(model, Numbers(), Toy(), jobs_of(policy), positions, 8, chunk)
        for record, ids, context in zip(records, PROMPTS, CONTEXTS, strict=True):
            first = [*chunked(ids[:context], chunk), *chunked(ids[context:], chunk)]
            answer = record["output_ids"]
            logits, lengths = naive(model, policy, positions, [*first, *([token] for token in answer[:-1])])
            assert logits[len(first) - 1 :].argmax(-1).tolist() == answer
            assert len(answer) == 8 or END in answer
            assert (record["prompt_tokens"], record["context_tokens"]) == (len(ids), context)
            own = lengths[len(first) :] or lengths[-1:]
            assert record["cache"]["mean_tokens"] == pytest.approx(sum(own) / len(own))
            wanted = mean_cached(policy, len(ids), len(answer) - 1, 1, chunk, context)
            assert record["cache"]["mean_tokens"] == pytest.approx(wanted)


@pytest.mark.parametrize(("family", "positions"), [("llama", "cache"), ("llama", "original"), ("opt", "original")])
@pytest.mark.parametrize("name", NAMES)
def test_likelihood_and_distance_are_those_of_each_row_alone(family, positions, name):
    model, policy = model_of(family), POLICIES[name]
    references = [{"output_ids": ids, "output": ""} for ids in ANSWERS]
    with buzz.patch_model(model):
        likely = answer_nll(model, Numbers(), Toy(), jobs_of(policy), positions)
        far = fidelity(model, jobs_of(policy), positions, references, references)
        rows = zip(likely, far, PROMPTS, CONTEXTS, ANSWERS, strict=True)
        for nll, metrics, ids, context, answer in rows:
            fed = [[token] for token in answer[:-1]]
            question = ids[context:]
            first = [question[:-1], question[-1:]] if len(question) > 1 else [question]
            logits, _ = naive(model, policy, positions, [ids[:context], *first, *fed])
            logits = logits[len(first) :]
            expected = torch.nn.functional.cross_entropy(logits.double(), torch.tensor(answer))
            assert nll == pytest.approx(float(expected), rel=1e-4)
            logits, _ = naive(model, policy, positions, [ids[:context], question, *fed])
            q = logits[1:].double().log_softmax(-1)
            with torch.no_grad():
                whole = model(torch.tensor([ids + answer])).logits[0, len(ids) - 1 : -1]
            p = whole.double().log_softmax(-1)
            kl = torch.nn.functional.kl_div(q, p, log_target=True, reduction="sum") / len(answer)
            assert metrics["fidelity_kl"] == pytest.approx(float(kl), rel=1e-3, abs=1e-6)
    if name == "full":
        assert max(metrics["fidelity_kl"] for metrics in far) < 1e-6
    else:
        assert min(metrics["fidelity_kl"] for metrics in far[:1]) > 1e-4  # already its first token


def test_a_walk_counts_the_context_as_a_call():
    policy = buzz.make_policy("h2o", heavy=5, window=6)
    assert [during for during, _ in walk(policy, 33, 1, None, 26)][:2] == [26, walk(policy, 26, 0)[-1][1] + 7]


# --- where a context ends --------------------------------------------------------------------------------------------


def sample_of(context, rest):
    return Sample("a", context + rest, None, {}, context)


@pytest.mark.parametrize("chat", [False, True])
def test_a_context_ends_at_its_last_token(chat):
    tokenizer = byte_tokenizer()
    asked = encode_question(tokenizer, sample_of("The bée did.", " Who did?"), chat, None)
    whole = encode_question(tokenizer, Sample("a", "The bée did. Who did?", None, {}), chat, None)
    assert asked.ids == whole.ids
    assert whole.context is None
    head = "<user>" if chat else ""
    assert tokenizer.decode(asked.ids[: asked.context]) == f"{head}The bée did."
    if not chat:  # é has two bytes, each a token
        assert asked.context == len("The bée did.".encode())


class Merging(Numbers):
    """Numbers, but 8 9 is one token: a boundary may lie inside of one."""

    def __call__(self, text, add_special_tokens=True, **_):
        return super().__call__(text.replace("8 9", "89"), add_special_tokens)


def test_without_places_tokens_are_compared():
    assert encode_question(Merging(bos=1), sample_of("5 6 7", " 3 4"), False, None).context == 4
    prompt = encode_question(Merging(), sample_of("5 6 8", " 9 4"), False, None)
    assert (prompt.ids, prompt.context) == ([5, 6, 89, 4], 3)  # with the token in which it ends


def test_a_token_is_left_for_the_question():
    assert encode_question(Numbers(), sample_of("5 6 7", ""), False, None).context == 2
    assert encode_question(Numbers(), sample_of("5", ""), False, None).context is None


@pytest.mark.parametrize(("context", "left"), [(2, 2), (4, 2), (6, 3)])
def test_a_prompt_that_is_cut_keeps_its_boundary(context, left):
    ids = [3, 4, 5, 6, 7, 8, 9]
    text = [" ".join(map(str, part)) for part in (ids[:context], ids[context:])]
    prompt = encode_question(Numbers(), sample_of(text[0], f" {text[1]}"), False, 4)
    assert (prompt.ids, prompt.context) == ([3, 4, 8, 9], left)


def test_a_template_that_changes_the_context_is_refused():
    tokenizer = byte_tokenizer()
    tokenizer.chat_template = "{% for m in messages %}{{ m['content'] | upper }}{% endfor %}"
    with pytest.raises(ConfigError, match=r"task\.query_aware: is false, but the chat template changes .* sample 'a'"):
        encode_question(tokenizer, sample_of("The bee did.", " Who?"), True, None)
