"""Sweeps: the grid of runs, one line for every mistake in it, and that runs are done once and go on."""

from __future__ import annotations

import itertools
import json
from pathlib import Path

import pytest
import yaml

from buzz.evaluation.errors import ConfigError
from buzz.evaluation.models import load as models
from buzz.evaluation.run import sweep
from buzz.evaluation.run.cli import main
from buzz.evaluation.run.config import comparisons, load_config, to_yaml
from buzz.evaluation.run.grid import Sweep, is_sweep, load_sweep
from buzz.evaluation.run.sweep import run_sweep

CONFIGS = sorted((Path(__file__).parents[3] / "configs" / "sweeps").glob("*.yaml"))
COMB = sorted((Path(__file__).parents[3] / "configs" / "comb").glob("*.yaml"))
BASE = "{name: grid, model: {id: some/model}, task: {name: xsum}, methods: [full], sweep: {methods: [buzz, h2o]}}"


@pytest.fixture
def base(tmp_path: Path) -> Path:
    path = tmp_path / "base.yaml"
    path.write_text(BASE)
    return path


def expanded(path: Path, *overrides: str) -> Sweep:
    return load_sweep(path, overrides)


def names(path: Path, *overrides: str) -> list[str]:
    (run,) = expanded(path, *overrides).runs
    return [method.name for method in run.methods]


def folders(path: Path, *overrides: str) -> list[str]:
    return [run.name for run in expanded(path, *overrides).runs]


def error(path: Path, *overrides: str) -> str:
    with pytest.raises(ConfigError) as caught:
        load_sweep(path, overrides)
    line = str(caught.value)
    assert "\n" not in line
    return line


# --- what is a sweep -------------------------------------------------------------------------------------------------


def test_a_sweep_is_known_by_its_section(base):
    assert is_sweep(base)
    with pytest.raises(ConfigError, match=r"^sweep: makes this the config of several runs, .*buzz eval"):
        load_config(base)
    base.write_text(BASE.replace(", sweep: {methods: [buzz, h2o]}", ""))
    assert not is_sweep(base)
    assert is_sweep(base, ["sweep.methods=[buzz]", "sweep.stride=[5]"])  # from the command line alone
    assert error(base) == "sweep: is missing, a mapping is wanted"


# --- methods ---------------------------------------------------------------------------------------------------------


def test_methods_join_those_of_the_base(base):
    assert names(base) == ["full", "buzz", "h2o"]
    assert names(base, "methods=[full, streaming]", "sweep.methods=[tova]") == ["full", "streaming", "tova"]


def test_the_base_may_have_no_methods(base):
    assert names(base, "methods=[]") == ["buzz", "h2o"]


def test_lists_multiply_the_methods_that_have_the_key(base):
    assert names(base, "sweep.budget=[0.2, 0.4]", "sweep.stride=[3, 5]") == [
        "full",
        *(f"buzz-budget{b}-stride{s}" for b, s in itertools.product((0.2, 0.4), (3, 5))),
        *(f"h2o-budget{b}" for b in (0.2, 0.4)),
    ]
    (run,) = expanded(base, "sweep.budget=[0.2, 64]", "sweep.stride=[3]", "sweep.methods=[buzz]").runs
    assert [(m.budget, m.params) for m in run.methods[1:]] == [(0.2, {"stride": 3}), (64, {"stride": 3})]
    assert isinstance(run.methods[2].budget, int)


@pytest.mark.parametrize(
    ("key", "values", "policy", "expected"),
    [
        ("window", "[32, 64]", "streaming", [32, 64]),
        ("threshold", "[0, 100]", "buzz", [0, 100]),
        ("heavy", "[10]", "h2o", [10]),
        ("capacity", "[64, 128]", "snapkv", [64, 128]),
        ("stride", "5", "buzz", [5]),  # as a hyper-parameter search gives it
    ],
)
def test_parameters_of_policies(base, key, values, policy, expected):
    (run,) = expanded(base, f"sweep.methods=[{policy}]", f"sweep.{key}={values}").runs
    assert [method.params[key] for method in run.methods[1:]] == expected


