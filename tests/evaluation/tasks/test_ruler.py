"""RULER's tasks: every reference is in its text, where it was asked to be, and the same whenever it is made."""

from __future__ import annotations

import hashlib
import json
import os
import re
import shutil
import subprocess
import sys
from collections import Counter
from pathlib import Path
from random import Random
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from buzz.evaluation.errors import ConfigError
from buzz.evaluation.tasks import Sample, make_task
from buzz.evaluation.tasks.ruler import counts, needles, variables, words
from buzz.evaluation.tasks.ruler.task import NAMES
from buzz.evaluation.tasks.ruler.texts import NOISE, Asked, tokens_about
from buzz.evaluation.tasks.section import TaskConfig
from tests.evaluation.tiny import byte_tokenizer

SINGLE = [name for name, kind in needles.KINDS.items() if kind.single]
NEEDLE = re.compile(r"One of the special magic (number|uuid)s for (\S+) is: (\S+)\.")
DIGEST = "67b43307b25e0791"
# What a run makes is hashed by a new process, whose hash() has another seed than any.
PROGRAM = """
import hashlib
from buzz.evaluation.tasks import make_task
from buzz.evaluation.tasks.section import TaskConfig
options = {"lengths": [1024, 4096], "depths": [0.0, 0.3], "per_cell": 2}
made = make_task(TaskConfig("ruler", limit=None, options=options)).load()
lines = [repr((s.id, s.text, s.reference, s.row["asked"].answer)) for s in made]
print(len(made), hashlib.sha256("\\n".join(lines).encode()).hexdigest()[:16])
"""

lengths = st.integers(384, 3000)
seeds = st.integers(0, 10**6)


def samples(
    limit: int | None = None, data: Path | None = None, query_aware: bool = True, **options: Any
) -> list[Sample]:
    path = str(data) if data else None
    return make_task(TaskConfig("ruler", limit=limit, data=path, query_aware=query_aware, options=options)).load()


def size(asked: Asked) -> int:
    """Of prompt and prefix, as `tokens_about` counts."""
    return tokens_about(f"{asked.opening}{asked.context}\n{asked.question} {asked.prefix}")


# --- needles ---------------------------------------------------------------------------------------------------------


@settings(max_examples=60, deadline=None)
@given(name=st.sampled_from(SINGLE), length=lengths, depth=st.floats(0, 1), seed=seeds)
def test_a_needle_stands_at_its_depth(name: str, length: int, depth: float, seed: int) -> None:
    kind = needles.KINDS[name]
    made = needles.hide(kind, length, depth, Random(seed))
    ((value, query),) = re.findall(r"What is the special magic (number|uuid) for (\S+) mentioned", made.question)
    assert made.prefix == f"The special magic {value} for {query} mentioned in the provided text is"
    (reference,) = made.references
    needle = f"One of the special magic {value}s for {query} is: {reference}."
    assert made.context.count(needle) == made.context.count(query) == made.context.count(reference) == 1
    assert made.answer == reference
    assert re.fullmatch(r"\d{7}" if kind.value == "number" else r"[0-9a-f]{8}(-[0-9a-f]{4}){3}-[0-9a-f]{12}", reference)
    # The depth counts what would be there without the needles that were put in on purpose.
    mark = "\n" if kind.haystack != "essay" else ". "
    before, after = made.context.split(needle)
    own = len(NEEDLE.findall(made.context)) if kind.haystack == "essay" else 1
    assert own == kind.keys
    hay = [NEEDLE.sub("", part) if kind.haystack == "essay" else part for part in (before, after)]
    above, below = (len([line for line in part.split(mark) if line.strip()]) for part in hay)
    assert above == round(depth * (above + below))


