"""BUZZ and its rivals: KV-cache eviction for Hugging Face models (arXiv 2410.23079)."""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from buzz.cache import BeehiveCache, PerRow
    from buzz.patching import UnsupportedModelError, head_shares, patch_model
    from buzz.policies import POLICIES, HeadShares, Plan, Policy, ScoreSpec, make_policy

__version__ = "0.1.0"

__all__ = [
    "POLICIES",
    "BeehiveCache",
    "HeadShares",
    "PerRow",
    "Plan",
    "Policy",
    "ScoreSpec",
    "UnsupportedModelError",
    "head_shares",
    "make_policy",
    "patch_model",
]

# Where each name lives. It is imported when it is first asked for: torch and transformers take seconds, and the
# command lines tell how they are used without them.
_HOME = {
    "BeehiveCache": "buzz.cache",
    "PerRow": "buzz.cache",
    **dict.fromkeys(("UnsupportedModelError", "head_shares", "patch_model"), "buzz.patching"),
    **dict.fromkeys(("POLICIES", "HeadShares", "Plan", "Policy", "ScoreSpec", "make_policy"), "buzz.policies"),
}
_MODULES = ("attention", "cache", "patching", "policies")  # `import buzz` alone gives these as well


def __getattr__(name: str) -> Any:
    if name in _MODULES:
        return import_module(f"buzz.{name}")
    if name not in _HOME:
        raise AttributeError(f"module 'buzz' has no attribute {name!r}")
    value = getattr(import_module(_HOME[name]), name)
    globals()[name] = value  # found without a detour from now on
    return value


def __dir__() -> list[str]:
    return sorted({*globals(), *_HOME, *_MODULES})
