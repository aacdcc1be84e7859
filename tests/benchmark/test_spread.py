"""Decoding with spread weights: what is measured, on one process and a CPU. Several GPUs are for who has them."""

from __future__ import annotations

import pytest

from buzz.benchmark import spread
from buzz.benchmark.config import BenchModel
from buzz.benchmark.model import load
from buzz.decoding.arena import Off


def test_rows_of_every_batch_and_way():
    model = load(BenchModel(shape="tiny", dtype="float32", device="cpu"), 0)[0]
    how = spread._arguments(["--shape", "tiny", "--prompt", "40", "--batches", "1", "2", "--steps", "3"])
    rows = spread._measured(model, "one process", how, {"buzz": Off()})
    assert [(row["what"], row["batch"]) for row in rows] == [
        ("DynamicCache", 1), ("buzz", 1), ("DynamicCache", 2), ("buzz", 2),
    ]  # fmt: skip
    for row in rows:
        assert 0 < row["ms_fastest"] <= row["ms_median"] <= row["ms_slowest"]
        assert row["tokens_per_s"] > 0
    assert rows[1]["told"] == []


def test_answers_do_not_end_early():
    model = spread._endless(load(BenchModel(shape="tiny", dtype="float32", device="cpu"), 0)[0].train())
    assert model.generation_config.eos_token_id == model.config.vocab_size
    assert not model.training


def test_an_unknown_shape_is_refused(capsys):
    with pytest.raises(SystemExit):
        spread._arguments(["--shape", "llama-9"])
    assert "invalid choice: 'llama-9'" in capsys.readouterr().err
