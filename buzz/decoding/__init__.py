"""Decoding in static memory: buffers of fixed size, a step that can be captured, and the loop of `generate()`.

Read `step`, what is computed, then `capture`, how it becomes a graph, and `loop`, which replays it. `arena` is the
buffers with their step, `sizes` how large they are, `engine` which models and caches get one.
"""
