"""What is patched: exactly what a family's classes are, through wrappers; all else is named and left whole."""

from __future__ import annotations

import functools
import re

import accelerate
import pytest
import torch
from accelerate.hooks import AlignDevicesHook, ModelHook, add_hook_to_module, remove_hook_from_module
from torch import nn
from transformers import DynamicCache, LlamaModel
from transformers.models.llama.modeling_llama import LlamaAttention, LlamaDecoderLayer
from transformers.models.opt.modeling_opt import OPTAttention

import buzz
from tests.conftest import MODELS, tiny_llama, tiny_opt, tokens

GREEDY = {"max_new_tokens": 8, "do_sample": False, "eos_token_id": None}
BOTH = pytest.mark.parametrize("make", [tiny_llama, tiny_opt])


def layers_of(model):
    return next(m for m in model.modules() if hasattr(m, "layers")).layers


def snapshot(model):
    """Everything on all modules that a patch could leave behind."""
    return [
        (module, dict(vars(module)), list(module._forward_hooks), list(module._forward_pre_hooks))
        for module in model.modules()
    ]


def assert_whole(model, before):
    for module, variables, after_hooks, pre_hooks in before:
        now = {k: v for k, v in vars(module).items() if k not in ("_forward_hooks", "_forward_pre_hooks")}
        assert now.keys() == variables.keys() - {"_forward_hooks", "_forward_pre_hooks"}
        for name, value in now.items():
            same = value is variables[name] or value == variables[name]
            assert same, f"{type(module).__name__}.{name}"
        assert (list(module._forward_hooks), list(module._forward_pre_hooks)) == (after_hooks, pre_hooks)
    assert [m for m, *_ in before] == list(model.modules())


@torch.no_grad()
def assert_right(model, call=None):
    """A patched model with room is the unpatched one, and with a window it evicts."""
    call, ids = call or model, tokens(2, 24)
    expected = call(ids).logits
    cache = buzz.BeehiveCache("full", model.config)
    torch.testing.assert_close(call(ids, past_key_values=cache).logits, expected, atol=1e-5, rtol=0)
    cache = buzz.BeehiveCache(buzz.make_policy("streaming", sink=2, window=6), model.config)
    for part in ids.split([20, 1, 1, 1, 1], dim=1):
        call(part, past_key_values=cache)
    assert cache.lengths == [8, 8]


class OwnAttention(LlamaAttention):
    pass


class DoubledAttention(OPTAttention):
    def forward(self, *args, **kwargs):
        output, weights = super().forward(*args, **kwargs)
        return 2 * output, weights


class Elsewhere(nn.Module):
    layer_idx = 1

    def forward(self, hidden_states, **kwargs):
        return hidden_states, None


class OwnLayer(LlamaDecoderLayer):
    pass


class NoAttention(nn.Module):
    def forward(self, hidden_states, **kwargs):
        return hidden_states


class OwnBackbone(LlamaModel):
    pass


def own_forward(model):
    attention = layers_of(model)[1].self_attn
    own = attention.forward
    attention.forward = lambda *args, **kwargs: own(*args, **kwargs)


def forward_of_layer(model):
    layer = layers_of(model)[1]
    layer.forward = functools.partial(type(layer).forward, layer)


def in_place_of(path, make):
    def change(model):
        parent, name = model.get_submodule(path.rpartition(".")[0]), path.rpartition(".")[2]
        setattr(parent, name, make(getattr(parent, name)))

    return change


def as_class(path, kind):
    def change(model):
        model.get_submodule(path).__class__ = kind

    return change


