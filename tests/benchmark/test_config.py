"""The benchmark's config: every mistake is one line that says where, what and what is allowed."""

from __future__ import annotations

from pathlib import Path

import pytest
import yaml
from transformers import LlamaConfig

from buzz.benchmark.bench import new_cache
from buzz.benchmark.cli import main
from buzz.benchmark.config import SECTIONS, SHAPES, load_bench
from buzz.cache import Shape
from buzz.evaluation.errors import ConfigError
from buzz.evaluation.run.config import load_config
from buzz.evaluation.run.grid import is_sweep
from buzz.policies import HeadShares

CONFIGS = sorted((Path(__file__).parents[2] / "configs" / "bench").glob("*.yaml"))
BASE = {"name": "try", "model": {"shape": "tiny"}, "methods": ["dynamic", "buzz"], "prefill": {"lengths": [16]}}


def write(folder: Path, **changes) -> Path:
    path = folder / "bench.yaml"
    path.write_text(yaml.safe_dump({**BASE, **changes}))
    return path


@pytest.mark.parametrize("path", CONFIGS, ids=lambda path: path.stem)
def test_shipped_configs(path):
    config = load_bench(path)
    assert config.name == path.stem
    for section in config.sections.values():
        if hasattr(section, "methods"):
            assert config.contenders(section)


def test_the_acceptance_table_is_whole():
    config = load_bench(CONFIGS[0].parent / "h100.yaml")
    assert config.model.shape == "llama-2-7b"
    assert set(config.sections) == set(SECTIONS) - {"one_row", "many_rows", "agreement", "steps"}
    assert {4096, 8192, 16384, 32768} <= set(config.prefill.lengths)
    assert {c.name for c in config.contenders(config.prefill)} >= {"dynamic", "eager", "full", "buzz"}
    assert config.stream.tokens == [1024, 131072]
    # Unpatched contenders first, so that the model is patched once.
    assert [c.patched for c in config.contenders(config.decode)] == [False, False, True, True]


def test_defaults_and_overrides(tmp_path):
    path = write(tmp_path, decode={})
    assert load_bench(path).decode.contexts == [1024, 4096, 16384]
    config = load_bench(path, ["decode.contexts=[64, 16, 64]", "prefill=null", "only=[decode]", "seconds=5"])
    assert config.decode.contexts == [16, 64]
    assert list(config.sections) == ["decode"]
    assert config.output == "runs/bench/try"


def test_a_file_without_head_shares_is_named_with_its_key(tmp_path):
    (tmp_path / "heads.json").write_text("{}")
    for name, told in (
        ("none.json", "none.json does not exist, a local file or package:PKG/path/inside is wanted"),
        ("heads.json", "heads.json: no file of head shares (its version is None, this code reads 1); HeadShares.save "),
    ):
        methods = [{"policy": "comb", "budget": 40, "head_shares": str(tmp_path / name)}]
        with pytest.raises(ConfigError) as caught:
            load_bench(write(tmp_path, methods=methods))
        assert str(caught.value).startswith(f"methods[0] (comb).head_shares: {tmp_path}/{told}")


def test_the_config_of_an_evaluation_is_none_of_a_benchmark(tmp_path):
    path = tmp_path / "run.yaml"
    for text in ("{name: a, model: {id: a/b}, task: {name: xsum}, methods: [full]}", "{name: a, sweep: {window: 3}}"):
        path.write_text(text)
        with pytest.raises(ConfigError) as caught:
            load_bench(path, ["prefill.lengths=[3]"])
        assert str(caught.value) == f"{path}: is the config of another command, run it with buzz eval"
    for section in SECTIONS:
        path.write_text(f"{{name: a, model: {{shape: tiny}}, {section}: {{}}}}")
        for load in (load_config, is_sweep):
            with pytest.raises(ConfigError) as caught:
                load(path, ["task.name=xsum"])
            assert str(caught.value) == f"{path}: is the config of another command, run it with buzz bench"


def test_policies_take_their_parameters_and_limits(tmp_path):
    methods = [
        {"policy": "static", "max_length": 64, "max_batch": 2},
        {"policy": "buzz", "name": "small", "window": 8, "positions": "original", "max_batch": 4},
        {"policy": "streaming", "budget": 40},
    ]
    static, small, fitted = load_bench(write(tmp_path, methods=methods)).methods
    assert static.takes(64, 2)
    assert not static.takes(65, 1)
    assert not static.takes(1, 3)
    assert small.name == "small"
    assert small.method.positions == "original"
    assert small.policy().window == 8
    assert not small.takes(1, 5)
    assert fitted.policy().sink + fitted.policy().window == 40


