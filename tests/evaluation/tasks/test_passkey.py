"""Passkey retrieval: texts of the right length, needles at the right depth, the same whenever they are made."""

from __future__ import annotations

import hashlib
import re
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from buzz.evaluation.errors import ConfigError
from buzz.evaluation.tasks import Sample, make_task
from buzz.evaluation.tasks.filler import sentences_of
from buzz.evaluation.tasks.section import TaskConfig

NEEDLE = re.compile(r"The pass key of the (\w+ \w+) is (\d{5})\.")


def samples(limit: int | None = None, data: Path | None = None, **options: Any) -> list[Sample]:
    return make_task(TaskConfig("passkey", limit=limit, data=str(data) if data else None, options=options)).load()


def filler_sentences(sample: Sample) -> tuple[dict[str, int], int]:
    """Sentences of filler before each needle, by the needle's name, and all of them."""
    before, count = {}, 0
    *parts, rest = NEEDLE.split(sample.row["text"])  # filler, name, key, filler, name, key, ..., filler
    for filler, name in zip(parts[::3], parts[1::3], strict=True):
        count += len(filler.strip().split(". ")) if filler.strip() else 0
        before[name] = count
    return before, count + (len(rest.strip().split(". ")) if rest.strip() else 0)


@settings(max_examples=40)
@given(
    length=st.integers(60, 400),
    depth=st.floats(0, 1),
    needles=st.integers(1, 5),
)
def test_length_depth_and_needles(length: int, depth: float, needles: int) -> None:
    (sample,) = samples(lengths=[length], depths=[depth], needles=needles, per_cell=1)
    assert len(sample.row["text"].split()) == length
    found = NEEDLE.findall(sample.row["text"])
    assert dict(found) == sample.row["keys"]
    assert len(found) == needles
    before, sentences = filler_sentences(sample)
    places = [depth + i / needles for i in range(needles)]
    assert [before[name] for name in sample.row["keys"]] == [
        round((place if place <= 1 else place - 1) * sentences) for place in places
    ]
    names = list(sample.row["keys"])
    asked = sample.prompt.rpartition("\n\n")[2]
    assert [asked.index(name) for name in names] == sorted(asked.index(name) for name in names)


def test_a_grid_of_samples_that_differ() -> None:
    made = samples(lengths=[40, 80], depths=[0, 0.5, 1.0], per_cell=2)
    assert [sample.id for sample in made][:4] == [
        "length40-depth0-0",
        "length40-depth0.5-0",
        "length40-depth1-0",
        "length80-depth0-0",
    ]
    assert len(made) == 12
    assert len({sample.prompt for sample in made}) == 12
    assert len({sample.reference[0] for sample in made}) == 12
    assert made == samples(lengths=[40, 80], depths=[0, 0.5, 1.0], per_cell=2)
    # A sample is the same whatever else is in the grid.
    by_id = {sample.id: sample.prompt for sample in made}
    (alone,) = samples(lengths=[80], depths=[0.5], per_cell=1)
    assert alone.prompt == by_id[alone.id]


@pytest.mark.parametrize(
    ("options", "digest"),
    [({}, "7de6fb8bb3a42fa7"), ({"needles": 4, "lengths": [60, 300]}, "9b31829324abcd06")],
)
def test_samples_are_pinned(options: dict[str, Any], digest: str) -> None:
    text = "".join(sample.prompt for sample in samples(**options))
    assert hashlib.sha256(text.encode()).hexdigest()[:16] == digest


def test_filler_varies_and_holds_no_number() -> None:
    (sample,) = samples(lengths=[2000], depths=[0.5], per_cell=1)
    assert re.findall(r"\d+", sample.row["text"]) == sample.reference
    sentences = sample.row["text"].split(". ")
    assert len(set(sentences)) > 0.9 * len(sentences)


def test_a_limit_is_spread_over_the_grid() -> None:
    few = samples(limit=4)
    assert len({sample.row["length"] for sample in few}) == 3
    assert len({sample.row["depth"] for sample in few}) >= 3
    cells = [(sample.row["length"], sample.row["depth"]) for sample in samples(limit=20)]
    assert len(set(cells[:15])) == 15  # each cell once before any twice
    assert len(set(cells[15:])) == 5
    assert len(samples(limit=10_000)) == 75