@pytest.mark.parametrize(
    ("key", "values", "expected"),
    [
        ("reduction", "[2, 2.5]", [2.0, 2.5]),
        ("positions", "[cache, original]", ["cache", "original"]),
        ("logn_base", "[null, 512]", [None, 512]),
        ("match", "[full]", ["full"]),
    ],
)
def test_keys_of_all_methods(base, key, values, expected):
    (run,) = expanded(base, "sweep.methods=[buzz]", f"sweep.{key}={values}").runs
    assert [getattr(method, key) for method in run.methods[1:]] == expected


def test_what_a_method_sets_itself_stays(base):
    entries = "sweep.methods=[{policy: buzz, stride: 7}, {policy: buzz, name: mine}]"
    assert names(base, entries, "sweep.stride=[3, 5]") == ["full", "buzz-stride7", "mine-stride3", "mine-stride5"]


def test_null_takes_a_list_out(base):
    assert names(base, "sweep.stride=[3]", "sweep.budget=[0.2]", "sweep.stride=null") == names(base, "sweep.budget=0.2")
    assert folders(base, "sweep.tasks=null", "sweep.models=null") == ["xsum-model"]


def test_a_sweeps_methods_are_those_of_the_same_run_by_hand(base, tmp_path):
    (run,) = expanded(base, "sweep.budget=[0.2]", "output=x").runs
    hand = tmp_path / "hand.yaml"
    hand.write_text(to_yaml(run))
    assert load_config(hand) == run


# --- models and tasks ------------------------------------------------------------------------------------------------


def test_a_folder_for_every_model_and_task(base):
    grid = expanded(
        base,
        "sweep.models=[{id: org/a, dtype: float32}, {gguf: weights/b.gguf}]",
        "sweep.tasks=[{name: xsum, limit: 7}, {name: cnn_dm}]",
        "task.limit=9",
        "model.device=cpu",
        "output=there/",
    )
    assert [run.name for run in grid.runs] == ["xsum-a", "cnn_dm-a", "xsum-b", "cnn_dm-b"]
    assert [run.output for run in grid.runs] == [f"there/{run.name}" for run in grid.runs]
    assert [run.task.limit for run in grid.runs] == [7, 9, 7, 9]
    assert [(run.model.id, run.model.gguf) for run in grid.runs[1:3]] == [("org/a", None), (None, "weights/b.gguf")]
    assert {run.model.device for run in grid.runs} == {"cpu"}
    assert {run.wandb.group for run in grid.runs} == {"grid"}
    assert all(len(run.methods) == 3 for run in grid.runs)


def test_defaults(base):
    grid = expanded(base)
    assert (grid.name, grid.output) == ("grid", "runs/grid")
    assert [(run.name, run.output) for run in grid.runs] == [("xsum-model", "runs/grid/xsum-model")]
    assert expanded(base, "wandb.group=mine").runs[0].wandb.group == "mine"
    assert expanded(base, "wandb.mode=offline").runs[0].wandb.mode == "offline"


def test_the_base_may_lack_what_the_lists_give(base):
    raw = yaml.safe_load(BASE)
    del raw["model"]
    raw["task"] = {"limit": 3}
    base.write_text(yaml.safe_dump(raw))
    assert folders(base, "sweep.models=[{id: a}]", "sweep.tasks=[{name: xsum}]") == ["xsum-a"]
    assert error(base, "sweep.tasks=[{name: xsum}]").startswith("model: is missing, ")
    assert error(base, "sweep.models=[{id: a}]").startswith("task.name: is missing, ")


def test_names_of_folders_are_unique_and_safe(base):
    assert folders(base, "sweep.tasks=[{limit: 5}, {limit: 7}, {limit: 5}]") == [
        "xsum-limit5-model",
        "xsum-limit7-model",
        "xsum-limit5-2-model",
    ]
    prompts = "sweep.tasks=[{prompt: 'a very long prompt about {document}'}, {prompt: 'another long one: {document}'}]"
    assert folders(base, prompts) == ["xsum-model", "xsum-2-model"]
    assert folders(base, "sweep.models=[{id: a/m}, {id: b/m}, {id: B/M}]") == ["xsum-m", "xsum-m-2", "xsum-M-3"]
    assert folders(base, "model.id=so me/mo:del v1.5") == ["xsum-mo-del-v1.5"]
    assert folders(base, "sweep.models=[{dtype: float32}, {dtype: bfloat16}]") == [
        "xsum-model-dtype-float32",
        "xsum-model-dtype-bfloat16",
    ]


