"""The Triton kernels, and where they run. The only room that imports triton.

Of a prompt: `column_sums`, `rotation`, `norm`, `gate`, `gather`. Of a step: `step` with its `step_kernels`, `product`,
`early`. `device` says where they run, `launch` how they are cut up.
"""
