"""Whole runs of a tiny model: what is written, resumed, matched and survived."""

from __future__ import annotations

import contextlib
import json
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pytest
import torch
import yaml

from buzz.evaluation.errors import ConfigError
from buzz.evaluation.measure.batch import Held, cache_figures, describe
from buzz.evaluation.measure.records import hive_path
from buzz.evaluation.models import load as models
from buzz.evaluation.models.load import ModelLoader, load_model
from buzz.evaluation.run import runner, shares, work
from buzz.evaluation.run.config import load_config
from buzz.evaluation.run.runner import run
from buzz.evaluation.show.table import notes, text_table
from buzz.evaluation.tasks import make_task
from tests.evaluation.tiny import byte_tokenizer
from tests.models.tiny import WINDOW, tiny

HIVE = {"policy": "buzz", "name": "hive", "sink": 2, "window": 12, "stride": 3, "threshold": 10}
FIDELITY = {"fidelity_kl", "fidelity_top1", "fidelity_rougeL"}


def records(config, method: str) -> dict[str, dict]:
    path = Path(config.output) / "samples" / f"{method}.jsonl"
    return {record["id"]: record for record in map(json.loads, path.read_text().splitlines())}


def answers(config, method: str) -> dict[str, str]:
    return {name: record["output"] for name, record in records(config, method).items()}


def test_a_run_fills_its_folder(write_config, capfd):
    config = load_config(write_config())
    summary = run(config)
    folder = Path(config.output)
    assert json.loads((folder / "summary.json").read_text()) == summary
    assert (folder / "quality.png").read_bytes().startswith(b"\x89PNG")
    assert "](quality.png)" in (folder / "report.md").read_text()
    assert (folder / "report.html").exists()
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
    assert [line.split(":")[0] for line in lines] == [f"{i}/2 {name}" for i, name in enumerate(summary["methods"], 1)]


def test_runs_in_two_threads_at_once(write_config, tmp_path):
    path = write_config(generation={"max_new_tokens": 12, "fidelity": True})
    alone = run(load_config(path))
    configs = [load_config(path, [f"output={tmp_path / name}"]) for name in ("one", "two")]
    with ThreadPoolExecutor(2) as pool:
        found = list(pool.map(run, configs))
    for config, summary in zip(configs, found, strict=True):
        for name, entry in summary["methods"].items():
            assert entry["metrics"] == alone["methods"][name]["metrics"]
            assert entry["cache"] == alone["methods"][name]["cache"]
        assert (Path(config.output) / "report.html").exists()


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
            together = records(many, method.name)[name]["cache"]
            assert all(together[key] == value for key, value in record["cache"].items() if "_bytes" not in key)
    assert len(set(answers(one, "full").values())) > 1  # else this shows nothing


def test_a_finished_run_is_not_done_again(write_config, monkeypatch):
    config = load_config(write_config())
    first = run(config)
    monkeypatch.setattr(models, "load_model", lambda *_: pytest.fail("loaded the model"))
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
    real = work.run_batch

    def counting(model, tokenizer, task, jobs, *rest):
        done.extend(job.prompt.sample.id for job in jobs)
        return real(model, tokenizer, task, jobs, *rest)

    monkeypatch.setattr(work, "run_batch", counting)
    summary = run(config)
    assert sorted(done) == sorted(json.loads(line)["id"] for line in lines[2:])
    assert path.read_bytes().count(b"\n") == 6
    assert answers(config, hive) == want
    for key in ("mean_tokens", "peak_tokens", "reduction"):
        assert summary["methods"][hive]["cache"][key] == expected["methods"][hive]["cache"][key]
    # The rest of a batch that was cut is a narrower batch, whose sums may be rounded otherwise.
    for name, metric in expected["methods"][hive]["metrics"].items():
        assert summary["methods"][hive]["metrics"][name]["mean"] == pytest.approx(metric["mean"], abs=1e-6)


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


