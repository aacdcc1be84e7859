"""BUZZ and its rivals: KV-cache eviction for Hugging Face models (arXiv 2410.23079)."""

from buzz.cache import BeehiveCache
from buzz.patching import UnsupportedModelError, patch_model
from buzz.policies import POLICIES, Plan, Policy, ScoreSpec, make_policy

__version__ = "0.1.0"

__all__ = [
    "POLICIES",
    "BeehiveCache",
    "Plan",
    "Policy",
    "ScoreSpec",
    "UnsupportedModelError",
    "make_policy",
    "patch_model",
]
