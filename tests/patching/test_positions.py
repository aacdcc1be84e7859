"""Positions that the caller gives, and rotary embeddings that change after patching."""

from __future__ import annotations

import warnings

import pytest
import torch
from transformers import DynamicCache
from transformers.models.llama.modeling_llama import LlamaRotaryEmbedding

import buzz
from buzz.decoding.arena import Uncaptured
from buzz.models.cache_argument import as_argument
from tests.conftest import left_pad, tiny_llama, tiny_opt, tokens

GREEDY = {"max_new_tokens": 12, "do_sample": False, "eos_token_id": None}


def full(model, positions="original"):
    return buzz.BeehiveCache("full", model, positions=positions)


def positions_of(kind, rows, columns):
    """int64 [rows, columns]: unusual positions in some way."""
    plain = torch.arange(columns).expand(rows, -1)
    return {
        "shifted": plain + 50,
        "stretched": plain * 3,
        "of each row": plain + torch.arange(rows)[:, None] * 20,
        "starting again": torch.where(plain < columns // 2, plain, plain - columns // 2),
        "backwards": plain.flip(1),
        "one row for all": (plain + 7)[:1],
    }[kind]


@pytest.mark.parametrize(
    "kind", ["shifted", "stretched", "of each row", "starting again", "backwards", "one row for all"]
)
@torch.no_grad()
def test_given_positions_are_those_of_the_unpatched_model(model, kind):
    ids, given = tokens(2, 20), positions_of(kind, 2, 20)
    later = given[:, -1:] + 5

    def run(cache):
        first = model(ids, position_ids=given, **as_argument(cache)).logits
        return first, model(ids[:, :1], position_ids=later, **as_argument(cache)).logits

    expected = run(DynamicCache(config=model.config))
    with buzz.patch_model(model), warnings.catch_warnings():
        warnings.simplefilter("error")
        got = run(full(model))
    for a, b in zip(got, expected, strict=True):
        torch.testing.assert_close(a, b, atol=1e-5, rtol=0)


@torch.no_grad()
def test_given_positions_of_padded_rows(model):
    ids, mask = left_pad([tokens(1, 20)[0], tokens(1, 9)[0]])
    given = torch.where(mask.bool(), 2 * (mask.cumsum(1) - 1), 1)
    expected = model(ids, attention_mask=mask, position_ids=given).logits
    with buzz.patch_model(model):
        got = model(ids, attention_mask=mask, position_ids=given, past_key_values=full(model)).logits
    torch.testing.assert_close(got[mask.bool()], expected[mask.bool()], atol=1e-5, rtol=0)


@torch.no_grad()
def test_without_positions_columns_count_as_in_the_unpatched_model():
    """In Llama, pads between tokens included; OPT counts tokens."""
    mask = torch.tensor([[1, 1, 0, 0, 1, 1, 0, 1], [0, 1, 1, 1, 0, 0, 0, 1]])
    for model in (tiny_llama(), tiny_opt()):
        ids = tokens(2, 8)
        expected = model(ids, attention_mask=mask).logits
        with buzz.patch_model(model):
            got = model(ids, attention_mask=mask, past_key_values=full(model)).logits
        torch.testing.assert_close(got[mask.bool()], expected[mask.bool()], atol=1e-5, rtol=0)


@pytest.mark.parametrize("static", [False, True])
def test_generate_goes_on_from_given_positions(model, static):
    """generate() counts on from the last position that it was given."""
    ids = tokens(2, 20)
    given = torch.arange(20).expand(2, -1) * 2
    expected = model.generate(ids, position_ids=given, **GREEDY)
    with buzz.patch_model(model) as handle:
        if static:
            handle.engine.run = Uncaptured()
        got = model.generate(ids, position_ids=given, past_key_values=full(model), **GREEDY)
    assert got.tolist() == expected.tolist()


@torch.no_grad()
def test_with_slot_positions_others_are_warned_about_once(model):
    ids = tokens(2, 12)
    with buzz.patch_model(model):
        cache = full(model, "cache")
        with pytest.warns(UserWarning, match="With positions='original' they are"):
            odd = model(ids, position_ids=positions_of("stretched", 2, 12), **as_argument(cache)).logits
        with warnings.catch_warnings():
            warnings.simplefilter("error")
            model(ids[:, :1], position_ids=torch.full((2, 1), 99), **as_argument(cache))
            assert torch.equal(odd, model(ids, **as_argument(full(model, "cache"))).logits)
    with buzz.patch_model(model), warnings.catch_warnings():
        warnings.simplefilter("error")
        ids, mask = left_pad([tokens(1, 12)[0], tokens(1, 5)[0]])
        cache = full(model, "cache")
        model(ids, attention_mask=mask, position_ids=(mask.cumsum(1) - 1).clamp(min=0), **as_argument(cache))
        model(ids[:, :1], position_ids=torch.tensor([[12], [5]]), **as_argument(cache))
        model.generate(ids, attention_mask=mask, cache=full(model, "cache"), prefill_chunk_size=5, **GREEDY)
    with buzz.patch_model(model):
        cache = full(model, "cache")
        model(ids[:1, :5], **as_argument(cache))
        with pytest.warns(UserWarning, match="position_ids are not 0, 1, 2"):  # in a step too
            model(ids[:1, :1], position_ids=torch.tensor([[50]]), **as_argument(cache))


@torch.no_grad()
def test_positions_of_another_shape_are_refused(model):
    ids = tokens(2, 6)
    with buzz.patch_model(model):
        cache = full(model)
        for wrong in (torch.arange(6), torch.arange(5)[None], torch.zeros(3, 6), torch.zeros(3, 2, 6), [0, 1]):
            with pytest.raises(ValueError, match=r"position_ids must be \[2 or 1, 6\]"):
                model(ids, position_ids=wrong, past_key_values=cache)
        model(ids, past_key_values=cache)
        assert cache.lengths == [6, 6]


@torch.no_grad()
def test_positions_that_opt_does_not_have_are_refused_and_nothing_is_lost():
    model = tiny_opt(max_position_embeddings=64)
    with buzz.patch_model(model):
        cache = full(model)
        model(tokens(1, 10), past_key_values=cache)
        with pytest.raises(ValueError, match="has 64 positions, the call needs 71"):
            model(tokens(1, 1), position_ids=torch.tensor([[70]]), past_key_values=cache)
        model(tokens(1, 54), past_key_values=cache)
        with pytest.raises(ValueError, match="has 64 positions, the call needs 65"):
            model(tokens(1, 1), past_key_values=cache)
        assert cache.lengths == [64]
        model(tokens(1, 1), position_ids=torch.tensor([[3]]), past_key_values=cache)  # the cache is whole
        assert cache.lengths == [65]


@pytest.mark.parametrize("static", [False, True])
def test_given_positions_end_where_opts_table_does(static):
    model = tiny_opt()
    with buzz.patch_model(model) as handle:
        if static:
            handle.engine.run = Uncaptured()
        cache = full(model)
        with pytest.raises(ValueError, match="has 256 positions, the call needs 257"):
            model.generate(tokens(1, 6), position_ids=torch.arange(246, 252)[None], past_key_values=cache,
                           max_new_tokens=20, do_sample=False, eos_token_id=None)  # fmt: skip
        assert cache.lengths == [10]


# Rotary embeddings.


def changed_in_place(model):
    model.model.rotary_emb.inv_freq.mul_(0.5)


def changed_scaling(model):
    model.model.rotary_emb.attention_scaling = 1.3


def replaced_buffer(model):
    model.model.rotary_emb.inv_freq = model.model.rotary_emb.inv_freq * 0.25


def replaced_module(model):
    config = type(model.config).from_dict(model.config.to_dict())
    config.rope_parameters = {"rope_type": "linear", "rope_theta": 500.0, "factor": 3.0}
    model.model.rotary_emb = LlamaRotaryEmbedding(config)


def replaced_forward(model):
    rotary = model.model.rotary_emb
    own = rotary.forward
    rotary.forward = lambda x, position_ids: tuple(t.neg() for t in own(x, position_ids * 2))


def changed_past_autograd(model):
    model.model.rotary_emb.inv_freq.data.mul_(0.5)


def changed_by_numpy(model):
    model.model.rotary_emb.inv_freq.numpy()[:] *= 0.5


def watched_rotary(model):
    model.model.rotary_emb.register_forward_hook(lambda module, args, output: tuple(1.5 * t for t in output))


def learned_frequencies(model):
    rotary = model.model.rotary_emb
    learned = torch.nn.Parameter(rotary.inv_freq * 0.3)
    del rotary.inv_freq
    rotary.inv_freq = learned


def replaced_projection(model):
    old = model.model.layers[1].self_attn.q_proj
    model.model.layers[1].self_attn.q_proj = torch.nn.Linear(old.in_features, old.out_features, bias=True)


def replaced_attention(model):
    torch.manual_seed(3)
    old = model.model.layers[1].self_attn
    model.model.layers[1].self_attn = type(old)(model.config, 1).eval()


def replaced_layer(model):
    torch.manual_seed(4)
    model.model.layers[2] = type(model.model.layers[2])(model.config, 2).eval()


def changed_setting(model):
    model.model.layers[0].self_attn.scaling *= 1.5
    model.model.norm.variance_epsilon = 0.1


CHANGES = [changed_in_place, changed_scaling, replaced_buffer, replaced_module, replaced_forward, changed_past_autograd,
           changed_by_numpy, watched_rotary, learned_frequencies, replaced_projection,
           replaced_attention, replaced_layer, changed_setting]  # fmt: skip


@pytest.mark.parametrize("positions", ["cache", "original"])
@pytest.mark.parametrize("change", CHANGES)
@torch.no_grad()
def test_what_changes_after_patching_takes_effect(change, positions):
    """In the model's own forward and in static memory, where steps were made before."""
    model, ids = tiny_llama(), tokens(2, 20)
    with buzz.patch_model(model) as handle:
        before = model(ids, past_key_values=full(model, positions)).logits
        handle.engine.run = Uncaptured()
        model.generate(ids, past_key_values=full(model, positions), **GREEDY)
        change(model)
        got = model(ids, past_key_values=full(model, positions)).logits
        text = model.generate(ids, past_key_values=full(model, positions), **GREEDY)
    assert not torch.allclose(before, got, atol=1e-3)
    torch.testing.assert_close(got, model(ids).logits, atol=1e-5, rtol=0)
    assert text.tolist() == model.generate(ids, **GREEDY).tolist()
    assert not any("_buzz" in vars(m) or "_buzz_handle" in vars(m) for m in model.modules())


@torch.no_grad()
def test_a_forward_of_the_rotary_class_takes_effect(monkeypatch):
    model, ids = tiny_llama(), tokens(2, 20)
    with buzz.patch_model(model):
        model(ids, past_key_values=full(model, "cache"))
        own = LlamaRotaryEmbedding.forward
        tripled = lambda self, x, position_ids: own(self, x, 3 * position_ids)  # noqa: E731
        monkeypatch.setattr(LlamaRotaryEmbedding, "forward", tripled)
        got = model(ids, past_key_values=full(model, "cache")).logits
        torch.testing.assert_close(got, model(ids).logits, atol=1e-5, rtol=0)


ROPES = {
    "dynamic": {"rope_type": "dynamic", "rope_theta": 1e4, "factor": 2.0},
    "longrope": {"rope_type": "longrope", "rope_theta": 1e4, "factor": 4.0, "long_factor": [4.0] * 8,
                 "short_factor": [1.0] * 8, "original_max_position_embeddings": 32},
}  # fmt: skip


@pytest.mark.parametrize("rope", list(ROPES))
@torch.no_grad()
def test_angles_that_depend_on_the_length(rope):
    """One row is what the unpatched model makes of it, call by call; batches are warned about."""

    def make():
        model = tiny_llama(rope_parameters=dict(ROPES[rope]))
        model.model.rotary_emb.max_seq_len_cached = model.model.rotary_emb.original_max_seq_len = 32
        return model

    parts = list(tokens(1, 60).split([20, 5, *[1] * 35], dim=1))
    unpatched, cache = make(), DynamicCache()
    expected = [unpatched(part, **as_argument(cache)).logits for part in parts]
    model = make()
    with buzz.patch_model(model):
        cache = full(model)
        with warnings.catch_warnings():
            warnings.simplefilter("error")
            got = [model(part, **as_argument(cache)).logits for part in parts]
        for a, b in zip(got, expected, strict=True):
            torch.testing.assert_close(a, b, atol=1e-5, rtol=0)
        with pytest.warns(UserWarning, match="rows of a batch depend on their neighbours"):
            model(tokens(2, 9), **as_argument(full(model)))
        with warnings.catch_warnings():
            warnings.simplefilter("error")
            model(tokens(2, 9), **as_argument(full(model)))


@torch.no_grad()
def test_equal_keys_are_told_apart_by_rounding_alone():
    """KeyDiff, slots for positions: in the first layer equal tokens have equal keys but for the last bits, which differ
    between a row and a batch. So a row may keep other ones of equal tokens than alone, and as many of each."""
    lengths, steps = (37, 29, 41), 20
    model = tiny_llama()
    rows = [tokens(1, n + steps, seed=n) % 7 + 3 for n in lengths]  # seven words
    ids, mask = left_pad([row[0] for row in rows])

    def kept(ids, mask):
        """The sorted tokens of each row and head of the first layer, after each call."""
        cache = buzz.BeehiveCache("keydiff", model, positions="cache", budget=11)
        held, told, fed = [[[], []] for _ in ids], [], ids.shape[1] - steps

        def watch(layer, eviction, slots):
            for place, row in enumerate(range(len(ids)) if eviction.rows is None else eviction.rows):
                for head in range(2) if layer == 0 else ():
                    held[row][head] = [held[row][head][slot] for slot in slots[place, head].tolist()]

        cache.on_evict = watch
        for begin, end in [(0, fed), *((at, at + 1) for at in range(fed, fed + steps))]:
            for row in range(len(ids)):
                new = ids[row, begin:end][mask[row, begin:end].bool()].tolist()
                held[row] = [[*head, *new] for head in held[row]]
            model(ids[:, begin:end], attention_mask=mask[:, begin:end], past_key_values=cache)
            told.append([[sorted(head) for head in row] for row in held])
        return told

    with buzz.patch_model(model):
        together = kept(ids, mask)
        for row, alone in enumerate(kept(one, torch.ones_like(one)) for one in rows):
            assert [call[row] for call in together] == [call[0] for call in alone]
    assert all(len(head) == 11 for row in together[-1] for head in row)