def test_long_prompts_lose_their_middle(write_config, data_file):
    rows = [
        {"id": "long", "document": "a" * 300 + "b" * 300, "summary": "x"},
        {"id": "ok", "document": "abc", "summary": "x"},
    ]
    data_file.write_text("".join(json.dumps(row) + "\n" for row in rows))
    config = load_config(write_config(methods=["full"]))
    summary = run(config)
    assert summary["run"]["truncated"] == 1
    assert "prompts longer than the model's positions: 1; their middle was cut out" in notes(summary)
    kept = records(config, "full")
    assert kept["long"]["truncated"] is True
    assert kept["long"]["prompt_tokens"] == 400 - 12
    assert "truncated" not in kept["ok"]


def test_texts_that_are_made_to_a_length_are_never_cut(write_config):
    task = {"name": "passkey", "lengths": [100], "per_cell": 1, "depths": [0.5]}
    with pytest.raises(ConfigError, match=r"^task.lengths: length100-depth0.5-0 and its answer are longer than"):
        run(load_config(write_config(methods=["full"], task=task)))


def test_no_room_for_a_prompt(write_config):
    config = load_config(write_config(), ["generation.max_new_tokens=400"])
    with pytest.raises(ConfigError, match=r"^generation.max_new_tokens: 400 leaves no room"):
        run(config)
    assert not Path(config.output).exists()


# --- budgets and matching --------------------------------------------------------------------------------------------


def test_matched_methods_have_the_same_mean_cache(write_config):
    methods = [{"policy": "h2o", "name": "h2o", "match": "hive"}, HIVE, {"policy": "streaming", "match": "hive"}]
    config = load_config(write_config(methods=methods))
    summary = run(config)
    assert list(summary["methods"]) == [method.name for method in config.methods]
    for method in (config.methods[0], config.methods[2]):
        for name, record in records(config, method.name).items():
            target = records(config, "hive")[name]["cache"]["mean_tokens"]
            assert record["cache"]["mean_tokens"] == pytest.approx(target, abs=0.75)
            assert record["policy"]["name"] == method.policy


def test_a_budget_too_small_is_told_before_anything_runs(write_config, monkeypatch):
    monkeypatch.setattr(work, "run_batch", lambda *_: pytest.fail("generated"))
    with pytest.raises(ConfigError, match="methods: tight"):
        run(load_config(write_config(methods=["full", {"policy": "streaming", "name": "tight", "budget": 0.01}])))


class Canned:
    """Stands in for `run_batch`: a policy's answers have given numbers of tokens, one after the other, then the last.

    `jobs`: those of every call.
    """

    def __init__(self, **lengths: list[int]) -> None:
        self.lengths, self.jobs = lengths, []

    def __call__(self, model, tokenizer, task, jobs, *_):
        self.jobs.append(list(jobs))
        return [self.record(job) for job in jobs]

    def record(self, job) -> dict:
        lengths = self.lengths[job.policy.name]
        new = lengths.pop(0) if len(lengths) > 1 else lengths[0]
        prompt, held = job.prompt, job.policy.trace(len(job.prompt.ids), new - 1)
        return {
            "id": prompt.sample.id,
            "prompt_hash": prompt.hash,
            "prompt_tokens": len(prompt.ids),
            "new_tokens": new,
            "metrics": {"rouge1": 0.0, "rouge2": 0.0, "rougeL": 0.0},
            "policy": describe(job.policy),
            "cache": cache_figures(
                Held(held, [1000.0 * n for n in held]),
                len(prompt.ids),
                new,
                lambda grown: (sum(grown) / len(grown), 1000 * sum(grown) / len(grown)),
            ),
            "seconds": 1.0,
        }


@pytest.fixture
def one_sample(write_config, data_file):
    """A config of one sample, so long and with caches so large that they can be matched within 2%."""
    data_file.write_text(json.dumps({"id": "long", "document": "river " * 50, "summary": "x"}))

    def config(*methods):
        hive = {**HIVE, "window": 60}
        return load_config(
            write_config(methods=[hive, *methods], generation={"max_new_tokens": 60, "fidelity": False}, hive=0)
        )

    return config


def off(config, method: str) -> float:
    """Distance of the sample's mean cache length from that of the matched method, as a share."""
    (record,), (target,) = records(config, method).values(), records(config, "hive").values()
    return abs(record["cache"]["mean_tokens"] / target["cache"]["mean_tokens"] - 1)


