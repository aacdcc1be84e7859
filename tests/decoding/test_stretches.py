"""Steps of a model whose layers are on several devices: on two GPUs where there are, else on devices of other names."""

from __future__ import annotations

import warnings

import pytest
import torch
from accelerate import dispatch_model
from accelerate.hooks import AlignDevicesHook, ModelHook, add_hook_to_module

import buzz
from buzz.decoding import step as steps
from buzz.decoding.arena import Off, Uncaptured
from buzz.decoding.capture import Captured
from buzz.decoding.step import stretches_of
from buzz.models.devices import Devices
from buzz.models.positions import Rotary
from buzz.models.untouched import forward_of
from tests.conftest import MODELS, left_pad, recorded, tiny_llama, tokens
from tests.decoding.kernel_steps import Kernels, everywhere
from tests.models.tiny import tiny

A, B = torch.device("cpu", 0), torch.device("cpu", 1)  # two names of one device
PLACES = {
    "head-behind": Devices(A, (A, A, B), B, B),
    "tied": Devices(A, (A, B, B), B, A),
    "head-before": Devices(A, (A, B, B), A, A),
    "there-and-back": Devices(A, (B, A, B), B, B),
    "apart": Devices(A, (B, B, B), A, B),
}
POLICIES = {
    "buzz": buzz.make_policy("buzz", sink=2, window=6, stride=5, threshold=9),
    "tova": buzz.make_policy("tova", capacity=12),
    "pyramidkv": buzz.make_policy("pyramidkv", capacity=14, window=4, kernel=3, beta=4),
    "layer": buzz.make_policy("comb", capacity=12, sink=1, window=4, lazy=3, beyond=2, near=1, scope="layer"),
    "expected": buzz.make_policy("expected_attention", capacity=14, sink=1),
    "head-echo": buzz.make_policy("comb", capacity=12, sink=1, window=4, lazy=3, scope="head", echo=True, chunk=9),
}
WAYS = [(name, positions) for name in POLICIES for positions in ("cache", "original")]
WAYS.remove(("expected", "cache"))  # which needs the positions of the text
GREEDY = {"do_sample": False, "eos_token_id": None, "max_new_tokens": 24}
RAGGED = left_pad([tokens(1, n, seed=n)[0] for n in (31, 9, 22)])
pytestmark = pytest.mark.filterwarnings("error:generate. does not decode in static memory")


def test_stretches_are_as_long_as_they_can_be():
    assert stretches_of(Devices(A, (A, A), A, A)) == [(A, [0, 1])]
    assert stretches_of(PLACES["head-behind"]) == [(A, [0, 1]), (B, [2])]
    assert stretches_of(PLACES["tied"]) == [(A, [0]), (B, [1, 2]), (A, [])]
    assert stretches_of(PLACES["there-and-back"]) == [(A, []), (B, [0]), (A, [1]), (B, [2])]
    assert stretches_of(PLACES["apart"]) == [(A, []), (B, [0, 1, 2]), (A, []), (B, [])]


def results_of(model, runs, policy, positions, ids=RAGGED[0], mask=RAGGED[1], **how):
    """Ids, logits of one more token, and lengths of the cache, in each way to run steps."""
    results = []
    for run in runs:
        with buzz.patch_model(model) as handle, torch.no_grad():
            handle.engine.run = run
            cache = recorded(policy, model.config, positions=positions)
            out = model.generate(ids, attention_mask=mask, past_key_values=cache, **{**GREEDY, **how})
            whole = torch.cat([mask, torch.ones_like(out[:, ids.shape[1] :])], dim=1)
            logits = model(out[:, -1:], past_key_values=cache, attention_mask=whole).logits
            results.append((out.tolist(), logits, cache.curve.lengths, cache))
    return results


def assert_same(results):
    (ids, logits, lengths, _), (other_ids, other_logits, other_lengths, _) = results
    assert other_ids == ids
    assert other_lengths == lengths
    torch.testing.assert_close(other_logits, logits, atol=1e-4, rtol=1e-4)


@pytest.mark.parametrize(("name", "positions"), WAYS)
@pytest.mark.parametrize("places", list(PLACES))
def test_steps_over_stretches_give_the_tokens_of_the_models_own_forward(places, name, positions, monkeypatch):
    """Over evictions, of rows of different lengths; what each layer caches is in buffers of its own stretch."""
    monkeypatch.setattr(Devices, "of", lambda *parts: PLACES[places])
    results = results_of(tiny_llama(2), (Off(), Uncaptured()), POLICIES[name], positions)
    assert_same(results)
    cache, shares = results[1][3], []
    for _, numbers in stretches_of(PLACES[places]):
        layers = [cache.layers[number] for number in numbers]
        homes = {id(layer.home or layer.pool) for layer in layers}
        schedules = {cache.integers.schedule_of[number] for number in numbers}
        assert None not in [layer.home or layer.pool for layer in layers]
        assert len(homes) == len(schedules)
        shares += homes
    assert len(shares) == len(set(shares))


