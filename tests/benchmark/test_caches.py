"""The sections of one row and of many: what they measure of transformers' caches and of policies, and their page."""

from __future__ import annotations

import json
import runpy
import time
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from transformers import LlamaForCausalLM

from buzz.benchmark import caches, paged
from buzz.benchmark.caches import rows_within
from buzz.benchmark.cli import main
from buzz.benchmark.config import load_bench
from buzz.benchmark.contenders import Paged, Quantized
from buzz.benchmark.page import caches_lines
from buzz.benchmark.paged import Answers, serving
from buzz.benchmark.quantized import quantized_bytes, quantized_cache
from buzz.evaluation.errors import ConfigError
from buzz.evaluation.memory import token_bytes
from tests.conftest import tiny_llama, tokens

ROOT = Path(__file__).parents[2]
BUZZ = {"policy": "buzz", "name": "buzz", "sink": 2, "window": 8, "stride": 3, "threshold": 12}
BASE = {
    "name": "tiny",
    "model": {"shape": "tiny", "device": "cpu"},
    "methods": ["dynamic", BUZZ],
    "one_row": {"contexts": [24, 70], "whole": 40, "prefill_chunk_size": 16, "steps": 6},
    "many_rows": {"contexts": [40], "prefill_chunk_size": 16, "new_tokens": 20, "steps": 6, "limit": 5},
}
OUT = "out of memory"


def bench(folder: Path, **changes: Any) -> list[str]:
    """The command line of a benchmark; sections that are None are left out."""
    path = folder / "bench.yaml"
    path.write_text(yaml.safe_dump({**BASE, **changes}))
    return ["--config", str(path), f"output={folder / 'out'}"]


def data(folder: Path) -> dict[str, Any]:
    return json.loads((folder / "out" / "results.json").read_text())


def rows(folder: Path, section: str) -> dict[tuple[str, int], dict[str, Any]]:
    return {(row["method"], row["context"]): row for row in data(folder)["sections"][section]["rows"]}


# --- transformers' own ------------------------------------------------------------------------------------------------


def greedy(model: Any, ids: torch.Tensor, new: int, cache: Any = None) -> torch.Tensor:
    model.generation_config.eos_token_id = None
    options = {"attention_mask": torch.ones_like(ids), "do_sample": False, "max_new_tokens": new}
    return model.generate(ids, past_key_values=cache, **options)[:, ids.shape[1] :]


@pytest.mark.parametrize("batch_tokens", [8192, 32])  # prompts in one call, and in several
def test_continuous_batching_gives_the_tokens_of_a_dynamic_cache(batch_tokens):
    model, ids = tiny_llama(seed=4), tokens(3, 40)
    wanted = greedy(model, ids, 12)
    assert len(wanted.unique()) > 8  # not one token again and again
    before = model.config._attn_implementation
    with serving(model, Paged(batch_tokens=batch_tokens), 3, 52) as server:
        for _ in range(2):  # nothing is left of the rows before
            done = server.answer(ids, 12)
            assert done.tokens == wanted.tolist()
            assert [len(row) for row in done.times] == [12] * 3
            assert 0 < done.first_s == max(row[0] for row in done.times) - done.start
        assert server.tokens >= 3 * 52
    assert model.config._attn_implementation == before
    assert torch.equal(greedy(model, ids, 12), wanted)


def test_an_error_of_continuous_batching_is_raised(monkeypatch, capfd):
    real = LlamaForCausalLM.forward

    def forward(self, *args, **kwargs):
        raise torch.OutOfMemoryError("CUDA out of memory.")

    monkeypatch.setattr(LlamaForCausalLM, "forward", forward)
    model, ids = tiny_llama(), tokens(1, 8)
    with pytest.raises(torch.OutOfMemoryError), serving(model, Paged(), 1, 20) as server:
        server.answer(ids, 4)
    assert "Traceback" not in capfd.readouterr().err
    monkeypatch.setattr(LlamaForCausalLM, "forward", real)
    wanted = greedy(model, ids, 4).tolist()  # the model is whole
    with serving(model, Paged(), 1, 20) as server:
        assert server.answer(ids, 4).tokens == wanted


def test_rows_that_never_come_are_not_waited_for(monkeypatch):
    real = LlamaForCausalLM.forward

    def forward(self, *args, **kwargs):
        time.sleep(0.3)
        return real(self, *args, **kwargs)

    monkeypatch.setattr(LlamaForCausalLM, "forward", forward)
    monkeypatch.setattr(paged, "_WAIT", 0.02)
    monkeypatch.setattr(paged, "_PATIENCE", 0.1)
    told = "continuous batching: no row was done within 0.1 s"
    with pytest.raises(RuntimeError, match=told), serving(tiny_llama(), Paged(), 1, 40) as server:
        server.answer(tokens(1, 8), 30)  # would take nine seconds, which are not waited for at the end either


def test_steps_count_while_all_rows_decode():
    done = Answers([], 1.0, [[2, 3, 4, 5, 6, 8], [4, 5, 6, 8, 11, 15]])
    assert done.first_s == 3
    assert done.steps(0, 9) == [1, 1, 2]  # of the later row, up to the end of the earlier one
    assert done.steps(1, 1) == [1]


