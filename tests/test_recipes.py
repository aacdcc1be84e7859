"""Every program of docs/recipes.md runs, with a tiny model in the place of the one that it names."""

from __future__ import annotations

import itertools
import re
from pathlib import Path

import pytest
import torch
from tokenizers import Tokenizer
from tokenizers.models import WordLevel
from tokenizers.pre_tokenizers import WhitespaceSplit
from transformers import AutoModelForCausalLM, AutoTokenizer, PreTrainedTokenizerFast

import buzz
from buzz.models import shares
from buzz.models.cache_argument import CACHE
from tests.conftest import VOCAB, tiny_llama

PAGE = (Path(__file__).parents[1] / "docs" / "recipes.md").read_text(encoding="utf-8")
PAGE = PAGE.replace("model(**prompt, cache=", f"model(**prompt, {CACHE}=")  # as it says
FIRST, *SECTIONS = re.split(r"^## (.+)\n", PAGE, flags=re.MULTILINE)


def programs(text: str) -> list[str]:
    return re.findall(r"^```python\n(.*?)^```", text, flags=re.MULTILINE | re.DOTALL)


(START,) = programs(FIRST)
BLOCKS = {title: programs(body) for title, body in zip(SECTIONS[::2], SECTIONS[1::2], strict=True)}
PROGRAMS = [(title, program) for title, some in BLOCKS.items() for program in some]
TEMPLATE = (
    "{% for message in messages %}<{{ message.role }}> {{ message.content }} <end>\n{% endfor %}"
    "{% if add_generation_prompt %}<assistant> {% endif %}"
)


def tiny_tokenizer() -> PreTrainedTokenizerFast:
    """One word a token; of words that it does not know it makes the same one."""
    words = ["<pad>", "<begin>", "<end>", "<unknown>", "<user>", "<assistant>"]
    words += [f"w{i}" for i in range(VOCAB - len(words))]
    tokenizer = Tokenizer(WordLevel({word: i for i, word in enumerate(words)}, unk_token="<unknown>"))
    tokenizer.pre_tokenizer = WhitespaceSplit()
    special = {"pad_token": "<pad>", "bos_token": "<begin>", "eos_token": "<end>", "unk_token": "<unknown>"}
    return PreTrainedTokenizerFast(tokenizer_object=tokenizer, chat_template=TEMPLATE, **special)


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory):
    """A folder with the tiny model."""
    folder = tmp_path_factory.mktemp("checkpoint")
    tiny_llama().save_pretrained(folder)
    return folder


@pytest.fixture
def start(checkpoint, monkeypatch, tmp_path):
    """What a program finds: the names of the page's first block."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(shares, "_FEW", 16)  # as few heads as these are taken to be alike, which saves time
    load = AutoModelForCausalLM.from_pretrained
    monkeypatch.setattr(AutoTokenizer, "from_pretrained", lambda name: tiny_tokenizer())
    monkeypatch.setattr(AutoModelForCausalLM, "from_pretrained", lambda name, **how: load(checkpoint, **how))
    names: dict = {"__name__": "recipes"}
    run(START, names)
    return names


def run(program: str, names: dict) -> None:
    exec(compile(program, "docs/recipes.md", "exec", dont_inherit=True), names)


@pytest.mark.parametrize(("title", "program"), PROGRAMS, ids=[title for title, _ in PROGRAMS])
def test_it_runs(start, title, program):
    if program.startswith("# torchrun"):  # needs several processes, as in tests/patching/test_tensor_parallel.py
        compile(program, title, "exec")
        return
    run(program, start)
    cache = start.get("cache")
    assert cache is None or isinstance(cache, buzz.BeehiveCache)


def test_it_says_what_it_shows(start, capsys):
    """Copies, one batch of rows, and a loaded cache give the same answers."""
    run(BLOCKS["Compress once, ask many"][0], start)
    told = capsys.readouterr().out.splitlines()
    assert told[3] == repr(told[:3])
    prompt, asked = start["prompt"].input_ids, start["tokenizer"]("Why?", return_tensors="pt").input_ids
    ids, model = torch.cat([prompt, asked], dim=1), start["model"]
    alone = buzz.BeehiveCache(model, "comb", budget=0.4)
    with torch.no_grad():
        model(prompt, past_key_values=alone, logits_to_keep=1)
    out = model.generate(ids, attention_mask=torch.ones_like(ids), past_key_values=alone, max_new_tokens=20)
    assert start["tokenizer"].decode(out[0, ids.shape[1] :]) == told[2]
    assert start["cache"].lengths[0] < prompt.shape[1] / 2


def test_a_chat_is_one_text(start):
    """Every turn is read as if all of the chat had been read at once, with room for all of it."""
    program = BLOCKS["A chat on one cache"][0].replace("model.generate(", "generate(")
    texts = []
    model = start["model"]

    def generate(ids, **how):
        out = model.generate(ids, **how)
        assert out.equal(model.generate(ids, **{**how, "cache": None}))
        texts.append(ids)
        return out

    run(program, {**start, "generate": generate})
    assert len(texts) == 3
    for earlier, later in itertools.pairwise(texts):
        assert later[:, : earlier.shape[1]].equal(earlier)


def test_the_page_has_them():
    assert len(PROGRAMS) > 12


def test_the_first_program_of_the_readme_runs(start, monkeypatch, capsys):
    root = Path(__file__).parents[1]
    monkeypatch.chdir(root)  # its text is a file there
    (program,) = programs((root / "README.md").read_text(encoding="utf-8"))
    run(program, start)
    tokens, lengths = capsys.readouterr().out.splitlines()[-1].split()[:2]
    assert int(lengths.strip("[]")) < 0.5 * int(tokens)
