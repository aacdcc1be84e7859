"""What every kind of execution needs: prompts in tokens, texts read through a cache, and one record a sample."""

from __future__ import annotations

import dataclasses
import hashlib
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import islice
from typing import Any, NamedTuple

import torch

from buzz.cache import BeehiveCache, Curve, PerRow
from buzz.decoding.feed import Feed
from buzz.evaluation.tasks import Sample
from buzz.models.cache_argument import as_argument
from buzz.policies import Policy
from buzz.policies.sizes import prompt_calls

HEADS = ("longest_head", "shortest_head")  # figures of `BeehiveCache.stats`, a number a row
CURVE_POINTS = 256  # of a record's cache curve, at most
FullMeans = Callable[[Sequence[int]], tuple[float, float]]


@dataclass(frozen=True)
class Prompt:
    """A sample's prompt in tokens.

    Args:
        hash: of the raw prompt's text, with the prefix of its answer.
        truncated: its middle was cut out to fit.
        targets: of a text to be read, the token to predict after each token but the last; empty for a generation.
        context: the first so many tokens are read in calls of their own, before the rest; None: all are read at once.
    """

    sample: Sample
    ids: list[int]
    hash: str
    truncated: bool
    targets: list[int] = field(default_factory=list)
    context: int | None = None


class Held(NamedTuple):
    """What a row of a cache held after its prompt and after each later call.

    lengths: cached tokens, the mean over the layers that policies decide over. nbytes: the row's share of what was
    allocated in all layers. heads: after the last call, by the names in `HEADS`; empty where the cache does not tell.
    positions: of the cache.
    """

    lengths: list[float]
    nbytes: list[float]
    heads: Mapping[str, float] = {}
    positions: str | None = None


Tell = Callable[[int, float, bool], None]


@dataclass(frozen=True)
class Job:
    """One sample under one policy.

    Args:
        tell: told after every call of the job's batch: its rows, the tokens that they hold in the mean, and whether the
            call was the cache's first one.
    """

    prompt: Prompt
    policy: Policy
    tell: Tell | None = field(default=None, compare=False)


class _Told(Curve):
    """A curve that also tells somebody of every call, whoever makes it."""

    def __init__(self, tell: Tell) -> None:
        super().__init__()
        self._tell = tell

    def add(self, lengths: Sequence[float], nbytes: int) -> None:
        super().add(lengths, nbytes)
        self._tell(len(lengths), sum(lengths) / len(lengths), len(self) == 1)


def prompt_hash(text: str) -> str:
    """First 16 hex digits of the SHA-256 of a raw prompt."""
    return hashlib.sha256(text.encode("utf-8")).hexdigest()[:16]


def new_cache(model: Any, jobs: Sequence[Job], positions: str | None) -> Any:
    """An empty BeehiveCache with a row, and its policy, for each job; its curve is recorded."""
    cache = BeehiveCache(PerRow([job.policy for job in jobs]), model.config, positions=positions)
    tell = jobs[0].tell
    cache.curve = Curve() if tell is None else _Told(tell)
    return cache


def contexts_and_rests(jobs: Sequence[Job]) -> tuple[list[list[int]], list[list[int]]]:
    """The tokens of each prompt that calls of their own read first, and the others; no contexts if no job has one."""
    sizes = [job.prompt.context or 0 for job in jobs]
    contexts = [job.prompt.ids[:size] for job, size in zip(jobs, sizes, strict=True)] if any(sizes) else []
    return contexts, [job.prompt.ids[size:] for job, size in zip(jobs, sizes, strict=True)]


def left_padded(rows: Sequence[Sequence[int]], pad: int, device: Any, chunk: int | None = None) -> tuple[Any, Any]:
    """Token ids and attention mask, int64 [B, L], of rows of unequal lengths.

    With a `chunk`, columns are meant to be read in calls of so many, as `generate` does with `prefill_chunk_size`. Then
    each row's own chunks are padded one by one, such that every row has its last one in the last call. So a row is
    cut where it would be alone; a shorter one has nothing but pads in the first calls.
    """
    sizes = [prompt_calls(len(row), chunk) for row in rows]
    calls = max(map(len, sizes))
    widths = [*[chunk or 0] * (calls - 1), max(row[-1] for row in sizes)]
    ids: list[list[int]] = []
    mask: list[list[int]] = []
    for row, own in zip(rows, sizes, strict=True):
        left = iter(row)
        ids.append([])
        mask.append([])
        for width, size in zip(widths, [0] * (calls - len(own)) + own, strict=True):
            ids[-1] += [pad] * (width - size) + list(islice(left, size))
            mask[-1] += [0] * (width - size) + [1] * size
    return torch.tensor(ids).to(device), torch.tensor(mask).to(device)