@settings(max_examples=60, deadline=None)
@given(name=st.sampled_from(list(needles.KINDS)), length=lengths, seed=seeds)
def test_needles_are_as_many_and_as_different_as_they_should_be(name: str, length: int, seed: int) -> None:
    kind = needles.KINDS[name]
    made = needles.hide(kind, length, 0.5 if kind.single else None, Random(seed))
    found = NEEDLE.findall(made.context)
    values = [value for _, _, value in found]
    assert len(set(values)) == len(values)
    per_key = Counter(key for _, key, _ in found)
    assert set(per_key.values()) == {kind.values}
    if kind.haystack == "needles":
        assert len(per_key) == len(made.context.split("\n")) > 1
    else:
        assert len(per_key) == kind.keys
    assert len(made.references) == kind.asked * kind.values
    owner = {value: key for _, key, value in found}
    asked = re.search(r"for (.*) mentioned", made.question).group(1).replace("and ", "").split(", ")  # type: ignore[union-attr]
    assert [owner[value] for value in made.references] == [key for key in asked for _ in range(kind.values)]
    assert made.answer == ", ".join(made.references)
    if kind.values > 1:
        assert made.references == values  # in the order of the text
    if kind.haystack == "noise":
        assert set(made.context.split("\n")) - {NOISE} == {
            f"One of the special magic numbers for {asked[0]} is: {values[0]}."
        }
    what = found[0][0]
    some, what, are = ("A", what, "is") if kind.single else ("Some", f"{what}s", "are")
    assert made.opening == (
        f"{some} special magic {what} {are} hidden within the following text. Make sure to memorize it. "
        f"I will quiz you about the {what} afterwards.\n"
    )
    assert length - 100 < size(made) <= length


def test_values_are_not_in_the_prose() -> None:
    numbers = {str(number) for number in range(10**6, 10**6 + 400)}

    class Low(Random):  # draws no number but those of the text, at first
        drawn = 0

        def randrange(self, start: int, stop: int | None = None, step: int = 1) -> int:
            self.drawn += start == 10**6
            return 10**6 + self.drawn if start == 10**6 and self.drawn < 5 else super().randrange(start, stop, step)

    drawn = Low(0)
    made = needles.hide(needles.KINDS["niah_single_2"], 8000, 0.5, drawn, [f"So {number}." for number in numbers])
    assert made.context.count(made.references[0]) == 1
    assert drawn.drawn > 1


# --- chains and counts -----------------------------------------------------------------------------------------------


@settings(max_examples=30, deadline=None)
@given(length=st.integers(variables.LEAST, 3000), seed=seeds)
def test_a_chain_of_variables(length: int, seed: int) -> None:
    made = variables.track(length, Random(seed))
    assigned: dict[str, str] = {}
    for line in made.context.split("\n"):
        if line != NOISE:
            name, source = re.fullmatch(r"VAR ([A-Z]{5}) = (?:VAR )?([A-Z]{5}|\d{5})", line).groups()  # type: ignore[union-attr]
            assert name not in assigned
            assigned[name] = assigned.get(source, source)  # a source comes before its use
    assert made.references == list(assigned) == made.answer.split()
    (value,) = set(assigned.values())
    assert len(assigned) == 5
    assert made.question == f"Question: Find all variables that are assigned the value {value} in the text above."
    assert made.prefix.endswith(f", 5 variables are assigned the value {value}, they are:")
    example, answer = re.search(r"\n\n(.*)\nQuestion: .* they are: (.*)\n\nMemorize", made.opening, re.DOTALL).groups()  # type: ignore[union-attr]
    assert re.findall(r"VAR ([A-Z]{3}) = ", example) == answer.split()
    assert example.count(NOISE) == 10
    assert length - 50 < size(made) <= length


