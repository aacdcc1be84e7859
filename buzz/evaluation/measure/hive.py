"""Records, for one sample, when which head let go of which token: what the report's hive view shows."""

from __future__ import annotations

import base64
import json
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch

from buzz.cache.call import Shape
from buzz.evaluation.files import write_atomically, writing
from buzz.evaluation.measure.batch import Job, Reading, describe, new_cache
from buzz.evaluation.tasks import Task

MOST_CALLS = 4096  # one-token calls that are replayed; evicted_at is int16, and a browser has to show it
_BROKEN = "\N{REPLACEMENT CHARACTER}"
_MOST_BYTES = 4  # of a character in UTF-8, so it has at most so many tokens


def recordable(record: Mapping[str, Any], chunk: int | None) -> bool:
    """Whether a sample can be shown: the view has one call for a prompt; several would evict in between."""
    if "context_tokens" in record:
        return False
    return chunk is None or record["prompt_tokens"] <= chunk


class Evictions:
    """Follows the tokens of one row of a batch through a cache; joins its `on_evict`.

    Args:
        cache: an empty BeehiveCache.
        first: tokens of the row's first call; every later call has one.
        evicted_at: filled in: int16 [layers, H, tokens], all -1; becomes the call (0: the first) after which a token
            was no longer held.
        place: at which place of the batch the row is in a call; None there: it has left. By default the first.
    """

    def __init__(
        self, cache: Any, first: int, evicted_at: np.ndarray, place: Callable[[int], int | None] = lambda _: 0
    ) -> None:
        self._cache, self._first, self._evicted_at = cache, first, evicted_at
        self._place, self._others = place, cache.on_evict
        # Per layer and head, int32 [slots]: the position of what each slot holds. What was appended since the layer's
        # last eviction is missing: it is all there, in order, from `_known` on.
        self._held: list[list[np.ndarray]] = [[np.zeros(0, np.int32) for _ in heads] for heads in evicted_at]
        self._known = [0] * len(evicted_at)
        cache.on_evict = self

    def __call__(self, layer: int, eviction: Any, slots: Any) -> None:
        """One eviction: slots int64 [R or 1, H or 1, W] stay; the list of a head that keeps fewer than W ends in -1."""
        if self._others is not None:
            self._others(layer, eviction, slots)
        call, held = self._cache.calls, self._held[layer]
        place = self._place(call)
        rows = None if eviction is None else eviction.rows
        if place is None or (rows is not None and place not in rows):
            return
        of_row = 0 if len(slots) == 1 else place if rows is None else list(rows).index(place)
        tokens = self._first + call
        new = np.arange(self._known[layer], tokens, dtype=np.int32)
        for head, stay in enumerate(np.broadcast_to(slots[of_row].cpu().numpy(), (len(held), slots.shape[2]))):
            before = np.concatenate([held[head], new])
            kept = stay[stay >= 0]
            gone = np.ones(len(before), dtype=bool)
            gone[kept] = False
            self._evicted_at[layer, head, before[gone]] = call
            held[head] = before[kept]
        self._known[layer] = tokens


def watch_rows(
    model: Any, cache: Any, jobs: Sequence[Job], answers: Sequence[Sequence[int]], rows: Sequence[int]
) -> dict[int, np.ndarray]:
    """Follow some rows of a batch that reads answers which are given, so that nothing has to be replayed.

    Args:
        cache: empty; it reads every prompt in one call. jobs: of the batch. answers: tokens of each.

    Returns:
        By row what becomes its `evicted_at`: int16 [layers, H, tokens].
    """
    steps = [len(answer) - 1 for answer in answers]
    found = {}
    for row in rows:
        first = len(jobs[row].prompt.ids)
        found[row] = _nothing_evicted(model, first + len(answers[row]))

        def place(call: int, row: int = row) -> int | None:
            # A row leaves the batch after its last call.
            return sum(n >= call for n in steps[:row]) if call <= steps[row] else None

        Evictions(cache, first, found[row], place)
    return found


def _nothing_evicted(model: Any, tokens: int) -> np.ndarray:
    config = model.config.get_text_config(decoder=True)
    heads = getattr(config, "num_key_value_heads", None) or config.num_attention_heads
    return np.full((config.num_hidden_layers, heads, tokens), -1, dtype="<i2")


