"""What a policy may ask of attention: anything else is refused where a cache is built for it."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, ClassVar

import pytest
from transformers import LlamaConfig

import buzz
from buzz.policies import ScoreSpec
from buzz.policies.h2o import H2OPolicy

CONFIG = LlamaConfig(num_hidden_layers=2, num_attention_heads=2, num_key_value_heads=1, hidden_size=8)
SUMS, LARGEST = ScoreSpec(True, None), ScoreSpec(True, None, "largest", mean=2.0, near=3)


@dataclass(frozen=True, repr=False)
class Asking(H2OPolicy):
    """Steps and texts get other scores; the second reading's if `echo`."""

    steps: Any = SUMS
    texts: Any = SUMS
    echo: bool = False

    name: ClassVar[str] = "asking"

    @property
    def score_spec(self) -> ScoreSpec | None:
        return self.steps

    @property
    def prompt_spec(self) -> ScoreSpec | None:
        return self.texts

    @property
    def echo_chunk(self) -> int | None:
        return 4 if self.echo else None


@pytest.mark.parametrize(
    ("asked", "says"),
    [
        ({"steps": SUMS._replace(of="max")}, "score_spec.of must be one of sum, mean, largest, got 'max'"),
        ({"texts": SUMS._replace(queries=0)}, "prompt_spec.queries must be at least 1, or None for all, got 0"),
        ({"steps": SUMS._replace(beyond=-1)}, "score_spec.beyond and near must be at least 0, got -1 and 0"),
        ({"texts": LARGEST._replace(near=-2)}, "prompt_spec.beyond and near must be at least 0, got 0 and -2"),
        ({"texts": LARGEST._replace(of="sum")}, "prompt_spec.mean goes with of='largest' alone, got of='sum'"),
        ({"steps": LARGEST}, "score_spec.mean must be 0, as steps add no mean"),
        ({"steps": None}, "score_spec and prompt_spec must be None both or neither, got a prompt_spec alone"),
        ({"texts": None}, "score_spec and prompt_spec must be None both or neither, got a score_spec alone"),
    ],
)
def test_what_attention_cannot_give_is_refused(asked, says):
    policy = Asking(**asked)
    for given in (policy, buzz.PerRow([policy, policy]), [buzz.make_policy("full"), policy]):
        with pytest.raises(ValueError) as refused:
            buzz.BeehiveCache(given, CONFIG)
        assert str(refused.value).startswith(f"asking: {says}")


def test_what_attention_can_give_is_taken():
    for asked in ({}, {"texts": LARGEST}, {"steps": None, "texts": None}):
        buzz.BeehiveCache(Asking(**asked), CONFIG)
    for asked in ({"texts": None}, {"steps": None, "texts": None}):
        buzz.BeehiveCache(Asking(**asked, echo=True), CONFIG)