def test_equal_models_follow_each_other(base):
    grid = expanded(base, "sweep.models=[{id: a}, {id: b}, {id: a}]", "sweep.tasks=[{name: xsum}, {name: cnn_dm}]")
    assert [run.model.id for run in grid.runs] == ["a"] * 4 + ["b"] * 2


# --- mistakes --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("override", "start", "said"),
    [
        ("sweep=3", "sweep: is 3 (an integer)", "a mapping with the keys methods, models, tasks, positions"),
        ("sweep=null", "sweep: is null", "a mapping"),
        ("sweep.strid=[3]", "sweep.strid: unknown key (did you mean 'stride'?)", "allowed: methods, models, tasks"),
        ("sweep.name=[a]", "sweep.name: unknown key", ""),
        ("sweep.stride=[]", "sweep.stride: is [] (a list)", "a list of values"),
        ("sweep.stride=[[3]]", "sweep.stride: is [[3]]", "a list of values"),
        ("sweep.capacity=[64]", "sweep.capacity: is a key of none of sweep.methods", "a policy that has it"),
        ("sweep.methods=buzz", "sweep.methods: is 'buzz' (text)", "a list of methods"),
        ("sweep.methods=[buz]", "sweep.methods[0].policy: unknown policy 'buz' (did you mean 'buzz'?)", "streaming"),
        ("sweep.methods=[3]", "sweep.methods[0]: is 3", "a policy's name or a mapping"),
        ("sweep.methods=[{stride: 3}]", "sweep.methods[0].policy: is missing", "one of full"),
        ("sweep.methods=[{policy: buzz, windw: 3}]", "sweep.methods[0] (buzz).windw: unknown key", "window"),
        ("sweep.methods=[full]", "methods[1].name: 'full' is the name of methods[0] as well", ""),
        ("methods=full", "methods: is 'full' (text)", "a list of methods"),
        ("methods=[buz]", "methods[0].policy: unknown policy", ""),
        # combinations that a policy refuses are named
        ("sweep.stride=[5, 0]", "sweep.methods[0] with stride=0 (buzz).stride: is 0, must be at least 1", ""),
        ("sweep.stride=[5, x]", "sweep.methods[0] with stride=x (buzz).stride: is 'x' (text)", "an integer"),
        ("sweep.budget=[0.2, 1.5]", "sweep.methods[0] with budget=1.5 (buzz).budget: is 1.5", "a share of the prompt"),
        ("sweep.reduction=[1]", "sweep.methods[0] with reduction=1 (buzz).reduction: is 1", "a number above 1"),
        ("sweep.positions=[here]", "sweep.methods[0] with positions=here (buzz).positions: is 'here'", "original"),
        ("sweep.logn_base=[1]", "sweep.methods[0] with logn_base=1 (buzz).logn_base: is 1", "above 1"),
        ("sweep.match=[nobody]", "methods[1] (buzz).match: 'nobody' names no other method", "one of full"),
        # the base
        ("name=a b", "name: is 'a b'", "a name of letters"),
        ("output=3", "output: is 3", "text"),
        ("bacth_size=3", "bacth_size: unknown key (did you mean 'batch_size'?)", "allowed: name, model"),
        ("wandb=3", "wandb: is 3", "a mapping"),
        ("model=3", "model: is 3", "a mapping"),
        ("model.id=null", "model: neither id nor gguf", "a hub id"),
        ("task.name=xsun", "task.name: unknown task 'xsun' (did you mean 'xsum'?)", ""),
        # models and tasks
        ("sweep.models=3", "sweep.models: is 3", "a list of at least one mapping"),
        ("sweep.models=[]", "sweep.models: is []", "a list of at least one mapping"),
        ("sweep.models=[a]", "sweep.models[0]: is 'a' (text)", "a mapping with keys of model"),
        ("sweep.models=[{}, {dtype: f}]", "sweep.models[1].dtype: is 'f'", "one of auto, float32"),
        ("sweep.models=[{dtpye: auto}]", "sweep.models[0].dtpye: unknown key (did you mean 'dtype'?)", ""),
        ("sweep.models=[{id: null}]", "sweep.models[0]: neither id nor gguf", ""),
        ("sweep.tasks=[{name: xsun}]", "sweep.tasks[0].name: unknown task 'xsun'", "xsum"),
        ("sweep.tasks=[{}, {limit: 0}]", "sweep.tasks[1].limit: is 0", "at least 1"),
        ("sweep.tasks=[{prompt: '{article}'}]", "sweep.tasks[0].prompt: unknown placeholder {article}", ""),
        ("sweep.tasks=[3]", "sweep.tasks[0]: is 3", "a mapping with keys of task"),
    ],
)
def test_mistakes(base, override, start, said):
    line = error(base, override)
    assert line.startswith(start), line
    assert said in line, line