@pytest.mark.parametrize("backend", ["hqq", "quanto", "fp8"])
def test_a_cache_of_eight_bits_gives_the_tokens_of_a_dynamic_cache(backend):
    model, ids = tiny_llama(seed=4), tokens(2, 40)
    try:
        cache = quantized_cache(Quantized(backend, 8 if backend == "hqq" else 4), model.config)
    except (ImportError, ValueError) as error:
        pytest.skip(str(error))
    wanted = greedy(model, ids, 12)
    found = greedy(model, ids, 12, cache)
    assert len(wanted.unique()) > 8
    if backend == "quanto":  # which has four bits at most
        assert torch.equal(found[:, 0], wanted[:, 0])
    else:
        assert torch.equal(found, wanted)
    numbers = 51 * 2 * token_bytes(model) // 4
    assert (numbers / 2 if backend == "quanto" else numbers) < quantized_bytes(cache) < 2.5 * numbers  # float32: 4


@pytest.mark.parametrize(("backend", "package"), [("hqq", "hqq"), ("quanto", "optimum-quanto")])
def test_a_missing_package_is_named(backend, package, monkeypatch):
    monkeypatch.setattr("buzz.benchmark.quantized._installed", lambda module: False)
    with pytest.raises(ImportError, match=f"^{package} is not installed, which transformers' QuantizedCache needs$"):
        quantized_cache(Quantized(backend), tiny_llama().config)


# --- the sections -----------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def done(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("caches")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("buzz.benchmark.quantized._installed", lambda module: False)
        methods = ["dynamic", "quantized", {"policy": "paged", "batch_tokens": 64, "max_length": 40}, "full", BUZZ]
        assert main(bench(folder, methods=methods)) == 0
    return folder


def test_one_row(done):
    found = rows(done, "one_row")
    assert set(found) == {*((m, n) for m in ("dynamic", "quantized", "full", "buzz") for n in (24, 70)), ("paged", 24)}
    for key, row in found.items():
        if key[0] == "quantized":
            assert row["failed"].endswith("hqq is not installed, which transformers' QuantizedCache needs")
            continue
        assert row["first_ms_fastest"] <= row["first_ms"] <= row["first_ms_slowest"]
        assert 1 <= row["repeats"] <= 3
        assert 0 < row["ms_low"] <= row["ms_median"] <= row["ms_high"] <= row["ms_slowest"]
        assert row["tokens_per_s"] == pytest.approx(1e3 / row["ms_mean"])
        assert row["peak_gib"] is None
    assert found["dynamic", 24]["steps"] == found["paged", 24]["steps"] == 6
    assert found["dynamic", 70]["mean_length"] == 70 + 8 + 3.5
    assert found["buzz", 70]["evictions"] >= 2
    assert found["buzz", 70]["mean_length"] < 23
    assert found["paged", 24]["attention"] == "sdpa"


def test_many_rows(done):
    found = rows(done, "many_rows")
    for method in ("dynamic", "paged", "full", "buzz"):
        row = found[method, 40]
        assert row["rows"] == 5  # the limit: on a CPU no memory is told
        assert row["trials"] == [[1, "fits"], [3, "fits"], [5, "fits"]]
        assert row["tokens_per_s"] == pytest.approx(5 * 20 / (row["prefill_s"] + 19e-3 * row["ms_mean"]))
        assert row["decoding_tokens_per_s"] == pytest.approx(5e3 / row["ms_mean"])
        assert row["steps"] == 6
    assert "hqq is not installed" in found["quantized", 40]["failed"]


def test_the_page(done):
    text = "\n".join(caches_lines(data(done)))
    row = rows(done, "one_row")["dynamic", 24]
    assert f"| dynamic | {row['first_ms']:.0f} | " in text
    assert f"{row['ms_median']:.2f} [{row['ms_low']:.2f}, {row['ms_high']:.2f}]" in text
    assert "| quantized | failed | failed |" in text
    assert text.count("- quantized: ImportError: hqq is not installed") == 1
    assert "**Prompts of 40 and answers of 20 tokens, as many rows as fit into 8 GiB above the weights**" in text
    report = (done / "out" / "report.md").read_text()
    assert "## one_row" in report
    assert "| method | first token, ms | ratio |" in report


def test_memory_that_is_short_is_a_result(tmp_path, monkeypatch):
    real = LlamaForCausalLM.forward

    def forward(self, input_ids=None, **kwargs):
        if input_ids.numel() > 3 * 16:
            raise torch.OutOfMemoryError("CUDA out of memory.")
        return real(self, input_ids=input_ids, **kwargs)

    monkeypatch.setattr(LlamaForCausalLM, "forward", forward)
    one = {"contexts": [24, 70], "whole": 100, "steps": 4}
    assert main(bench(tmp_path, one_row=one)) == 0
    found = rows(tmp_path, "one_row")
    assert {key: row.get("failed") for key, row in found.items()} == {
        **{(method, 24): None for method in ("dynamic", "buzz")},
        **{(method, 70): OUT for method in ("dynamic", "buzz")},
    }
    many = rows(tmp_path, "many_rows")["buzz", 40]
    assert many["rows"] == 3
    assert many["trials"] == [[1, "fits"], [3, "fits"], [5, OUT], [4, OUT], [3, "fits"]]
    assert f"| dynamic | {found['dynamic', 24]['first_ms']:.0f} | {OUT} |" in "\n".join(caches_lines(data(tmp_path)))


