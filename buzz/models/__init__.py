"""The model families: what each does otherwise than Llama.

Read `family`, what can differ, and `families`, the table. What differs is in `projections`, `norms`, `mlp` and
`positions`; what all share is `attention`. `layer` has the faster ways of a prompt, `row` those of a step of one row,
`slots` what a layer reads in static memory, `tensor_parallel` heads that are spread over processes. `untouched` says
which modules may be read past their forward.
"""
