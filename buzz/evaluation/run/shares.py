"""Shares of the model's heads in a run: measured before any method is timed, and kept in its folder."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from buzz.cache import Shape
from buzz.cache.assignment import refuse_shares
from buzz.evaluation.config.methods import MethodConfig
from buzz.evaluation.errors import ConfigError
from buzz.evaluation.run.distributed import Group
from buzz.evaluation.run.store import RunFolder
from buzz.models.shares import head_shares, remember
from buzz.policies import HeadShares
from buzz.words import told


def know_shares(model: Any, methods: Sequence[MethodConfig], folder: RunFolder, group: Group) -> None:
    """Let a patched model have its head shares, the same in all processes, if a method needs them.

    Raises:
        ConfigError: those that environment.json holds are damaged, or of another model.
    """
    if any(method.make_policy().measured for method in methods):
        remember(model, group.by_main(lambda: _shares(model, folder)))


def _shares(model: Any, folder: RunFolder) -> HeadShares:
    """As environment.json holds them, or as they are measured now."""
    known = folder.environment().get("head_shares")
    if known is None:
        folder.extend_environment("head_shares", head_shares(model).shares)
        return head_shares(model)
    try:
        found = HeadShares(known)
        refuse_shares(found, Shape.of(model.config))
        return found
    except (TypeError, ValueError) as error:
        what = f"head_shares in {folder.path / 'environment.json'} are damaged: {told(error)}"
        raise ConfigError("output", what, "choose another output or delete the folder") from error


__all__ = ["know_shares"]