@pytest.mark.parametrize("length", [3, 20, 60])
def test_an_answer_of_another_length_is_matched_again(one_sample, monkeypatch, length):
    canned = Canned(buzz=[30], h2o=[length])
    monkeypatch.setattr(work, "run_batch", canned)
    config = one_sample({"policy": "h2o", "name": "h2o", "match": "hive"})
    run(config)
    assert off(config, "h2o") <= 0.02
    assert 2 <= len(canned.jobs) <= 4


@pytest.mark.parametrize("policy", ["h2o", "streaming", "local", "tova"])
def test_memory_is_matched_in_bytes(write_config, data_file, policy):
    data_file.write_text("".join(json.dumps({"document": "river " * n, "summary": "x"}) + "\n" for n in (40, 43, 37)))
    hive = {**HIVE, "window": 40, "threshold": 60}
    methods = [hive, {"policy": policy, "name": "tokens", "match": "hive"}]
    methods.append({"policy": policy, "name": "bytes", "match": "hive", "match_by": "bytes"})
    # Batches of two and one: a row's share is of what the longest of its batch needs.
    changes = {"generation": {"max_new_tokens": 60, "fidelity": False}, "hive": 0, "batch_size": 2}
    config = load_config(write_config(methods=methods, **changes))
    summary = run(config)
    found = {name: entry["cache"] for name, entry in summary["methods"].items()}
    assert found["bytes"]["mean_mib"] == pytest.approx(found["hive"]["mean_mib"], rel=0.02)
    assert found["tokens"]["mean_tokens"] == pytest.approx(found["hive"]["mean_tokens"], rel=0.02)
    for name, record in records(config, "bytes").items():
        assert record["cache"]["mean_bytes"] == pytest.approx(
            records(config, "hive")[name]["cache"]["mean_bytes"], 0.02
        )
    assert not [note for note in summary["run"].get("notes", []) if "miss" in note]


def test_what_cannot_be_matched_is_a_note(write_config):
    small = {"policy": "buzz", "name": "hive", "sink": 1, "window": 2, "stride": 3, "threshold": 2}
    methods = [small, {"policy": "random", "sink": 9, "window": 9, "match": "hive", "match_by": "bytes"}]
    changes = {"generation": {"max_new_tokens": 40, "fidelity": False}, "hive": 0}
    summary = run(load_config(write_config(methods=methods, **changes)))
    (note,) = summary["run"]["notes"]
    name = list(summary["methods"])[1]
    assert note.startswith(f"{name}: 6 of 6 samples miss match: hive in bytes by more than 2%, by ")
    assert note.endswith(" in the mean; they have the nearest there was")


def test_a_folder_of_before_there_were_bytes_goes_on(write_config):
    config = load_config(write_config())
    first = run(config)
    folder = Path(config.output)
    there = yaml.safe_load((folder / "config.yaml").read_text())
    for method in there["methods"]:
        del method["match_by"]
    (folder / "config.yaml").write_text(yaml.safe_dump(there))
    for path in (folder / "samples").iterdir():
        old = [json.loads(line) for line in path.read_text().splitlines()]
        for record in old:
            record["cache"] = {key: value for key, value in record["cache"].items() if "bytes" not in key}
        path.write_text("".join(json.dumps(record) + "\n" for record in old[:4]))
    summary = run(config)
    for name, entry in summary["methods"].items():
        assert entry["n"] == 6
        assert entry["metrics"].keys() == first["methods"][name]["metrics"].keys()
        assert set(entry["cache"]) == {"mean_tokens", "peak_tokens", "reduction"}
    assert "| - | - |" in (folder / "report.md").read_text()


