"""Caches that are saved and loaded: they go on as if nothing had been, or are refused in one line."""

from __future__ import annotations

import gc
import json
import os
import pickle
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import ClassVar

import pytest
import torch
from accelerate import cpu_offload
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors import SafetensorError

import buzz
from buzz.cache import files
from buzz.policies import Plan
from tests.cache.test_copy import MODEL, POSITIONS, RAGGED, assert_holds, read, snapshot
from tests.conftest import recorded, tiny_llama, tokens
from tests.decoding.test_loop import POLICIES as SMALL
from tests.decoding.test_loop import assert_same_caches, static
from tests.models.tiny import CASES, tiny
from tests.policies.strategies import policies_of

pytestmark = pytest.mark.filterwarnings("ignore:.*never thins the sample")
ROOT = Path(__file__).parents[2]
GREEDY = {"do_sample": False, "eos_token_id": None, "max_new_tokens": 6}


@settings(max_examples=10)
@given(policies_of(), POSITIONS, st.integers(1, 2), st.lists(st.integers(1, 24), min_size=1, max_size=2), st.data())
def test_a_loaded_cache_goes_on_as_the_saved_one(tmp_path_factory, policy, positions, rows, prompt, data):
    if positions == "cache" and "queries" in policy.reads:
        positions = "original"
    folder = tmp_path_factory.mktemp("cache")
    with buzz.patch_model(MODEL):
        cache = recorded(policy, MODEL, positions)
        read(MODEL, cache, [tokens(rows, n, seed=n) for n in prompt])
        shot = snapshot(cache)
        cache.save(folder)
        assert_holds(cache, shot)
        loaded = buzz.BeehiveCache.load(folder, MODEL)
        assert_holds(loaded, shot)
        assert (loaded.curve, loaded.positions, loaded.shares) == (cache.curve, cache.positions, cache.shares)
        assert loaded.nbytes <= cache.nbytes + 16 * 3 * 2 * rows * (2 * 16 * 4 + 4)  # room for 16 slots a head
        more = [tokens(rows, n, seed=n) for n in data.draw(st.lists(st.sampled_from([1, 1, 7]), max_size=5))]
        for a, b in zip(read(MODEL, loaded, more), read(MODEL, cache, more), strict=True):
            torch.testing.assert_close(a, b, atol=1e-5, rtol=1e-4)
        assert_same_caches(cache, loaded)
        loaded.reset()
        cache.reset()
        read(MODEL, loaded, [tokens(rows, 20)])
        read(MODEL, cache, [tokens(rows, 20)])
        assert_same_caches(cache, loaded)


@pytest.mark.parametrize("name", ["comb-layer", "comb-rows"])
def test_ragged_rows_out_of_an_arena_and_back_into_one(tmp_path, name):
    ids, mask = RAGGED
    with static(MODEL):
        cache = recorded(SMALL[name], MODEL)
        text = MODEL.generate(ids, attention_mask=mask, past_key_values=cache, **GREEDY)
        cache.reorder_cache(torch.tensor([2, 0, 1]))
        turn = torch.cat([text[[2, 0, 1]], tokens(3, 4, seed=9)], dim=1)
        known = torch.cat([mask[[2, 0, 1]], mask.new_ones(3, turn.shape[1] - mask.shape[1])], dim=1)
        cache.save(tmp_path / "a" / "new" / "folder")
        loaded = buzz.BeehiveCache.load(str(tmp_path / "a" / "new" / "folder"), MODEL)
        answers = [MODEL.generate(turn, attention_mask=known, past_key_values=c, **GREEDY) for c in (loaded, cache)]
        assert answers[0].equal(answers[1])
        assert_same_caches(cache, loaded)


@pytest.mark.parametrize("name", CASES)
def test_every_family_is_known_again(tmp_path, name):
    """Also in another dtype, in half of it, and as loaded from a checkpoint."""
    model, more = tiny(name).to(torch.bfloat16), [tokens(2, 1, seed=s) for s in range(3)]
    with buzz.patch_model(model):
        cache = buzz.BeehiveCache(model, "h2o", budget=12)
        read(model, cache, [tokens(2, 30)])
        cache.save(tmp_path)
        expected = read(model, cache, more)
    twin = tiny(name).to(torch.bfloat16)
    with buzz.patch_model(twin):
        got = read(twin, buzz.BeehiveCache.load(tmp_path, twin), more)
    for a, b in zip(got, expected, strict=True):
        torch.testing.assert_close(a, b)


