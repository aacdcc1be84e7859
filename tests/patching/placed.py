"""Which policies are run with which positions, and which of them where one of a kind tells as much as all."""

from __future__ import annotations

import buzz

# Names with positions. What tells how queries to come will look at keys needs keys that have their positions already.
PLACED = [
    (name, positions)
    for name in buzz.POLICIES
    for positions in ("cache", "original")
    if positions == "original" or "queries" not in buzz.make_policy(name).reads
]
# As long as nothing is evicted, policies differ in what they ask of a call: nothing, sums, the last queries, another
# policy in every layer, the largest probability from afar for heads that share, a second reading, moments of queries,
# keys.
KINDS = ("full", "h2o", "snapkv", "pyramidkv", "comb", "kvzip", "expected_attention", "keydiff")
