"""The sections `generation` and `speed` of a config."""

from __future__ import annotations

from dataclasses import dataclass, field

from buzz.evaluation.config.methods import parse_compare
from buzz.evaluation.config.schema import at_least, parsed_by


@dataclass(frozen=True)
class GenerationConfig:
    """Greedy decoding, as in the authors' protocol.

    Args:
        max_new_tokens: at most this many tokens per answer.
        fidelity: also measure, if the run has a method with the policy `full`, how near each method stays to it.
        answers: False: methods but the full cache do not answer. They are given the full cache's answers token by
            token, as for fidelity, and nothing else is measured: prompts are read once instead of twice.
        prefill_chunk_size: prompts are read in calls of so many tokens, and may be evicted from after each; None: in
            one call (see docs/long_prompts.md).
    """

    max_new_tokens: int = field(default=100, metadata=at_least(1, 10**6))
    fidelity: bool = True
    answers: bool = True
    prefill_chunk_size: int | None = field(default=None, metadata=at_least(1))


@dataclass(frozen=True)
class SpeedConfig:
    """Decoding after a long prompt, timed beside transformers' own cache (see `measure.speed`).

    Args:
        prompt: tokens; those of the run's own prompts, one after the other and again if they are too few.
        steps: tokens of each cache that are timed.
        methods: names of the run's methods that are timed, each with the policy that it would have for such a prompt.
    """

    methods: list[str] = field(metadata=parsed_by(parse_compare))
    prompt: int = field(default=3000, metadata=at_least(1, 10**6))
    steps: int = field(default=24, metadata=at_least(1, 10**6))
