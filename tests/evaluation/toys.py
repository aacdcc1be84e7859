"""A tokenizer, tasks and models as small as can be: texts are numbers, and a number is a token."""

from __future__ import annotations

from typing import Any, ClassVar

import torch
from transformers import GenerationConfig

import buzz
from buzz.evaluation.measure.batch import Job, Prompt
from buzz.evaluation.tasks import Sample, Task
from tests.conftest import VOCAB, tiny_llama, tiny_opt

END = 2
POLICIES = {
    "full": buzz.make_policy("full"),
    "streaming": buzz.make_policy("streaming", sink=2, window=9),
    "h2o": buzz.make_policy("h2o", heavy=5, window=6),
    "buzz": buzz.make_policy("buzz", sink=2, window=6, stride=3, threshold=5),
    "buzz_fast": buzz.make_policy("buzz_fast", sink=2, window=6, stride=3, threshold=5),
}


class Numbers:
    """Tokenizes "5 17 3" as [5, 17, 3], after the first token `bos` if there is one."""

    def __init__(self, bos: int | None = None) -> None:
        self.bos = bos

    def __call__(self, text: str, add_special_tokens: bool = True) -> dict[str, list[int]]:
        first = [self.bos] if self.bos is not None and add_special_tokens else []
        return {"input_ids": first + [int(word) for word in text.split()]}

    def decode(self, ids: list[int], **_: Any) -> str:
        return " ".join(map(str, ids))


class Toy(Task):
    """Asks for the row's text; an answer scores its number of words. The reference is the likely answer."""

    name: ClassVar[str] = "toy"
    metrics: ClassVar[list[str]] = ["answer_nll", "words"]

    def __init__(self) -> None:
        pass

    def reference(self, row: dict[str, Any]) -> Any:
        return row["answer"]

    def score(self, prediction: str, sample: Sample) -> dict[str, float]:
        return {"words": float(len(prediction.split()))}

    def likely(self, sample: Sample) -> str | None:
        return sample.reference


def model_of(family: str) -> Any:
    """A tiny float32 model, not patched, with its special tokens alone in its generation config."""
    model = tiny_llama() if family == "llama" else tiny_opt()
    model.generation_config = GenerationConfig(bos_token_id=1, eos_token_id=[END], pad_token_id=0)
    return model


def numbers(count: int, seed: int) -> list[int]:
    """Random tokens, none of them special."""
    return torch.randint(3, VOCAB, (count,), generator=torch.Generator().manual_seed(seed)).tolist()


def job(ids: list[int], policy: Any, answer: str | None = "7 8 9", name: str | None = None) -> Job:
    sample = Sample(name or f"s{ids[:3]}", " ".join(map(str, ids)), answer, {})
    return Job(Prompt(sample, ids, "hash", False), policy)


def naive_logits(
    model: Any, policy: Any, positions: str | None, first: list[int], rest: list[int]
) -> tuple[torch.Tensor, list[int]]:
    """One row alone, patched: float32 logits [1 + len(rest), V] after each call, and the cached tokens after it."""
    cache = buzz.BeehiveCache(policy, model.config, positions=positions)
    logits, lengths = [], []
    with torch.no_grad():
        for call in [first, *([token] for token in rest)]:
            logits.append(model(torch.tensor([call]), past_key_values=cache).logits[0, -1].float())
            lengths.append(cache.lengths[0])
    return torch.stack(logits), lengths