REFUSED = [
    (tiny_llama, as_class("model.layers.1.self_attn", OwnAttention), "model.layers.1.self_attn: it is a OwnAttention"),
    (tiny_opt, as_class("model.decoder.layers.1.self_attn", DoubledAttention),
     "model.decoder.layers.1.self_attn: it is a DoubledAttention, not a OPTAttention"),
    (tiny_llama, in_place_of("model.layers.1.self_attn", lambda old: Elsewhere()),
     "model.layers.1.self_attn: it is a Elsewhere"),
    (tiny_llama, as_class("model.layers.1", OwnLayer), "model.layers.1: it is a OwnLayer, not a LlamaDecoderLayer"),
    (tiny_llama, as_class("model", OwnBackbone), "model: it is a OwnBackbone, not a LlamaModel"),
    (tiny_llama, own_forward, "model.layers.1.self_attn: its forward was replaced"),
    (tiny_opt, own_forward, "model.decoder.layers.1.self_attn: its forward was replaced"),
    (tiny_llama, forward_of_layer, "model.layers.1: its forward was replaced"),
    (tiny_opt, forward_of_layer, "model.decoder.layers.1: its forward was replaced"),
    (tiny_llama, in_place_of("model.layers.2", lambda old: NoAttention()), "model.layers.2: it is a NoAttention"),
    (tiny_llama, in_place_of("model.layers", lambda old: old[:2]), "model: it has 2 layers, its config says 3"),
    (tiny_llama, in_place_of("model.layers", lambda old: nn.ModuleList([old[1], old[0], old[2]])),
     "model.layers.0.self_attn: its layer_idx is 1, not 0"),
]  # fmt: skip


@pytest.mark.parametrize(("make", "change", "words"), REFUSED)
def test_other_modules_are_named_and_nothing_is_patched(make, change, words):
    model = make()
    change(model)
    before = snapshot(model)
    with pytest.raises(buzz.UnsupportedModelError, match=re.escape(f"cannot patch {words}")):
        buzz.patch_model(model)
    assert_whole(model, before)


@pytest.mark.parametrize(("make", "change", "words"), REFUSED)
@torch.no_grad()
def test_they_are_named_after_patching_too(make, change, words):
    """At the next call with a BeehiveCache, and nothing of the patch is left; without one the model works as it is."""
    model, plain = make(), make()
    change(plain)
    handle = buzz.patch_model(model)
    change(model)
    expected = plain(tokens(1, 9), past_key_values=DynamicCache()).logits
    assert torch.equal(model(tokens(1, 9), past_key_values=DynamicCache()).logits, expected)
    with pytest.raises(buzz.UnsupportedModelError, match=re.escape(f"cannot patch {words}")):
        model(tokens(1, 9), past_key_values=buzz.BeehiveCache("buzz", model))
    assert not any("_buzz" in vars(m) or "_buzz_handle" in vars(m) for m in model.modules())
    assert torch.equal(model(tokens(1, 9), past_key_values=DynamicCache()).logits, expected)
    handle.remove()


@pytest.mark.parametrize("after", [False, True])
@torch.no_grad()
def test_a_forward_replaced_on_the_class(monkeypatch, after):
    for make, kind in ((tiny_llama, LlamaAttention), (tiny_opt, OPTAttention)):
        model = make()
        handle = buzz.patch_model(model) if after else None
        with monkeypatch.context() as patch:
            patch.setattr(kind, "forward", lambda self, hidden_states, **kwargs: (hidden_states, None))
            words = f"the forward of the class {kind.__name__} was replaced"
            call = (
                (lambda m: m(tokens(1, 9), past_key_values=buzz.BeehiveCache("buzz", m))) if after else buzz.patch_model
            )
            with pytest.raises(buzz.UnsupportedModelError, match=words):
                call(model)
        if handle is not None:
            handle.remove()
        assert not any("_buzz" in vars(m) or "forward" in vars(m) for m in model.modules())
        with buzz.patch_model(model):
            assert_right(model)


class Counting(ModelHook):
    def __init__(self):
        self.calls = 0

    def pre_forward(self, module, *args, **kwargs):
        self.calls += 1
        return args, kwargs

    def post_forward(self, module, output):
        return output


