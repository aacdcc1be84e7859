"""patch_model, and the handle that takes the patch back. Which families there are says `buzz.models.families`."""

from __future__ import annotations

from typing import Any

from buzz.models.families import FAMILIES
from buzz.models.shares import head_shares
from buzz.patching.handle import PatchHandle
from buzz.patching.targets import UnsupportedModelError, find_targets


def supported_families() -> list[str]:
    """`config.model_type` of the families that can be patched."""
    return list(FAMILIES)


def patch_model(model: Any) -> PatchHandle:
    """Make a model evict when it is given a `BeehiveCache`; with any other cache it works bit for bit as before.

    The forwards of the backbone and of every attention module are swapped on the modules themselves, so other models
    of the same class are not touched. What the model is wrapped in does not matter (torch.compile, an engine, a pair of
    adapters); a compiled model breaks its graph where it is given a BeehiveCache. Patching a patched model changes
    nothing and returns the same handle, patching the model around a patched backbone makes that one's patch larger.

    Returns:
        A handle: `handle.remove()`, or use it as a context manager.

    Raises:
        UnsupportedModelError: the model is of no supported family (names these), or a module is not exactly what its
            family's class says (names it); then nothing is patched. TypeError: it is no model.
    """
    targets = find_targets(model, list(FAMILIES.values()))
    handles = {id(b._buzz.handle): b._buzz.handle for b in targets.backbones if "_buzz" in vars(b)}
    if not handles:
        return PatchHandle(targets)
    (handle,) = handles.values()
    if targets.model not in set(handle.model.modules()):
        if handle.model not in set(targets.model.modules()):
            here, there = type(targets.model).__name__, type(handle.model).__name__
            raise UnsupportedModelError(f"this {here} shares its backbone with a patched {there}: remove that patch")
        handle.renew(targets.model)
    handle.refresh()
    return handle


__all__ = ["FAMILIES", "PatchHandle", "UnsupportedModelError", "head_shares", "patch_model", "supported_families"]