@pytest.mark.parametrize(
    ("overrides", "start"),
    [
        (
            ["sweep.methods=[full]", "sweep.budget=[0.2]"],
            "sweep.methods[0] with budget=0.2 (full).budget: full with the",
        ),
        (
            ["sweep.budget=[0.2]", "sweep.stride=[5, 2]"],
            "sweep.methods[0] with budget=0.2 stride=2 (buzz).budget: buzz with these parameters never settles",
        ),
        (
            ["sweep.budget=[0.2]", "sweep.reduction=[2]"],
            "sweep.methods[0] with budget=0.2 reduction=2 (buzz).reduction:",
        ),
        (["sweep.stride=[3, 3]"], "methods[2].name: 'buzz-stride3' is the name of methods[1] as well"),
        (["sweep.methods=[]", "sweep.stride=[3]"], "sweep.methods: is [] (a list)"),
        (["methods=[]", "sweep={}"], "sweep: is '{}' (text)"),
    ],
)
def test_mistakes_of_several_keys(base, overrides, start):
    assert error(base, *overrides).startswith(start)


@pytest.mark.parametrize("override", ["sweep.strid=[3]", "sweep.stride=[0]", "sweep.tasks=[{limit: 0}]", "sweep=3"])
def test_a_mistake_is_one_line_and_status_2(base, override, capsys):
    assert main(["--config", str(base), override]) == 2
    printed = capsys.readouterr()
    assert printed.err.startswith("error: sweep")
    assert printed.err.count("\n") == 1
    assert not printed.out


def test_nothing_to_run(base):
    raw = yaml.safe_load(BASE)
    del raw["methods"], raw["sweep"]["methods"]
    base.write_text(yaml.safe_dump(raw))
    assert error(base).startswith("methods: is missing, ")
    raw["sweep"]["budget"] = [0.2]
    raw["methods"] = ["full"]
    base.write_text(yaml.safe_dump(raw))
    assert error(base).startswith("sweep.methods: is missing, ")


@pytest.mark.parametrize("path", CONFIGS, ids=lambda path: path.stem)
def test_shipped_sweeps_load(path, tmp_path):
    grid = load_sweep(path)
    assert grid.output == f"runs/sweeps/{path.stem}"
    for run in grid.runs:
        assert run.methods[0].policy == "full"
        assert len(run.methods) > 8
        (tmp_path / "one.yaml").write_text(to_yaml(run))
        assert load_config(tmp_path / "one.yaml") == run  # each is a config by itself
    assert load_sweep(path, ["task.limit=2", "task.data=x.jsonl"]).runs[0].task.limit == 2


@pytest.mark.parametrize("path", COMB, ids=lambda path: path.stem)
def test_the_configs_of_comb_load_and_compare_what_they_name(path):
    runs = load_sweep(path).runs if is_sweep(path) else [load_config(path)]
    for run in runs:
        assert run.task.rows == ("tune" if path.stem == "tune" else "test")
        assert run.output.startswith(f"runs/comb/{path.stem}")
        found = comparisons(run)
        own = [method for method in run.methods if method.policy == "comb"]
        assert own
        for name, baselines in found.items():
            assert all(baselines[method.name].startswith(name) for method in own)
        shipped = [
            method for method in run.methods if method.name.partition("-")[0] == "full" or "slots" in method.name
        ]
        positions = {
            method.positions or method.make_policy().positions for method in run.methods if method not in shipped
        }
        assert len(positions) == 1  # so that rules alone are compared


# --- running ---------------------------------------------------------------------------------------------------------


