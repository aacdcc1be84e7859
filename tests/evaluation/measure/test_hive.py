"""The hive recorder against the cache's own buffers, and tokens as readable text."""

from __future__ import annotations

import base64
import json
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from tokenizers import Tokenizer, decoders, models
from transformers import PreTrainedTokenizerFast

import buzz
from buzz import BeehiveCache
from buzz.evaluation.measure import hive
from buzz.evaluation.measure.execute import encode
from buzz.evaluation.measure.fidelity import follow_batch
from buzz.evaluation.measure.hive import Evictions, record_hive, token_texts, watch_rows
from buzz.evaluation.measure.records import find_hives, hive_path
from buzz.evaluation.tasks import make_task
from buzz.evaluation.tasks.section import TaskConfig
from tests.evaluation.tiny import byte_tokenizer
from tests.evaluation.toys import POLICIES, Numbers, Toy, job, model_of, numbers

EVERY = {
    **POLICIES,
    "tova": buzz.make_policy("tova", capacity=10),
    "snapkv": buzz.make_policy("snapkv", capacity=12, window=4, kernel=3),
    "pyramidkv": buzz.make_policy("pyramidkv", capacity=12, window=4, kernel=3, beta=3),
    "random": buzz.make_policy("random", capacity=14, sink=2, window=5),
}


class Words(Numbers):
    """Numbers, as far as the recorder needs a tokenizer."""

    all_special_ids = (0, 1, 2)

    def convert_ids_to_tokens(self, token: int) -> str:
        return f"<{token}>"


@pytest.fixture(scope="module", params=["llama", "opt"])
def model(request):
    model = model_of(request.param)
    with buzz.patch_model(model):
        yield model


def recorded(model, one, answer, tmp_path, positions=None, task=None):
    """What the file of a sample holds, its evicted_at as an array."""
    path = tmp_path / "hive" / "some.json"
    record_hive(model, Words(), task or Toy(), one, positions, {"output_ids": answer}, path)
    assert [entry.name for entry in path.parent.iterdir()] == ["some.json"]
    found = json.loads(path.read_text(encoding="utf-8"))
    shape = found["layers"], found["heads"], len(found["tokens"])
    array = np.frombuffer(base64.b64decode(found["evicted_at"]), dtype="<i2").reshape(shape)
    return found, array


def held(evicted_at, call, tokens):
    """bool [layers, H, tokens]: what the file says is held after a call, of the tokens that were read by then."""
    return ((evicted_at == -1) | (evicted_at > call))[:, :, :tokens]


@pytest.fixture
def buffers(monkeypatch):
    """Every key ever appended, per layer, and the keys that are cached after every call, per call and layer."""
    appended: dict[int, list[torch.Tensor]] = {}
    after: list[list[torch.Tensor]] = []
    append, end = BeehiveCache.append, BeehiveCache._end

    def watched_append(self, k, v, layer):
        appended.setdefault(layer, []).append(k[0].clone())
        return append(self, k, v, layer)

    def watched_end(self, call):
        end(self, call)
        lengths = [self.layer_lengths(i)[0] for i in range(len(self.layers))]
        after.append([layer.keys[0, :, :n].clone() for layer, n in zip(self.layers, lengths, strict=True)])

    monkeypatch.setattr(BeehiveCache, "append", watched_append)
    monkeypatch.setattr(BeehiveCache, "_end", watched_end)
    return appended, after


@pytest.mark.parametrize("name", [name for name in EVERY if name != "full"])
@pytest.mark.parametrize("positions", ["cache", "original"])
def test_every_head_holds_the_very_tokens_that_the_file_names(model, name, positions, buffers, tmp_path):
    prompt, answer = numbers(30, 3), numbers(26, 4)
    found, evicted_at = recorded(model, job(prompt, EVERY[name]), answer, tmp_path, positions)
    appended, after = buffers
    assert len(after) == found["calls"] + 1 == len(answer)
    keys = {layer: torch.cat(parts, dim=1) for layer, parts in appended.items()}  # [H, tokens, D]
    for call, layers in enumerate(after):
        tokens = len(prompt) + call
        for layer, cached in enumerate(layers):
            for head, mask in enumerate(held(evicted_at, call, tokens)[layer]):
                expected = keys[layer][head, :tokens][torch.from_numpy(mask)]
                assert torch.equal(cached[head], expected), (call, layer, head)
    assert (evicted_at != -1).any()


