"""Monkey-patched attention for the supported model families, one file each."""

from __future__ import annotations

from torch import nn

from buzz.patching.base import PatchHandle
from buzz.patching.family import Family
from buzz.patching.llama import LLAMA
from buzz.patching.opt import OPT

# The registry: a new family is one file and one line here.
FAMILIES: tuple[Family, ...] = (LLAMA, OPT)


class UnsupportedModelError(ValueError):
    """The model is of a family that buzz cannot patch."""


def supported_families() -> list[str]:
    """`config.model_type` of the families that can be patched."""
    return [family.name for family in FAMILIES]


def patch_model(model: nn.Module) -> PatchHandle:
    """Make a model evict when it is given a `BeehiveCache`; with any other cache it works bit for bit as before.

    The attention forward of every attention module is swapped on the module itself, so other models of the same
    class are not touched. Patching a patched model changes nothing and returns the same handle.

    Returns:
        A handle: `handle.remove()`, or use it as a context manager.

    Raises:
        UnsupportedModelError: names the supported families.
    """
    if (handle := getattr(model, "_buzz_handle", None)) is not None:
        return handle
    modules = list(model.modules())
    for family in FAMILIES:
        if any(isinstance(module, family.backbone) for module in modules):
            return PatchHandle(model, family)
    kind = getattr(getattr(model, "config", None), "model_type", type(model).__name__)
    raise UnsupportedModelError(f"cannot patch a {kind!r} model, supported are {', '.join(supported_families())}")


__all__ = ["FAMILIES", "PatchHandle", "UnsupportedModelError", "patch_model", "supported_families"]