@BOTH
@pytest.mark.parametrize("where", ["attention", "layer", "backbone", "model"])
def test_hooks_of_accelerate_before_and_after(make, where):
    """They are called, and stay when the patch goes; they go, and the patch stays."""
    for after in (False, True):
        model = make()
        backbone = next(m for m in model.modules() if hasattr(m, "layers"))
        module = {"attention": backbone.layers[1].self_attn, "layer": backbone.layers[1], "backbone": backbone,
                  "model": model}[where]  # fmt: skip
        hook = Counting()
        handle = buzz.patch_model(model) if after else None
        add_hook_to_module(module, hook)
        handle = handle or buzz.patch_model(model)
        assert_right(model)
        assert hook.calls == 7
        handle.remove()
        assert module._hf_hook is hook
        with torch.no_grad():
            model(tokens(1, 5))
        assert hook.calls == 8
        handle = buzz.patch_model(model)
        remove_hook_from_module(module)
        assert_right(model)
        assert hook.calls == 8
        handle.remove()
        assert not any("_buzz" in vars(m) for m in model.modules())
        with torch.no_grad():
            assert torch.equal(model(tokens(1, 5)).logits, make()(tokens(1, 5)).logits)


@BOTH
@pytest.mark.parametrize("after", [False, True])
def test_weights_that_accelerate_offloads(make, after):
    model, plain = make(), make()
    handle = buzz.patch_model(model) if after else None
    accelerate.cpu_offload(model, execution_device=torch.device("cpu"))
    assert layers_of(model)[0].self_attn.q_proj.weight.device.type == "meta"
    with handle or buzz.patch_model(model):
        ids, cache = tokens(1, 30), buzz.BeehiveCache("full", model)
        with torch.no_grad():
            torch.testing.assert_close(model(ids, past_key_values=cache).logits, plain(ids).logits, atol=1e-5, rtol=0)
        got = model.generate(ids, past_key_values=buzz.BeehiveCache("full", model), **GREEDY)
        assert got.tolist() == plain.generate(ids, **GREEDY).tolist()


def test_a_wrapper_of_ones_own_around_the_patch_is_refused():
    """It may do anything; so may one that is there before."""
    model = tiny_llama()
    handle = buzz.patch_model(model)
    attention = model.model.layers[2].self_attn
    ours = attention.forward
    attention.forward = lambda *args, **kwargs: ours(*args, **kwargs)
    with pytest.raises(buzz.UnsupportedModelError, match=r"model\.layers\.2\.self_attn: its forward was replaced"):
        model(tokens(1, 9), past_key_values=buzz.BeehiveCache("buzz", model))
    with torch.no_grad():  # which stays, and calls what the class does
        assert torch.equal(model(tokens(1, 9)).logits, tiny_llama()(tokens(1, 9)).logits)
    handle.remove()


class Engine(nn.Module):
    """As DeepSpeed's engine and DistributedDataParallel wrap a model."""

    def __init__(self, module):
        super().__init__()
        self.module = module

    def forward(self, *args, **kwargs):
        return self.module(*args, **kwargs)


@BOTH
def test_wrappers_are_looked_through(make):
    model = make()
    before = snapshot(model)
    wrapped = Engine(Engine(model))
    handle = buzz.patch_model(wrapped)
    assert handle.model is model
    assert buzz.patch_model(model) is handle is buzz.patch_model(wrapped)
    assert_right(model, wrapped)
    assert model.generate(tokens(1, 9), past_key_values=buzz.BeehiveCache("buzz", model), **GREEDY).shape == (1, 17)
    handle.remove()
    assert_whole(model, before)
    assert "_buzz_handle" not in vars(wrapped)


@BOTH
@pytest.mark.parametrize("first", ["backbone", "model"])
def test_a_backbone_and_its_model_are_one_patch(make, first):
    model = make()
    backbone = next(m for m in model.modules() if hasattr(m, "layers"))
    before = snapshot(model)
    order = [backbone, model.model, model] if first == "backbone" else [model, model.model, backbone]
    handles = {id(handle): handle for handle in map(buzz.patch_model, order)}
    (handle,) = handles.values()
    assert handle.model is model
    assert_right(model)
    handle.remove()
    assert_whole(model, before)
    handle.remove()


@torch.no_grad()
def test_two_heads_on_one_backbone_have_one_patch():
    model = tiny_llama()
    other = tiny_llama(seed=1)
    other.model = model.model
    with buzz.patch_model(model):
        words = "this LlamaForCausalLM shares its backbone with a patched LlamaForCausalLM: remove that patch"
        with pytest.raises(buzz.UnsupportedModelError, match=words):
            buzz.patch_model(other)
        assert_right(model)
    with buzz.patch_model(other):
        assert_right(other)


