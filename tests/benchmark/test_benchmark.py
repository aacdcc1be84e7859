"""A whole benchmark on a tiny model: what it writes, and how it goes on, gives up and refuses."""

from __future__ import annotations

import importlib.util
import json
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from transformers import LlamaForCausalLM

from buzz.benchmark import agreement, prompts
from buzz.benchmark.bench import Stage
from buzz.benchmark.cli import main
from buzz.benchmark.config import SECTIONS
from buzz.benchmark.contenders import Contender
from buzz.evaluation.config.methods import parse_method
from tests.conftest import tiny_llama

METHODS = [
    "dynamic",
    {"policy": "eager", "max_length": 20},
    {"policy": "static", "max_batch": 1},
    {"policy": "buzz", "name": "buzz", "sink": 2, "window": 8, "stride": 3, "threshold": 12},
]
ALL = {
    "name": "tiny",
    "model": {"shape": "tiny", "device": "cpu"},
    "methods": METHODS,
    "ceilings": {"copy_mib": 1, "matmul": 64, "repeats": 3},
    "kernels": {
        "lengths": [21],
        "cached": [17],
        "batches": [2],
        "repeats": 3,
        "tiles": [{"keys": 32}],
        "launches": [{"splits": 2}],
    },
    "prefill": {"lengths": [16, 48], "repeats": 3, "new_lengths": 2},
    "decode": {"contexts": [20, 40], "batches": [1, 2], "steps": 6, "methods": ["dynamic", "static", "buzz"]},
    "stream": {"tokens": [33, 70], "chunk": 16, "steps": 6, "methods": ["buzz"]},
    "evictions": {"context": 32, "steps": 50, "profiled": 4, "methods": ["dynamic", "buzz"]},
    "throughput": {"prompt": 24, "new_tokens": 12, "batches": [2], "limit": 5, "methods": ["dynamic", "buzz"]},
    "one_row": {"contexts": [16], "steps": 4, "methods": ["dynamic"]},  # more of both in test_caches.py
    "many_rows": {"contexts": [16], "new_tokens": 6, "limit": 2, "methods": ["dynamic"]},
    "agreement": {"prompts": 3, "batch": 2, "shortest": 20, "longest": 40, "new_tokens": 30, "methods": ["buzz"]},
    "steps": {"prompt": 40, "steps": 9, "lengths": [16], "batches": [1, 2]},
}


def write(folder: Path, raw: dict[str, Any]) -> str:
    path = folder / "bench.yaml"
    path.write_text(yaml.safe_dump(raw))
    return str(path)


def results(folder: Path) -> dict[str, Any]:
    return json.loads((folder / "results.json").read_text())


def only(name: str, **changes: Any) -> dict[str, Any]:
    """The config with one section alone."""
    kept = {key: value for key, value in ALL.items() if key not in SECTIONS}
    return {**kept, name: {**ALL[name], **changes}}


