"""A cache that evicts."""

from __future__ import annotations

from buzz.cache.beehive import BeehiveCache
from buzz.cache.call import Call, Shape, Slots
from buzz.cache.figures import Curve
from buzz.cache.schedule import PerRow

__all__ = ["BeehiveCache", "Call", "Curve", "PerRow", "Shape", "Slots"]
