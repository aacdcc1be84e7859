"""Perplexity through a cache against one plain forward, and against a loop of one token and one row at a time."""

from __future__ import annotations

import math
from itertools import pairwise

import pytest
import torch

import buzz
from buzz.evaluation.errors import ConfigError
from buzz.evaluation.measure.batch import Job, Prompt
from buzz.evaluation.measure.perplexity import BLOCK, check_length, encode_text, read_batch
from buzz.evaluation.models.source import ModelSource
from buzz.evaluation.run.config import parse_config
from buzz.evaluation.tasks import make_task
from buzz.evaluation.tasks.section import TaskConfig
from tests.evaluation.toys import POLICIES, Numbers, model_of, naive_logits, numbers

BOS = 1


def article_of(number: int, length: int) -> str:
    """A title and so many numbers in two lines, with blank lines around."""
    words = [str(token) for token in numbers(length, number)]
    lines = [f" = Title {'abc'[number]} = ", " ", " ".join(words[: length // 2]), " ", " ".join(words[length // 2 :])]
    return "".join(f"{line}\n" for line in [" ", *lines])


class Words(Numbers):
    """Reads titles, too: what is no number is token 3."""

    def __call__(self, text, add_special_tokens=True):
        return super().__call__(" ".join(w if w.isdigit() else "3" for w in text.split()), add_special_tokens)


@pytest.fixture
def task_of(tmp_path):
    def make(protocol: str, lengths=(31, 17, 24), **options):
        path = tmp_path / "text.txt"
        path.write_text("".join(article_of(number, length) for number, length in enumerate(lengths)))
        return make_task(TaskConfig("wikitext", data=str(path), options={"protocol": protocol, **options}))

    return make


def jobs_of(task, policy, bos=None) -> list[Job]:
    return [Job(encode_text(Words(bos), task, sample), policy) for sample in task.load()]


def measured(model, task, jobs, positions=None):
    with buzz.patch_model(model):
        return read_batch(model, task, jobs, positions)


def plain_losses(model, ids: list[int], targets: list[int]) -> torch.Tensor:
    """Losses of the model, not patched, in one forward over all that is read."""
    with torch.no_grad():
        logits = model(torch.tensor([ids])).logits[0].double()
    return torch.nn.functional.cross_entropy(logits, torch.tensor(targets), reduction="none")


# --- against naive computations --------------------------------------------------------------------------------------


@pytest.mark.parametrize("family", ["llama", "opt"])
@pytest.mark.parametrize("bos", [None, BOS])
@pytest.mark.parametrize("protocol", ["document", "lines", "stream"])
def test_the_full_cache_gives_the_ordinary_perplexity(family, bos, protocol, task_of):
    model, task = model_of(family), task_of(protocol)
    records = measured(model, task, jobs_of(task, POLICIES["full"], bos))
    texts = [sample.prompt for sample in task.load()]
    assert len(records) == len(texts) == (3 if protocol == "document" else 1)
    for record, text in zip(records, texts, strict=True):
        pieces = [line for line in text.splitlines() if line.strip()] if protocol == "lines" else [text]
        ids = [Words(bos)(piece)["input_ids"] for piece in pieces]
        targets = [token for piece in ids for token in piece[1:]]
        losses = plain_losses(model, [token for piece in ids for token in piece[:-1]], targets)
        assert record["metrics"]["perplexity"] == pytest.approx(float(losses.mean()), rel=1e-4)
        assert math.exp(record["metrics"]["perplexity"]) == pytest.approx(math.exp(losses.mean()), rel=1e-4)
        assert record["weight"] == record["new_tokens"] == len(targets)
        assert record["cache"]["full_mean_tokens"] == record["cache"]["mean_tokens"]


@pytest.mark.parametrize("family", ["llama", "opt"])
@pytest.mark.parametrize("positions", ["cache", "original"])
@pytest.mark.parametrize("policy", ["streaming", "h2o", "buzz", "buzz_fast"])
def test_ragged_texts_equal_a_loop_over_each_alone(family, positions, policy, task_of):
    model, task = model_of(family), task_of("document")
    jobs = jobs_of(task, POLICIES[policy])
    for one, record in zip(jobs, measured(model, task, jobs, positions), strict=True):
        ids = one.prompt.ids
        with buzz.patch_model(model):
            logits, lengths = naive_logits(model, one.policy, positions, ids[:1], ids[1:-1])
        losses = torch.nn.functional.cross_entropy(logits.double(), torch.tensor(ids[1:]), reduction="none")
        assert record["metrics"]["perplexity"] == pytest.approx(float(losses.mean()), rel=1e-4)
        own = lengths[1:]
        assert record["cache"]["mean_tokens"] == pytest.approx(sum(own) / len(own))
        assert record["cache"]["peak_tokens"] == max(own)
        assert record["cache"]["curve"] == [[call, n] for call, n in enumerate(own, 1)]
        assert lengths == one.policy.trace(1, len(ids) - 2)
        assert task.calls(len(ids), 0) == (1, len(ids) - 2)


def test_the_lines_share_one_cache(task_of):
    model, task = model_of("llama"), task_of("lines")
    (one,) = jobs_of(task, POLICIES["buzz"], BOS)
    (record,) = measured(model, task, [one])
    assert one.prompt.ids.count(BOS) == len(task.pieces(task.load()[0])) > 3
    cache, losses = buzz.BeehiveCache(POLICIES["buzz"], model.config), []
    with buzz.patch_model(model), torch.no_grad():
        for line in task.pieces(task.load()[0]):  # the authors' loop
            ids = Words(BOS)(line)["input_ids"]
            for token, label in pairwise(ids):
                logits = model(torch.tensor([[token]]), past_key_values=cache).logits[0]
                losses.append(float(torch.nn.functional.cross_entropy(logits, torch.tensor([label]))))
    assert record["metrics"]["perplexity"] == pytest.approx(sum(losses) / len(losses), rel=1e-4)
    assert record["weight"] == len(losses)


def test_rows_have_policies_of_their_own(task_of):
    model, task = model_of("llama"), task_of("document")
    sizes = [buzz.make_policy("streaming", sink=2, window=window) for window in (5, 9, 14)]
    jobs = [Job(one.prompt, policy) for one, policy in zip(jobs_of(task, None), sizes, strict=True)]
    records = measured(model, task, jobs)
    for one, record in zip(jobs, records, strict=True):
        (alone,) = measured(model, task, [one])
        assert record["metrics"]["perplexity"] == pytest.approx(alone["metrics"]["perplexity"], rel=1e-5)
        assert all(record["cache"][key] == value for key, value in alone["cache"].items() if "_bytes" not in key)
        assert record["policy"] == alone["policy"]


@pytest.mark.parametrize("policy", ["snapkv", "pyramidkv"])
def test_prompt_policies_evict_after_a_prefill_alone(policy, task_of):
    model = model_of("llama")
    chosen = buzz.make_policy(policy, capacity=8, window=2, kernel=3)
    task = task_of("document")
    (record, *_) = measured(model, task, jobs_of(task, chosen))
    assert record["cache"]["mean_tokens"] == record["cache"]["full_mean_tokens"]  # never evicted
    task = task_of("document", prefill=20)
    jobs = jobs_of(task, chosen)
    for one, record in zip(jobs, measured(model, task, jobs), strict=True):
        ids, first = one.prompt.ids, min(20, len(one.prompt.ids) - 1)
        with buzz.patch_model(model):
            logits, _ = naive_logits(model, chosen, None, ids[:first], ids[first:-1])
        losses = torch.nn.functional.cross_entropy(logits.double(), torch.tensor(ids[first:]), reduction="none")
        assert record["metrics"]["perplexity"] == pytest.approx(float(losses.mean()), rel=1e-4)
        assert (record["prompt_tokens"], record["new_tokens"]) == (first, len(ids) - first)
        assert record["cache"]["peak_tokens"] < len(ids) - 1


# --- records ---------------------------------------------------------------------------------------------------------


def test_blocks_add_up(task_of):
    model = model_of("llama")
    task = task_of("document", (2 * BLOCK + 40, 30))
    long, short = measured(model, task, jobs_of(task, POLICIES["streaming"]))
    assert [tokens for tokens, _ in long["blocks"]][:2] == [BLOCK, BLOCK]
    assert len(long["blocks"]) == 3
    assert len(short["blocks"]) == 1
    for record in (long, short):
        assert sum(tokens for tokens, _ in record["blocks"]) == record["weight"]
        total = sum(loss for _, loss in record["blocks"])
        assert total / record["weight"] == pytest.approx(record["metrics"]["perplexity"], rel=1e-9)


def test_at_most_max_tokens_are_read(task_of):
    whole, cut = task_of("document"), task_of("document", max_tokens=10)
    for long, short in zip(jobs_of(whole, None, BOS), jobs_of(cut, None, BOS), strict=True):
        assert short.prompt.ids == long.prompt.ids[:10]
        assert short.prompt.targets == long.prompt.ids[1:10]
        assert short.prompt.hash == long.prompt.hash
        assert not short.prompt.truncated


@pytest.mark.parametrize("most", [2, 5, 18, 19, 40])
def test_max_tokens_of_lines(most, task_of):
    (long,) = jobs_of(task_of("lines"), None, BOS)
    (short,) = jobs_of(task_of("lines", max_tokens=most), None, BOS)
    assert short.prompt.targets == long.prompt.targets[: most - 1]
    assert short.prompt.ids == [*long.prompt.ids[: most - 1], long.prompt.targets[most - 2]]


def test_a_text_of_one_token_is_refused(tmp_path):
    path = tmp_path / "one.txt"
    path.write_text("7\n")
    task = make_task(TaskConfig("stream", data=str(path)))
    with pytest.raises(ConfigError, match=r"task.data: the text 'one.txt' is a single token, at least two are wanted"):
        encode_text(Numbers(), task, task.load()[0])
    assert encode_text(Numbers(BOS), task, task.load()[0]).targets == [7]


def test_two_tokens_are_a_text(tmp_path):
    path = tmp_path / "two.txt"
    path.write_text("7 8")
    task = make_task(TaskConfig("stream", data=str(path)))
    (record,) = measured(model_of("llama"), task, jobs_of(task, POLICIES["buzz"]))
    assert (record["weight"], record["cache"]["mean_tokens"], record["cache"]["curve"]) == (1, 1, [[0, 1]])


def test_half_precision_is_measured_in_float32(task_of):
    task = task_of("document")
    jobs = jobs_of(task, POLICIES["full"])
    model = model_of("llama")
    exact = [record["metrics"]["perplexity"] for record in measured(model, task, jobs)]
    half = [record["metrics"]["perplexity"] for record in measured(model.to(torch.bfloat16), task, jobs)]
    assert half == pytest.approx(exact, rel=0.02)
    assert all(value != float(torch.tensor(value).bfloat16()) for value in half)


# --- long texts ------------------------------------------------------------------------------------------------------


def test_an_endless_stream_runs_past_a_table_of_positions(tmp_path):
    model = model_of("opt")  # 256 positions
    ids = numbers(400, 8)
    task = make_task(TaskConfig("stream", data=str(tmp_path / "any")))
    jobs = [Job(Prompt(_sample(), ids, "hash", False, ids[1:]), POLICIES["buzz"])]
    (record,) = measured(model, task, jobs, "cache")
    assert record["weight"] == 399
    for positions, policy in [("original", "buzz"), (None, "buzz"), ("cache", "full")]:
        with pytest.raises(
            ConfigError, match=r"task.max_tokens: the text 'a' needs 399 positions .*, the model has 256"
        ):
            measured(model, task, [Job(jobs[0].prompt, POLICIES[policy])], positions)


def _sample():
    return buzz.evaluation.tasks.Sample("a", "", None, {})


def config_of(tmp_path, methods, **changes):
    path = tmp_path / "text.txt"
    path.write_text("3 4 5")
    task = {"name": "stream", "data": str(path), **changes.pop("task", {})}
    raw = {"name": "t", "model": {"id": "x", **changes.pop("model", {})}, "task": task, "methods": methods}
    return parse_config(raw)


EVICTS = {"policy": "buzz", "positions": "cache"}


@pytest.mark.parametrize(
    ("family", "methods", "most", "fails"),
    [
        ("opt", ["full"], None, True),
        ("opt", ["full"], 257, True),
        ("opt", ["full"], 256, False),
        ("opt", ["buzz"], None, True),  # positions: original is the family's default
        ("opt", [EVICTS], None, False),
        ("opt", [EVICTS, {"policy": "full", "positions": "cache"}], None, True),
        ("llama", ["full", "buzz", {"policy": "buzz", "positions": "original", "name": "b"}], None, False),
    ],
)
def test_a_table_that_may_be_too_short_is_refused_before_loading(family, methods, most, fails, tmp_path):
    config = config_of(tmp_path, methods, task={"max_tokens": most})
    task, source = make_task(config.task), ModelSource("x", None, family, 256, "f")
    if not fails:
        check_length(config, task, source)
        return
    with pytest.raises(ConfigError, match=r"^task.max_tokens: (null|257) may run past the model's 256 positions \("):
        check_length(config, task, source)


def test_a_text_has_no_chat_template(tmp_path):
    config = config_of(tmp_path, ["full"], model={"chat_template": True})
    with pytest.raises(ConfigError, match=r"^model.chat_template: is true, but a text is read as it is, false is"):
        check_length(config, make_task(config.task), ModelSource("x", None, "llama", 256, "f"))


def test_tasks_that_answer_are_not_checked(tmp_path):
    config = config_of(tmp_path, ["full"], model={"chat_template": True}, task={"name": "xsum"})
    check_length(config, make_task(config.task), ModelSource("x", None, "opt", 256, "f"))
