"""The config: defaults, merging, round trip, and one line for every mistake."""

from __future__ import annotations

import pickle
from pathlib import Path
from typing import Any

import pytest
import yaml
from hypothesis import given
from hypothesis import strategies as st

from buzz.evaluation.errors import ConfigError
from buzz.evaluation.run.cli import main
from buzz.evaluation.run.config import RunConfig, load_config, to_dict, to_yaml
from buzz.policies import POLICIES
from tests.evaluation.mistakes import BASE, error

CONFIGS = sorted((Path(__file__).parents[3] / "configs").glob("*.yaml"))


def reread(config: RunConfig, path: Path) -> RunConfig:
    path.write_text(to_yaml(config), "utf-8")
    return load_config(path)


# --- what a good config gives


def test_defaults(base: Path) -> None:
    assert to_dict(load_config(base)) == {
        "name": "test",
        "model": {"id": "some/model", "gguf": None, "dtype": "auto", "device": "auto", "chat_template": False},
        "task": {
            "name": "xsum",
            "data": None,
            "split": "validation",
            "limit": 200,
            "rows": "all",
            "prompt": None,
            "query_aware": True,
            "answer_prefix": None,
            "likelihood": False,
        },
        "methods": [
            {
                "name": "full",
                "policy": "full",
                "positions": None,
                "logn_base": None,
                "budget": None,
                "reduction": None,
                "match": None,
                "match_by": None,
            }
        ],
        "generation": {"max_new_tokens": 100, "fidelity": True, "answers": True, "prefill_chunk_size": None},
        "speed": None,
        "batch_size": 8,
        "seed": 0,
        "hive": 1,
        "compare": [],
        "output": "runs/test",
        "wandb": {"mode": "disabled", "project": "buzz", "group": None},
    }


def test_overrides_beat_the_file_and_later_ones_earlier_ones(base: Path) -> None:
    config = load_config(
        base,
        [
            "task.limit=9",
            "task.limit=null",
            "methods=[streaming, {policy: buzz, window: 64}]",
            "task.prompt={document}: TL;DR",  # neither a scalar nor a list: plain text
            "generation.max_new_tokens=5",
            "output=elsewhere/x=y",
            "model.chat_template=true",
        ],
    )
    assert config.task.limit is None
    assert [method.name for method in config.methods] == ["streaming", "buzz-window64"]
    assert config.task.prompt == "{document}: TL;DR"
    assert config.generation.max_new_tokens == 5
    assert config.output == "elsewhere/x=y"
    assert config.model.chat_template is True


def test_a_comparison_needs_two_methods_at_one_memory(base: Path) -> None:
    line = error(base, "methods=[{policy: h2o, reduction: 4, name: h2o-reduction4}]", "compare=h2o")
    assert line == (
        "compare: 'h2o' is the only method at its memory, another one with its budget or reduction is wanted"
    )


def test_the_names_that_there_are_come_in_their_order(base: Path) -> None:
    line = error(base, "methods=[tova, full, streaming, h2o, random]", "compare=buzz")
    assert line.endswith("one of tova, full, streaming, h2o, random is wanted")


def test_a_config_pickles_and_so_does_its_error(base: Path) -> None:
    config = load_config(base)
    assert pickle.loads(pickle.dumps(config)) == config
    assert str(pickle.loads(pickle.dumps(ConfigError("a", "b\nc", "d")))) == "a: b c, d"
    assert str(ConfigError("a", "b")) == "a: b"


# --- round trip


def test_pieces_of_a_gguf_file_are_read_back(base: Path, tmp_path: Path) -> None:
    config = load_config(base, ["model.gguf=['package:a/x.gguf.part00', x.gguf.part01]"])
    assert config.model.gguf == to_dict(config)["model"]["gguf"] == ["package:a/x.gguf.part00", "x.gguf.part01"]
    assert reread(config, tmp_path / "again.yaml") == config


@pytest.mark.parametrize("path", CONFIGS, ids=lambda path: path.stem)
def test_shipped_configs_load_and_round_trip(path: Path, tmp_path: Path) -> None:
    config = load_config(path, ["task.data=book.txt"] if path.stem == "stream" else [])  # a text of the user's own
    assert "buzz" in [method.policy for method in config.methods]
    assert config.name == path.stem
    assert config.output == f"runs/{path.stem}"
    assert reread(config, tmp_path / "again.yaml") == config