def record_hive(
    model: Any, tokenizer: Any, task: Task, job: Job, positions: str | None, record: Mapping[str, Any], path: Path
) -> None:
    """Replay a sample alone, its answer given, and write what its cache evicted when.

    Of a text that is only read, and of an answer, at most `MOST_CALLS` one-token calls are replayed.

    Args:
        model: patched, in eval mode.
        job: the sample under the policy that it had.
        positions: of the BeehiveCache.
        record: of the sample under this method.
        path: of the file, whose folder is made. It is JSON: `sample`, `policy`, `tokens` (texts; those of the prompt,
            then the others), `prompt_tokens` (of the first call), `calls` (one-token calls), `layers`, `heads` (KV
            heads), and `evicted_at`, base64 of little-endian int16 [layers, heads, tokens]: the call (0: the first)
            after which a token was no longer held, -1 if it was held to the end. The token that comes last was never
            read, so no cache had it.
    """
    ids = [*job.prompt.ids, *record["output_ids"]]
    first = len(job.prompt.ids) if task.kind == "generation" else task.calls(len(ids), 0)[0]
    ids = ids[: first + MOST_CALLS + 1]
    evicted_at = _nothing_evicted(model, len(ids))
    shape, steps = Shape.of(model.config), len(ids) - 1 - first
    policies = job.policy.per_layer(len(shape.decided))
    if any(shape.windows) or any(policy.trace(first, steps)[-1] < len(ids) - 1 for policy in policies):
        _replay(model, job, positions, ids, first, evicted_at)
    write_hive(tokenizer, job, ids, first, evicted_at, path)


def write_hive(tokenizer: Any, job: Job, ids: Sequence[int], first: int, evicted_at: np.ndarray, path: Path) -> None:
    """Write what `record_hive` does, of a text of which the first call read so many tokens."""
    layers, heads, _ = evicted_at.shape
    hive = {
        "sample": job.prompt.sample.id,
        "policy": describe(job.policy),
        "tokens": token_texts(tokenizer, ids),
        "prompt_tokens": first,
        "calls": len(ids) - 1 - first,
        "layers": layers,
        "heads": heads,
        "evicted_at": base64.b64encode(evicted_at.tobytes()).decode("ascii"),
    }
    with writing(path.parent):
        path.parent.mkdir(parents=True, exist_ok=True)
    write_atomically(path, json.dumps(hive, ensure_ascii=False) + "\n")


def _replay(
    model: Any, job: Job, positions: str | None, ids: Sequence[int], first: int, evicted_at: np.ndarray
) -> None:
    """Read a text through the job's cache and note its evictions."""
    cache = new_cache(model, [job], positions)
    Evictions(cache, first, evicted_at)
    with torch.inference_mode():
        for _ in Reading(model, cache, [ids[:first]], [ids[first:-1]]):
            pass


def token_texts(tokenizer: Any, ids: Sequence[int]) -> list[str]:
    """The text of each token, such that they read well one after the other; special tokens show their names.

    A character that several tokens spell byte by byte is the text of the first of them, and the others have none.
    """
    special = set(tokenizer.all_special_ids)
    texts: list[str] = []
    near: list[int] = []  # the tokens just before, which decide whether a word begins with a blank
    while len(texts) < len(ids):
        here = len(texts)
        if ids[here] in special:
            texts.append(str(tokenizer.convert_ids_to_tokens(ids[here])))
            near = []
            continue
        before = _decoded(tokenizer, near)
        for size in range(1, min(_MOST_BYTES, len(ids) - here) + 1):
            group = list(ids[here : here + size])
            text = _decoded(tokenizer, near + group)
            if group[-1] in special or not text.endswith(_BROKEN):
                break
        if group[-1] in special or text.endswith(_BROKEN):  # a byte that spells nothing
            texts.append(_decoded(tokenizer, group[:1]))
            near = []
            continue
        texts += [text[len(before) :]] + [""] * (len(group) - 1)
        near = group
    return texts


def _decoded(tokenizer: Any, ids: Sequence[int]) -> str:
    return str(tokenizer.decode(ids, clean_up_tokenization_spaces=False)) if ids else ""
