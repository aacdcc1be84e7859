"""The Triton kernels, and where they run. The only room that imports triton.

`device.py` says where kernels run and pay, `launch.py` how those of attention are cut up, `early.py` how a kernel
starts before the one before it has ended. Attention: `received.py` (scores of a prompt), `step.py` and
`step_kernels.py` (one token per row), `rotation.py`. A layer: `norm.py`, `gate.py`, `product.py` (matrices times one
vector), `skinny.py` (times a few), `matrices.py` (what these two check). The cache: `gather.py` and `shift.py`, and of
heads that share `share.py`, `recency.py` and `deal.py`.
"""