def test_the_nearest_of_three_tries_is_kept(one_sample, monkeypatch):
    # Each try is fitted to the length of the answer before it, and the answers' lengths never settle.
    canned = Canned(buzz=[2], local=[60, 2, 40])
    monkeypatch.setattr(work, "run_batch", canned)
    real, tries = work.off_target, {}

    def off_target(method, record, target):
        if target:
            tries[record["new_tokens"]] = real(method, record, target)
        return real(method, record, target)

    monkeypatch.setattr(work, "off_target", off_target)
    config = one_sample({"policy": "local", "name": "local", "match": "hive", "sink": 0})
    run(config)
    (record,) = records(config, "local").values()
    assert record["new_tokens"] == min(tries, key=tries.get)
    assert len(canned.jobs) <= 1 + 1 + work.REFITS


def test_only_the_try_that_counts_is_compared(one_sample, monkeypatch):
    canned, compared = Canned(buzz=[2], snapkv=[60]), []
    monkeypatch.setattr(work, "run_batch", canned)
    monkeypatch.setattr(work, "compare_batch", lambda *args: compared.append((args[3], args[5])))
    config = one_sample({"policy": "snapkv", "name": "snapkv", "match": "hive"})
    run(config)
    assert len(canned.jobs) > len(compared) == 2  # one was refitted
    for jobs, found in compared:
        assert [describe(job.policy) for job in jobs] == [record["policy"] for record in found]
    assert compared[1][1] == list(records(config, "snapkv").values())


def test_a_reduction_is_met_by_answers_of_any_length(one_sample, monkeypatch):
    canned = Canned(buzz=[30], h2o=[9])
    monkeypatch.setattr(work, "run_batch", canned)
    config = one_sample({"policy": "h2o", "name": "h2o", "reduction": 1.5})
    run(config)
    (record,) = records(config, "h2o").values()
    assert record["cache"]["full_mean_tokens"] / record["cache"]["mean_tokens"] == pytest.approx(1.5, rel=0.02)


def test_rows_have_policies_of_their_own(write_config):
    methods = ["full", {"policy": "h2o", "name": "share", "budget": 0.5}]
    config = load_config(write_config(methods=methods), ["batch_size=6"])
    run(config)
    policies = {(r["policy"]["window"], r["policy"]["heavy"]) for r in records(config, "share").values()}
    assert len(policies) > 1


def test_batches_are_the_same_for_every_method(write_config, monkeypatch):
    seen: dict[str, list] = {}
    real = work.run_batch

    def watch(model, tokenizer, task, jobs, *rest):
        seen.setdefault(jobs[0].policy.name, []).append([job.prompt.sample.id for job in jobs])
        lengths = [len(job.prompt.ids) for job in jobs]
        assert lengths == sorted(lengths, reverse=True)
        return real(model, tokenizer, task, jobs, *rest)

    monkeypatch.setattr(work, "run_batch", watch)
    run(load_config(write_config(methods=["full", HIVE, {"policy": "streaming", "name": "share", "budget": 0.5}])))
    assert seen["full"] == seen["buzz"] == seen["streaming"]
    assert [len(batch) for batch in seen["full"]] == [4, 2]


# --- fidelity --------------------------------------------------------------------------------------------------------


def measured(config, method: str) -> bool:
    """Whether a method's records have fidelity; all or none."""
    have = {set(record["metrics"]) >= FIDELITY for record in records(config, method).values()}
    assert len(have) == 1
    return have.pop()


def test_the_full_cache_runs_first_and_is_the_reference(write_config, monkeypatch):
    seen = []
    real = work.compare_batch

    def watch(model, tokenizer, task, jobs, positions, records, reference, chunk, logits):
        seen.append((jobs[0].policy.name, reference if reference is None or reference == "self" else set(reference)))
        return real(model, tokenizer, task, jobs, positions, records, reference, chunk, logits)

    monkeypatch.setattr(work, "compare_batch", watch)
    methods = [{"policy": "h2o", "match": "hive"}, "local", HIVE, "full"]
    config = load_config(write_config(methods=methods), ["batch_size=6"])
    summary = run(config)
    ids = {f"s{i}" for i in range(6)}
    assert seen[0] == ("full", "self")
    assert [name for name, _ in seen] == ["full", "buzz", "h2o", "local"]
    assert all(reference == ids for _, reference in seen[1:])
    assert list(summary["methods"]) == [method.name for method in config.methods]
    assert set(summary["run"]["metrics"]) > FIDELITY
    assert summary["methods"]["full"]["metrics"]["fidelity_top1"]["mean"] == 1