TEXT = st.text(st.characters(exclude_categories=["Cs"], exclude_characters="\0"), max_size=20)
VISIBLE = TEXT.map(lambda text: f"x{text}y")
METHOD = st.one_of(
    st.sampled_from(list(POLICIES)).map(lambda policy: {"policy": policy}),
    st.fixed_dictionaries(
        {"policy": st.just("buzz")},
        optional={
            "window": st.integers(1, 99),
            "threshold": st.integers(0, 99),
            "stride": st.integers(3, 9),
            "reduction": st.floats(1.01, 50.0) | st.integers(2, 9),
            "logn_base": st.floats(1.01, 1e6) | st.integers(2, 1000),
            "positions": st.sampled_from(["cache", "original", None]),
        },
    ),
    st.fixed_dictionaries(
        {"policy": st.just("streaming")}, optional={"budget": st.floats(1e-6, 1.0) | st.integers(5, 9999)}
    ),
    st.just({"policy": "h2o", "match": "first"}),
)


@given(
    entries=st.lists(METHOD, max_size=5),
    prompt=st.none() | TEXT.map(lambda text: text.replace("{", "{{").replace("}", "}}") + "{document}"),
    output=VISIBLE,
    data=st.none() | VISIBLE,
    limit=st.none() | st.integers(1, 10**6),
)
def test_round_trip(
    tmp_path_factory: pytest.TempPathFactory,
    entries: list[dict[str, Any]],
    prompt: str | None,
    output: str,
    data: str | None,
    limit: int | None,
) -> None:
    raw = yaml.safe_load(BASE)
    raw["methods"] = [{"policy": "buzz", "name": "first"}]
    raw["methods"] += [entry | {"name": f"m{index}"} for index, entry in enumerate(entries)]
    raw["task"] |= {"prompt": prompt, "limit": limit, "data": data}
    raw["output"] = output
    path = tmp_path_factory.getbasetemp() / "round.yaml"
    path.write_text(yaml.safe_dump(raw), "utf-8")
    config = load_config(path)
    assert (config.task.prompt, config.task.data, config.output) == (prompt, data, output)
    again = reread(config, path)
    assert again == config
    assert to_yaml(again) == to_yaml(config)


# --- mistakes