def test_score_and_likely_answer() -> None:
    task = make_task(TaskConfig("passkey", limit=1, options={"lengths": [100], "needles": 2}))
    (sample,) = task.load()
    first, second = sample.reference
    assert task.likely(sample) == f"{first}, {second}"
    assert task.score(f"They are {second} and {first}.", sample) == {"recall": 1.0}
    assert task.score(f"{first}.", sample) == {"recall": 0.5}
    assert task.score(f"1{first} {second}0", sample) == {"recall": 0.0}
    assert set(task.metrics) == {"recall", "answer_nll"}


def test_text_of_ones_own(tmp_path: Path) -> None:
    path = tmp_path / "book.txt"
    path.write_text("\n".join(f"Chapter line {i}\nwent on and on. Or did it?" for i in range(10_000, 10_030)))
    made = samples(lengths=[120], depths=[0.5], per_cell=8, data=path)
    assert all(len(sample.row["text"].split()) == 120 for sample in made)
    assert all("went on and on. Or did it?" in sample.row["text"] for sample in made)
    assert len({sample.row["text"][:30] for sample in made}) > 1  # not always from the start
    assert set(make_task(TaskConfig("passkey", data=str(path))).fingerprint()) == {"path", "bytes", "sha256"}
    with pytest.raises(ConfigError, match=r"task\.data: .*book\.txt holds 300 words, a text of at least 2000 words"):
        samples(data=path)
    with pytest.raises(ConfigError, match=r"task\.data: .*\.txt or \.txt\.gz is wanted"):
        samples(data=write(tmp_path / "book.jsonl"))


def write(path: Path) -> Path:
    path.write_text("{}\n")
    return path


def test_sentences_of_a_file(tmp_path: Path) -> None:
    path = tmp_path / "a.txt"
    path.write_text("One\ntwo. Three! Four? 1.5 five")
    assert sentences_of(path, 3, "task.data") == ["One two.", "Three!", "Four?", "1.5 five"]


def test_keys_are_never_numbers_of_the_text(tmp_path: Path) -> None:
    path = tmp_path / "numbers.txt"
    path.write_text("Or " + " ".join(map(str, range(10_000, 99_990))) + ". ")  # nearly all there are
    (sample,) = samples(lengths=[89_991], depths=[0], needles=3, per_cell=1, data=path)
    assert all(int(key) >= 99_960 for key in sample.reference)


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ("lengths=[]", "task.lengths: is []"),
        ("lengths=100", "task.lengths: is 100"),
        ("lengths=[100, 5]", "task.lengths: is [100, 5]"),
        ("lengths=[100, 100]", "different integers"),
        ("lengths=[100.5]", "integers of at least 20 (words)"),
        ("lengths=[true]", "task.lengths"),
        ("depths=[0.5, 1.5]", "task.depths: is [0.5, 1.5] (a list), a list of different numbers from 0.0 to 1.0"),
        ("depths=[.nan]", "task.depths"),
        ("needles=0", "task.needles: is 0 (an integer), an integer of at least 1 is wanted"),
        ("needles=60", "task.needles: 60 needles in 500 words, at most 32 can be hidden in the shortest text"),
        ("per_cell=1.5", "task.per_cell"),
        ("length=[5]", "task.length: unknown key"),
        ("lengths=[1000000000000]", "task.lengths: the texts have 25000000000000 words in all, at most 100000000"),
        ("per_cell=10000000", "task.per_cell: is 10000000 (an integer), at most 1000000 is wanted"),
    ],
)
def test_bad_options(write_config: Any, options: str, said: str) -> None:
    from buzz.evaluation.run.config import load_config

    path = write_config(task={"name": "passkey"})
    with pytest.raises(ConfigError) as caught:
        load_config(path, [f"task.{options}"])
    assert said in str(caught.value)


def test_options_from_a_config(write_config: Any) -> None:
    from buzz.evaluation.run.config import load_config, to_dict

    config = load_config(write_config(task={"name": "passkey", "depths": [0, 1]}), ["task.lengths=[30]"])
    assert to_dict(config)["task"]["depths"] == [0.0, 1.0]
    assert make_task(config.task).fingerprint() == {"generated": "passkey 1"}
    assert len(make_task(config.task).load()) == 10