def test_head_shares_of_another_model_are_spread_over_the_heads(tmp_path):
    HeadShares(((1.0, 3.0), (2.0, 2.0))).save(tmp_path / "heads.json")
    methods = [{"policy": "comb", "budget": 40, "head_shares": str(tmp_path / "heads.json")}, "h2o"]
    comb, h2o = load_bench(write(tmp_path, methods=methods)).methods
    config = LlamaConfig(num_hidden_layers=3, num_attention_heads=4, num_key_value_heads=4, hidden_size=32)
    assert comb.shares_of(Shape.of(config)) == HeadShares(((1.0, 1.0, 3.0, 3.0),) * 2 + ((2.0,) * 4,))
    assert new_cache(comb, config, 0).shares == comb.shares_of(Shape.of(config))
    assert h2o.shares_of(Shape.of(config)) is None


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"prefil": {}}, "prefil: unknown key (did you mean 'prefill'?), allowed: name, model"),
        ({"prefill": {"length": [1]}}, "prefill.length: unknown key (did you mean 'lengths'?), allowed: lengths"),
        ({"prefill": {"lengths": 16}}, "prefill.lengths: is 16 (an integer), a list of at least one integer"),
        ({"prefill": {"lengths": [0]}}, "prefill.lengths: is [0] (a list), a list of at least one integer"),
        ({"prefill": {"methods": ["h2o"]}}, "prefill.methods: 'h2o' is not there, one of dynamic, buzz is wanted"),
        ({"prefill": {"seconds": 0}}, "prefill.seconds: is 0 (an integer), a number above 0 is wanted"),
        (
            {"model": {"shape": "llama-9"}},
            f"model.shape: unknown shape 'llama-9', one of {', '.join(SHAPES)} is wanted",
        ),
        ({"model": {}}, "model: neither shape nor id nor gguf is given, one of the shapes"),
        ({"model": {"shape": "tiny", "id": "x"}}, "model: shape is given beside id or gguf, one of the shapes"),
        ({"methods": ["dynamik"]}, "methods[0].policy: unknown method 'dynamik' (did you mean 'dynamic'?), one of"),
        ({"methods": ["buzz", {"policy": "buzz"}]}, "methods[1].name: 'buzz' is the name of methods[0] as well"),
        ({"methods": [{"policy": "buzz", "match": "h2o"}]}, "methods[0] (buzz).match: unknown key"),
        ({"methods": [{"policy": "buzz", "budget": 0.5}]}, "methods[0] (buzz).budget: is 0.5 (a float), an integer"),
        (
            {"methods": [{"policy": "buzz", "head_shares": "a.json"}]},
            "methods[0] (buzz).head_shares: is 'a.json' (text), a policy that needs head shares is wanted",
        ),
        (
            {"methods": [{"policy": "comb", "head_shares": "package:buzz/benchmark/shapes.yaml"}]},
            "methods[0] (comb).head_shares: ",
        ),
        (
            {"methods": [{"policy": "comb", "head_shares": "none.json"}]},
            "methods[0] (comb).head_shares: none.json does",
        ),
        (
            {"methods": [{"policy": "static", "window": 4}]},
            "methods[0] (static).window: unknown key, allowed: policy, name",
        ),
        ({"methods": []}, "methods: is [] (a list), a list of at least one method is wanted"),
        ({"agreement": {"shortest": 9, "longest": 8}}, "agreement.longest: is 8, shortest is 9"),
        ({"agreement": {"methods": ["dynamic"]}}, "agreement.methods: has no policy"),
        (
            {"kernels": {"tiles": 3}},
            "kernels.tiles: is 3 (an integer), a list of mappings with keys of queries, keys, warps",
        ),
        ({"kernels": {"tiles": [{"key": 64}]}}, "kernels.tiles[0].key: unknown key"),
        ({"kernels": {"launches": [{"warps": "2"}]}}, "kernels.launches[0].warps: is '2'"),
        ({"steps": {"batches": [2, 3]}}, "steps.batches: is [2, 3] (a list), multiples of the ones before"),
        ({"throughput": {"largest": False}}, "throughput.batches: is null, a list of integers is wanted"),
        ({"stream": {"tokens": [1]}}, "stream.tokens: is [1] (a list), integers of at least 2 are wanted"),
        ({"only": ["decode"]}, "only: 'decode' is not there, one of prefill is wanted"),
        ({"prefill": None}, "config: has no section to run, at least one of ceilings"),
    ],
)
def test_mistakes_are_one_line(changes, message, tmp_path, capsys):
    assert main(["--config", str(write(tmp_path, **changes))]) == 2
    out = capsys.readouterr()
    assert out.out == ""
    assert out.err.startswith(f"error: {message}")
    assert out.err.count("\n") == 1


def test_sections_with_methods_need_some(tmp_path):
    path = tmp_path / "bench.yaml"
    path.write_text("name: a\nmodel: {shape: tiny}\ndecode: {}\n")
    with pytest.raises(ConfigError, match="methods: is missing, a list of at least one method is wanted for decode"):
        load_bench(path)