@settings(max_examples=30, deadline=None)
@given(length=st.sampled_from([counts.LEAST_COMMON, 1000, 2048, 4095, 4096, 6000]), seed=seeds)
def test_common_words(length: int, seed: int) -> None:
    made = counts.common_words(length, Random(seed))
    items = re.findall(r"(\d+)\. ([a-z]+)", made.context)
    assert [int(number) for number, _ in items] == list(range(1, len(items) + 1))
    times = Counter(word for _, word in items)
    often, seldom = (6, 1) if length < 4096 else (30, 3)
    assert {word for word, count in times.items() if count == often} == set(made.references)
    assert set(times.values()) <= {often, seldom}
    assert made.answer == " ".join(f"{number}. {word}" for number, word in enumerate(made.references, 1))
    assert [word for word in times if times[word] == often] == made.references  # in the order of the text
    shown, answer = re.search(r"\n(1\. .*)\nQuestion: .* are: (.*)\nBelow", made.opening).groups()  # type: ignore[union-attr]
    top = Counter(re.findall("[a-z]+", shown)).most_common(10)
    assert {word for word, _ in top} == set(re.findall("[a-z]+", answer))
    assert {count for _, count in top} == {3 if length < 4096 else 10}
    assert length - 30 < size(made) <= length


def test_a_list_longer_than_all_words_repeats_them_more_often() -> None:
    made = counts.common_words(40_000, Random(0))
    times = Counter(re.findall("[a-z]+", made.context))
    often, seldom = times.most_common(1)[0][1], min(times.values())
    assert often == 10 * seldom > 30
    assert Counter(times.values())[often] == 10
    assert 39_000 < size(made) <= 40_000


@settings(max_examples=30, deadline=None)
@given(length=st.integers(counts.LEAST_FREQUENT, 5000), seed=seeds)
def test_frequent_words(length: int, seed: int) -> None:
    made = counts.frequent_words(length, Random(seed))
    times = Counter(made.context.split())
    ranked = times.most_common()
    assert ranked[0][0] == "..."
    assert [word for word, _ in ranked[1:4]] == made.references
    assert ranked[1][1] > ranked[2][1] > ranked[3][1] > (ranked[4][1] if len(ranked) > 4 else 0)
    assert all(re.fullmatch("[a-z]{6}", word) for word, _ in ranked[1:])
    for rank, (_, count) in enumerate(ranked[:6], 1):  # Zipf's law, but for what is rounded down
        assert (count - 1) * rank**2 < ranked[0][1] + 1
        assert (count + 1) * rank**2 > ranked[0][1]
    coded = times["..."] + 4 * (times.total() - times["..."])
    assert length - 30 < coded + tokens_about(f"{made.opening}\n{made.question} {made.prefix}") <= length


def test_words_are_plain_and_different() -> None:
    everything = [*words.NOUNS, *words.ADJECTIVES, *words.VERBS]
    assert all(re.fullmatch("[a-z]+", word) for word in everything)
    assert len(set(words.WORDS)) == len(words.WORDS) > 700
    assert all(len(set(each)) == len(each) for each in (words.NOUNS, words.ADJECTIVES, words.VERBS))


def test_tokens_about() -> None:
    assert tokens_about("") == 0
    assert tokens_about("The bee, 42!") == 2 + 1 + 3 + 1
    assert tokens_about("the neighbourhood\n") == 1 + 2 + 1
    assert tokens_about("9f3-a1") == 7
    assert tokens_about("(9f3)") == 5
    text = "One of the 3 bees: uuid 7f-1; it's 10,000."
    assert tokens_about(text) == sum(map(tokens_about, text.split()))


# --- the grid --------------------------------------------------------------------------------------------------------


def test_samples_are_the_same_in_every_process() -> None:
    said = set()
    for seed in ("1", "2"):
        environment = {**os.environ, "PYTHONHASHSEED": seed}
        ran = subprocess.run(
            [sys.executable, "-c", PROGRAM], env=environment, capture_output=True, text=True, check=True
        )
        said.add(ran.stdout.strip())
    assert said == {f"88 {DIGEST}"}