@pytest.mark.parametrize("name", [*EVERY, "comb"])
def test_rows_of_a_batch_are_followed_as_if_they_were_alone(model, name, tmp_path):
    policy = EVERY.get(name) or buzz.make_policy("comb", capacity=12, lazy=3, near=4, beyond=4, budgets="worth")
    prompts, answers = [numbers(n, n) for n in (21, 30, 9)], [numbers(n, n) for n in (4, 17, 12)]
    jobs = [job(prompt, policy) for prompt in prompts]
    found = {}

    def watch(cache, given):
        found.update(watch_rows(model, cache, jobs, given, [1, 2]))

    follow_batch(model, jobs, None, [{"output_ids": answer} for answer in answers], watch=watch)
    assert sorted(found) == [1, 2]
    for row, evicted_at in found.items():
        _, alone = recorded(model, jobs[row], answers[row], tmp_path)
        assert np.array_equal(evicted_at, alone), row
    assert (found[1] > 0).any() == policy.bounded  # the others evict after a prompt alone, or never


def test_heads_of_unequal_length():
    """Slots as a cache gives them where heads share: -1 past the end of a head."""
    chance = np.random.default_rng(5)
    cache = SimpleNamespace(calls=0, on_evict=None)
    evicted_at = np.full((2, 3, 20), -1, dtype="<i2")
    watch = Evictions(cache, 9, evicted_at)
    assert cache.on_evict is watch
    holds = [[[] for _ in range(3)] for _ in range(2)]  # by layer and head, positions
    expected = {}  # (layer, head, position) -> call
    read = 0
    for call in range(12):
        cache.calls = call
        new, read = list(range(read, 9 + call)), 9 + call
        for layer in range(2):
            for held in holds[layer]:
                held += new
            if call % 4 != 3 * layer:
                continue
            slots = torch.full((1, 3, max(map(len, holds[layer]))), -1)
            for head, held in enumerate(holds[layer]):
                stay = sorted(chance.choice(len(held), size=chance.integers(1, len(held) + 1), replace=False).tolist())
                slots[0, head, : len(stay)] = torch.tensor(stay)
                expected |= {(layer, head, at): call for i, at in enumerate(held) if i not in stay}
                holds[layer][head] = [held[i] for i in stay]
            watch(layer, None, slots)
    assert len({len(held) for held in holds[0]}) > 1
    assert {(*place,): int(evicted_at[place]) for place in zip(*np.nonzero(evicted_at >= 0), strict=True)} == expected


@pytest.mark.parametrize("scope", ["layer", "model"])
def test_heads_that_share_hold_what_their_policy_says_in_the_mean(scope, tmp_path):
    policy = buzz.make_policy("comb", capacity=12, sink=1, window=3, beyond=3, near=3, scope=scope)
    prompt, answer = numbers(40, 5), numbers(30, 6)
    model = model_of("llama")
    with buzz.patch_model(model):
        found, evicted_at = recorded(model, job(prompt, policy), answer, tmp_path)
    lengths = []
    for call, length in enumerate(policy.trace(len(prompt), found["calls"])):
        now = held(evicted_at, call, len(prompt) + call).sum(axis=2)  # [layers, H]
        lengths.append(now)
        assert now.mean() == length
        assert scope == "model" or (now.mean(axis=1) == length).all()
    assert any(len(set(now.ravel().tolist())) > 1 for now in lengths)


@pytest.mark.parametrize("policy", [EVERY["full"], buzz.make_policy("h2o", heavy=30, window=30)])
def test_what_evicts_nothing_is_not_replayed(model, policy, buffers, tmp_path):
    found, evicted_at = recorded(model, job(numbers(30, 3), policy), numbers(26, 4), tmp_path)
    assert (found["calls"], len(found["tokens"])) == (25, 56)
    assert (evicted_at == -1).all()
    assert buffers == ({}, [])


@pytest.mark.parametrize("name", ["streaming", "h2o", "buzz"])
def test_sink_and_window_stay(model, name, tmp_path):
    policy, prompt, answer = EVERY[name], numbers(40, 5), numbers(30, 6)
    found, evicted_at = recorded(model, job(prompt, policy), answer, tmp_path)
    for call in range(found["calls"] + 1):
        tokens = len(prompt) + call
        now = held(evicted_at, call, tokens)
        assert now[:, :, : getattr(policy, "sink", 0)].all()
        assert now[:, :, -policy.window :].all()
        assert now.sum(axis=2).tolist() == [[policy.trace(len(prompt), call)[-1]] * found["heads"]] * found["layers"]