def test_what_cannot_fit_is_not_tried(tmp_path, monkeypatch):
    """Keys and values of 70 tokens alone are more than there is; those that a policy keeps are not."""
    token = 2 * 2 * 2 * 16 * 4
    monkeypatch.setattr(caches, "_free", lambda bench: 60 * token)
    assert main(bench(tmp_path, many_rows=None, methods=["dynamic", "full", BUZZ])) == 0
    found = rows(tmp_path, "one_row")
    assert [key for key, row in found.items() if "failed" in row] == [("dynamic", 70), ("full", 70)]
    assert found["full", 70]["failed"] == "out of memory: 0.0 GiB of keys and values, there are 0.0"


def test_how_a_long_prompt_is_read(tmp_path, monkeypatch):
    real, calls = LlamaForCausalLM.forward, []

    def forward(self, input_ids=None, **kwargs):
        calls.append(input_ids.shape[1])
        return real(self, input_ids=input_ids, **kwargs)

    monkeypatch.setattr(LlamaForCausalLM, "forward", forward)
    one = {**BASE["one_row"], "contexts": [70], "repeats": 1, "steps": 4}
    methods = ["dynamic", {"policy": "dynamic", "name": "at-once", "whole": 70}]
    assert main(bench(tmp_path, many_rows=None, one_row=one, methods=methods)) == 0
    assert [n for n in calls if n > 1] == [16, 16, *[16] * 4, 6, 32, 70]  # a warm-up of two chunks first


def test_a_run_that_was_stopped_goes_on(tmp_path, monkeypatch):
    real, calls = caches._one_row, []

    def dying(*args):
        calls.append(1)
        if len(calls) == 2:
            raise KeyboardInterrupt
        return real(*args)

    monkeypatch.setattr(caches, "_one_row", dying)
    arguments = bench(tmp_path, many_rows=None)
    assert main(arguments) == 130
    before = rows(tmp_path, "one_row")
    assert list(before) == [("dynamic", 24)]
    assert main(arguments) == 0
    assert rows(tmp_path, "one_row")["dynamic", 24] == before["dynamic", 24]
    assert len(rows(tmp_path, "one_row")) == 4


def test_rows_within():
    gib = 2**30
    assert rows_within({1: gib, 3: 2 * gib}, 8 * gib, 99) == 14  # half a GiB, and half a GiB a row: .95 of 8 is 7.6
    assert rows_within({1: gib, 3: 5 * gib}, gib, 99) == 1
    assert rows_within({1: gib, 3: 2 * gib}, 8 * gib, 7) == 7
    assert rows_within({1: gib, 3: gib}, 8 * gib, 7) == 7
    assert rows_within({1: None, 3: None}, None, 7) == 7


# --- the config and the page ------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("changes", "told"),
    [
        (
            {"methods": ["paged"], "prefill": {"methods": ["paged"]}},
            "prefill.methods: 'paged' makes its cache itself, it takes part in one_row and many_rows alone",
        ),
        (
            {"methods": ["paged"], "prefill": {}},
            "prefill.methods: is empty, at least one method that can take part is wanted",
        ),
        ({"methods": [{"policy": "dynamic", "bits": 4}]}, "methods[0] (dynamic).bits: unknown key"),
        ({"methods": [{"policy": "quantized", "backend": "gguf"}]}, "methods[0] (quantized).backend: is 'gguf' (text)"),
        ({"methods": [{"policy": "paged", "batch_tokens": 0}]}, "methods[0] (paged).batch_tokens: is 0"),
        ({"many_rows": {"memory_gib": 0}}, "many_rows.memory_gib: is 0"),
    ],
)
def test_mistakes(tmp_path, changes, told):
    path = bench(tmp_path, **changes)[1]
    with pytest.raises(ConfigError) as caught:
        load_bench(path)
    assert str(caught.value).startswith(told)


def test_continuous_batching_is_left_out_where_it_cannot_take_part(tmp_path):
    path = bench(tmp_path, methods=["dynamic", "paged", "buzz"], prefill={})[1]
    config = load_bench(path)
    assert [c.name for c in config.contenders(config.prefill)] == ["dynamic", "buzz"]
    assert [c.name for c in config.contenders(config.one_row)] == ["dynamic", "paged", "buzz"]


def test_the_page_is_made_from_the_figures():
    made = runpy.run_path(str(ROOT / "docs" / "table.py"))["page"]()
    assert (ROOT / "docs" / "results" / "table.md").read_text(encoding="utf-8") == made