@torch.no_grad()
def test_fewer_layers_by_the_config_after_patching():
    model = tiny_llama()
    with buzz.patch_model(model):
        cache = buzz.BeehiveCache("full", model)
        model(tokens(1, 9), past_key_values=cache)
        model.config.num_hidden_layers = 2
        with pytest.raises(buzz.UnsupportedModelError, match="it has 3 layers, its config says 2"):
            model(tokens(1, 1), past_key_values=cache)


@BOTH
@torch.no_grad()
def test_a_backbone_alone(make):
    backbone = make().model
    ids = tokens(2, 24)
    expected = backbone(ids).last_hidden_state
    with buzz.patch_model(backbone):
        cache = buzz.BeehiveCache("full", backbone)
        torch.testing.assert_close(backbone(ids, past_key_values=cache).last_hidden_state, expected, atol=1e-5, rtol=0)
        cache = buzz.BeehiveCache("full", backbone)
        mask, none = torch.ones_like(ids), None
        if make is tiny_llama:  # by place too
            got = backbone(ids, mask, none, cache).last_hidden_state
            torch.testing.assert_close(got, expected, atol=1e-5, rtol=0)
            assert cache.lengths == [24, 24]


@pytest.mark.parametrize("wrong", ["meta-llama/Llama-2-7b-hf", None, 3, [], tiny_llama, type])
def test_what_is_no_model_is_one_clear_error(wrong):
    with pytest.raises(TypeError, match=r"patch_model takes a model, a torch\.nn\.Module, got"):
        buzz.patch_model(wrong)


def test_a_pipeline_is_pointed_at_its_model():
    class Pipeline:
        model = tiny_llama()

    with pytest.raises(TypeError, match=r"did you mean its \.model"):
        buzz.patch_model(Pipeline())


def test_several_models_are_patched_one_by_one():
    pair = nn.ModuleDict({"draft": tiny_llama(), "target": tiny_llama(seed=1)})
    before = snapshot(pair)
    with pytest.raises(buzz.UnsupportedModelError, match="2 models in this ModuleDict: draft, target; patch each"):
        buzz.patch_model(pair)
    assert_whole(pair, before)
    with buzz.patch_model(pair["draft"]), buzz.patch_model(pair["target"]):
        assert_right(pair["draft"])
        assert_right(pair["target"])


@pytest.mark.parametrize("broken", ["GeneratePatch", "Engine", "PatchedAttention"])
def test_a_patch_that_fails_is_undone(monkeypatch, broken):
    model = tiny_llama()
    before, made = snapshot(model), []

    def fail(*args):
        made.append(args)
        if len(made) == (2 if broken == "PatchedAttention" else 1):
            raise MemoryError("no room")
        return original(*args)

    with monkeypatch.context() as patch:
        original = getattr(buzz.patching.handle, broken)
        patch.setattr(buzz.patching.handle, broken, fail)
        with pytest.raises(MemoryError, match="no room"):
            buzz.patch_model(model)
    assert_whole(model, before)
    with buzz.patch_model(model):
        assert_right(model)
    assert_whole(model, before)


@pytest.mark.parametrize("kind", list(MODELS))
def test_patches_leave_no_trace(kind):
    model = MODELS[kind]()
    with torch.no_grad():
        model(tokens(1, 4), output_hidden_states=True)  # transformers' own hooks are there from now on
    before = snapshot(model)
    handle = buzz.patch_model(model)
    assert repr(handle).startswith(f"PatchHandle({type(model).__name__}, family=")
    assert_right(model)
    kept = model.generate
    handle.remove()
    assert_whole(model, before)
    assert repr(handle) == "PatchHandle(removed)"
    assert kept(tokens(1, 4), **GREEDY).tolist() == model.generate(tokens(1, 4), **GREEDY).tolist()


def test_devices_of_layers_by_accelerate():
    """dispatch_model puts hooks on layers and on the model."""
    model = tiny_llama()
    for module in (*model.model.layers, model.model.embed_tokens, model):
        add_hook_to_module(module, AlignDevicesHook(execution_device="cpu", io_same_device=True))
    with buzz.patch_model(model):
        assert_right(model)