def test_the_file(model, tmp_path):
    policy, prompt, answer = EVERY["buzz"], numbers(30, 1), [*numbers(8, 2), 2]
    found, evicted_at = recorded(model, job(prompt, policy, name="s1"), answer, tmp_path)
    assert found["sample"] == "s1"
    assert found["policy"] == {"name": "buzz", "sink": 2, "window": 6, "stride": 3, "threshold": 5}
    assert (found["prompt_tokens"], found["calls"]) == (30, 8)
    config = model.config
    heads = getattr(config, "num_key_value_heads", None) or config.num_attention_heads
    assert evicted_at.shape == (config.num_hidden_layers, heads, 39)
    assert "".join(found["tokens"]) == " ".join(map(str, [*prompt, *answer[:-1]])) + "<2>"
    assert (evicted_at[:, :, -1] == -1).all()  # never read, so never evicted


def test_an_answer_of_one_token_has_no_decode_call(model, tmp_path):
    found, evicted_at = recorded(model, job(numbers(30, 1), EVERY["buzz"]), [2], tmp_path)
    assert found["calls"] == 0
    assert set(np.unique(evicted_at)) == {-1, 0}


def test_a_text_that_is_read_begins_with_a_single_token(model, tmp_path, monkeypatch):
    text = tmp_path / "text.txt"
    text.write_text(" ".join(map(str, numbers(50, 7))))
    task = make_task(TaskConfig("stream", data=str(text)))
    prompt = encode(Words(), task, task.load()[0], False, None)
    one = job(prompt.ids, EVERY["streaming"])
    found, evicted_at = recorded(model, one, [], tmp_path, task=task)
    assert (found["prompt_tokens"], found["calls"], len(found["tokens"])) == (1, 48, 50)
    assert held(evicted_at, 48, 49).sum(axis=2).tolist() == [[11] * found["heads"]] * found["layers"]
    monkeypatch.setattr(hive, "MOST_CALLS", 20)
    short, first = recorded(model, one, [], tmp_path, task=task)
    assert (short["calls"], len(short["tokens"])) == (20, 22)
    expected = np.where(evicted_at > 20, -1, evicted_at)[:, :, :22]
    assert np.array_equal(first, expected)


# --- texts -----------------------------------------------------------------------------------------------------------


def test_characters_of_several_tokens_are_whole():
    tokenizer = byte_tokenizer()
    text = "a café, ein Zuß: 蜂 🐝!"
    ids = tokenizer(text)["input_ids"]
    texts = token_texts(tokenizer, ids)
    assert len(texts) == len(ids) == len(text.encode())
    assert "".join(texts) == text
    assert texts[ids.index(tokenizer("🐝")["input_ids"][0]) :][:5] == ["🐝", "", "", "", "!"]


def test_special_tokens_show_their_names():
    tokenizer = byte_tokenizer()
    ids = tokenizer("<user>hé<end>")["input_ids"]
    assert token_texts(tokenizer, ids) == ["<user>", "h", "é", "", "<end>"]


def test_bytes_that_spell_nothing_are_one_token_each():
    tokenizer = byte_tokenizer()
    bee = tokenizer("🐝")["input_ids"]
    end = tokenizer.convert_tokens_to_ids("<end>")
    broken = "\N{REPLACEMENT CHARACTER}"
    assert token_texts(tokenizer, [*bee[:2], end]) == [broken, broken, "<end>"]
    assert token_texts(tokenizer, [bee[3]] * 5) == [broken] * 5
    assert token_texts(tokenizer, [bee[1], *bee, *tokenizer("ok")["input_ids"]]) == [broken, "🐝", "", "", "", "o", "k"]
    assert token_texts(tokenizer, []) == []


def test_pieces_of_sentencepiece_keep_their_blanks():
    pieces = ["<unk>", "▁the", "▁hive", "s", "▁hum"]
    backend = Tokenizer(models.WordLevel({piece: i for i, piece in enumerate(pieces)}, unk_token="<unk>"))
    backend.decoder = decoders.Metaspace()
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=backend, unk_token="<unk>")
    assert token_texts(tokenizer, [1, 2, 3, 4, 0, 1]) == ["the", " hive", "s", " hum", "<unk>", "the"]


# --- files -----------------------------------------------------------------------------------------------------------


def test_recordings_are_found_sample_by_sample(tmp_path):
    methods = ["h2o", "buzz", "buzz.sample"]
    wanted = [("h2o", 0), ("buzz", 0), ("buzz.sample", 0), ("buzz", 1), ("h2o", 12)]
    assert find_hives(tmp_path, methods) == []
    for name, number in [*reversed(wanted), ("other", 0)]:
        path = hive_path(tmp_path, name, number)
        path.parent.mkdir(exist_ok=True)
        path.write_text("{}")
    assert find_hives(tmp_path, methods) == [(name, hive_path(tmp_path, name, number)) for name, number in wanted]