@pytest.mark.parametrize(("methods", "overrides"), [([HIVE], []), (["full", HIVE], ["generation.fidelity=false"])])
def test_without_reference_or_wish_there_is_no_fidelity(write_config, methods, overrides):
    config = load_config(write_config(methods=methods), overrides)
    summary = run(config)
    assert not measured(config, "hive")
    assert not FIDELITY & set(summary["run"]["metrics"])
    assert "notes" not in summary["run"]


def test_a_failed_reference_leaves_all_samples_of_a_method_alike(write_config, monkeypatch):
    config = load_config(write_config(methods=["full", HIVE, "local"]), ["batch_size=2"])
    real, done = work.run_batch, []

    def full_fails(model, tokenizer, task, jobs, *rest):
        if jobs[0].policy.name == "full":
            raise MemoryError
        if len(done) == 2:
            raise RuntimeError("power cut")
        done.append(jobs)
        return real(model, tokenizer, task, jobs, *rest)

    monkeypatch.setattr(work, "run_batch", full_fails)
    with pytest.raises(RuntimeError, match="power cut"):
        run(config)
    assert len(records(config, "hive")) == 4
    monkeypatch.setattr(work, "run_batch", real)  # now there is memory
    summary = run(config)
    assert len(records(config, "hive")) == 6
    assert (measured(config, "full"), measured(config, "hive"), measured(config, "local")) == (True, False, True)
    note, other = summary["run"]["notes"]
    assert other.startswith("local never evicted: it may hold more than any sample needed")
    assert note.startswith("hive is not compared with full")


@pytest.mark.filterwarnings("ignore:every layer of this model has a sliding window")
def test_a_note_says_so_where_every_layer_keeps_its_window(write_config, tmp_path):
    folder = tmp_path / "windows"
    tiny("mistral", vocab_size=len(byte_tokenizer())).save_pretrained(folder)
    byte_tokenizer().save_pretrained(folder)
    config = load_config(write_config(model={"id": str(folder)}, methods=["full", HIVE, "local"]), ["task.limit=2"])
    assert run(config)["run"]["notes"] == [
        f"every layer of this model has a sliding window of {WINDOW} tokens, which it keeps: the methods decide nothing"
    ]


def test_a_text_is_read_by_every_method(write_config, tmp_path):
    text = tmp_path / "text.txt"
    text.write_text("".join(f"The {word} of the river won the vote again.\n" for word in "abcdefghij"))
    config = write_config(
        methods=["full", {**HIVE, "window": 60}, {"policy": "h2o", "match": "hive"}],
        generation={"max_new_tokens": 999},
    )
    config = load_config(config, [f"task.data={text}", "task.name=stream", "task.prompt=null", "task.max_tokens=300"])
    summary = run(config)
    assert [entry["n"] for entry in summary["methods"].values()] == [1, 1, 1]
    means = [entry["cache"]["mean_tokens"] for entry in summary["methods"].values()]
    assert means[2] == pytest.approx(means[1], rel=0.02)
    assert summary["run"]["metrics"] == ["perplexity"]


# --- sweeps and tracking ---------------------------------------------------------------------------------------------


def test_a_loader_loads_equal_models_once(write_config, tmp_path, monkeypatch):
    loaded = []
    real = models.load_model
    monkeypatch.setattr(models, "load_model", lambda *a: loaded.append(a) or real(*a))
    loader = ModelLoader()
    path = write_config(methods=["full"])
    for name, override in (("a", "task.limit=1"), ("b", "task.limit=2"), ("c", "model.dtype=float16")):
        run(load_config(path, ["task.limit=1", override, f"output={tmp_path / name}"]), loader)
    assert [config.dtype for config, *_ in loaded] == ["auto", "float16"]
    for name in ("a", "b", "c"):
        assert json.loads((tmp_path / name / "environment.json").read_text())["model"]["layers"] == 2