@pytest.mark.parametrize("positions", ["cache", "original"])
@pytest.mark.parametrize("name", ["buzz", "layer"])
@pytest.mark.parametrize("places", list(PLACES))
def test_steps_after_the_end_of_all_answers_change_nothing(places, name, positions, monkeypatch):
    """The host learns of the end a step late, and the cache goes on with another text."""
    monkeypatch.setattr(Devices, "of", lambda *parts: PLACES[places])
    model, results = tiny_llama(2), []
    ids, mask = RAGGED
    with buzz.patch_model(model):
        cache = buzz.BeehiveCache(POLICIES[name], model, positions=positions)
        out = model.generate(ids, attention_mask=mask, past_key_values=cache, **GREEDY)
    ends = out[range(3), [ids.shape[1] + stop for stop in (8, 9, 10)]].tolist()
    for run in (Off(), Uncaptured()):
        with buzz.patch_model(model) as handle, torch.no_grad():
            handle.engine.run = run
            cache = recorded(POLICIES[name], model.config, positions=positions)
            turns, text, seen = [], ids, mask
            for _ in range(3):
                how = {"attention_mask": seen, "do_sample": False, "max_new_tokens": 40}
                text = model.generate(text, past_key_values=cache, eos_token_id=ends, pad_token_id=0, **how)
                turns.append(text.tolist())
                text = torch.cat([text, tokens(len(text), 3, seed=4)], dim=1)
                seen = torch.cat([seen, torch.ones(len(seen), text.shape[1] - seen.shape[1], dtype=seen.dtype)], dim=1)
            results.append((turns, cache.curve.lengths))
    assert results[0] == results[1]
    assert len(turns[0][0]) < ids.shape[1] + 40  # it did end


@pytest.mark.parametrize("positions", ["cache", "original"])
@pytest.mark.parametrize("kind", ["llama-mha", "opt"])
@pytest.mark.parametrize("places", list(PLACES))
def test_families_over_stretches(places, kind, positions, monkeypatch):
    model = MODELS[kind]()
    layers = PLACES[places].layers[-len(model.model.decoder.layers if kind == "opt" else model.model.layers) :]
    monkeypatch.setattr(Devices, "of", lambda *parts: PLACES[places]._replace(layers=layers))
    assert_same(results_of(model, (Off(), Uncaptured()), POLICIES["buzz"], positions))


@pytest.mark.parametrize(("rows", "positions"), [(1, "original"), (3, "cache"), (3, "original")])
@pytest.mark.parametrize("places", list(PLACES))
def test_kernels_hand_over_what_a_layer_gives(places, rows, positions, monkeypatch):
    """A layer of several rows leaves a sum to the next kernel, which is on another device here."""
    pytest.importorskip("triton")
    everywhere(monkeypatch.setattr, cuda=False)
    monkeypatch.setattr(Devices, "of", lambda *parts: PLACES[places])
    if torch.cuda.is_available():
        pytest.skip("kernels are not interpreted where there is a GPU")
    ids, ran = tokens(rows, 20, seed=2), Kernels()
    mask = torch.ones_like(ids)
    mask[1:, :5] = 0
    how = {"ids": ids, "mask": mask, "max_new_tokens": 7}
    assert_same(results_of(tiny_llama(2), (Off(), ran), POLICIES["buzz"], positions, **how))
    assert ran.steps == 6


def test_a_model_with_norms_after_its_blocks_hands_over_what_a_layer_gives(monkeypatch):
    pytest.importorskip("triton")
    if torch.cuda.is_available():
        pytest.skip("kernels are not interpreted where there is a GPU")
    everywhere(monkeypatch.setattr, cuda=False)
    model, ran = tiny("gemma3_text-mixed"), Kernels()
    layers = tuple(A if index < 2 else B for index in range(len(model.model.layers)))
    monkeypatch.setattr(Devices, "of", lambda *parts: Devices(A, layers, B, A))
    ids = tokens(2, 20, seed=2)
    how = {"ids": ids, "mask": torch.ones_like(ids), "max_new_tokens": 5}
    assert_same(results_of(model, (Off(), ran), POLICIES["buzz"], "original", **how))
    assert ran.steps == 4


