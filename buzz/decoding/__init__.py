"""Decoding in static memory: buffers of fixed size, a step that can be captured, and the loop of `generate()`."""
