"""Which policy each layer of a model gets, and which positions keys get, from what a user may give."""

from __future__ import annotations

import warnings
from collections.abc import Iterable, Iterator, Sequence
from typing import Any

import torch
from transformers import PreTrainedConfig

from buzz.cache.call import Shape
from buzz.cache.per_row import PerRow
from buzz.policies import HeadShares, Policy
from buzz.policies.specs import refuse_unheard
from buzz.policies.window import SlidingWindow

POSITIONS = ("cache", "original")


def text_config(config: Any) -> Any:
    """The configuration of the text model, of a model or a configuration.

    Raises:
        TypeError: it is neither.
    """
    found = config
    while not isinstance(found, PreTrainedConfig | None):  # a model, perhaps in wrappers
        found = getattr(found, "config", None) or getattr(found, "module", None)
    if not isinstance(found, PreTrainedConfig):
        raise TypeError(
            f"BeehiveCache(policy, model) needs a model or its configuration, got {type(config).__name__} in its place"
        )
    return found.get_text_config(decoder=True)


def in_order(policy: Any, config: Any) -> tuple[Any, Any]:
    """The policy and the model of a cache, whichever was named first."""
    kinds = (str, Policy, PerRow, Sequence)
    return (config, policy) if isinstance(config, kinds) and not isinstance(policy, kinds) else (policy, config)


def policies_of_layers(policy: Any, shape: Shape, stacklevel: int) -> list[Policy | PerRow]:
    """What each layer keeps: those with a sliding window that window, the others what their policy says.

    A policy that differs by layer is spread over the layers that it decides over. Where it decides over none, a warning
    says so.

    Args:
        policy: one for all, or one for each layer of the model.
        stacklevel: of the warning, as seen from the caller.

    Raises:
        ValueError, TypeError: it is no policy, or not one for each layer; a policy asks for attention that it cannot
            be given.
    """
    given: list[Policy | PerRow]
    if isinstance(policy, Policy | PerRow):
        given = _spread(policy, shape)
    elif not isinstance(policy, Sequence) or not all(isinstance(p, Policy | PerRow) for p in policy):
        raise TypeError(
            f"policy must be a buzz policy, its name, or one per layer (buzz.make_policy), got {type(policy).__name__}"
        )
    elif len(policy) != shape.layers:
        raise ValueError(f"the model has {shape.layers} layers, got {len(policy)} policies")
    else:
        given = list(policy)
    for one in dict.fromkeys(given):
        for own in one.policies if isinstance(one, PerRow) else [one]:
            refuse_unheard(own.name, own.score_spec, own.prompt_spec, own.echo_chunk is not None)
    if None not in shape.windows and any(p.name not in ("full", SlidingWindow.name) for p in given):
        sizes = " or ".join(str(window) for window in dict.fromkeys(shape.windows))
        warnings.warn(
            f"every layer of this model has a sliding window of {sizes} tokens, which it keeps: the policy decides "
            "nothing",
            stacklevel=stacklevel + 1,
        )
    return _with_windows(given, shape)


def spread_over_layers(policy: Policy | PerRow, shape: Shape) -> list[Policy | PerRow]:
    """What each layer keeps: a sliding window where it has one, else what a policy says, which may differ by layer."""
    return _with_windows(_spread(policy, shape), shape)


def _spread(policy: Policy | PerRow, shape: Shape) -> list[Policy | PerRow]:
    decided = set(shape.decided)
    spread: Iterator[Policy | PerRow] = iter(policy.per_layer(len(shape.decided)))
    return [next(spread) if layer in decided else policy for layer in range(shape.layers)]


def _with_windows(given: Sequence[Policy | PerRow], shape: Shape) -> list[Policy | PerRow]:
    """Layers with a sliding window keep that, whatever they are given."""
    return [SlidingWindow(w) if w is not None else own for own, w in zip(given, shape.windows, strict=True)]


def positions_of_keys(
    given: str | None, policies: Sequence[Policy | PerRow], shape: Shape, config: PreTrainedConfig
) -> str:
    """The positions that keys get: one of `POSITIONS`.

    Args:
        given: by the user; None: what the policy prefers, or else "cache" for rotary models and "original" for others.
        policies: of each layer.

    Raises:
        ValueError: there are no such positions; a policy needs others.
    """
    if given is not None and given not in POSITIONS:
        raise ValueError(f"positions must be one of {', '.join(POSITIONS)}, got {given!r}")
    rotary = getattr(config, "rope_parameters", None)
    positions = given or policies[shape.decided[0]].positions or ("cache" if rotary else "original")
    if rotary and positions == "cache":
        for name in sorted({policy.name for policy in policies if "queries" in policy.reads}):
            raise ValueError(
                f"{name} tells how queries to come will look at keys, which must have their positions already: "
                "take positions='original' (docs/limits.md)"
            )
    return positions


def refuse_shares(shares: Any, shape: Shape) -> None:
    """Whether head shares are those of a model.

    Raises:
        TypeError: they are none. ValueError: they are of other layers or heads than the policy decides over.
    """
    if not isinstance(shares, HeadShares):
        what = f"got {type(shares).__name__}"
        raise TypeError(f"shares must be buzz.HeadShares, such as HeadShares.load(path) gives, {what}")
    has, needs = (shares.layers, shares.heads), (len(shape.decided), shape.heads)
    if has != needs:
        raise ValueError(
            f"the head shares are of {has[0]} layers of {has[1]} KV heads, the policy decides over {needs[0]} "
            f"layers of {needs[1]}: they were measured on another model"
        )


def refuse_spread_heads(policies: Iterable[Policy | PerRow], devices: Iterable[torch.device], spread: bool) -> None:
    """Whether heads that share their slots are where they can.

    Args:
        policies, devices: of each layer; devices are looked at only where they matter.
        spread: whether processes have some of a layer's heads each.

    Raises:
        ValueError: no: what a row's heads hold together is known beforehand, what some of them hold is not.
    """
    scopes = {policy.scope: policy.name for policy in policies}
    if spread and (name := scopes.get("layer") or scopes.get("model")):
        raise ValueError(
            f"the heads that share slots in {name} are spread over processes: take scope='head' (docs/limits.md)"
        )
    if "model" in scopes and (several := len(set(devices))) > 1:
        raise ValueError(
            f"the layers that share slots in {scopes['model']} are on {several} devices: take scope='layer' or "
            "scope='head' (docs/limits.md)"
        )