@pytest.mark.parametrize(
    ("override", "start", "said"),
    [
        # keys
        ("model.dtpye=auto", "model.dtpye: unknown key (did you mean 'dtype'?)", "id, gguf, dtype, device"),
        ("bacth_size=1", "bacth_size: unknown key (did you mean 'batch_size'?)", "allowed: name, model, task"),
        ("limit=8", "limit: unknown key (did you mean 'task.limit'?)", "allowed"),
        ("zzz=1", "zzz: unknown key, ", "allowed"),
        ("methods=[{policy: buzz, windw: 3}]", "methods[0] (buzz).windw: unknown key (did you mean 'window'?)", "sink"),
        ("methods=[full, {policy: h2o, stride: 3}]", "methods[1] (h2o).stride: unknown key", "heavy, window"),
        ("methods=[{policy: buzz, params: {}}]", "methods[0] (buzz).params: unknown key", ""),
        # types
        ("batch_size=eight", "batch_size: is 'eight' (text)", "an integer"),
        ("batch_size=true", "batch_size: is True (a boolean)", "an integer"),
        ("batch_size=2.0", "batch_size: is 2.0 (a float)", "an integer"),
        ("batch_size=null", "batch_size: is null", "an integer"),
        ("model.chat_template=1", "model.chat_template: is 1 (an integer)", "true or false"),
        ("model.id=7", "model.id: is 7 (an integer)", "a hub id"),
        ("model.id=[a]", "model.id: is ['a'] (a list)", ""),
        ("model=7", "model: is 7 (an integer)", "a mapping with the keys id, gguf"),
        ("model.gguf=7", "model.gguf: is 7 (an integer)", "a GGUF file, or a list of the pieces of one, is wanted"),
        ("model.gguf=[]", "model.gguf: is [] (a list)", "a list of at least one piece"),
        ("model.gguf=[a, 7]", "model.gguf[1]: is 7 (an integer)", "a GGUF file is wanted"),
        ("model.gguf=[a, ' b']", "model.gguf[1]: is ' b' (text)", "a GGUF file is wanted"),
        ("model.gguf=[a, [b]]", "model.gguf[1]: is ['b'] (a list)", "a GGUF file is wanted"),
        ("model.gguf=[a, b, a]", "model.gguf[2]: is model.gguf[0] as well", "each piece is wanted once"),
        ("wandb=null", "wandb: is null", "mode, project"),
        ("output=3", "output: is 3", "text is wanted"),
        ("task.prompt=3", "task.prompt: is 3", "text or null is wanted"),
        ("methods=full", "methods: is 'full' (text)", "a list"),
        ("methods=[]", "methods: is [] (a list)", "at least one"),
        ("methods=[3]", "methods[0]: is 3", "a mapping"),
        ("methods=[{policy: buzz, window: '64'}]", "methods[0] (buzz).window: is '64' (text)", "an integer"),
        ("methods=[{policy: buzz, window: true}]", "methods[0] (buzz).window: is True", "an integer"),
        ("methods=[{policy: buzz, window: null}]", "methods[0] (buzz).window: is null", "an integer"),
        ("methods=[{policy: buzz, logn_base: x}]", "methods[0] (buzz).logn_base: is 'x'", "a number above 1"),
        ("methods=[{policy: h2o, budget: true}]", "methods[0] (h2o).budget: is True", "a share"),
        ("methods=[{policy: h2o, match: 3}]", "methods[0] (h2o).match: is 3", "text"),
        # what YAML 1.1 takes for another number, for truth or for a date
        ("batch_size=010", "batch_size: is '010' (text)", "(numbers are plain decimals)"),
        ("batch_size=1:30", "batch_size: is '1:30' (text)", "at least 1 is wanted (numbers are plain decimals)"),
        ("batch_size=1_000", "batch_size: is '1_000' (text)", "an integer"),
        ("batch_size=0x10", "batch_size: is '0x10' (text)", "an integer"),
        ("batch_size=0b1", "batch_size: is '0b1' (text)", "an integer"),
        ("batch_size=1e3", "batch_size: is 1000.0 (a float)", "an integer"),
        ("batch_size=2024-01-01", "batch_size: is '2024-01-01' (text)", "an integer"),
        ("methods=[{policy: buzz, window: 064}]", "methods[0] (buzz).window: is '064' (text)", "an integer"),
        ("methods=[{policy: h2o, budget: 0x40}]", "methods[0] (h2o).budget: is '0x40' (text)", "a share"),
        (
            "methods=[{policy: h2o, reduction: 2:30}]",
            "methods[0] (h2o).reduction: is '2:30' (text)",
            "above 1",
        ),
        ("model.chat_template=yes", "model.chat_template: is 'yes' (text)", "true or false"),
        ("generation.fidelity=off", "generation.fidelity: is 'off' (text)", "true or false"),
        # text that no file can hold
        ("task.data=a\0b", "task.data: 'a\\x00b' holds a NUL character", "UTF-8 text"),
        ("output=runs/\udcff", "output: 'runs/\\udcff' is not valid UTF-8", "UTF-8 text"),
        ('model.id="\\0"', "model.id: '\\x00' holds a NUL", "UTF-8 text"),
        (
            "methods=[{policy: full, name: \udc80}]",
            "methods: '[{policy: full, name: \\udc80}]' is not valid",
            "UTF-8 text",
        ),
        ("task.prompt=[[[[[a]]]]]", "task.prompt: is [[[[[", "text"),
        # values
        ("batch_size=0", "batch_size: is 0", "an integer of at least 1"),
        ("task.limit=0", "task.limit: is 0", "at least 1"),
        ("seed=-1", "seed: is -1", "at least 0"),
        ("generation.max_new_tokens=0", "generation.max_new_tokens: is 0", "at least 1"),
        ("model.dtype=float64", "model.dtype: is 'float64'", "one of auto, float32, float16, bfloat16"),
        ("model.device=gpu", "model.device: is 'gpu'", "cuda"),
        ("wandb.mode=off", "wandb.mode: is 'off' (text)", "one of disabled, offline, online"),
        ("task.data=''", "task.data: is ''", "a file"),
        ("task={lengths: [500]}", "task: is '{lengths: [500]}' (text)", "a mapping with the keys name, data"),
        ("name=a/b", "name: is 'a/b'", "a name of letters"),
        ("name=..", "name: is '..'", "a name of letters"),
        ("methods=[{policy: full, name: a b}]", "methods[0] (full).name: is 'a b'", "a name of letters"),
        ("methods=[full, {policy: buzz, window: 0}]", "methods[1] (buzz).window: is 0, must be at least 1", ""),
        ("methods=[{policy: buzz, sink: -1}]", "methods[0] (buzz).sink: is -1, must be at least 0", ""),
        ("methods=[{policy: h2o, heavy: 0}]", "methods[0] (h2o).heavy: is 0", "at least 1"),
        ("methods=[{policy: buzz, logn_base: 1}]", "methods[0] (buzz).logn_base: is 1", "above 1"),
        ("methods=[{policy: buzz, logn_base: .inf}]", "methods[0] (buzz).logn_base: is inf", "above 1"),
        ("methods=[{policy: buzz, logn_base: .nan}]", "methods[0] (buzz).logn_base: is nan", "above 1"),
        ("methods=[{policy: buzz, positions: middle}]", "methods[0] (buzz).positions: is 'middle'", "cache, original"),
        ("methods=[buzz, buz]", "methods[1].policy: unknown policy 'buz' (did you mean 'buzz'?)", "streaming, h2o"),
        ("methods=[{name: x}]", "methods[0].policy: is missing", "full, comb, local"),
        ("methods=[{policy: [buzz]}]", "methods[0].policy: unknown policy", "full"),
        ("methods=[buzz, full, buzz]", "methods[2].name: 'buzz' is the name of methods[0]", ""),
        ("methods=[buzz, {policy: full, name: BUZZ}]", "methods[1].name: 'BUZZ' is the name of methods[0]", ""),
        ("task.name=xsun", "task.name: unknown task 'xsun' (did you mean 'xsum'?)", "xsum, cnn_dm"),
        ("task.prompt='{article}'", "task.prompt: unknown placeholder {article}", "{document}"),
        ("model.id=null", "model: neither id nor gguf", "GGUF"),
        ("compare=h2o", "compare: 'h2o' is no method to compare others with", "one of full is wanted"),
        ("compare=full", "compare: 'full' is the only method", "another one is wanted"),
        ("compare=3", "compare: is 3 (an integer)", "the name of a method, or a list of such names"),
        # budget and match
        ("methods=[{policy: h2o, budget: 0}]", "methods[0] (h2o).budget: is 0", "a share of the prompt"),
        ("methods=[{policy: h2o, budget: 0.0}]", "methods[0] (h2o).budget: is 0.0", "a share of the prompt"),
        ("methods=[{policy: h2o, budget: 1.5}]", "methods[0] (h2o).budget: is 1.5", "a share of the prompt"),
        ("methods=[{policy: h2o, budget: 1}]", "methods[0] (h2o).", "too small"),
        ("methods=[{policy: full, budget: 0.5}]", "methods[0] (full).budget: ", "never settles"),
        ("methods=[h2o, {policy: buzz, stride: 1, match: h2o}]", "methods[1] (buzz).match: ", "never settles"),
        ("methods=[buzz, {policy: h2o, match: buzz, budget: 0.5}]", "methods[1] (h2o).match: ", "beside budget"),
        ("methods=[buzz, {policy: h2o, match: streaming}]", "methods[1] (h2o).match: 'streaming' names no", "buzz"),
        ("methods=[{policy: h2o, match: h2o}]", "methods[0] (h2o).match: 'h2o' names no other", ""),
        (
            "methods=[buzz, {policy: h2o, match: buzz}, {policy: local, match: h2o-match-buzz}]",
            "methods[2] (local).match: 'h2o-match-buzz' names no",
            "one of buzz is",
        ),
        (
            "methods=[{policy: buzz, stride: 3}, {policy: buzz, stride: 4}, {policy: h2o, match: buzz}]",
            "methods[2] (h2o).match: 'buzz' names more than one",
            "buzz-stride3, buzz-stride4",
        ),
        (
            "methods=[full, {policy: h2o, match_by: bytes}]",
            "methods[1] (h2o).match_by: is bytes, but there is no",
            "match",
        ),
        (
            "methods=[buzz, {policy: h2o, match: buzz, match_by: mib}]",
            "methods[1] (h2o).match_by: is 'mib'",
            "tokens, bytes",
        ),
        # absurd numbers
        (f"name={'9' * 5000}", "name: is '99999", "a name of letters"),
        (f"methods=[{{policy: full, name: {'x' * 300}}}]", "methods[0] (full).name: is 'xxx", "a name of letters"),
        ("seed=18446744073709551616", "seed: is 18446744073709551616 (an integer)", "at most 9223372036854775807"),
        ("batch_size=1000000000000000000000", "batch_size: is 1000000000000000000000", "at most 1000000000 is"),
        ("task.limit=1000000000000", "task.limit: is 1000000000000", "at most 1000000000 is"),
        ("generation.max_new_tokens=1000001", "generation.max_new_tokens: is 1000001", "at most 1000000 is"),
        ("generation.prefill_chunk_size=10000000000", "generation.prefill_chunk_size: is", "at most 1000000000 is"),
        ("hive=10000000000", "hive: is 10000000000", "at most 1000000000 is"),
        ("methods=[{policy: h2o, budget: 1000000000000}]", "methods[0] (h2o).budget: is", "at most 1000000000 is"),
        ("methods=[{policy: h2o, budget: 1e21}]", "methods[0] (h2o).budget: is 1e+21 (a float)", "a share"),
        ("methods=[{policy: h2o, budget: .nan}]", "methods[0] (h2o).budget: is nan", "a share"),
        ("methods=[{policy: buzz, window: 1000000000000}]", "methods[0] (buzz).window: is", "at most 1000000000 is"),
        (
            "methods=[{policy: h2o, reduction: 1e12}]",
            "methods[0] (h2o).reduction: is 1000000000000.0",
            "at most 1000000000",
        ),
        # reduction
        ("methods=[{policy: h2o, reduction: 1}]", "methods[0] (h2o).reduction: is 1", "a number above 1"),
        (
            "methods=[{policy: h2o, reduction: half}]",
            "methods[0] (h2o).reduction: is 'half' (text)",
            "a number above 1",
        ),
        ("methods=[{policy: h2o, reduction: true}]", "methods[0] (h2o).reduction: is True", "a number above 1"),
        ("methods=[{policy: h2o, reduction: .inf}]", "methods[0] (h2o).reduction: is inf", "a number above 1"),
        ("methods=[{policy: full, reduction: 2}]", "methods[0] (full).reduction: ", "never settles"),
        ("methods=[{policy: h2o, reduction: 2, budget: 0.5}]", "methods[0] (h2o).reduction: is given beside", "one"),
        ("methods=[buzz, {policy: h2o, reduction: 2, match: buzz}]", "methods[1] (h2o).match: is given beside", "one"),
        # fidelity, hive, group
        ("generation.fidelity=1", "generation.fidelity: is 1 (an integer)", "true or false"),
        ("generation.fidelity=null", "generation.fidelity: is null", "true or false"),
        ("generation.fidelty=true", "generation.fidelty: unknown key (did you mean 'fidelity'?)", "max_new_tokens"),
        ("fidelity=true", "fidelity: unknown key (did you mean 'generation.fidelity'?)", ""),
        ("hive=-1", "hive: is -1", "an integer of at least 0"),
        ("hive=true", "hive: is True (a boolean)", "an integer of at least 0"),
        ("hive=all", "hive: is 'all' (text)", "an integer of at least 0"),
        ("wandb.group=3", "wandb.group: is 3 (an integer)", "the name of a group"),
        ("wandb.group=' '", "wandb.group: is ' '", "the name of a group"),
        # a task's own keys
        ("task.options={}", "task.options: unknown key", "allowed: name, data"),
        (
            "task.protocol=lines",
            "task.protocol: unknown key",
            "allowed: name, data, split, limit, rows, prompt, query_aware, answer_prefix, likelihood",
        ),
        ("task.answer_prefix=' It'", "task.answer_prefix: is ' It'", "text without blanks around it"),
        ("task.answer_prefix=''", "task.answer_prefix: is ''", "text without blanks around it"),
        ("task.answer_prefix=3", "task.answer_prefix: is 3 (an integer)", "text without blanks around it"),
        ("task=xsum", "task: is 'xsum' (text)", "a mapping"),
        ("task.name=3", "task.name: is 3", "text is wanted"),
        # a sweep is no run
        ("sweep.stride=[3]", "sweep: makes this the config of several runs", "buzz eval"),
        # overrides themselves
        ("seed", "seed: is no override", "key=value"),
        ("=3", "=3: is no override", "key=value"),
        ("task..limit=3", "task..limit=3: is no override", "key.sub=value"),
        ("methods.0.window=3", "methods.0.window: methods is ['full'] (a list)", "methods=[...]"),
        ("seed.x=3", "seed.x: ", "seed"),
    ],
)
def test_mistakes(base: Path, override: str, start: str, said: str) -> None:
    base.write_text(BASE.replace("name: test,", "name: test, seed: 1,"))
    line = error(base, override)
    assert line.startswith(start), line
    assert said in line, line


