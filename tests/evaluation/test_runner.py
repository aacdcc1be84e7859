"""Whole runs of a tiny model: what is written, resumed, matched and survived."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import torch

import buzz
from buzz.evaluation import runner
from buzz.evaluation.config import MethodConfig, load_config
from buzz.evaluation.errors import ConfigError
from buzz.evaluation.generate import Job, cache_figures, encode, generate_batch
from buzz.evaluation.matching import mean_cached, policy_for
from buzz.evaluation.models import load_model
from buzz.evaluation.runner import run
from buzz.evaluation.summary import bootstrap_ci95
from buzz.evaluation.table import text_table
from buzz.evaluation.tasks import Sample, make_task


def records(config, method: str) -> dict[str, dict]:
    path = Path(config.output) / "samples" / f"{method}.jsonl"
    return {record["id"]: record for record in map(json.loads, path.read_text().splitlines())}


def answers(config, method: str) -> dict[str, str]:
    return {name: record["output"] for name, record in records(config, method).items()}


@pytest.fixture
def loaded(model_folder, write_config):
    """Config, patched model, tokenizer, task and prompts."""
    config = load_config(write_config())
    model, tokenizer, _ = load_model(config.model)
    task = make_task(config.task)
    with buzz.patch_model(model):
        yield config, model, tokenizer, task, [encode(tokenizer, sample, False, None) for sample in task.load()]


def test_a_run_fills_its_folder(write_config, capfd):
    config = load_config(write_config())
    summary = run(config)
    folder = Path(config.output)
    assert json.loads((folder / "summary.json").read_text()) == summary
    assert (folder / "quality.png").read_bytes().startswith(b"\x89PNG")
    assert "](quality.png)" in (folder / "report.md").read_text()
    assert load_config(folder / "config.yaml") == config
    full, hive = summary["methods"]["full"], summary["methods"][config.methods[1].name]
    assert list(summary["methods"]) == [method.name for method in config.methods]
    assert full["n"] == hive["n"] == 6
    assert full["cache"]["reduction"] == pytest.approx(1)
    assert hive["cache"]["reduction"] > 2
    for metric in full["metrics"].values():
        assert metric["ci95"][0] <= metric["mean"] <= metric["ci95"][1]
    # Not a terminal: a line per method, no bars, no chatter.
    lines = capfd.readouterr().err.splitlines()
    assert [line.split(":")[0] for line in lines] == list(summary["methods"])


def test_the_full_cache_answers_like_the_unpatched_model(write_config):
    config = load_config(write_config(methods=["full"]))
    run(config)
    model, tokenizer, _ = load_model(config.model)
    for record in records(config, "full").values():
        sample = next(s for s in make_task(config.task).load() if s.id == record["id"])
        ids = torch.tensor([tokenizer(sample.prompt)["input_ids"]])
        output = model.generate(ids, attention_mask=torch.ones_like(ids), max_new_tokens=12, do_sample=False)
        new = [token for token in output[0, ids.shape[1] :].tolist() if token not in (1, 3)]
        assert record["output"] == tokenizer.decode(new)
        assert record["prompt_tokens"] == ids.shape[1]


def test_cache_figures_follow_the_policy(write_config):
    config = load_config(write_config())
    run(config)
    for method in config.methods:
        policy = method.make_policy()
        for record in records(config, method.name).values():
            calls = record["new_tokens"] - 1
            trace = policy.trace(record["prompt_tokens"], calls)
            own = trace[1:] or trace
            assert record["cache"]["mean_tokens"] == pytest.approx(np.mean(own))
            assert record["cache"]["peak_tokens"] == max(own)
            grown = [record["prompt_tokens"] + k for k in range(1, calls + 1)] or [record["prompt_tokens"]]
            assert record["cache"]["full_mean_tokens"] == pytest.approx(np.mean(grown))


def test_batches_answer_as_single_samples(write_config, tmp_path):
    one = load_config(write_config(), ["batch_size=1", f"output={tmp_path / 'one'}"])
    many = load_config(write_config(), ["batch_size=6", f"output={tmp_path / 'many'}"])
    run(one)
    run(many)
    for method in one.methods:
        assert answers(one, method.name) == answers(many, method.name)
        for name, record in records(one, method.name).items():
            assert records(many, method.name)[name]["cache"] == record["cache"]
    assert len(set(answers(one, "full").values())) > 1  # else this shows nothing


class Ids:
    """Shows token ids as they are, since random bytes need not be text."""

    def decode(self, ids, **_):
        return " ".join(map(str, ids))


def test_a_row_ends_at_its_own_end(loaded):
    _, model, _, task, prompts = loaded
    policy = buzz.make_policy("streaming", sink=2, window=10)
    jobs = [Job(prompt, policy) for prompt in prompts[:4]]
    said = [record["output"].split() for record in generate_batch(model, Ids(), task, jobs, None, 12)]
    # Make an end of a token that one row says in the middle and another row never says.
    row, at, token = next(
        (row, at, token)
        for row, ids in enumerate(said)
        for at, token in enumerate(ids)
        if at > 1 and token not in ids[:at] and any(token not in other for other in said)
    )
    model.generation_config.eos_token_id = [1, int(token)]
    ended = generate_batch(model, Ids(), task, jobs, None, 12)
    prompt_tokens = len(prompts[row].ids)
    assert ended[row]["new_tokens"] == at + 1
    assert ended[row]["output"].split() == said[row][:at]
    assert ended[row]["cache"] == cache_figures(policy.trace(prompt_tokens, at), prompt_tokens, at + 1)
    assert max(record["new_tokens"] for record in ended) == 12


def test_cache_figures_of_a_single_new_token():
    expected = {"mean_tokens": 30, "peak_tokens": 30, "full_mean_tokens": 50}
    assert cache_figures([30, 31, 32], 50, 1) == expected
    assert cache_figures([30, 31, 33, 99], 50, 3) == {"mean_tokens": 32, "peak_tokens": 33, "full_mean_tokens": 51.5}


def test_a_finished_run_is_not_done_again(write_config, monkeypatch):
    config = load_config(write_config())
    first = run(config)
    monkeypatch.setattr(runner, "load_model", lambda *_: pytest.fail("loaded the model"))
    second = run(config)
    assert second["methods"] == first["methods"]


def test_resuming_does_the_missing_samples_alone(write_config, monkeypatch):
    config = load_config(write_config())
    expected = run(config)
    hive = config.methods[1].name
    want = answers(config, hive)
    path = Path(config.output) / "samples" / f"{hive}.jsonl"
    lines = path.read_bytes().splitlines(keepends=True)
    path.write_bytes(b"".join(lines[:2]) + lines[2][:40])  # cut in the middle of the third
    done = []
    real = runner.generate_batch

    def counting(model, tokenizer, task, jobs, *rest):
        done.extend(job.prompt.sample.id for job in jobs)
        return real(model, tokenizer, task, jobs, *rest)

    monkeypatch.setattr(runner, "generate_batch", counting)
    summary = run(config)
    assert sorted(done) == sorted(json.loads(line)["id"] for line in lines[2:])
    assert path.read_bytes().count(b"\n") == 6
    assert answers(config, hive) == want
    assert summary["methods"][hive]["cache"] == expected["methods"][hive]["cache"]
    assert summary["methods"][hive]["metrics"] == expected["methods"][hive]["metrics"]


def test_a_data_file_that_changed_is_refused(write_config, data_file):
    config = load_config(write_config())
    run(config)
    data_file.write_text(data_file.read_text().replace("river", "delta"))
    with pytest.raises(ConfigError, match=r"^output: .* another data"):
        run(config)


def test_the_chat_template_is_used(write_config, model_folder):
    raw = load_config(write_config(methods=["full"]), ["output=" + str(model_folder.parent / "raw")])
    chat = load_config(
        write_config(methods=["full"]),
        ["output=" + str(model_folder.parent / "chat"), "model.chat_template=true", "generation.max_new_tokens=3"],
    )
    run(raw)
    run(chat)
    # <user>, <end> and <bot> are a token each.
    difference = {
        record["prompt_tokens"] - records(raw, "full")[name]["prompt_tokens"]
        for name, record in records(chat, "full").items()
    }
    assert difference == {3}


def test_long_prompts_lose_their_middle(write_config, data_file, loaded):
    _, _, tokenizer, _, _ = loaded
    rows = [
        {"id": "long", "document": "a" * 300 + "b" * 300, "summary": "x"},
        {"id": "ok", "document": "abc", "summary": "x"},
    ]
    data_file.write_text("".join(json.dumps(row) + "\n" for row in rows))
    config = load_config(write_config(methods=["full"]))
    assert run(config)["run"]["truncated"] == 1
    kept = records(config, "full")
    assert kept["long"]["truncated"] is True
    assert kept["long"]["prompt_tokens"] == 400 - 12
    assert "truncated" not in kept["ok"]
    prompt = encode(tokenizer, Sample("x", "abcdefg", "", {}), False, 4)
    assert tokenizer.decode(prompt.ids) == "abfg"


def test_no_room_for_a_prompt(write_config):
    config = load_config(write_config(), ["generation.max_new_tokens=400"])
    with pytest.raises(ConfigError, match=r"^generation.max_new_tokens: 400 leaves no room"):
        run(config)
    assert not Path(config.output).exists()


# --- budgets and matching --------------------------------------------------------------------------------------------


def test_matched_methods_have_the_same_mean_cache(write_config):
    hive = {"policy": "buzz", "name": "hive", "sink": 2, "window": 12, "stride": 3, "threshold": 10}
    methods = [{"policy": "h2o", "name": "h2o", "match": "hive"}, hive, {"policy": "streaming", "match": "hive"}]
    config = load_config(write_config(methods=methods))
    summary = run(config)
    assert list(summary["methods"]) == [method.name for method in config.methods]
    for method in (config.methods[0], config.methods[2]):
        for name, record in records(config, method.name).items():
            target = records(config, "hive")[name]["cache"]["mean_tokens"]
            assert record["cache"]["mean_tokens"] == pytest.approx(target, abs=0.75)
            assert record["policy"]["name"] == method.policy


@pytest.mark.parametrize("policy", ["buzz", "buzz_no_max", "h2o", "streaming", "local"])
@pytest.mark.parametrize(
    ("prompt", "calls", "target"), [(900, 60, 300.0), (900, 60, 411.4), (900, 0, 350.0), (300, 60, 330.5)]
)
def test_matching_over_a_few_calls(policy, prompt, calls, target):
    method = MethodConfig(name="m", policy=policy, match="other")
    record = {"new_tokens": calls + 1, "cache": {"mean_tokens": target}}
    assert mean_cached(policy_for(method, prompt, record), prompt, calls) == pytest.approx(target, rel=0.02)


def test_a_mean_that_jumps_is_approached():
    # After 5,000 tokens BUZZ needs several evictions until it fits, so the mean over 7 calls has gaps.
    method = MethodConfig(name="m", policy="buzz", match="other")
    policy = policy_for(method, 5000, {"new_tokens": 8, "cache": {"mean_tokens": 900.0}})
    assert mean_cached(policy, 5000, 7) == pytest.approx(900, rel=0.05)


def test_named_parameters_are_held():
    method = MethodConfig(name="m", policy="buzz", params={"window": 50}, match="other")
    policy = policy_for(method, 2000, {"new_tokens": 100, "cache": {"mean_tokens": 300.0}})
    assert policy.window == 50
    assert mean_cached(policy, 2000, 99) == pytest.approx(300, rel=0.02)


def test_budgets_are_shares_of_the_prompt_or_tokens():
    share = policy_for(MethodConfig(name="m", policy="streaming", budget=0.25), 400, None)
    assert share.sink + share.window == 100
    tokens = policy_for(MethodConfig(name="m", policy="streaming", budget=60), 400, None)
    assert tokens.sink + tokens.window == 60
    with pytest.raises(ConfigError, match=r"^methods: m: .*a prompt of 10 tokens"):
        policy_for(MethodConfig(name="m", policy="streaming", budget=0.1), 10, None)


def test_a_budget_too_small_is_told_before_anything_runs(write_config, monkeypatch):
    monkeypatch.setattr(runner, "generate_batch", lambda *_: pytest.fail("generated"))
    with pytest.raises(ConfigError, match="methods: tight"):
        run(load_config(write_config(methods=["full", {"policy": "streaming", "name": "tight", "budget": 0.01}])))


# --- memory ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("error", [torch.OutOfMemoryError("CUDA out of memory"), RuntimeError("can't allocate memory")])
def test_a_batch_too_large_is_halved(write_config, monkeypatch, error):
    sizes = []
    real = runner.generate_batch

    def small_batches_alone(model, tokenizer, task, jobs, *rest):
        sizes.append(len(jobs))
        if len(jobs) > 1:
            raise error
        return real(model, tokenizer, task, jobs, *rest)

    monkeypatch.setattr(runner, "generate_batch", small_batches_alone)
    config = load_config(write_config(methods=["full"]))
    assert run(config)["methods"]["full"]["n"] == 6
    assert sizes == [4, 2, 1, 1, 1, 1, 1, 1]
    assert sorted(records(config, "full")) == [f"s{i}" for i in range(6)]


def test_a_method_without_memory_is_given_up(write_config, monkeypatch):
    real = runner.generate_batch

    def full_fails(model, tokenizer, task, jobs, *rest):
        if jobs[0].policy.name == "full":
            raise torch.OutOfMemoryError("CUDA out of memory")
        return real(model, tokenizer, task, jobs, *rest)

    monkeypatch.setattr(runner, "generate_batch", full_fails)
    methods = ["full", {"policy": "streaming", "name": "other", "match": "full"}, "local"]
    config = load_config(write_config(methods=methods))
    summary = run(config)
    assert summary["methods"]["full"] == {"n": 0, "failed": "out of memory"}
    assert "full" in summary["methods"]["other"]["failed"]
    assert summary["methods"]["local"]["n"] == 6
    assert "full did not finish: out of memory" in text_table(summary)
    monkeypatch.setattr(runner, "generate_batch", real)
    assert "failed" not in run(config)["methods"]["full"]  # started again, it is tried again


def test_other_errors_are_not_swallowed(write_config, monkeypatch):
    def broken(*_):
        raise RuntimeError("shapes do not fit")

    monkeypatch.setattr(runner, "generate_batch", broken)
    with pytest.raises(RuntimeError, match="shapes do not fit"):
        run(load_config(write_config()))


# --- figures ---------------------------------------------------------------------------------------------------------


def test_bootstrap_interval():
    generator = np.random.default_rng(1)
    values = generator.normal([0.3, 5.0], [0.1, 2.0], size=(400, 2))
    low, high = bootstrap_ci95(values)
    half = 1.96 * values.std(axis=0) / 20  # of the normal approximation
    assert (high - low) / 2 == pytest.approx(half, rel=0.1)
    assert (high + low) / 2 == pytest.approx(values.mean(axis=0), abs=0.3 * half.max())
    assert np.array_equal(bootstrap_ci95(values), [low, high])
    assert np.array_equal(bootstrap_ci95([[0.5]]), [[0.5], [0.5]])


def test_the_table_is_aligned(write_config):
    table = text_table(run(load_config(write_config())))
    lines = table.splitlines()
    assert lines[0].split()[:5] == ["method", "n", "ROUGE-1", "ROUGE-2", "ROUGE-L"]
    assert len({len(line) for line in lines}) == 1
    assert lines[2].startswith("full ")
    assert "1.00x" in lines[2]
