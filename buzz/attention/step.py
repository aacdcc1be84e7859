"""One new token per row against a cache in static memory: an operator for CUDA graphs and torch.compile."""

from __future__ import annotations

from typing import Any, Literal

import torch

from buzz.attention import naive
from buzz.kernels.device import HALF, runs_triton


def attend_step(
    q: torch.Tensor,
    k: torch.Tensor,
    v: torch.Tensor,
    keys: torch.Tensor,
    values: torch.Tensor,
    scores: torch.Tensor | None,
    lengths: torch.Tensor,
    *,
    scale: float,
    logn_base: float | None = None,
    cos: torch.Tensor | None = None,
    sin: torch.Tensor | None = None,
    live: torch.Tensor | None = None,
    window: int | None = None,
    of: Literal["sum", "mean", "largest"] = "sum",
    beyond: int = 0,
    begin: torch.Tensor | None = None,
    longest: int | None = None,
    own: bool = False,
    ahead: bool = False,
) -> torch.Tensor:
    """Append one token per row to a cache and attend to it; nothing here depends on the host knowing a length.

    The queries of row b see the slots 0 .. lengths[b], the last of which is the token's own, or the last `window` of
    these. The call can be captured in a CUDA graph and traced by `torch.compile`: it is the operator
    `buzz::attend_step`. Heads hold equally many slots, or, with `begin`, each as many as it has of a pool of its row.

    Args:
        q: [B, Hq, D], float16, bfloat16 or float32, not rotated if `cos` is given.
        k, v: [B, Hkv, D] in q's dtype with Hq a multiple of Hkv: the token's own.
        keys, values: [B, Hkv, C, D] in q's dtype, the last axis contiguous; views of larger buffers are fine. k and v
            are written to slot lengths[b]. Slots past a row's end may hold anything finite.
        scores: float32 [B, Hkv, C], not negative, the last axis contiguous, or None: they take in the attention
            probability that every slot receives, as `of` and `beyond` say.
        lengths: int32 [B] on q's device, cached tokens before the call, each below C (which nobody checks). Not
            changed: one tensor serves all layers.
        scale: factor of the logits.
        logn_base: multiply the logits by ln(lengths[b] + 1) / ln(logn_base) as well; None: not.
        cos, sin: [at least C, D] in q's dtype, as `buzz.models.positions.RotaryTable` gives them: the halves of D
            repeat each other, sin's first half negated. The key of slot j is rotated to position j in every call and
            cached as it is, q to position lengths[b]. None: nothing is rotated.
        own: cos and sin are [B, D], the angles of the tokens: q and k are rotated by them and rounded, k is cached so,
            and cached keys are multiplied as they are.
        live: int32 [1] on q's device; 0: no score changes and what is written to keys and values lies past the row's
            end, so that the cache holds what it held; the output is then finite and of no use. None: as 1.
        window: slots that are seen at most, the token's own included; None: any number. It does not change what
            `logn_base` does.
        of: "sum" or "mean" over the query heads of the group is added to the slot's score; "largest": the score becomes
            the largest of itself and what these heads give.
        beyond: only slots that are more than so many before the token's own take in anything; 0: all.
        begin: int32 [B, Hkv] on q's device: the heads of a row share a pool. Then keys and values are [B, P, D], scores
            [B, P], lengths int32 [B, Hkv]. Slot j of head h of row b is place begin[b, h] + j, and the token is written
            to place begin[b, h] + lengths[b, h], which must be the head's own, live or not. Rotation, `logn_base` and
            `window` go by slots. What lies past a head's end may be anything finite, the slots of other heads too.
        longest: with `begin`, most slots that a head can hold during the step, the token's own included.
        ahead: lengths, begin, and cos and sin of slots were there before the step began, so that a GPU may read them
            while kernels before this one still run (`buzz.kernels.early`). Some kernel of the step that is launched in
            the ordinary way, which waits for all before it, must come between.

    Returns:
        output [B, Hq, D] in q's dtype. Softmax statistics are float32.

    Raises:
        ValueError: shapes that do not fit together, scores not float32, one of `cos` and `sin` without the other, a
            base not above 1, a window of no slot, `of` or `beyond` out of range, one of `begin` and `longest` without
            the other.
    """
    B, Hq, D = q.shape
    Hkv = k.shape[1]
    if (begin is None) != (longest is None):
        raise ValueError("begin and longest come together")
    if k.shape != (B, Hkv, D) or v.shape != k.shape or Hq % Hkv:
        raise ValueError(f"q {tuple(q.shape)}, k {tuple(k.shape)} and v {tuple(v.shape)} do not fit together")
    heads = (B, Hkv) if begin is None else (B,)
    if keys.shape != (*heads, keys.shape[-2], D) or values.shape != keys.shape:
        raise ValueError(f"keys {tuple(keys.shape)} and values {tuple(values.shape)} do not fit k {tuple(k.shape)}")
    C = keys.shape[-2] if longest is None else longest
    if not 1 <= C <= keys.shape[-2]:
        raise ValueError(f"longest must be from 1 to the {keys.shape[-2]} places of a row, got {longest}")
    each = (B,) if begin is None else (B, Hkv)
    if lengths.shape != each or (begin is not None and begin.shape != each):
        raise ValueError(f"lengths, and begin if given, must be {list(each)}, got {tuple(lengths.shape)}")
    if scores is not None and (scores.shape != keys.shape[:-1] or scores.dtype != torch.float32):
        raise ValueError(f"scores must be float32 {list(keys.shape[:-1])}, got {scores.dtype} {tuple(scores.shape)}")
    if of not in ("sum", "mean", "largest"):
        raise ValueError(f"of must be 'sum', 'mean' or 'largest', got {of!r}")
    if beyond < 0:
        raise ValueError(f"beyond must be at least 0, got {beyond}")
    if (cos is None) != (sin is None):
        raise ValueError("cos and sin come together")
    if cos is not None and sin is not None:
        fits = len(cos) == B if own else len(cos) >= C
        if D % 2 or not fits or cos.shape != (len(cos), D) or sin.shape != cos.shape:
            wanted = f"[{B if own else f'at least {C}'}, {D}] with an even {D}"
            raise ValueError(f"cos and sin must be {wanted}, got {tuple(cos.shape)} and {tuple(sin.shape)}")
    if logn_base is not None and logn_base <= 1:
        raise ValueError(f"logn_base must be above 1, got {logn_base}")
    if window is not None and window < 1:
        raise ValueError(f"window must be at least 1, got {window}")
    return torch.ops.buzz.attend_step(
        q, k, v, keys, values, scores, lengths, scale, logn_base, cos, sin, live, window, of, beyond, begin, longest,
        own and cos is not None, ahead,
    )  # fmt: skip