@pytest.mark.parametrize(
    ("task", "override", "start", "said"),
    [
        ("wikitext", "protocol=words", "task.protocol: is 'words' (text)", "one of document, lines, stream"),
        ("wikitext", "max_tokens=1", "task.max_tokens: is 1", "at least 2"),
        ("wikitext", "prefill=0", "task.prefill: is 0", "at least 1"),
        ("wikitext", "protcol=lines", "task.protcol: unknown key (did you mean 'protocol'?)", "allowed: name, data"),
        ("stream", "protocol=lines", "task.protocol: unknown key", "max_tokens, prefill"),
        ("passkey", "needles=two", "task.needles: is 'two' (text)", "at least 1"),
        ("passkey", "per_cell=0", "task.per_cell: is 0", "at least 1"),
        ("passkey", "lengths=500", "task.lengths: is 500 (an integer)", "a list"),
        ("passkey", "lengths=[500, 500]", "task.lengths: is [500, 500]", "different"),
        ("passkey", "depths=[1.5]", "task.depths: is [1.5]", "from 0.0 to 1.0"),
        ("longbench", "datasets=[qasper, nothing]", "task.datasets", "qasper"),
        ("rulr", "lengths=[500]", "task.name: unknown task 'rulr' (did you mean 'ruler'?)", "one of xsum, cnn_dm"),
        ("[ruler]", "lengths=[500]", "task.name: is ['ruler'] (a list)", "text is wanted"),
    ],
)
def test_mistakes_in_a_tasks_own_keys(base: Path, task: str, override: str, start: str, said: str) -> None:
    line = error(base, f"task.name={task}", f"task.{override}")
    assert line.startswith(start), line
    assert said in line, line