def test_the_tracker_hears_of_every_sample(write_config, monkeypatch):
    heard = []

    class Tracker:
        def samples(self, method, records, done, total):
            heard.append((method, len(records), done, total))

        def method_done(self, method, records):
            heard.append((method, len(records)))

        def summary(self, summary):
            heard.append(sorted(summary))

        def report(self, page):
            heard.append(page.name)

    @contextlib.contextmanager
    def track(config, folder, facts, known, main):
        assert main
        assert facts["model"]["layers"] == 2
        yield Tracker()

    monkeypatch.setattr(runner, "track", track)
    run(load_config(write_config(methods=["full", "local"])))
    each = [("full", 4, 4, 6), ("full", 2, 6, 6), ("full", 6)]
    assert heard == [*each, *(("local", *rest) for _, *rest in each), ["methods", "nearest", "run"], "report.html"]


# --- methods that read the full cache's answers ---


def test_without_answers_methods_read_those_of_the_full_cache(write_config):
    methods = ["full", HIVE, {"policy": "h2o", "reduction": 2}, {"policy": "streaming", "match": "hive"}]
    config = load_config(write_config(methods=methods, generation={"max_new_tokens": 12, "answers": False}))
    answered = load_config(write_config(methods=methods[:2]), [f"output={config.output}-answered"])
    summary, other = run(config), run(answered)
    full = records(config, "full")
    for method in config.methods[1:]:
        known = records(config, method.name)
        assert {name: record["output_ids"] for name, record in known.items()} == {
            name: record["output_ids"] for name, record in full.items()
        }
        assert all(set(record["metrics"]) == {"fidelity_kl", "fidelity_top1"} for record in known.values())
        assert not any("output" in record for record in known.values())
    assert summary["run"]["metrics"] == ["fidelity_kl", "fidelity_top1"]
    assert (summary["run"]["headline"], summary["nearest"]["metric"]) == ("fidelity_kl", "fidelity_kl")
    for metric in ("fidelity_kl", "fidelity_top1"):  # as near as a run says that has answers
        for name in ("full", "hive"):
            found = summary["methods"][name]["metrics"][metric]["mean"]
            assert found == pytest.approx(other["methods"][name]["metrics"][metric]["mean"], rel=1e-4, abs=1e-6)
    for record in records(config, "h2o-reduction2").values():
        assert record["cache"]["full_mean_tokens"] / record["cache"]["mean_tokens"] == pytest.approx(2, rel=0.05)
    page = (Path(config.output) / "report.html").read_text()
    assert summary["methods"]["full"]["n"] == 6
    assert "ROUGE" not in page.split("<script")[0].split("How it was made")[0]


def test_the_hives_of_followed_samples_are_those_of_a_replay(write_config):
    methods = ["full", HIVE, {"policy": "streaming", "reduction": 3}]
    config = load_config(write_config(methods=methods, generation={"max_new_tokens": 12, "answers": False}, hive=2))
    run(config)
    paths = sorted((Path(config.output) / "hive").iterdir())
    watched = [json.loads(path.read_text()) for path in paths]
    for path in [*paths, Path(config.output) / "summary.json"]:
        path.unlink()
    run(config)  # nothing is left to measure, so they are replayed
    assert [json.loads(path.read_text()) for path in paths] == watched
    assert len(paths) == 6


def test_without_the_full_caches_answers_there_is_nothing_to_read(write_config, monkeypatch):
    real = work.run_batch

    def full_fails(model, tokenizer, task, jobs, *rest):
        if jobs[0].policy.name == "full":
            raise torch.OutOfMemoryError("out of memory")
        return real(model, tokenizer, task, jobs, *rest)

    monkeypatch.setattr(work, "run_batch", full_fails)
    summary = run(load_config(write_config(generation={"max_new_tokens": 12, "answers": False})))
    hive = list(summary["methods"].values())[1]
    assert (hive["n"], hive["failed"]) == (0, "full, whose answers it is given, did not finish")


# --- decoding after a long prompt ---


