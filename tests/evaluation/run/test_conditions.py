"""What a run's figures are of: which rows, read how; told in the report, and part of what a folder is known by."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
import yaml

from buzz.cache import BeehiveCache
from buzz.evaluation.errors import ConfigError
from buzz.evaluation.models.load import load_model
from buzz.evaluation.run.config import load_config
from buzz.evaluation.run.runner import run
from buzz.evaluation.show.table import text_table
from buzz.evaluation.tasks import make_task

TUNING = {"s0", "s1"}  # of s0 to s5


def ids(config, method="full"):
    lines = (Path(config.output) / "samples" / f"{method}.jsonl").read_text().splitlines()
    return {json.loads(line)["id"] for line in lines}


@pytest.mark.parametrize(("rows", "left"), [("tune", TUNING), ("test", {"s2", "s3", "s4", "s5"})])
def test_a_run_has_these_rows_and_says_so(write_config, rows, left):
    config = load_config(write_config(), [f"task.rows={rows}"])
    summary = run(config)
    assert ids(config) == left
    word = {"tune": "tuning", "test": "test"}[rows]
    note = f"{word} rows alone (task.rows: {rows})"
    assert note in summary["run"]["notes"]
    assert note in text_table(summary)
    for name in ("report.md", "report.html"):
        assert note in (Path(config.output) / name).read_text()


def test_a_folder_of_other_rows_is_refused(write_config):
    path = write_config(methods=["full"])
    run(load_config(path, ["task.rows=test"]))
    with pytest.raises(ConfigError, match=r"another config \(task\.rows is 'test' there and 'tune' now\)"):
        run(load_config(path, ["task.rows=tune"]))


def test_a_folder_from_before_there_was_a_split_has_all_rows(write_config):
    path = write_config(methods=["full"])
    config = load_config(path)
    run(config)
    there = Path(config.output) / "config.yaml"
    data = yaml.safe_load(there.read_text())
    assert data["task"].pop("rows") == "all"
    there.write_text(yaml.safe_dump(data))
    run(config)
    with pytest.raises(ConfigError, match=r"task\.rows is 'all' there and 'test' now"):
        run(load_config(path, ["task.rows=test"]))


def test_methods_are_compared_with_a_named_one(write_config):
    methods = ["full", {"policy": "h2o", "name": "h2o", "reduction": 2}, {"policy": "tova", "match": "h2o"}]
    path = write_config(methods=methods)
    config = load_config(path, ["compare=h2o"])
    summary = run(config)
    pair = summary["methods"]["tova-match-h2o"]["paired"]["against h2o"]
    assert pair["method"] == "h2o"
    kl = {name: summary["methods"][name]["metrics"]["fidelity_kl"]["mean"] for name in ("h2o", "tova-match-h2o")}
    assert pair["metrics"]["fidelity_kl"]["ratio"] == pytest.approx(kl["tova-match-h2o"] / kl["h2o"])
    for name, mark in (("report.md", "## Ratio to h2o"), ("report.html", "<h3>Ratio to h2o</h3>")):
        assert mark in (Path(config.output) / name).read_text()
    # What is compared changes no sample, so the same folder will do.
    again = run(load_config(path, ["compare=[full, h2o]"]))
    assert set(again["methods"]["h2o"]["paired"]) == {"full", "rival", "against full"}


COMB = {"policy": "comb", "name": "comb", "capacity": 12, "sink": 1, "window": 4, "beyond": 4, "near": 3}
H2O = {"policy": "h2o", "name": "h2o", "heavy": 6, "window": 6}


def test_records_and_notes_say_which_positions_keys_had(write_config):
    path = write_config(methods=["full", COMB, H2O, {**H2O, "name": "far", "positions": "original"}])
    config = load_config(path)
    notes = run(config)["run"]["notes"]
    assert "positions: null" in (Path(config.output) / "config.yaml").read_text()
    used = {method.name: {r["positions"] for r in records_of(config, method.name)} for method in config.methods}
    assert used == {"full": {"cache"}, "comb": {"original"}, "h2o": {"cache"}, "far": {"original"}}
    assert notes == [
        "methods differ in their keys' positions, so more than their rules is compared "
        "(original: comb, far; cache: h2o)"
    ]


def test_equal_positions_need_no_note(write_config, tmp_path):
    path = write_config(methods=["full", COMB, {**H2O, "positions": "original"}])
    assert "notes" not in run(load_config(path))["run"]


def test_the_figures_of_single_heads_are_recorded_and_shown(write_config, monkeypatch):
    stats = BeehiveCache.stats

    def with_heads(cache, *args):
        figures = stats(cache, *args)
        means = figures["mean_tokens"]
        return {**figures, "longest_head": [9 * m for m in means], "shortest_head": [m / 4 for m in means]}

    monkeypatch.setattr(BeehiveCache, "stats", with_heads)
    config = load_config(write_config(methods=["full", H2O]), ["generation.fidelity=false"])
    summary = run(config)
    cache = summary["methods"]["h2o"]["cache"]
    longest = [record["cache"]["longest_head"] for record in records_of(config, "h2o")]
    assert cache["longest_head"] == max(longest)
    assert cache["shortest_head"] < cache["mean_tokens"] < cache["longest_head"]
    cell = f"{cache['shortest_head']:.0f} to {cache['longest_head']:.0f}"
    assert cell in text_table(summary)
    assert f"| {cell} |" in (Path(config.output) / "report.md").read_text()
    assert run(config)["methods"]["h2o"]["cache"] == cache  # read back from the folder


def test_a_summary_can_be_measured_by_its_likelihood_too(write_config):
    path = write_config(methods=["full", H2O])
    config = load_config(path, ["task.likelihood=true", "generation.fidelity=false"])
    summary = run(config)
    assert summary["run"]["metrics"] == ["rouge1", "rouge2", "rougeL", "answer_nll"]
    full = {record["id"]: record["metrics"]["answer_nll"] for record in records_of(config, "full")}
    model, tokenizer, _ = load_model(config.model)
    for sample in make_task(config.task).load():
        prompt, answer = (tokenizer(text)["input_ids"] for text in (sample.prompt, f" {sample.reference}"))
        with torch.no_grad():
            logits = model(torch.tensor([prompt + answer])).logits[0, len(prompt) - 1 : -1].float()
        nll = torch.nn.functional.cross_entropy(logits, torch.tensor(answer))
        assert full[sample.id] == pytest.approx(float(nll), rel=0.02)  # bfloat16
    nlls = [summary["methods"][name]["metrics"]["answer_nll"]["mean"] for name in ("full", "h2o")]
    assert nlls[0] != nlls[1]


QUESTIONS = [
    {
        "id": f"q{i}",
        "question": "Who won the vote",
        "answers": ["bee"],
        "ctxs": [{"title": "Vote", "text": "The river stone bee won " * (3 + 2 * i)}],
    }
    for i in range(3)
]


def test_answers_begin_with_what_is_given(write_config, tmp_path):
    """As if it stood at the end of the prompt, but that it belongs to the answer."""
    data = tmp_path / "questions.jsonl"
    data.write_text("".join(json.dumps(row) + "\n" for row in QUESTIONS))
    methods = ["full", {"policy": "h2o", "name": "h2o", "reduction": 2}]
    asked, prompt = {"name": "ten_qa", "data": str(data)}, "{documents}\n{question}?"
    given = load_config(
        write_config(task={**asked, "prompt": prompt, "answer_prefix": "It is"}, methods=methods),
        [f"output={tmp_path / 'given'}"],
    )
    written = load_config(
        write_config(task={**asked, "prompt": f"{prompt} It is"}, methods=methods), [f"output={tmp_path / 'written'}"]
    )
    plain = load_config(write_config(task={**asked, "prompt": prompt}, methods=methods), [f"output={tmp_path / 'no'}"])
    summary, same, other = run(given), run(written), run(plain)
    for name in ("full", "h2o"):
        for one, two in zip(records_of(given, name), records_of(written, name), strict=True):
            assert one == {**two, "seconds": one["seconds"]}
    nll = [entry["methods"]["h2o"]["metrics"]["answer_nll"]["mean"] for entry in (summary, same, other)]
    assert nll[0] == nll[1] != pytest.approx(nll[2], rel=1e-3)
    assert summary["run"]["notes"] == ["answers are made to begin with 'It is' (task.answer_prefix)"]


def test_a_context_is_compressed_before_the_question(write_config, tmp_path):
    data = tmp_path / "questions.jsonl"
    data.write_text("".join(json.dumps(row) + "\n" for row in QUESTIONS))
    task = {"name": "ten_qa", "data": str(data), "prompt": "{documents}\n{question}?"}
    methods = ["full", {"policy": "h2o", "name": "h2o", "reduction": 2}, {"policy": "tova", "match": "h2o"}]
    path = write_config(task=task, methods=methods)
    aware = load_config(path, [f"output={tmp_path / 'aware'}"])
    config = load_config(path, ["task.query_aware=false", f"output={tmp_path / 'not'}"])
    before, after = run(aware), run(config)
    note = "contexts are read, and compressed, before the questions (task.query_aware: false)"
    assert after["run"]["notes"] == [note]
    assert note not in before["run"].get("notes", [])
    full, theirs = (records_of(one, "full") for one in (config, aware))
    assert [record["output_ids"] for record in full] == [record["output_ids"] for record in theirs]
    assert after["methods"]["h2o"]["cache"]["reduction"] == pytest.approx(2, rel=0.02)
    for record in records_of(config, "h2o"):
        assert record["prompt_tokens"] - record["context_tokens"] == len("\nWho won the vote?")
    kl = [summary["methods"]["h2o"]["metrics"]["fidelity_kl"]["mean"] for summary in (before, after)]
    assert kl[0] != pytest.approx(kl[1], rel=1e-3)
    assert not (Path(config.output) / "hive").exists()  # the view has a single call for a prompt
    assert run(config)["methods"] == after["methods"]


def records_of(config, method):
    lines = (Path(config.output) / "samples" / f"{method}.jsonl").read_text().splitlines()
    return sorted(map(json.loads, lines), key=lambda record: record["id"])


@pytest.mark.parametrize("sized", [{"budget": 0.5}, {"reduction": 2.0}, {"match": "hive"}], ids=str)
def test_samples_by_other_defaults_are_not_gone_on_with(write_config, sized):
    """The folder's config does not name them: what a budget decides is left out there, and so is all beside it."""
    hive = {"policy": "streaming", "name": "hive", "sink": 2, "window": 20}
    config = load_config(write_config(methods=[hive, {"policy": "comb", "name": "comb", "sink": 1, **sized}]))
    first = run(config)
    path = Path(config.output) / "samples" / "comb.jsonl"
    made = [json.loads(line) for line in path.read_text().splitlines()]
    for change, says in (
        ({"near": 32}, "near is 32 there and 16 now"),
        ({"afar": 2.5}, "afar is 2.5 there and not given now"),
        ({"recent": 4}, "recent is 4 there and not given now"),
    ):
        old = [{**record, "policy": {**record["policy"], **change}} for record in made]
        path.write_text("".join(json.dumps(record) + "\n" for record in old[:4]))
        with pytest.raises(ConfigError) as refused:
            run(config)
        assert f"holds samples of comb by other rules ({says})" in str(refused.value)
    path.write_text("".join(json.dumps(record) + "\n" for record in old))
    run(config)  # nothing would be added to them
    path.write_text("".join(json.dumps(record) + "\n" for record in made[:4]))
    assert run(config)["methods"]["comb"]["metrics"] == first["methods"]["comb"]["metrics"]
