"""What a user can get wrong is one line, before a model is loaded."""

from __future__ import annotations

from typing import Any

import pytest

from buzz.evaluation.errors import ConfigError
from buzz.harness.arguments import load_gguf, read_arguments
from tests.evaluation.models.test_models import tiny_gguf

KNOWN = ["pretrained", "dtype", "device", "batch_size", "revision", "subfolder"]


def refusal(**arguments: Any) -> str:
    with pytest.raises(ConfigError) as caught:
        read_arguments(arguments, KNOWN)
    assert "\n" not in str(caught.value)
    return str(caught.value)


@pytest.mark.parametrize(
    ("arguments", "line"),
    [
        ({}, "model_args.policy: is missing, one of full, comb, "),
        ({"policy": "stream"}, "model_args.policy: unknown policy 'stream' (did you mean 'streaming'?), one of"),
        ({"policy": "comb", "windw": 4}, "model_args.windw: unknown argument (did you mean 'window'?), allowed: pret"),
        ({"policy": "comb", "match": "h2o"}, "model_args.match: unknown argument"),
        ({"policy": "streaming", "window": 0}, "model_args (streaming).window: is 0, must be at least 1"),
        (
            {"policy": "streaming", "window": "4x"},
            "model_args (streaming).window: is '4x' (text), an integer",
        ),
        ({"policy": "comb", "budget": 1.5}, "model_args (comb).budget: is 1.5 (a float), a share of the prompt above"),
        ({"policy": "comb", "budget": 2}, "model_args (comb).budget: "),
        ({"policy": "comb", "budget": 9, "reduction": 2}, "model_args (comb).reduction: is given beside budget"),
        ({"policy": "full", "budget": 0.4}, "model_args (full).budget: full with these parameters never settles"),
        ({"policy": "streaming", "window": 9, "budget": 0.4}, "model_args.budget: no budget fits streaming with these"),
        (
            {"policy": "comb", "positions": "slots"},
            "model_args (comb).positions: is 'slots' (text), one of cache",
        ),
        ({"policy": "comb"}, "model_args: neither model_args.pretrained nor model_args.gguf is given"),
        (
            {"policy": "comb", "pretrained": "./nowhere"},
            "model_args.pretrained: no folder ./nowhere, a local folder",
        ),
        (
            {"policy": "comb", "pretrained": 3},
            "model_args.pretrained: is 3 (an integer), a hub id",
        ),
        ({"policy": "comb", "gguf": "no.gguf"}, "model_args.gguf: "),
        ({"policy": "comb", "gguf": []}, "model_args.gguf: is [] (a list), a list of at least one piece"),
        ({"policy": "comb", "cache_log": 3}, "model_args.cache_log: is 3 (an integer), a file that is not there yet"),
        (
            {"policy": "comb", "cache_log": "/"},
            "model_args.cache_log: / exists, a file that is not there yet",
        ),
    ],
)
def test_wrong_arguments(arguments, line):
    assert refusal(**arguments).startswith(line)


def test_a_model_of_another_family(tmp_path):
    (tmp_path / "config.json").write_text('{"model_type": "mamba"}')
    expected = "model_args.pretrained: the model family 'mamba' is not supported, one of llama, "
    assert refusal(policy="comb", pretrained=str(tmp_path)).startswith(expected)


def test_a_log_in_a_folder_that_cannot_be(tmp_path):
    (tmp_path / "file").write_text("")
    line = refusal(policy="comb", cache_log=str(tmp_path / "file" / "log.jsonl"))
    assert line.startswith("model_args.cache_log: ")
    assert "cannot be written" in line


def test_a_gguf_file(tmp_path):
    path = tiny_gguf(tmp_path / "x.gguf", general__architecture="llama", general__name="x")
    assert refusal(policy="comb", gguf=str(path), dtype="int8").startswith("model_args.dtype: is 'int8'")
    given = read_arguments({"policy": "comb", "gguf": str(path), "device": "cuda:0"}, KNOWN)
    with pytest.raises(ConfigError, match=r"^model_args.gguf: the model in .* cannot be loaded"):
        load_gguf(given)  # it has no weights
    assert refusal(policy="comb", pretrained=object(), gguf=str(path)).startswith("model_args.gguf: is given beside")


def test_arguments_are_dealt_out(model_folder, tmp_path):
    log = tmp_path / "a" / "log.jsonl"
    raw = {"pretrained": str(model_folder), "policy": "h2o", "window": 8, "budget": 0.4, "positions": "original"}
    given = read_arguments({**raw, "dtype": "float32", "load_in_8bit": False, "cache_log": str(log)}, KNOWN)
    assert (given.method.policy, given.method.params) == ("h2o", {"window": 8})
    assert (given.method.budget, given.method.positions) == (0.4, "original")
    assert given.others == {"dtype": "float32", "load_in_8bit": False}
    assert (given.pretrained, given.gguf, given.cache_log) == (str(model_folder), None, log)
    assert not log.exists()
    assert log.parent.is_dir()
