"""Which policy each layer of a model gets, from what a user may give."""

from __future__ import annotations

import warnings
from collections.abc import Sequence
from typing import Any

from transformers import PreTrainedConfig

from buzz.cache.schedule import PerRow
from buzz.policies import Policy, make_policy
from buzz.policies.window import SlidingWindow


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


def policies_of_layers(policy: Any, budget: int | None, layers: int) -> list[Policy | PerRow]:
    """The policy of each layer.

    Raises:
        ValueError, TypeError: it is no policy, or not one for each layer; the budget does not fit.
    """
    if isinstance(policy, str):
        policy = make_policy(policy)
    if budget is not None:
        if not isinstance(policy, Policy):
            raise TypeError("budget= goes with one policy or its name; fit others with Policy.from_budget")
        if isinstance(budget, float) and 0 < budget <= 1:
            raise ValueError(f"budget= is a number of tokens, got the share {budget}: multiply it by the prompt's")
        policy = policy.from_budget(budget)
    if isinstance(policy, Policy | PerRow):
        return list(policy.per_layer(layers))
    if not isinstance(policy, Sequence) or not all(isinstance(p, Policy | PerRow) for p in policy):
        raise TypeError(
            f"policy must be a buzz policy, its name, or one per layer (buzz.make_policy), got {type(policy).__name__}"
        )
    if len(policy) != layers:
        raise ValueError(f"the model has {layers} layers, got {len(policy)} policies")
    return list(policy)


def beside_windows(
    policies: Sequence[Policy | PerRow], windows: Sequence[int | None], stacklevel: int
) -> tuple[list[Policy | PerRow], list[int]]:
    """What all layers keep, those with a sliding window that window; and the layers that the policies decide over.

    These are the layers of full attention, or all if there are none. Then a warning says that nothing is decided.

    Args:
        windows: of each layer.
        stacklevel: of the warning, as seen from the caller.
    """
    decided = [layer for layer, window in enumerate(windows) if window is None]
    if not decided and any(policy.name != "full" for policy in policies):
        sizes = " or ".join(str(window) for window in dict.fromkeys(windows))
        warnings.warn(
            f"every layer of this model has a sliding window of {sizes} tokens, which it keeps: the policy decides "
            "nothing",
            stacklevel=stacklevel + 1,
        )
    kept = [p if w is None else SlidingWindow(w) for p, w in zip(policies, windows, strict=True)]
    return kept, decided or list(range(len(windows)))