def test_samples_from_a_text_are_pinned_too(tmp_path: Path) -> None:
    path = tmp_path / "book.txt"
    path.write_text("".join(f"Line {i} of the book went on and on. Or did it?\n" for i in range(600)))
    made = samples(data=path, lengths=[1024], depths=[0.25], per_cell=1)
    digest = hashlib.sha256("\n".join(sample.text for sample in made).encode()).hexdigest()[:16]
    assert digest == "9eaf44222a11b989"
    prose = {sample.id.split("/")[0] for sample in made if "of the book went on and on. Or did it?" in sample.text}
    assert prose == {name for name, kind in needles.KINDS.items() if kind.haystack == "essay"}
    assert set(make_task(TaskConfig("ruler", data=str(path))).fingerprint()) == {"path", "bytes", "sha256"}
    with pytest.raises(ConfigError, match=r"task\.data: .*book\.txt holds 7200 words, a text of at least 9000 words"):
        samples(data=path, lengths=[9000])


def test_a_grid_of_samples() -> None:
    made = samples(lengths=[768, 1024], depths=[0, 0.5], per_cell=3, tasks=["niah_single_1", "vt"])
    names = [sample.id for sample in made]
    assert names[:4] == [
        *("niah_single_1/length768-depth0-0", "niah_single_1/length768-depth0.5-0"),
        *("vt/length768-0", "vt/length768-1"),
    ]
    assert len(set(names)) == len({sample.text for sample in made}) == 2 * 2 * 2 * 3
    assert [name for name in names if name.startswith("vt/length768")] == [f"vt/length768-{i}" for i in range(6)]
    # A sample is the same whatever else is in the grid, and another with another seed.
    by_id = {sample.id: sample.text for sample in made}
    (alone,) = samples(lengths=[1024], depths=[0.5], per_cell=1, tasks=["niah_single_1"])
    assert alone.text == by_id[alone.id]
    (other,) = samples(lengths=[1024], depths=[0.5], per_cell=1, tasks=["niah_single_1"], seed=1)
    assert other.id == alone.id
    assert other.reference != alone.reference
    assert make_task(TaskConfig("ruler")).fingerprint() == {"generated": "ruler 1"}


def test_all_tasks_and_a_limit_that_is_spread_over_them() -> None:
    made = samples(lengths=[1024], per_cell=1)
    assert Counter(sample.id.split("/")[0] for sample in made) == dict.fromkeys(NAMES, 5)
    few = samples(limit=11)
    assert len({sample.id.split("/")[0] for sample in few}) >= 8
    assert len({re.search(r"length(\d+)", sample.id).group(1) for sample in few}) == 3  # type: ignore[union-attr]


@pytest.mark.parametrize("name", list(NAMES))
def test_what_is_asked_and_what_is_right(name: str) -> None:
    task = make_task(TaskConfig("ruler", options={"tasks": [name], "lengths": [1024], "per_cell": 1}))
    sample = task.load()[0]
    asked = sample.row["asked"]
    assert sample.text == f"{asked.opening}{asked.context}\n{asked.question} {asked.prefix}"
    assert all(reference in asked.context for reference in sample.reference)
    assert task.likely(sample) == f" {asked.answer}"
    perfect = task.score(asked.answer.upper(), sample)
    assert perfect == {"string_match_all": 1.0, "string_match_part": 1.0}
    assert set(task.score("No idea.", sample).values()) == {0.0}
    one = task.score(f"It is {sample.reference[-1]}.", sample)
    assert one == {"string_match_all": 1 / len(sample.reference), "string_match_part": 1.0}


@pytest.mark.parametrize("name", list(NAMES))
def test_a_question_that_is_not_known(name: str) -> None:
    options = {"tasks": [name], "lengths": [1024], "per_cell": 1}
    (sample, *_) = samples(query_aware=False, **options)
    asked = sample.row["asked"]
    assert sample.context == asked.opening + asked.context
    assert sample.prompt == f"{sample.context}\n{asked.question}"
    (known, *_) = samples(**options)
    assert (known.text, known.context) == (sample.text, "")


