"""Buffers that layers may come to live in."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

from buzz.cache.pool import Pool
from buzz.cache.stack import Stack


class Offer(NamedTuple):
    """Buffers for some layers of one schedule on one device: the i-th of `layers` is layer i in there."""

    buffers: Stack | Pool
    layers: Sequence[int]
