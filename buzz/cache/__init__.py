"""A cache that evicts. It knows no model: whoever has one calls `begin`, then `append` and `observe` in every layer.

To be read in this order, each file knowing only those before it:

    heads       what a policy needs that looks across heads, where processes share them
    per_row     PerRow: policies of a batch whose rows have parameters of their own
    schedule    when rows evict, in integers: Eviction, Step (one call of one schedule), Schedule
    call        one forward pass, what it may see of a layer (Slots), what model and cache agree in (Shape)
    columns     which columns held tokens, as attention masks said, and whether a later mask agrees
    figures     running figures of the calls, and the Curve of all of them where it is asked for
    calls       all of the above for a whole cache: the integers, and the call that is open
    compaction  an eviction on tensors: what stays moves to the front
    stack       buffers that several layers share
    pool        buffers of heads that hold unequal numbers of slots: one pool a row, dealt out unevenly
    dealing     an eviction of heads that share: the slots that stay are dealt out anew
    layer       buffers of one layer: written in place, grown with need, lent by a stack; or a part of a pool
    echo        a call that is read twice: the chunks of its copy, and what was heard
    settle      what happens to layers that are done with a call: alone, with those like them, in a stack
    shared      the layers of a schedule whose heads share: when they go into pools, and what happens there
    storage     all layers, wherever they live, and what a call does to them
    budget      a budget as a user may give it: tokens, or a share of prompts to come
    assignment  which policy each layer gets and which positions keys get, from what a user may give
    copying     a second cache with what a first one holds
    identity    which model has filled a cache
    packing     what layers hold as flat tensors, and back
    files       a saved cache: its two files, and what is refused of them
    interface   what transformers asks of a cache besides calls
    view        what a cache tells of itself
    beehive     BeehiveCache: a transformers Cache made of all this
"""

from __future__ import annotations

from buzz.cache.beehive import BeehiveCache
from buzz.cache.call import Call, Shape, Slots
from buzz.cache.figures import Curve
from buzz.cache.per_row import PerRow

__all__ = ["BeehiveCache", "Call", "Curve", "PerRow", "Shape", "Slots"]