@pytest.fixture(scope="module")
def done(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("bench")
    assert main(["--config", write(folder, ALL), f"output={folder / 'out'}"]) == 0
    return folder


@pytest.fixture(scope="module")
def sections(done: Path) -> dict[str, Any]:
    data = results(done / "out")
    assert list(data["sections"]) == list(SECTIONS)
    assert all(section["complete"] for section in data["sections"].values())
    assert data["model"]["shape"] == "tiny"
    assert data["runs"][0]["versions"]["torch"] == torch.__version__
    return {name: section["rows"] for name, section in data["sections"].items()}


def of(rows: list[dict[str, Any]], **key: Any) -> dict[str, Any]:
    (row,) = [row for row in rows if all(row.get(name) == value for name, value in key.items())]
    return row


def test_ceilings(sections):
    assert of(sections["ceilings"], what="copy")["gb_per_s"] > 0
    assert of(sections["ceilings"], what="matmul")["tflop_per_s"] > 0


def test_kernels_have_their_errors(sections):
    rows = sections["kernels"]
    for what in ("flash", "attend, scores"):
        row = of(rows, kind="prompt", what=what)
        assert row["ms"] > 0
        assert 0 <= row["output_error"] < 1e-6
    assert of(rows, kind="prompt", what="attend, scores")["score_error"] < 1e-6
    alone = of(rows, kind="prompt", what="scores alone")
    if importlib.util.find_spec("triton") is None:
        assert alone["failed"] == "ModuleNotFoundError: No module named 'triton'"
    else:
        assert alone["score_error"] < 1e-5
        assert of(rows, kind="prompt", what="scores alone, keys=32")["score_error"] < 1e-5
        assert of(rows, kind="step", what="attend_step, scores, splits=2")["score_error"] < 1e-5
    assert "failed" in of(rows, kind="prompt", what="cudnn")  # there is none on a CPU, and the others went on
    for what in ("sdpa", "attend_step", "attend_step, scores"):
        row = of(rows, kind="step", what=what)
        assert row["gb_per_s"] > 0
        assert row["of_copy"] == pytest.approx(row["gb_per_s"] / of(sections["ceilings"], what="copy")["gb_per_s"])
        assert row["output_error"] < 1e-5
    assert of(rows, kind="step", what="attend_step, scores")["score_error"] < 1e-5


def test_prefill(sections):
    rows = sections["prefill"]
    assert {(row["length"], row["method"]) for row in rows} == {
        *((n, name) for n in (16, 48) for name in ("dynamic", "static", "buzz")),
        (16, "eager"),  # its limit
    }
    row = of(rows, length=48, method="dynamic")
    assert row["repeats"] == 3
    assert row["ms_fastest"] <= row["ms"] <= row["ms_slowest"]
    assert 0 < row["ms_new"] <= row["ms_new_slowest"]
    assert row["new_lengths"] == 2
    assert row["peak_gib"] is None  # of the CPU's memory nothing is known
    token = 2 * 2 * 2 * 16 * 4
    assert row["cache_mib"] == pytest.approx(48 * token / 2**20)
    assert of(rows, length=48, method="static")["cache_mib"] == pytest.approx(49 * token / 2**20)


def test_decode(sections):
    rows = sections["decode"]
    dynamic, buzz = (of(rows, batch=2, context=40, method=name) for name in ("dynamic", "buzz"))
    assert dynamic["steps"] == 6
    assert dynamic["evictions"] == 0
    assert dynamic["mean_length"] == 40 + 8 + 3.5  # eight steps warm up; then 49 to 54 slots
    assert buzz["evictions"] >= 2
    assert buzz["mean_length"] < 23
    assert buzz["tokens_per_s"] == pytest.approx(2e3 / buzz["ms_mean"])
    assert dynamic["gb_per_s"] > 0
    assert {row["batch"] for row in rows if row["method"] == "static"} == {1}  # its limit


def test_stream(sections):
    early, late = sections["stream"]
    assert (early["tokens"], late["tokens"]) == (33, 70)
    assert late["evictions"] >= 2
    assert late["mean_length"] < 23


def test_evictions(sections):
    full, buzz = (of(sections["evictions"], method=name) for name in ("dynamic", "buzz"))
    assert full["eviction_share"] is None
    assert buzz["evictions"] >= 4
    assert buzz["eviction_share"] is not None
    for kind in ("", "fixed_"):
        assert full[f"{kind}drains_per_step"] == full[f"{kind}event_waits_per_step"] == 0  # no CUDA runtime here
        assert full[f"{kind}calls"]["aten::item"] >= 1  # transformers' loop asks whether it is over


def test_throughput(sections):
    row = of(sections["throughput"], batch="largest", method="buzz")
    assert row["rows"] == 5  # the limit
    assert row["trials"] == [[4, "fits"], [5, "fits"]]
    assert row["tokens_per_s"] == pytest.approx(5 * 12 / (row["prefill_s"] + 11e-3 * row["ms_mean"]))
    assert of(sections["throughput"], batch=2, method="dynamic")["rows"] == 2


def test_the_stage_holds_nothing_of_another_contender():
    """A graph of one policy holds its cache, and would leave the next one less memory."""
    model = tiny_llama()
    stage = Stage(model)
    full, other = (Contender(name, "policy", parse_method(name, f"methods.{name}")) for name in ("full", "buzz"))
    dynamic = Contender("dynamic", "dynamic")
    handles = []
    for contender in (full, full, other, dynamic, other):
        stage.set(contender)
        handles.append(getattr(model, "_buzz_handle", None))
    assert handles[0] is handles[1]
    assert handles[3] is None
    assert len({id(handle) for handle in handles}) == 4
    stage.clear()
    assert not hasattr(model, "_buzz_handle")


def test_agreement(sections):
    (row,) = sections["agreement"]
    assert (row["prompts"], row["equal"], row["first"], row["gap"]) == (3, 3, None, None)


def test_a_difference_is_found(tmp_path, monkeypatch):
    class Shifted(agreement.Uncaptured):
        """Steps whose logits belong to other tokens."""

        def prepare(self, step):
            def run():
                step()
                step.logits.copy_(step.logits.roll(1, dims=-1))

            return run

    monkeypatch.setattr(agreement, "Uncaptured", Shifted)
    assert main(["--config", write(tmp_path, only("agreement")), f"output={tmp_path / 'out'}"]) == 0
    (row,) = results(tmp_path / "out")["sections"]["agreement"]["rows"]
    assert (row["equal"], row["first"]) == (0, 1)  # the first token is the prompt's own
    assert row["gap"] == max(difference["gap"] for difference in row["differences"]) > 0


def test_steps(sections):
    groups = list(dict.fromkeys(row["group"] for row in sections["steps"]))
    assert groups == [
        "16 cached tokens, then 9 steps",
        "40 prompt tokens, then 9 steps, batch 1",
        "40 prompt tokens, then 9 steps, batch 2",
    ]
    equal = [row for row in sections["steps"] if row["group"] == groups[0]]
    assert [row["method"] for row in equal] == ["DynamicCache", "patched, no scores", "patched, scores"]
    assert {row["mean_length"] for row in equal} == {21}  # 17 to 25


def test_report_and_pictures(done):
    text = (done / "out" / "report.md").read_text()
    assert all(f"## {name}\n" in text for name in SECTIONS)
    assert "| method | ms | ratio |" in text
    for name in ("prefill", "decode", "batch", "throughput"):
        assert f"({name}.png)" in text
        assert (done / "out" / f"{name}.png").stat().st_size > 1000
        assert "<svg" in (done / "out" / f"{name}.svg").read_text()[:1000]


def test_a_complete_folder_loads_no_model(done, monkeypatch, capsys):
    monkeypatch.setattr("buzz.benchmark.sections.load", lambda *_: pytest.fail("a model was loaded"))
    assert main(["--config", str(done / "bench.yaml"), f"output={done / 'out'}"]) == 0
    assert "**length 48**" in capsys.readouterr().out


def test_a_killed_run_goes_on(tmp_path, monkeypatch, capsys):
    out = tmp_path / "out"
    arguments = ["--config", write(tmp_path, only("prefill", methods=["dynamic", "buzz"])), f"output={out}"]
    real, calls = prompts.timed, []

    def dying(*args, **kwargs):
        calls.append(1)
        if len(calls) == 3:
            raise KeyboardInterrupt
        return real(*args, **kwargs)

    monkeypatch.setattr(prompts, "timed", dying)
    assert main(arguments) == 130
    before = results(out)["sections"]["prefill"]
    assert len(before["rows"]) == 2
    assert not before["complete"]
    assert main(arguments) == 0
    after = results(out)
    assert after["sections"]["prefill"]["rows"][:2] == before["rows"]  # not measured again
    assert len(after["sections"]["prefill"]["rows"]) == 4
    assert len(after["runs"]) == 2


def test_sections_one_by_one_into_one_folder(tmp_path):
    raw = {**only("prefill", lengths=[8], methods=["dynamic"]), "ceilings": ALL["ceilings"]}
    arguments = ["--config", write(tmp_path, raw), f"output={tmp_path / 'out'}"]
    assert main([*arguments, "only=[ceilings]"]) == 0
    assert list(results(tmp_path / "out")["sections"]) == ["ceilings"]
    assert main([*arguments, "only=[prefill]"]) == 0
    assert [s["complete"] for s in results(tmp_path / "out")["sections"].values()] == [True, True]


def test_when_the_time_is_over(tmp_path, capsys):
    out = tmp_path / "out"
    arguments = ["--config", write(tmp_path, only("prefill", lengths=[8], methods=["dynamic"])), f"output={out}"]
    assert main([*arguments, "seconds=0.000001"]) == 1
    assert "out of time; the same command goes on" in capsys.readouterr().err
    assert results(out)["sections"]["prefill"]["rows"] == []
    assert main(arguments) == 0
    assert len(results(out)["sections"]["prefill"]["rows"]) == 1


def test_settings_that_older_code_did_not_have_are_those_by_default(tmp_path, capsys):
    out = tmp_path / "out"
    raw = only("prefill", lengths=[8], new_lengths=0, methods=["dynamic"])
    arguments = ["--config", write(tmp_path, raw), f"output={out}"]
    assert main(arguments) == 0
    before = results(out)
    del before["sections"]["prefill"]["facts"]["settings"]["new_lengths"]
    (out / "results.json").write_text(json.dumps(before))
    assert main(arguments) == 0
    assert main([*arguments, "prefill.new_lengths=1"]) == 2
    assert "holds prefill of other settings" in capsys.readouterr().err


def test_other_settings_are_refused(tmp_path, capsys):
    out = tmp_path / "out"
    arguments = ["--config", write(tmp_path, only("prefill", lengths=[8], methods=["dynamic"])), f"output={out}"]
    assert main(arguments) == 0
    capsys.readouterr()
    assert main([*arguments, "prefill.lengths=[9]"]) == 2
    assert (
        capsys.readouterr().err == f"error: output: {out} holds prefill of other settings, another output is wanted\n"
    )
    data = results(out)
    data["runs"][0]["device_name"] = "abacus"
    data["sections"]["prefill"]["complete"] = False
    (out / "results.json").write_text(json.dumps(data))
    assert main(arguments) == 2
    assert "holds results of abacus, this is" in capsys.readouterr().err
    (out / "results.json").write_text("[]")
    assert main(arguments) == 2
    assert "holds no results of a benchmark" in capsys.readouterr().err


def short_of_memory(monkeypatch: pytest.MonkeyPatch, tokens: int) -> None:
    """Calls of more than so many tokens do not fit."""
    real = LlamaForCausalLM.forward

    def forward(self, input_ids=None, **kwargs):
        if input_ids.numel() > tokens:
            raise torch.OutOfMemoryError("CUDA out of memory.")
        return real(self, input_ids=input_ids, **kwargs)

    monkeypatch.setattr(LlamaForCausalLM, "forward", forward)


def test_out_of_memory_is_a_result(tmp_path, monkeypatch, capsys):
    short_of_memory(monkeypatch, 24)
    raw = only("prefill", methods=["dynamic", "buzz"])
    assert main(["--config", write(tmp_path, raw), f"output={tmp_path / 'out'}"]) == 0
    rows = results(tmp_path / "out")["sections"]["prefill"]["rows"]
    assert [row["length"] > 24 for row in rows] == ["failed" in row for row in rows]
    assert {row.get("failed") for row in rows} == {None, "out of memory"}
    assert "| dynamic | out of memory |" in capsys.readouterr().out


def test_the_largest_batch_is_found(tmp_path, monkeypatch):
    short_of_memory(monkeypatch, 10 * 24 + 23)
    raw = only("throughput", batches=None, limit=64, methods=["buzz"])
    assert main(["--config", write(tmp_path, raw), f"output={tmp_path / 'out'}"]) == 0
    (row,) = results(tmp_path / "out")["sections"]["throughput"]["rows"]
    assert row["rows"] == 10
    out = "out of memory"
    assert row["trials"] == [[4, "fits"], [8, "fits"], [16, out], [12, out], [10, "fits"], [11, out]]


def test_a_batch_whose_answers_do_not_fit_shrinks(tmp_path, monkeypatch):
    real = prompts.generate

    def generate(model, ids, *rest, **options):
        if len(ids) > 3:
            raise torch.OutOfMemoryError("CUDA out of memory.")
        return real(model, ids, *rest, **options)

    monkeypatch.setattr(prompts, "generate", generate)
    raw = only("throughput", batches=None, limit=5, methods=["dynamic"])
    assert main(["--config", write(tmp_path, raw), f"output={tmp_path / 'out'}"]) == 0
    (row,) = results(tmp_path / "out")["sections"]["throughput"]["rows"]
    assert row["rows"] == 3
    assert row["trials"] == [[4, "fits"], [5, "fits"], [5, "out of memory"], [4, "out of memory"]]


def test_not_a_single_row_fits(tmp_path, monkeypatch):
    short_of_memory(monkeypatch, 5)
    raw = only("throughput", batches=[1], limit=8, methods=["dynamic"])
    assert main(["--config", write(tmp_path, raw), f"output={tmp_path / 'out'}"]) == 0
    rows = results(tmp_path / "out")["sections"]["throughput"]["rows"]
    assert [row["failed"] for row in rows] == ["out of memory"] * 2
    assert rows[1]["trials"][-1] == [1, "out of memory"]


def test_prompts_in_chunks_and_a_model_from_a_folder(tmp_path, model_folder):
    raw = {**only("prefill", lengths=[40], prefill_chunk_size=16, methods=["dynamic", "buzz"])}
    raw["decode"] = {"contexts": [40], "steps": 4, "prefill_chunk_size": 16, "methods": ["buzz"]}
    raw["steps"] = {"prompt": 30, "steps": 2, "lengths": [12], "batches": [1]}
    raw["model"] = {"id": str(model_folder), "device": "cpu"}
    assert main(["--config", write(tmp_path, raw), f"output={tmp_path / 'out'}"]) == 0
    data = results(tmp_path / "out")
    assert data["model"]["root"] == model_folder.name
    for section in ("prefill", "decode", "steps"):
        assert all("failed" not in row for row in data["sections"][section]["rows"])
    assert len(data["sections"]["prefill"]["rows"]) == 2


def test_the_stage_measures_head_shares_before_anything_is_timed():
    model = tiny_llama()
    stage = Stage(model)
    for name in ("buzz", "comb"):
        stage.set(Contender(name, "policy", parse_method(name, f"methods.{name}")))
        assert (model._buzz_handle.shares is not None) == (name == "comb")
