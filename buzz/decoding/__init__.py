"""Decoding in static memory: buffers of fixed size, a step that can be captured, and the loop of `generate()`.

Read `step.py` (the step, which asks the host nothing), `capture.py` (how it becomes a CUDA graph) and `loop.py` (the
loop, which never waits between steps). `sizes.py` says how much memory a cache needs, `arena.py` has it and feeds it,
`engine.py` knows which models can, and lends the arenas to caches.
"""