@pytest.mark.parametrize("name", ["llama", "gemma3_text-mixed"])
def test_angles_are_made_where_they_are_needed(name):
    """A step on one device has the frequencies there, wherever the rotary embedding is and whatever is around it."""
    model = dispatched(tiny(name))
    rotary = Rotary(model.model)
    own, at = model.model.rotary_emb, torch.arange(7)[None]
    assert rotary._on(torch.device("cpu")) is own
    twin = rotary._on(A)
    assert twin is rotary._on(A)
    assert twin is not own
    assert {buffer.device.type for buffer in rotary._on(torch.device("meta")).buffers()} == {"meta"}
    assert {buffer.device.type for buffer in own.buffers()} == {"cpu"}
    assert not {"forward", "_hf_hook"} & vars(twin).keys()
    attention = model.model.layers[0].self_attn
    assert {t.device.type for t in rotary.at(attention, at, torch.empty(0, device="meta"))} == {"meta"}
    assert {t.device.type for t in rotary.table(attention, 9, torch.empty(0, device="meta"))} == {"meta"}
    for kind in rotary._widths:
        expected, got = (rotary._angles(torch.empty(0), at, kind, each) for each in (own, twin))
        assert all(torch.equal(x, y) for x, y in zip(expected, got, strict=True))
    rotary.renew()
    before = rotary._on(A)
    for buffer in own.buffers():
        buffer.mul_(2)
    rotary.renew()
    assert rotary._on(A) is not before


def test_a_cache_that_is_in_pools_of_other_stretches_moves(monkeypatch):
    """Another map of devices between two turns; heads of a layer share, so a pool of several layers is taken apart."""
    model, results = tiny_llama(2), []
    for places in (("head-behind", "head-behind"), ("tied", "there-and-back"), ("there-and-back", "head-behind")):
        with buzz.patch_model(model) as handle, torch.no_grad():
            handle.engine.run, turns = Uncaptured(), []
            cache, (text, mask) = recorded(POLICIES["layer"], model.config), RAGGED
            for place in places:
                monkeypatch.setattr(Devices, "of", lambda *parts, place=place: PLACES[place])
                handle.engine.clear()
                text = model.generate(text, attention_mask=mask, past_key_values=cache, **GREEDY)
                turns.append(text.tolist())
                text = torch.cat([text, tokens(len(text), 3, seed=4)], dim=1)
                mask = torch.cat([mask, torch.ones(3, text.shape[1] - mask.shape[1], dtype=mask.dtype)], dim=1)
            results.append((turns, cache.curve.lengths))
    assert results[0] == results[1] == results[2]


def test_heads_that_share_over_devices_are_refused_before_anything_is_built():
    model = tiny_llama(2)
    model.model.layers[2].to("meta")
    policy = buzz.make_policy("comb", capacity=12, window=4)
    with buzz.patch_model(model) as handle:
        handle.engine.run = Uncaptured()
        cache = buzz.BeehiveCache(policy, model)
        with pytest.raises(ValueError, match="the layers that share slots in comb are on 2 devices"):
            model.generate(tokens(1, 20), past_key_values=cache, **GREEDY)
        assert not handle.engine._arenas
        assert cache.shares is None


# accelerate's hooks.


def dispatched(model, device_map=None):
    """A model whose modules have the hooks that `device_map` gives them."""
    return dispatch_model(model, device_map or {"": "cpu"}, force_hooks=True)


def test_hooks_that_only_bring_inputs_are_no_obstacle():
    model = dispatched(tiny_llama(2), {"model": "cpu", "lm_head": "cpu"})
    assert all("_hf_hook" in vars(module) for module in (model, model.lm_head, model.model.layers[0].mlp.up_proj))
    assert forward_of(model.lm_head) is None
    results = results_of(model, (Off(), Uncaptured()), POLICIES["buzz"], "cache")
    assert_same(results)
    assert all(layer.home is not None for layer in results[1][3].layers)


@pytest.mark.parametrize("hook", ["own", "offload", "elsewhere", "nowhere", "around", "replaced"])
def test_other_hooks_are_an_obstacle(hook):
    """Of another kind; weights that come when they are needed; a device that is not the weights', or is none; two at
    once; one that does more."""
    model = tiny_llama(2)
    module = model.model.layers[1].mlp
    if hook == "own":
        add_hook_to_module(module, ModelHook())
    elif hook == "offload":
        weights = {name: weight.clone() for name, weight in module.named_parameters()}
        aligning = AlignDevicesHook("cpu", offload=True, weights_map=weights, place_submodules=True)
        add_hook_to_module(module, aligning)
    elif hook == "elsewhere":
        add_hook_to_module(module.up_proj, AlignDevicesHook())
        module.up_proj._hf_hook.execution_device = "meta"
    elif hook == "nowhere":
        add_hook_to_module(module.up_proj, AlignDevicesHook())
        module.up_proj._hf_hook.execution_device = "shelf"
    elif hook == "replaced":
        add_hook_to_module(module, AlignDevicesHook("cpu"))
        module._hf_hook.post_forward = lambda module, output: 3 * output
    else:
        for _ in range(2):
            add_hook_to_module(module, AlignDevicesHook("cpu"), append=True)
    with buzz.patch_model(model) as handle:
        assert "accelerate has hooks" in (handle.engine.obstacle() or "")
    assert forward_of(module.up_proj if hook in ("elsewhere", "nowhere") else module) is not None