ASK = """
import sys, torch, buzz
from transformers import AutoModelForCausalLM
folder, texts = sys.argv[1], torch.load(sys.argv[1] + "/texts.pt")
model = AutoModelForCausalLM.from_pretrained(folder + "/model")
buzz.patch_model(model)
cache = buzz.BeehiveCache.load(folder + "/cache", model)
how = {"do_sample": False, "eos_token_id": None, "max_new_tokens": 6}
answers = [model.generate(text, past_key_values=cache.copy(), **how) for text in texts]
answers.append(model.generate(texts[0], past_key_values=cache, **how))
torch.save(answers, folder + "/answers.pt")
"""


@pytest.mark.parametrize("policy", ["comb"])
def test_another_process_answers_as_this_one_would(tmp_path, policy):
    model, ids = MODEL, tokens(1, 60, seed=5)
    texts = [torch.cat([ids, tokens(1, n, seed=n)], dim=1) for n in (4, 7, 9)]
    with buzz.patch_model(model):
        cache = buzz.BeehiveCache(model, policy, budget=0.4)
        read(model, cache, [ids])
        assert len(set(cache.stats()["longest_head"]) | set(cache.stats()["shortest_head"])) == 2
        cache.save(tmp_path / "cache")
        expected = [model.generate(text, past_key_values=cache.copy(), **GREEDY) for text in texts]
    model.save_pretrained(tmp_path / "model")
    torch.save(texts, tmp_path / "texts.pt")
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}
    subprocess.run([sys.executable, "-c", ASK, str(tmp_path)], check=True, env=environment, cwd=tmp_path, timeout=200)
    answers = torch.load(tmp_path / "answers.pt")
    assert [a.tolist() for a in answers] == [a.tolist() for a in [*expected, expected[0]]]


def saved(folder, model=MODEL, policy="h2o"):
    with buzz.patch_model(model):
        cache = buzz.BeehiveCache(model, policy, budget=12)
        read(model, cache, [tokens(2, 30)])
        cache.save(folder)
    return cache


def test_a_cache_of_another_model_is_refused(tmp_path):
    saved(tmp_path)
    file = str(tmp_path / "cache.json")
    others = {
        tiny_llama(seed=1): "with weights '",
        tiny_llama(1): "with kv_heads 2, this one has 1: load it with the model that filled it",
        tiny_llama().to(torch.float16): "with dtype 'float32', this one has 'float16'",
        tiny("qwen3"): "with model_type 'llama', this one has 'qwen3'",
        tiny_llama(rope_parameters={"rope_type": "default", "rope_theta": 5e5}): "with rope_parameters ",
    }
    for model, words in others.items():
        with pytest.raises(ValueError) as error:
            buzz.BeehiveCache.load(tmp_path, model)
        assert str(error.value).startswith(f"{file}: the cache of a model {words}")
        assert "\n" not in str(error.value)
    for wrong in (MODEL.config, None, "model"):
        with pytest.raises(TypeError, match="a saved cache belongs to a model, got"):
            buzz.BeehiveCache.load(tmp_path, wrong)
    tuned = tiny_llama()
    with torch.no_grad():
        tuned.model.layers[1].mlp.up_proj.weight *= 1.01
    with pytest.raises(ValueError, match="with weights"):
        buzz.BeehiveCache.load(tmp_path, tuned)
    buzz.BeehiveCache.load(tmp_path, tiny_llama())


def test_files_that_are_damaged_missing_or_newer_are_refused(tmp_path):
    saved(tmp_path)
    for name in ("cache.json", "cache.safetensors"):
        file = tmp_path / name
        whole = file.read_bytes()
        changed = bytearray(whole)
        changed[-40] ^= 1
        for damaged in (b"", whole[:-9], bytes(changed), b"[]", b'{"format": 1}', b"[" * 100_000):
            file.write_bytes(damaged)
            with pytest.raises(ValueError, match="damaged, or no saved cache") as error:
                buzz.BeehiveCache.load(tmp_path, MODEL)
            assert str(file) in str(error.value)
            assert "\n" not in str(error.value)
        file.unlink()
        with pytest.raises(FileNotFoundError, match="there is none") as error:
            buzz.BeehiveCache.load(tmp_path, MODEL)
        assert str(file) in str(error.value)
        file.write_bytes(whole)
    content = json.loads((tmp_path / "cache.json").read_text())
    (tmp_path / "cache.json").write_text(json.dumps({**content, "format": 2}))
    with pytest.raises(ValueError, match="its format is 2, and this version of buzz reads 1"):
        buzz.BeehiveCache.load(tmp_path, MODEL)
    (tmp_path / "cache.json").write_text(json.dumps({**content, "positions": "original"}))
    with pytest.raises(ValueError, match=r"cache\.json: damaged, .*it is not what was written"):
        buzz.BeehiveCache.load(tmp_path, MODEL)


