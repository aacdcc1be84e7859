"""Which of PyTorch's kernels reads a prompt or a chunk on a GPU.

cuDNN's is the fastest for long prompts, from Hopper GPUs on, and plans anew for every shape: 45 ms, each time that a
length is new to a process (docs/results/speed.md). So it is asked where that pays, and for fewer shapes.
"""

from __future__ import annotations

import contextlib
import itertools
import threading
from collections.abc import Iterator

import torch
import torch.nn.functional as F

from buzz.kernels.device import HALF
from buzz.rows import Rows

_LEAST = 2048  # tokens, below which flash attention is as fast
_STEP = 512  # tokens: prompts are made so long in whole steps, and share their plans
_MOST = 1 << 26  # elements of the queries, from which a copy with such an end costs more memory than a plan is worth
_AMPERE, _HOPPER = 8, 9  # compute capabilities
_refused: set[tuple[torch.device, torch.dtype, int]] = set()  # what cuDNN cannot


def whole(q: torch.Tensor, k: torch.Tensor, v: torch.Tensor, scale: float) -> torch.Tensor:
    """Output [B, Hq, L, D] of a whole prompt, in q's dtype.

    Args:
        q: [B, Hq, L, D] on a CUDA device in half precision. k, v: [B, Hkv, L, D] likewise.
    """
    result = _by_cudnn(q, k, v, scale)
    if result is not None:
        return result[0]
    with CUDNN.off():
        return F.scaled_dot_product_attention(
            q, k, v, is_causal=True, scale=scale, enable_gqa=q.shape[1] > k.shape[1]
        )  # fmt: skip


def causal(q: torch.Tensor, k: torch.Tensor, v: torch.Tensor, scale: float) -> tuple[torch.Tensor, torch.Tensor]:
    """`whole`, and the natural log-sum-exp float32 [B, Hq, L]; or of queries that are the last of S tokens.

    A chunk of a prompt goes to flash attention, which aligns the last query with the last key, as is wanted here; cuDNN
    the first with the first.

    Args:
        q: [B, Hq, L, D] as `takes_flash` says. k, v: [B, Hkv, S, D] likewise.
    """
    result = _by_cudnn(q, k, v, scale) if q.shape[2] == k.shape[2] else None
    if result is None:
        result = torch.ops.aten._scaled_dot_product_flash_attention(q, k, v, 0.0, True, False, scale=scale)[:2]
    output, lse = result
    return output, lse.reshape(*q.shape[:2], -1)[..., : q.shape[2]].float()


def ragged(
    q: torch.Tensor, k: torch.Tensor, v: torch.Tensor, starts: Rows, counts: Rows, scale: float
) -> tuple[torch.Tensor, torch.Tensor]:
    """`causal` of rows of their own lengths, in one call: query i of row b sees the slots 0 .. starts[b] + i.

    Args:
        q: [B, Hq, L, D] as `takes_flash` says; row b has counts[b] queries, and L is at least 2.
        k, v: [B, Hkv, S, D] likewise, S at least starts[b] + counts[b].

    Returns:
        As `causal`, zeros past a row's queries; the log-sum-exp of a row's head lies together.
    """
    (B, Hq, L, _), device = q.shape, q.device
    ends = Rows(start + count for start, count in zip(starts, counts, strict=True))
    (queries, begin_queries), (slots, begin_slots) = (_one_after_another(lengths, device) for lengths in (counts, ends))
    packed = [t.transpose(1, 2)[at] for t, at in ((q, queries), (k, slots), (v, slots))]  # [their sum, heads, D]
    output, lse = torch.ops.aten._flash_attention_forward(
        *packed, begin_queries, begin_slots, L, k.shape[2], 0.0, True, False, scale=scale
    )[:2]  # [N, Hq, D] and [Hq, N] of N queries in all
    if min(counts) < L:
        (rows, places), padded = queries, lse.new_zeros(Hq, B, L)
        padded[:, rows, places] = lse
        output, lse = output.new_zeros(B, L, *output.shape[1:]).index_put(queries, output), padded
    return output.view(B, L, Hq, -1).transpose(1, 2), lse.reshape(Hq, B, L).transpose(0, 1).float()


def takes_flash(q: torch.Tensor) -> bool:
    """Whether flash attention, which needs an Ampere GPU, reads queries [B, Hq, L, D] of this kind."""
    kind = q.is_cuda and q.dtype in HALF and q.shape[3] % 8 == 0 and q.shape[3] <= 256
    return kind and torch.cuda.get_device_capability(q.device)[0] >= _AMPERE


def _one_after_another(lengths: Rows, device: torch.device) -> tuple[tuple[torch.Tensor, torch.Tensor], torch.Tensor]:
    """The first lengths[b] places of each row, one row after another.

    Returns:
        Their rows and places, int64 [their sum] each; and where among them each row begins and the last one ends, int32
        [B + 1].
    """
    total = sum(lengths)  # told it, repeating does not wait for the device
    begins = Rows(itertools.accumulate(lengths, initial=0)).on(device)
    row = torch.arange(len(lengths), device=device).repeat_interleave(lengths.on(device), output_size=total)
    return (row, torch.arange(total, device=device) - begins[row]), begins.int()


def _by_cudnn(
    q: torch.Tensor, k: torch.Tensor, v: torch.Tensor, scale: float
) -> tuple[torch.Tensor, torch.Tensor] | None:
    """Output and, of as many queries at least, log-sum-exp of a whole prompt; None where another kernel is as good, or
    cuDNN cannot."""
    tokens, kind = q.shape[2], (q.device, q.dtype, q.shape[3])
    if tokens < _LEAST or kind in _refused or not _pays(q.device):
        return None
    more = -tokens % _STEP if q.numel() <= _MOST else 0
    try:
        longer = tuple(F.pad(t, (0, 0, 0, more)) for t in (q, k, v)) if more else (q, k, v)  # which no query sees
        output, lse = torch.ops.aten._scaled_dot_product_cudnn_attention(
            *longer, None, True, 0.0, True, False, scale=scale
        )[:2]
    except torch.OutOfMemoryError:
        return None
    except RuntimeError:
        _refused.add(kind)
        return None
    return output[:, :, :tokens], lse


def _pays(device: torch.device) -> bool:
    """Whether cuDNN is faster there than flash attention, and nobody has turned it off."""
    return torch.cuda.get_device_capability(device)[0] >= _HOPPER and CUDNN.on()


class _Switch:
    """PyTorch's switch for cuDNN's attention, one for the whole process: several threads may turn it off at once, and
    the last of them turns it on again."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._inside, self._before = 0, True

    def on(self) -> bool:
        """Whether it is on outside of `off`."""
        with self._lock:
            return self._before if self._inside else torch.backends.cuda.cudnn_sdp_enabled()

    @contextlib.contextmanager
    def off(self) -> Iterator[None]:
        """For attention whose shapes are as many as its calls. Not where somebody wants cuDNN alone."""
        cuda = torch.backends.cuda
        if not (cuda.flash_sdp_enabled() or cuda.mem_efficient_sdp_enabled() or cuda.math_sdp_enabled()):
            yield
            return
        with self._lock:
            if not self._inside:
                self._before = cuda.cudnn_sdp_enabled()
                cuda.enable_cudnn_sdp(False)
            self._inside += 1
        try:
            yield
        finally:
            with self._lock:
                self._inside -= 1
                if not self._inside:
                    cuda.enable_cudnn_sdp(self._before)


CUDNN = _Switch()

__all__ = ["CUDNN", "causal", "ragged", "takes_flash", "whole"]