@pytest.fixture
def tiny(write_config, model_folder, data_file, tmp_path):
    """A sweep of two tasks and three methods, on the tiny model."""
    cnn = tmp_path / "cnn.jsonl"
    rows = [json.loads(line) for line in data_file.read_text().splitlines()]
    rows = [{"id": row["id"], "article": row["document"], "highlights": row["summary"]} for row in rows]
    cnn.write_text("".join(json.dumps(row) + "\n" for row in rows))
    tasks = [
        {"name": "xsum", "data": str(data_file), "prompt": "{document}"},
        {"name": "cnn_dm", "data": str(cnn), "prompt": "{article}"},
    ]
    section = {"methods": ["streaming"], "budget": [0.4, 0.8], "tasks": tasks}
    return write_config(methods=["full"], task={"limit": 3}, sweep=section, output=str(tmp_path / "sweep"))


@pytest.fixture
def loads(monkeypatch):
    """How often weights are loaded."""
    real, count = models.load_model, []

    def counting(*args, **kwargs):
        count.append(1)
        return real(*args, **kwargs)

    monkeypatch.setattr(models, "load_model", counting)
    return count


def test_a_sweep_runs_and_ends_with_a_summary(tiny, tmp_path, loads, capfd):
    summary = run_sweep(load_sweep(tiny))
    folder = tmp_path / "sweep"
    assert list(summary["runs"]) == ["xsum-tiny-llama", "cnn_dm-tiny-llama"]
    assert json.loads((folder / "summary.json").read_text()) == summary
    for name, run in summary["runs"].items():
        assert json.loads((folder / name / "summary.json").read_text()) == run
        assert list(run["methods"]) == ["full", "streaming-budget0.4", "streaming-budget0.8"]
        assert all(entry["n"] == 3 for entry in run["methods"].values())
    assert (folder / "frontier.png").read_bytes().startswith(b"\x89PNG")
    assert "<svg" in (folder / "frontier.svg").read_text()
    assert "](frontier.png)" in (folder / "report.md").read_text()
    assert len(loads) == 1
    assert "run 2 of 2: cnn_dm-tiny-llama" in capfd.readouterr().err

    again = run_sweep(load_sweep(tiny))  # nothing is left to do
    assert len(loads) == 1
    assert [run["methods"] for run in again["runs"].values()] == [run["methods"] for run in summary["runs"].values()]


def test_an_interrupted_sweep_goes_on(tiny, tmp_path, monkeypatch):
    real = sweep.run

    def interrupted(config, loader):
        if config.task.name == "cnn_dm":
            raise KeyboardInterrupt
        return real(config, loader)

    monkeypatch.setattr(sweep, "run", interrupted)
    with pytest.raises(KeyboardInterrupt):
        run_sweep(load_sweep(tiny))
    assert not (tmp_path / "sweep" / "summary.json").exists()
    kept = (tmp_path / "sweep" / "xsum-tiny-llama" / "samples" / "full.jsonl").read_bytes()
    monkeypatch.setattr(sweep, "run", real)
    assert len(run_sweep(load_sweep(tiny))["runs"]) == 2
    assert (tmp_path / "sweep" / "xsum-tiny-llama" / "samples" / "full.jsonl").read_bytes() == kept


def test_all_data_is_looked_up_before_anything_runs(tiny, tmp_path, loads):
    (tmp_path / "cnn.jsonl").write_text("{}\n")
    with pytest.raises(ConfigError, match="article"):
        run_sweep(load_sweep(tiny))
    assert not (tmp_path / "sweep").exists()
    assert not loads


def test_all_models_are_looked_up_before_anything_runs(tiny, tmp_path, model_folder):
    missing = tmp_path / "nowhere.gguf"
    grid = load_sweep(tiny, [f"sweep.models=[{{id: {model_folder}}}, {{gguf: {missing}}}]"])
    with pytest.raises(ConfigError, match=r"^model\.gguf: "):
        run_sweep(grid)
    assert not (tmp_path / "sweep").exists()


def test_the_folder_of_a_run_is_no_sweeps(tiny, tmp_path):
    (tmp_path / "sweep").mkdir()
    (tmp_path / "sweep" / "config.yaml").write_text("name: x")
    with pytest.raises(ConfigError, match=r"^output: .* holds a run"):
        run_sweep(load_sweep(tiny))
