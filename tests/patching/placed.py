"""Which policies can be run with which positions."""

from __future__ import annotations

import buzz

# Names with positions. What tells how queries to come will look at keys needs keys that have their positions already.
PLACED = [
    (name, positions)
    for name in buzz.POLICIES
    for positions in ("cache", "original")
    if positions == "original" or "queries" not in buzz.make_policy(name).reads
]