def right_padded(rows: Sequence[Sequence[int]], pad: int, device: Any) -> Any:
    """Token ids, int64 [B, L], of rows of unequal lengths."""
    width = max(map(len, rows))
    ids = torch.tensor([list(row) + [pad] * (width - len(row)) for row in rows], dtype=torch.int64)
    return ids.view(len(rows), width).to(device)


class Read(NamedTuple):
    """Columns that a cache has read: ids and mask int64 [B, L], logits [B, V] after the last, and how many calls."""

    ids: Any
    mask: Any
    logits: Any
    calls: int


def read(
    model: Any, cache: Any, rows: Sequence[Sequence[int]], chunk: int | None, start: Sequence[int] | None = None
) -> Read:
    """Read tokens, at least one in some row, in one call or in calls of so many, padded as `left_padded` does.

    start: tokens that each row has seen before, from which on they get positions; None: positions count columns. That
    is as good where no pad comes between two tokens, or where keys have the positions of their slots.
    """
    ids, mask = left_padded(rows, model.generation_config.pad_token_id or 0, model.device, chunk)  # [B, L]
    size = chunk or ids.shape[1]
    # Only ragged rows need a mask: to look for pads in one means to wait for the device.
    ragged = len(set(map(len, rows))) > 1
    extra = {"attention_mask": mask} if ragged else {}
    if start is not None:
        extra["position_ids"] = (mask.cumsum(1) - 1).clamp(min=0) + torch.tensor(start, device=mask.device)[:, None]
    calls = -(-ids.shape[1] // size)
    for at in range(0, calls * size, size):
        part = {key: columns[:, at : at + size] for key, columns in extra.items()}
        logits = _call(model, cache, ids[:, at : at + size], part)
    return Read(ids, mask, logits, calls)


def _call(model: Any, cache: Any, tokens: Any, extra: dict[str, Any]) -> Any:
    """Logits [R, V] after the last of the tokens [R, L]."""
    return model(tokens, **as_argument(cache), use_cache=True, logits_to_keep=1, **extra).logits[:, -1]


@dataclass
class Reading:
    """Tokens that are given, not chosen, go through a cache: some first, in one call or in chunks, then one a call.

    Iterate once, under `torch.inference_mode`. After the first tokens and after each later call it yields `rows`,
    int64 [R], the jobs that took part, and their `logits` [R, V] for the token that comes next. A row leaves the batch
    once it is read. Nothing waits for the device.

    Args:
        model: patched.
        cache: an empty BeehiveCache with a row per job.
        first: tokens that each row begins with, at least one.
        rest: tokens of each row's one-token calls.
        chunk: the first tokens are read in calls of so many; None: in one call.
        ahead: tokens of each row that calls of their own read before `first`, in the same way; empty: none.
        branches: which of the rows that read `first` each row of `rest` goes on from, so that rows with the same first
            tokens and the same policy read them once; empty: each goes on from its own. Jobs are then those of `rest`.
        held: filled in, by row: what it held after its first tokens and after each later call.
    """

    model: Any
    cache: Any
    first: Sequence[Sequence[int]]
    rest: Sequence[Sequence[int]]
    chunk: int | None = None
    ahead: Sequence[Sequence[int]] = ()
    branches: Sequence[int] = ()
    held: dict[int, Held] = field(default_factory=dict)

    def __iter__(self) -> Iterator[tuple[Any, Any]]:
        device, pad = self.model.device, self.model.generation_config.pad_token_id or 0
        rows = list(range(len(self.rest)))
        index = torch.arange(len(rows), device=device)
        given = right_padded(self.rest, pad, device)  # [B, calls]
        before, seen = -1, [0] * len(self.first)  # calls before the last one of the first tokens; tokens of each row
        spread = self.cache.positions == "original" and self._has_pads_between
        for part in filter(None, (self.ahead, self.first)):
            _, _, logits, calls = read(self.model, self.cache, part, self.chunk, seen if spread else None)
            before += calls
            seen = [old + len(new) for old, new in zip(seen, part, strict=True)]
        if self.branches:
            branches = torch.tensor(self.branches)
            self.cache.batch_select_indices(branches)
            logits, seen = logits.index_select(0, branches.to(device)), [seen[row] for row in self.branches]
        at = torch.tensor(seen, device=device)[:, None]  # [R, 1]
        feed = Feed(self.model._buzz_handle.engine, self.cache)
        call = 0
        try:
            while True:
                yield index, logits
                stay = [i for i, row in enumerate(rows) if len(self.rest[row]) > call]
                if len(stay) < len(rows):
                    feed.stop()
                    gone = sorted(set(range(len(rows))) - set(stay))
                    for i, held in zip(gone, held_by(self.cache, gone, before), strict=True):
                        self.held[rows[i]] = held
                    if not stay:
                        return
                    kept = torch.tensor(stay)
                    self.cache.batch_select_indices(kept)
                    index, given, at = (tensor.index_select(0, kept.to(device)) for tensor in (index, given, at))
                    rows = [rows[i] for i in stay]
                left = min(len(self.rest[row]) for row in rows) - call
                place = at + call if spread else None  # else positions count columns
                served = feed(given[:, call], left, place)
                if served is None:
                    extra = {} if place is None else {"position_ids": place}
                    served = _call(self.model, self.cache, given[:, call : call + 1], extra)
                logits = served
                call += 1
        finally:
            feed.stop()

    @property
    def _has_pads_between(self) -> bool:
        """Whether columns of pads lie between tokens of a row, as where several calls read rows of unequal lengths."""
        parts = [[len(row) for row in part] for part in (self.ahead, self.first) if part]
        several = len(parts) > 1 or (self.chunk is not None and max(parts[0]) > self.chunk)
        return several and any(len(set(sizes)) > 1 for sizes in parts)


def held_by(cache: Any, rows: Sequence[int], before: int) -> list[Held]:
    """The part of some rows in what a cache's curve and figures tell, without the calls before a prompt's last one."""
    curve, figures = cache.curve, cache.stats()
    return [
        Held(
            [lengths[row] for lengths in curve.lengths[before:]],
            list(curve.row_bytes[before:]),
            {key: float(figures[key][row]) for key in HEADS if key in figures},
            cache.positions,
        )
        for row in rows
    ]


def make_record(
    job: Job,
    *,
    prompt_tokens: int,
    output: str | None,
    output_ids: list[int],
    new_tokens: int,
    metrics: dict[str, float],
    held: Held,
    full: FullMeans,
    seconds: float,
) -> dict[str, Any]:
    """What samples/METHOD.jsonl has on a line.

    Args:
        prompt_tokens: tokens of the prompt, or those that a text begins with.
        output: None: the method gave no answer of its own.
        new_tokens: tokens answered or predicted; the sample's own one-token calls are one fewer.
        held: by the cache after the prompt and after each later call.
        full: what a full cache holds.
    """
    prompt, sample = job.prompt, job.prompt.sample
    return {
        "id": sample.id,
        "prompt_hash": prompt.hash,
        "prompt_tokens": prompt_tokens,
        **({} if prompt.context is None else {"context_tokens": prompt.context}),
        "new_tokens": new_tokens,
        **({"truncated": True} if prompt.truncated else {}),
        **({} if output is None else {"output": output}),
        "output_ids": output_ids,
        "reference": sample.reference,
        "metrics": metrics,
        "policy": describe(job.policy),
        **({} if held.positions is None else {"positions": held.positions}),
        "cache": cache_figures(held, prompt_tokens, new_tokens, full),
        "seconds": round(seconds, 6),
    }


def cache_figures(held: Held, prompt_tokens: int, new_tokens: int, full: FullMeans) -> dict[str, Any]:
    """A sample's cache in tokens and in bytes, over its own one-token calls.

    The prompt gives the first new token and each later call one more, so there are `new_tokens - 1`. A sample without
    one is measured after its prompt.

    Args:
        held: after the prompt and after each later call, of which there may be more than its own.
        full: mean tokens and bytes of a full cache, of the text's tokens after each call (`memory.full_means`).

    Returns:
        mean_tokens, peak_tokens, full_mean_tokens: the mean of a cache that never evicts; mean_bytes, peak_bytes: the
        sample's share of what was allocated for keys, values and scores; full_mean_bytes: keys and values of a cache
        that never evicts and allocates exactly its tokens; and curve: pairs of a call's number (0 is the prompt's last)
        and the cached tokens after it, at most `CURVE_POINTS`, evenly spread; and `held.heads`.
    """
    calls = range(1, new_tokens) if new_tokens > 1 else range(1)
    own = [held.lengths[call] for call in calls]
    nbytes = [held.nbytes[call] for call in calls]
    full_tokens, full_bytes = full([prompt_tokens + call for call in calls])
    points = min(len(calls), CURVE_POINTS)
    shown = [round(i * (len(calls) - 1) / max(1, points - 1)) for i in range(points)]
    return {
        "mean_tokens": sum(own) / len(own),
        "peak_tokens": max(own),
        "full_mean_tokens": full_tokens,
        "mean_bytes": sum(nbytes) / len(nbytes),
        "peak_bytes": max(nbytes),
        "full_mean_bytes": full_bytes,
        **held.heads,
        "curve": [[calls[i], own[i]] for i in shown],
    }


def describe(policy: Policy) -> dict[str, Any]:
    """A policy's name and parameters, for the records; parameters that are None are left out."""
    parameters = {name: value for name, value in dataclasses.asdict(policy).items() if value is not None}
    return {"name": policy.name, **parameters}
