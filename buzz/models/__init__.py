"""The model families: what each does otherwise than Llama, and all that follows from it.

Read `family.py` (what can differ) and `families.py` (the table), then `attention.py` (the one attention forward, for
calls and for steps in static memory). Beside them: `projections.py` and `positions.py`, of which a family chooses;
`layer.py`, how a decoder layer reads a prompt on a GPU in fewer kernels, and `row.py` and `rows.py`, how it makes a
step of one row and of a few; `norms.py` and `mlp.py`, what those find in a layer; `untouched.py`, whether they may;
`slots.py`, a layer in static memory; `moments.py` and `outputs.py`, what some policies ask of a call;
`tensor_parallel.py`, heads that are spread over processes.
"""
