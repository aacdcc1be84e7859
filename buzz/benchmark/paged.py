"""transformers' continuous batching: a manager with room for so many rows, and when each of their tokens came."""

from __future__ import annotations

import contextlib
import dataclasses
import itertools
import logging
import math
import time
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import torch
from transformers import ContinuousBatchingConfig, GenerationConfig
from transformers.utils import is_flash_attn_2_available, is_flash_attn_3_available

from buzz.benchmark.contenders import Paged
from buzz.evaluation.memory import is_out_of_memory, release_memory

_PAGE = 256  # tokens, transformers' default
_GRAPHS = 1024  # cached tokens by which captured calls differ; by default 16384, which short contexts are padded to
_WAIT = 1.0  # seconds, between two looks at whether the manager still runs
_PATIENCE = 120.0  # seconds without a row that is done, after which none is expected


@dataclass(frozen=True)
class Answers:
    """Rows that were answered together.

    Args:
        tokens: new tokens of each row. start: when the first row was handed over, in seconds of the host's clock.
        times: when each token of each row was on the host.
    """

    tokens: list[list[int]]
    start: float
    times: list[list[float]]

    @property
    def first_s(self) -> float:
        """Seconds until every row has its first token."""
        return max(row[0] for row in self.times) - self.start

    def steps(self, warm: int, most: int) -> list[float]:
        """Seconds of at most so many steps, after `warm` others, while all rows decode."""
        last = max(self.times, key=lambda row: row[0])  # the row that begins last
        end = min(row[-1] for row in self.times)
        marks = [time for time in last[warm:] if time <= end][: most + 1]
        return [after - before for before, after in itertools.pairwise(marks)]


class Server:
    """A model that answers with paged attention; see `serving`."""

    def __init__(self, model: Any, manager: Any, pages: int) -> None:
        self._manager = manager
        self.attention = model.config._attn_implementation.removeprefix("paged|")
        self.tokens = pages * _PAGE  # that its cache has room for

    def answer(self, ids: torch.Tensor, tokens: int) -> Answers:
        """So many new tokens after each row of ids [B, L], greedily.

        Raises:
            torch.OutOfMemoryError: there is too little memory. RuntimeError: any other error of the manager's thread,
                or no row is done for two minutes.
        """
        names = self._manager.add_requests(ids.tolist(), max_new_tokens=tokens, record_timestamps=True)
        found: dict[str, Any] = {}
        last = time.perf_counter()
        while len(found) < len(names):
            result = self._manager.get_result(timeout=_WAIT)
            if result is None and not self._manager.is_running():
                raise RuntimeError("continuous batching ended before its rows")
            if result is None and time.perf_counter() - last > _PATIENCE:
                for name in names:
                    self._manager.cancel_request(name)
                raise RuntimeError(f"continuous batching: no row was done within {_PATIENCE:g} s")
            if result is not None and result.is_finished():
                last = time.perf_counter()
                if result.error is not None:
                    raise _error(result.error)
                found[result.request_id] = result
        rows = [found[name] for name in names]
        start = min(row.created_time for row in rows)
        return Answers([row.generated_tokens for row in rows], start, [row.timestamps for row in rows])


@contextlib.contextmanager
def serving(model: Any, settings: Paged, rows: int, tokens: int) -> Iterator[Server]:
    """Inside the block the unpatched model answers up to so many rows of so many tokens, prompt and answer together.

    The cache has pages for these and no more; no row's pages are shared with another's. Attention is flash-attn's if
    that is installed, else PyTorch's SDPA with a mask.

    Raises:
        torch.OutOfMemoryError: there is too little memory. RuntimeError: any other error of transformers.
    """
    flash = is_flash_attn_2_available() or is_flash_attn_3_available()
    room: dict[str, Any] = {
        "num_blocks": rows * (math.ceil(tokens / _PAGE) + 1),
        "max_batch_tokens": max(rows, min(settings.batch_tokens, rows * tokens)),
        "max_requests_per_batch": rows,
        "max_memory_percent": 1.0,  # of what transformers finds free; a smaller room is the caller's business
        "allow_block_sharing": False,  # a prompt that was read before would cost nothing
        "safety_margin": 0.0,  # else rows wait until others are done
    }
    if settings.graphs is not None:
        room["use_cuda_graph"] = settings.graphs
        if settings.graphs:
            room["kv_padding_interval_size"] = _GRAPHS
    if flash:
        room["max_blocks_per_request"] = math.ceil(tokens / _PAGE) + 1
    before = model.config._attn_implementation
    # Without flash-attn transformers would look for it in the hub.
    if "auto_switch_to_flash" in {item.name for item in dataclasses.fields(ContinuousBatchingConfig)}:
        room["auto_switch_to_flash"] = flash
    elif not flash:
        model.set_attn_implementation(f"paged|{before}")
    logger = logging.getLogger("ContinuousBatchingLogger")
    level = logger.level
    logger.setLevel(logging.CRITICAL)  # an error is raised here, its traceback is nobody's business
    greedy = GenerationConfig(do_sample=False, pad_token_id=0, eos_token_id=-1)
    try:
        with model.continuous_batching_context_manager(
            generation_config=greedy, continuous_batching_config=ContinuousBatchingConfig(**room), timeout=30
        ) as manager:
            yield Server(model, manager, room["num_blocks"])
    except MemoryError as error:  # transformers' own estimate
        raise torch.OutOfMemoryError(f"out of memory: {error}") from error
    finally:
        logger.setLevel(level)
        model.set_attn_implementation(before)
        release_memory()


def _error(text: str) -> RuntimeError:
    """The error of a row, which is told as text."""
    error = RuntimeError(text)
    return torch.OutOfMemoryError(text) if is_out_of_memory(error) else error