def test_a_folder_is_written_anew_and_files_of_two_caches_do_not_mix(tmp_path):
    saved(tmp_path / "a")
    other = saved(tmp_path / "b", policy="buzz")
    for name in ("cache.json", "cache.safetensors"):
        os.replace(tmp_path / "b" / name, tmp_path / "a" / name)
        if name == "cache.json":
            with pytest.raises(ValueError, match=r"is not the one that cache\.json speaks of"):
                buzz.BeehiveCache.load(tmp_path / "a", MODEL)
    assert_same_caches(recorded_as(other), recorded_as(buzz.BeehiveCache.load(tmp_path / "a", MODEL)))
    saved(tmp_path / "a")
    assert "H2OPolicy" in repr(buzz.BeehiveCache.load(tmp_path / "a", MODEL))
    assert sorted(file.name for file in (tmp_path / "a").iterdir()) == ["cache.json", "cache.safetensors"]


def recorded_as(cache):
    cache.curve = buzz.cache.Curve()
    return cache


def test_what_cannot_be_saved_says_so(tmp_path):
    cache = buzz.BeehiveCache(MODEL, "h2o", budget=12)
    with pytest.raises(ValueError, match="the cache holds nothing that could be saved"):
        cache.save(tmp_path)
    model = tiny_llama()
    with buzz.patch_model(model):
        read(model, cache, [tokens(1, 20)])
        cache.begin(1, 1)
        with pytest.raises(RuntimeError, match="a call of this cache is open, so layers differ: it can be saved"):
            cache.save(tmp_path)
        cache.cancel()
    (tmp_path / "file").write_text("")
    with pytest.raises(OSError, match="file"):
        cache.save(tmp_path / "file")
    del model
    gc.collect()
    with pytest.raises(ValueError, match="the model that filled the cache is not there any more"):
        cache.save(tmp_path)
    cache.save(tmp_path, tiny_llama())
    buzz.BeehiveCache.load(tmp_path, tiny_llama())


def test_a_model_that_is_spread_over_processes_is_refused(tmp_path):
    saved(tmp_path / "whole")
    model = tiny_llama()
    with buzz.patch_model(model):
        cache = buzz.BeehiveCache(model, "h2o", budget=12)
        read(model, cache, [tokens(1, 20)])
        model.model.layers[1].self_attn.k_proj.weight.device_mesh = object()  # as DTensors have one
        for way in (lambda: cache.save(tmp_path), lambda: buzz.BeehiveCache.load(tmp_path / "whole", model)):
            with pytest.raises(ValueError, match="spread over processes, each of which caches a part"):
                way()
    assert [file.name for file in tmp_path.iterdir()] == ["whole"]


def test_a_disk_that_is_full_costs_no_earlier_cache(tmp_path, monkeypatch):
    saved(tmp_path)

    def full(tensors, path):
        Path(path).write_bytes(b"part")
        raise SafetensorError("I/O error: No space left on device (os error 28)")

    monkeypatch.setattr(files, "save_file", full)
    with pytest.raises(OSError, match=r"cache\.safetensors: it cannot be written: I/O error: No space left"):
        saved(tmp_path, policy="buzz")
    assert sorted(file.name for file in tmp_path.iterdir()) == ["cache.json", "cache.safetensors"]
    assert "H2OPolicy" in repr(buzz.BeehiveCache.load(tmp_path, MODEL))


def test_a_pickled_cache_does_not_know_its_model(tmp_path):
    twin = pickle.loads(pickle.dumps(saved(tmp_path)))
    with pytest.raises(ValueError, match="name it, save"):
        twin.save(tmp_path / "twin")
    twin.save(tmp_path / "twin", MODEL)
    assert_holds(buzz.BeehiveCache.load(tmp_path / "twin", MODEL), snapshot(twin))


