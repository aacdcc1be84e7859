"""Which heads of a model look far back: measured once, by reading a text twice that the model has written itself."""

from __future__ import annotations

import contextlib
import weakref
from collections.abc import Iterator
from typing import Any

import torch

from buzz.cache import BeehiveCache, Shape
from buzz.models.cache_argument import as_argument
from buzz.policies import CombPolicy, FullPolicy, HeadShares

_ROWS, _TOKENS = 8, 64  # of the text: so many beginnings, each so long
_PART = 8  # the text is compressed to such a part of it
_SMALLEST = 8  # capacity, for models of few positions
_LEAST = 64  # tokens of a text that is given
_FEW = 16  # heads of all layers together, below which they are taken to be alike
_SEED = 0

# Those of each model that is there, patched or not; its patch has them too, so that copies of the model do.
_KNOWN: weakref.WeakKeyDictionary[Any, HeadShares] = weakref.WeakKeyDictionary()


def head_shares(model: Any, ids: torch.Tensor | None = None, *, again: bool = False) -> HeadShares:
    """What each KV head of a patched model needs of the slots that all have together.

    A text is read twice and compressed by comb with `echo`, which shares slots out by what heads need to tell the text
    again; the slots that each head then holds are its share. Fewer than 16 heads have equal shares, if no text is
    given: each of few does too much for what it needs to tell a text again to say what it needs else (docs/comb.md).
    Without `ids` the text is the model's own: sampled at
    temperature 1, with a seed, from the token that its texts begin with. That takes some seconds, and is done once for
    a model: asked a second time, or when a cache needs it, the same shares are returned, also after its weights have
    changed. Hooks on modules see the calls.

    Args:
        model: a model that `buzz.patch_model` has patched.
        ids: int64 [1, tokens], a text of some hundred tokens to measure with in place of the model's own. Then they
            are measured anew, and are those of the model from now on.
        again: measure anew, as after its weights have changed.

    Raises:
        ValueError: the model is not patched; it has no head that gives logits, and no text was given; the text is too
            short, or no tokens.
    """
    handle = getattr(model, "_buzz_handle", None)
    if handle is None:
        raise ValueError("head shares are measured on a patched model: call buzz.patch_model(model) first")
    shares = None if again or ids is not None else _KNOWN.get(handle.model, handle.shares)
    if shares is None:
        with _measuring(handle):
            shares = _measured(handle.model, ids)
    remember(handle.model, shares)
    return shares


def remember(model: Any, shares: HeadShares) -> None:
    """Let these be the shares of a model from now on, as if it had been measured."""
    _KNOWN[model] = shares
    handle = getattr(model, "_buzz_handle", None)
    if handle is not None:
        handle.shares = shares


def give_shares(cache: BeehiveCache, model: Any) -> None:
    """Before its first call: give a cache the shares of a patched model's heads, if its policy needs them."""
    if cache.is_unmeasured:
        cache.lend(head_shares(model))


@contextlib.contextmanager
def _measuring(handle: Any) -> Iterator[None]:
    """Without dropout, whose random numbers belong to others, and without warnings of what others did not ask for."""
    training = [module for module in handle.model.modules() if module.training]
    try:
        handle.measuring = True
        for module in training:
            module.training = False
        yield
    finally:
        handle.measuring = False
        for module in training:
            module.training = True


@torch.no_grad()
def _measured(model: Any, ids: torch.Tensor | None) -> HeadShares:
    shape = Shape.of(model.config)
    if ids is None and shape.heads * len(shape.decided) < _FEW:
        return HeadShares(((1.0,) * shape.heads,) * len(shape.decided))
    if ids is None:
        text = _written(model)
    elif not isinstance(ids, torch.Tensor) or ids.dtype not in (torch.int64, torch.int32):
        got = ids.dtype if isinstance(ids, torch.Tensor) else type(ids).__name__
        raise ValueError(f"head shares need a text of integers, a tensor int64 [1, tokens], got {got}")
    elif ids.dim() == 2 and len(ids) == 1 and ids.shape[1] >= _LEAST:
        text = ids.to(_device(model))
    else:
        raise ValueError(f"head shares need one text of at least {_LEAST} tokens, [1, tokens], got {list(ids.shape)}")
    policy = CombPolicy(capacity=max(_SMALLEST, text.shape[1] // _PART), echo=True)
    cache = BeehiveCache(policy, model, positions="original")
    model(input_ids=text, **as_argument(cache), use_cache=True)
    stores = [cache.layers[layer] for layer in cache.integers.counted]
    # Where nothing had to go, as in layers that all have a sliding window, heads are alike.
    held = (store.pool.lengths(store.member)[0] if store.pool is not None else [1] * shape.heads for store in stores)
    return HeadShares(tuple(tuple(map(float, of)) for of in held))


def _device(model: Any) -> torch.device:
    """Where a model's tokens go."""
    return model.get_input_embeddings().weight.device


def _written(model: Any) -> torch.Tensor:
    """A text that the model writes, int64 [1, tokens]: what it samples after several beginnings, one after another."""
    config, device = model.config.get_text_config(decoder=True), _device(model)
    known = getattr(config, "max_position_embeddings", None) or 2 * (_ROWS * _TOKENS + 1)
    most = max(1, known // 2 - 1)  # the text is told again behind itself
    generator = torch.Generator("cpu").manual_seed(_SEED)  # of its own, and on the CPU: the same whatever the device
    first = config.bos_token_id
    if isinstance(first, list):
        first = first[0] if first else None
    if first is not None and not 0 <= first < config.vocab_size:  # none that the model has
        first = None
    begin = torch.randint(config.vocab_size, (_ROWS, 1), generator=generator, device="cpu")
    last, parts = begin.to(device), []
    if first is not None:
        last = torch.cat([torch.full_like(last, first), last], dim=1)
    cache = BeehiveCache(FullPolicy(), model)
    for _ in range(min(_TOKENS, most)):
        parts.append(last[:, -1:])
        logits = getattr(model(input_ids=last, **as_argument(cache), use_cache=True), "logits", None)
        if logits is None:
            raise ValueError(
                f"{type(model).__name__} gives no logits, so it writes no text to measure its heads with: "
                "call buzz.head_shares(model, ids) with a text first"
            )
        chances = logits[:, -1].float().softmax(dim=-1).nan_to_num().cpu()
        chances[chances.sum(dim=-1) == 0] = 1.0  # of a model whose logits are no numbers: any token
        last = torch.multinomial(chances, 1, generator=generator).to(device)
    text = torch.cat(parts, dim=1).view(1, -1)[:, :most]
    return text if first is None else torch.cat([torch.full_like(text[:, :1], first), text], dim=1)


__all__ = ["give_shares", "head_shares", "remember"]