def test_a_tasks_own_keys(base: Path, tmp_path: Path) -> None:
    config = load_config(base, ["task.name=passkey", "task.lengths=[40]", "task.needles=2"])
    assert config.task.options == {
        "lengths": [40],
        "depths": [0.0, 0.25, 0.5, 0.75, 1.0],
        "needles": 2,
        "per_cell": 5,
    }
    assert to_dict(config)["task"]["needles"] == 2
    assert reread(config, tmp_path / "again.yaml") == config


@pytest.mark.parametrize("override", ["hive=-1", "generation.fidelity=1", "methods=[{policy: h2o, reduction: 1}]"])
def test_a_mistake_is_one_line_and_status_2(base: Path, override: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["--config", str(base), override]) == 2
    printed = capsys.readouterr()
    assert printed.err.startswith("error: ")
    assert printed.err.count("\n") == 1
    assert not printed.out


@pytest.mark.parametrize("key", ["name", "model", "task", "methods"])
def test_missing_keys(base: Path, key: str) -> None:
    raw = yaml.safe_load(BASE)
    del raw[key]
    base.write_text(yaml.safe_dump(raw))
    assert error(base).startswith(f"{key}: is missing, ")


@pytest.mark.parametrize("text", ["010", "1:30", "1_000", "0x10", "yes", "on", "2024-01-01", "1e3", "=", "~", "null"])
def test_text_stays_text(base: Path, tmp_path: Path, text: str) -> None:
    config = load_config(base, [f"task.data='{text}'"])
    assert config.task.data == text
    assert reread(config, tmp_path / "again.yaml") == config
    assert yaml.safe_load(to_yaml(config))["task"]["data"] == text


