"""Messages show what was given in short, and guess what was meant."""

from __future__ import annotations

import pytest
import torch

from buzz.policies import POLICIES
from buzz.words import hint, nearest, shown


class Unprintable:
    def __repr__(self) -> str:
        raise RuntimeError("no")


@pytest.mark.parametrize(
    ("word", "known"),
    [
        ("buz", "buzz"), ("BUZZ", "buzz"), ("Buzz ", "buzz"), ("buzz-fast", "buzz_fast"), ("BuzzNoMax", "buzz_no_max"),
        ("snap_kv", "snapkv"), ("Pyramid-KV", "pyramidkv"), ("StreamingLLM", "streaming"), ("h20", "h2o"),
        ("xyz", None), ("", None),
    ],
)  # fmt: skip
def test_the_nearest_name(word, known):
    assert nearest(word, POLICIES) == known
    assert hint(word, POLICIES) == ("" if known is None else f" (did you mean {known!r}?)")


def test_values_are_shown_in_short():
    assert shown(5) == "5"
    assert shown("5") == "'5'"
    assert shown("a\nb") == r"'a\nb'"
    assert shown("x" * 99) == "'" + "x" * 56 + "..."
    assert "\n" not in shown(torch.eye(2))
    assert shown(10**5000) == "<int>"  # Python refuses to write it
    assert shown(Unprintable()) == "<Unprintable>"