def test_layers_are_where_they_are_computed(tmp_path):
    """Also where accelerate keeps their weights elsewhere: these count by their shapes alone."""
    model, step = cpu_offload(tiny_llama(), torch.device("cpu")), [tokens(2, 1)]
    assert {p.device.type for p in model.parameters()} == {"meta"}
    with buzz.patch_model(model):
        cache = buzz.BeehiveCache(model, "h2o", budget=12)
        read(model, cache, [tokens(2, 30)])
        cache.save(tmp_path)
        loaded = buzz.BeehiveCache.load(tmp_path, model)
        assert read(model, loaded, step)[0].equal(read(model, cache, step)[0])
    with pytest.raises(ValueError, match="with weights"):
        buzz.BeehiveCache.load(tmp_path, MODEL)
    nowhere = tiny_llama().to("meta")
    with pytest.raises(ValueError, match="the model's weights are on no device"):
        buzz.BeehiveCache.load(tmp_path, nowhere)


@dataclass(frozen=True, repr=False)
class Last(buzz.Policy):
    """The last slots."""

    window: int = 8

    name: ClassVar[str] = "last"
    least: ClassVar[dict[str, int]] = {"window": 1}

    def plan(self, length, sampled=0):
        return Plan(self.window, 0) if length > self.window else None

    def select(self, held, length, sampled=0):
        return torch.arange(length - self.window, length, device=held.device)[None, None]


def test_policies_of_ones_own_are_named(tmp_path):
    with buzz.patch_model(MODEL):
        cache = buzz.BeehiveCache(MODEL, Last(5))
        read(MODEL, cache, [tokens(1, 30)])
        cache.save(tmp_path)
        with pytest.raises(ValueError, match=r"its policy is Last \('last'\), which is none of buzz's: give its class"):
            buzz.BeehiveCache.load(tmp_path, MODEL)
        loaded = buzz.BeehiveCache.load(tmp_path, MODEL, policies=[Last])
        assert loaded.lengths == [5]
        step = [tokens(1, 1)]
        assert read(MODEL, loaded, step)[0].equal(read(MODEL, cache, step)[0])


@pytest.mark.parametrize("value", [(1, 2), Path("x"), torch.float32, torch.tensor(3)])
def test_a_parameter_that_json_has_no_form_of_costs_no_earlier_cache(tmp_path, value):
    with buzz.patch_model(MODEL):
        caches = [buzz.BeehiveCache(MODEL, Last(5)) for _ in range(2)]
        for cache in caches:
            read(MODEL, cache, [tokens(1, 30)])
        good, bad = caches
        good.save(tmp_path)
        object.__setattr__(bad.integers.policy(0), "window", value)
        with pytest.raises(TypeError, match=r"Last\.window is .*, which cannot be saved"):
            bad.save(tmp_path)
        assert sorted(path.name for path in tmp_path.iterdir()) == ["cache.json", "cache.safetensors"]
        assert buzz.BeehiveCache.load(tmp_path, MODEL, policies=[Last]).lengths == [5]


def test_another_model_of_the_same_shape_does_not_go_on_with_a_cache():
    other = tiny_llama()
    with buzz.patch_model(MODEL), buzz.patch_model(other):
        cache = buzz.BeehiveCache(MODEL, "h2o", budget=12)
        read(MODEL, cache, [tokens(1, 20)])
        with pytest.raises(ValueError, match="another model has filled the cache: reset"):
            read(other, cache, [tokens(1, 1)])
        read(MODEL, cache, [tokens(1, 1)])
        cache.reset()
        read(other, cache, [tokens(1, 20)])


def test_it_is_saved_with_the_model_that_filled_it(tmp_path):
    with buzz.patch_model(MODEL):
        cache = buzz.BeehiveCache(MODEL, "h2o", budget=12)
        read(MODEL, cache, [tokens(1, 20)])
        with pytest.raises(ValueError, match="another model has filled the cache"):
            cache.save(tmp_path, tiny_llama())
        cache.save(tmp_path, MODEL)


@pytest.mark.parametrize("policies", [None, 3, "last", ["last"], [Last(5)]])
def test_policies_are_given_as_a_list_of_classes(tmp_path, policies):
    with buzz.patch_model(MODEL):
        cache = buzz.BeehiveCache(MODEL, "h2o", budget=12)
        read(MODEL, cache, [tokens(1, 20)])
        cache.save(tmp_path)
        with pytest.raises(TypeError, match="policies must be a list of classes of policies"):
            buzz.BeehiveCache.load(tmp_path, MODEL, policies=policies)