def test_a_date_and_a_no_are_names(base: Path) -> None:
    assert load_config(base, ["name=2024-01-01"]).name == "2024-01-01"
    assert load_config(base, ["name=no"]).name == "no"


@pytest.mark.parametrize(
    ("overrides", "line"),
    [
        (
            ["generation.answers=false", "methods=[h2o]"],
            "generation.answers: is false, but no method is the full cache",
        ),
        (
            ["generation.answers=false", "generation.fidelity=false"],
            "generation.answers: is false, and so is generation",
        ),
        (["generation.answers=false", "task.name=wikitext"], "generation.answers: is false, but wikitext asks for no"),
        (["speed.methods=[h2o]"], "speed.methods[0]: 'h2o' is no method of this run, one of full is wanted"),
        (["speed.methods=[full]", "speed.prompt=0"], "speed.prompt: is 0"),
        (["speed.prompt=5"], "speed.methods: is missing"),
        (
            ["methods=[full, {policy: h2o, match: local, name: h2o}, local]", "speed.methods=[h2o]"],
            "speed.methods[0]: h2o is matched with local sample by sample",
        ),
    ],
)
def test_mistakes_of_what_is_measured(base: Path, overrides: list[str], line: str) -> None:
    assert error(base, *overrides).startswith(line)
