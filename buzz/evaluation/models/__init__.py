"""The model of a run: where it is, and how it is loaded.

Read `source`, which finds and checks a model without reading a weight, then `load`. `pieces` joins a GGUF file that was
cut up, `gguf` repairs what transformers makes of one.
"""