def test_decoding_after_a_long_prompt_is_timed_once(write_config, monkeypatch):
    speed = {"prompt": 300, "steps": 5, "methods": ["h2o-reduction4"]}
    config = load_config(write_config(methods=["full", {"policy": "h2o", "reduction": 4}], speed=speed))
    summary = run(config)
    full, h2o = summary["speed"]
    assert (full["method"], h2o["method"]) == ("DynamicCache", "h2o-reduction4")
    assert full["prompt_tokens"] == h2o["prompt_tokens"] == 300
    assert full["tokens"] == 300 + 5 + 2
    assert h2o["tokens"] == pytest.approx(full["tokens"] / 4, rel=0.05)
    for row in summary["speed"]:
        assert row["tokens_per_second"] == pytest.approx(1000 / row["ms"])
        assert 0 < row["ms"] < 1000 * row["prompt_seconds"]
    report = (Path(config.output) / "report.md").read_text()
    assert "## After a long prompt" in report
    assert "| DynamicCache | 300 |" in report
    assert "After 300 tokens of prompt: " in report.split("\n")[2]
    assert "After a long prompt</h2>" in (Path(config.output) / "report.html").read_text()
    assert "DynamicCache" in text_table(summary)

    monkeypatch.setattr(work, "long_prompt", lambda *_: pytest.fail("timed again"))
    (Path(config.output) / "summary.json").unlink()
    assert run(config)["speed"] == summary["speed"]


def test_a_long_prompt_without_memory_is_a_warning(write_config, monkeypatch):
    def fails(*_):
        raise torch.OutOfMemoryError("CUDA\nout of memory")

    monkeypatch.setattr(work, "long_prompt", fails)
    with pytest.warns(UserWarning, match="speed is not measured: out of memory"):
        summary = run(load_config(write_config(methods=["local"], speed={"prompt": 100, "methods": ["local"]})))
    assert "speed" not in summary
    assert summary["methods"]["local"]["n"] == 6


def test_a_run_that_is_complete_says_so(write_config, capfd):
    config = load_config(write_config(methods=["local"]))
    run(config)
    assert "to begin anew" not in capfd.readouterr().err
    run(config)
    assert (
        capfd.readouterr().err == f"{config.output} has all of this run already; to begin anew: rm -r {config.output}\n"
    )


# --- hives ---


def test_the_first_samples_have_hives(write_config):
    config = load_config(write_config(methods=["full", HIVE, {"policy": "streaming", "match": "hive"}], hive=2))
    run(config)
    for method in config.methods:
        for number, name in enumerate(["s0", "s1"]):
            hive = json.loads(hive_path(Path(config.output), method.name, number).read_text())
            record = records(config, method.name)[name]
            assert (hive["sample"], hive["policy"]) == (name, record["policy"])
            assert hive["calls"] == record["new_tokens"] - 1
    assert len(list((Path(config.output) / "hive").iterdir())) == 6


def test_hives_are_recorded_once(write_config, monkeypatch):
    config = load_config(write_config(methods=["full", HIVE]))
    run(config)
    hive_path(Path(config.output), "hive", 0).unlink()
    path = Path(config.output) / "samples" / "hive.jsonl"
    path.write_bytes(b"".join(path.read_bytes().splitlines(keepends=True)[:3]))
    real, recorded = work.record_hive, []
    monkeypatch.setattr(work, "record_hive", lambda *a: recorded.append(a[-1].name) or real(*a))
    run(config)
    assert recorded == ["hive.json"]


def test_a_hive_that_fails_is_a_warning(write_config, monkeypatch):
    def fails(*_):
        raise torch.OutOfMemoryError("CUDA\nout of memory")

    monkeypatch.setattr(work, "record_hive", fails)
    with pytest.warns(UserWarning, match="local: no hive of s0: CUDA out of memory"):
        summary = run(load_config(write_config(methods=["local"])))
    assert summary["methods"]["local"]["n"] == 6