def test_a_forward_inside_or_around_a_hook_is_seen():
    model = dispatched(tiny_llama(2))
    linear = model.model.layers[0].mlp.up_proj
    add_hook_to_module(linear, AlignDevicesHook("cpu"))
    assert forward_of(linear) is None
    own = linear._old_forward
    linear._old_forward = lambda x: 2 * own(x)
    assert forward_of(linear) is linear._old_forward
    with buzz.patch_model(model) as handle:
        assert "a Linear has a forward of its own" in (handle.engine.obstacle() or "")
        linear._old_forward = own
        assert handle.engine.obstacle() is None
        linear.forward = lambda x: x
        assert handle.engine.obstacle() is not None


def test_a_layer_on_two_devices_is_an_obstacle():
    model = tiny_llama(2)
    model.model.layers[1].mlp.to("meta")
    with buzz.patch_model(model) as handle:
        assert "a layer, or what comes before or after them all, is on several devices" in (
            handle.engine.obstacle() or ""
        )
    assert Devices.of(model.model, model.lm_head) is None


def test_where_the_parts_of_a_model_are():
    model = MODELS["opt"]()
    cpu, meta = torch.device("cpu"), torch.device("meta")
    decoder = model.model.decoder
    decoder.layers[1:].to("meta")
    inner = (cpu, *[meta] * (len(decoder.layers) - 1))
    assert Devices.of(decoder, model.lm_head) == Devices(cpu, inner, cpu, cpu)
    decoder.final_layer_norm.to("meta")
    assert Devices.of(decoder, model.lm_head) == Devices(cpu, inner, meta, cpu)


# Two GPUs.

TWO = pytest.mark.skipif(torch.cuda.device_count() < 2, reason="needs two CUDA devices")


def on_two(model):
    """The model, its later layers and what comes behind them on the second GPU, its rotary embedding too; the head
    where its weights are shared with the embedding's: as `device_map="auto"` has it."""
    backbone = model.get_decoder()
    prefix = next(name for name, module in model.named_modules() if module is backbone) + "."
    half, first = len(backbone.layers) // 2, ("embed_tokens", "embed_positions", "project_in")
    names = [name for name, _ in backbone.named_children() if name != "layers"]
    places = {prefix + name: int(name not in first) for name in names}
    places |= {f"{prefix}layers.{index}": int(index >= half) for index in range(len(backbone.layers))}
    tied = model.config.get_text_config().tie_word_embeddings
    return dispatch_model(model, {**places, "lm_head": 0 if tied else 1})


@pytest.mark.cuda
@TWO
@pytest.mark.parametrize("rows", [1, 3])
@pytest.mark.parametrize(("policy", "positions"), WAYS)
@pytest.mark.parametrize("name", ["llama", "qwen3", "gemma3_text-mixed", "opt"])
def test_two_gpus_give_the_tokens_of_the_models_own_forward(name, policy, positions, rows):
    """In captured steps of float32, over evictions."""
    model = on_two(MODELS["opt"]() if name == "opt" else tiny(name))
    ids, mask = (tensor[-rows:].cuda() for tensor in RAGGED)
    with warnings.catch_warnings():
        warnings.filterwarnings("error", "decoding is not")
        results = results_of(model, (Off(), Captured()), POLICIES[policy], positions, ids=ids, mask=mask)
    assert_same(results)
    assert all(layer.home or layer.pool for layer in results[1][3].layers)
    assert len({layer.keys.device if layer.pool is None else layer.pool.keys.device
                for layer in results[1][3].layers}) == 2  # fmt: skip


@pytest.mark.cuda
@TWO
@pytest.mark.filterwarnings("error:decoding is not")
@pytest.mark.parametrize("rows", [1, 3])
def test_kernels_give_on_two_gpus_what_they_give_on_one(rows, monkeypatch):
    """In bfloat16, to the bit: a sum that goes to another device is rounded as it is where it stays."""
    ids, mask = (tensor[-rows:].cuda() for tensor in RAGGED)
    own, asked, results = steps.StaticStep.kernel_stages, [], []
    monkeypatch.setattr(steps.StaticStep, "kernel_stages", lambda self: asked.append(own(self)) or asked[-1])
    for place in (lambda model: model.cuda(), on_two):
        model = place(tiny_llama(2).bfloat16())
        results += results_of(model, (Captured(),), POLICIES["buzz"], "cache", ids=ids, mask=mask, max_new_tokens=9)
    assert len(asked) == 2
    assert None not in asked
    assert results[0][0] == results[1][0]
    assert results[0][2] == results[1][2]
    assert torch.equal(results[0][1], results[1][1])