def test_a_prompt_of_ones_own() -> None:
    config = TaskConfig("ruler", limit=1, prompt="{question}\n{context}", options={"tasks": ["fwe"], "lengths": [256]})
    (sample,) = make_task(config).load()
    assert sample.prompt.startswith("Question: Do not provide any explanation.")
    with pytest.raises(ConfigError, match=r"task\.prompt has no \{context\} before \{question\}"):
        make_task(TaskConfig("ruler", prompt="{question}\n{context}", query_aware=False))


@pytest.mark.parametrize(
    ("option", "said"),
    [
        ("tasks=[niah_single_4]", "task.tasks: is ['niah_single_4'] (a list), a list of names among niah_single_1, "),
        ("tasks=[]", "task.tasks: is []"),
        ("tasks=[vt, vt]", "task.tasks: is ['vt', 'vt']"),
        ("tasks=vt", "task.tasks: is 'vt' (text)"),
        ("tasks=[[vt]]", "task.tasks: is [['vt']]"),
        (
            "lengths=[100]",
            "task.lengths: is [100] (a list), a list of different integers of at least 256 (tokens, about)",
        ),
        ("lengths=[600, 700]", "task.lengths: 600 tokens are too few for vt, at least 640 is wanted"),
        (
            "lengths=[1000000000]",
            "task.lengths: the texts have 275000000000 tokens in all, at most 100000000 is wanted",
        ),
        ("depths=[1.5]", "task.depths: is [1.5] (a list), a list of different numbers from 0.0 to 1.0 is wanted"),
        ("seed=-1", "task.seed: is -1"),
        ("needles=3", "task.needles: unknown key"),
    ],
)
def test_bad_options(write_config: Any, option: str, said: str) -> None:
    from buzz.evaluation.run.config import load_config

    path = write_config(task={"name": "ruler", "limit": None})
    with pytest.raises(ConfigError) as caught:
        load_config(path, [f"task.{option}"])
    assert said in str(caught.value)


@pytest.mark.parametrize("aware", [True, False])
def test_a_run(write_config: Any, model_folder: Path, tmp_path: Path, aware: bool) -> None:
    from buzz.evaluation.run.config import load_config
    from buzz.evaluation.run.runner import run

    model = tmp_path / "long"  # the tiny model, with positions enough
    shutil.copytree(model_folder, model)
    facts = json.loads((model / "config.json").read_text())
    (model / "config.json").write_text(json.dumps({**facts, "max_position_embeddings": 4096}))
    options = {"tasks": ["niah_multikey_1", "fwe"], "lengths": [384], "depths": [0.5], "per_cell": 1}
    path = write_config(
        model={"id": str(model), "chat_template": True},
        task={"name": "ruler", "limit": None, "query_aware": aware, **options},
        methods=["full", {"name": "streaming", "policy": "streaming", "reduction": 2.5}],
        generation={"max_new_tokens": 4, "fidelity": False},
    )
    config = load_config(path)
    summary = run(config)
    assert summary["run"]["truncated"] == 0
    entry = summary["methods"]["streaming"]
    assert set(entry["metrics"]) == {"string_match_all", "string_match_part", "answer_nll"}
    assert [part["task"] for part in entry["parts"]] == ["niah_multikey_1", "fwe"]
    assert entry["cache"]["reduction"] == pytest.approx(2.5, rel=0.02)
    lines = (Path(config.output) / "samples" / "streaming.jsonl").read_text().splitlines()
    records = {record["id"]: record for record in map(json.loads, lines)}
    tokenizer = byte_tokenizer()
    for sample in make_task(config.task).load():
        text = f"<user>{sample.prompt}<end><bot>{sample.prefix}"
        assert records[sample.id]["prompt_tokens"] == len(tokenizer(text)["input_ids"])
        context = len(f"<user>{sample.context}") - 5 if sample.context else None  # <user> is one token
        assert records[sample.id].get("context_tokens") == context
    report = (Path(config.output) / "report.md").read_text()
    assert "## string match by task, 384 tokens" in report
    assert ("compressed before the question was read" in report) is not aware