# --- memory ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("error", [torch.OutOfMemoryError("CUDA out of memory"), RuntimeError("can't allocate memory")])
def test_a_batch_too_large_is_halved(write_config, monkeypatch, error):
    sizes = []
    real = work.run_batch

    def small_batches_alone(model, tokenizer, task, jobs, *rest):
        sizes.append(len(jobs))
        if len(jobs) > 1:
            raise error
        return real(model, tokenizer, task, jobs, *rest)

    monkeypatch.setattr(work, "run_batch", small_batches_alone)
    config = load_config(write_config(methods=["full"]))
    summary = run(config)
    assert summary["methods"]["full"]["n"] == 6
    assert sizes == [4, 2, 1, 1, 1, 1, 1, 1]
    halvings = [{"method": "full", "from": 4, "to": 2}, {"method": "full", "from": 2, "to": 1}]
    assert summary["run"]["batch_halvings"] == halvings
    assert run(config)["run"]["batch_halvings"] == halvings  # a later start knows it, too
    assert sorted(records(config, "full")) == [f"s{i}" for i in range(6)]


def test_a_method_without_memory_is_given_up(write_config, monkeypatch):
    real = work.run_batch

    def full_fails(model, tokenizer, task, jobs, *rest):
        if jobs[0].policy.name == "full":
            raise torch.OutOfMemoryError("CUDA out of memory")
        return real(model, tokenizer, task, jobs, *rest)

    monkeypatch.setattr(work, "run_batch", full_fails)
    methods = ["full", {"policy": "streaming", "name": "other", "match": "full"}, "local"]
    config = load_config(write_config(methods=methods))
    summary = run(config)
    assert summary["methods"]["full"] == {"n": 0, "failed": "out of memory"}
    assert "full" in summary["methods"]["other"]["failed"]
    assert summary["methods"]["local"]["n"] == 6
    assert "full did not finish: out of memory" in text_table(summary)
    monkeypatch.setattr(work, "run_batch", real)
    assert "failed" not in run(config)["methods"]["full"]  # started again, it is tried again


def test_a_run_of_which_nothing_is_left_still_ends(write_config, monkeypatch):
    def fails(*_):
        raise MemoryError

    monkeypatch.setattr(work, "run_batch", fails)
    config = load_config(write_config(methods=["full", "local"]))
    summary = run(config)
    assert summary["methods"] == {name: {"n": 0, "failed": "out of memory"} for name in ("full", "local")}
    assert "out of memory" in text_table(summary)
    assert json.loads((Path(config.output) / "summary.json").read_text()) == summary


def test_other_errors_are_not_swallowed(write_config, monkeypatch):
    def broken(*_):
        raise RuntimeError("shapes do not fit")

    monkeypatch.setattr(work, "run_batch", broken)
    with pytest.raises(RuntimeError, match="shapes do not fit"):
        run(load_config(write_config()))


COMB = {"policy": "comb", "name": "comb", "reduction": 2}


def test_head_shares_are_measured_once_and_kept(write_config, monkeypatch):
    config = load_config(write_config(methods=["full", COMB]))
    run(config)
    path = Path(config.output) / "environment.json"
    facts = json.loads(path.read_text())
    assert sum(share for of in facts["head_shares"] for share in of) == pytest.approx(
        sum(map(len, facts["head_shares"]))
    )
    first = answers(config, "comb")
    (Path(config.output) / "samples" / "comb.jsonl").unlink()
    monkeypatch.setattr(shares, "head_shares", None)  # what is known is not measured again
    run(config)
    assert answers(config, "comb") == first
    assert json.loads(path.read_text())["head_shares"] == facts["head_shares"]


@pytest.mark.parametrize(
    ("damaged", "why"),
    [
        ([[1], [0]], "head shares must be numbers above 0"),
        ([[1, 1, 1]], "the head shares are of 1 layers of 3 KV heads"),
        ([[10**400, 1]], "head shares must be numbers above 0"),
    ],
)
def test_damaged_head_shares_are_refused(write_config, damaged, why):
    config = load_config(write_config(methods=["full", COMB]))
    run(config)
    path = Path(config.output) / "environment.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), "head_shares": damaged}))
    (Path(config.output) / "samples" / "comb.jsonl").unlink()
    with pytest.raises(ConfigError, match=f"head_shares in .* are damaged: {why}"):
        run(config)


def test_who_needs_no_head_shares_measures_none(write_config):
    config = load_config(write_config(methods=["full", {**COMB, "echo": True}]))
    run(config)
    assert "head_shares" not in json.loads((Path(config.output) / "environment.json").read_text())