@torch.library.custom_op(
    "buzz::attend_step",
    mutates_args=("keys", "values", "scores"),
    schema="(Tensor q, Tensor k, Tensor v, Tensor(a!) keys, Tensor(b!) values, Tensor(c!)? scores, Tensor lengths,"
    " float scale, float? logn_base, Tensor? cos, Tensor? sin, Tensor? live, SymInt? window=None,"
    ' str of="sum", int beyond=0, Tensor? begin=None, SymInt? longest=None, bool own=False,'
    " bool ahead=False) -> Tensor",
)
def _attend_step(
    q: torch.Tensor,
    k: torch.Tensor,
    v: torch.Tensor,
    keys: torch.Tensor,
    values: torch.Tensor,
    scores: torch.Tensor | None,
    lengths: torch.Tensor,
    scale: float,
    logn_base: float | None,
    cos: torch.Tensor | None,
    sin: torch.Tensor | None,
    live: torch.Tensor | None,
    window: int | None = None,
    of: str = "sum",
    beyond: int = 0,
    begin: torch.Tensor | None = None,
    longest: int | None = None,
    own: bool = False,
    ahead: bool = False,
) -> torch.Tensor:
    how: dict[str, Any] = {"cos": cos, "sin": sin, "live": live, "window": window, "own": own}
    how |= {"scale": scale, "logn_base": logn_base, "of": of, "beyond": beyond, "begin": begin, "longest": longest}
    if q.dtype in (*HALF, torch.float32) and runs_triton(q):
        from buzz.kernels import step as decode

        return decode.attend(q, k, v, keys, values, scores, lengths, **how, ahead=ahead)
    return naive.attend_step(q, k, v, keys, values, scores, lengths, **how)


@_attend_step.register_fake
def _fake(q: torch.Tensor, *others: Any, **more: Any) -> torch.Tensor:
    return torch.empty_like(q, memory_format=torch.contiguous_format)


__all__ = ["attend_step"]
