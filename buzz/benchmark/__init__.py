"""Speed: prefill, decoding, throughput and kernels of BUZZ and what it is measured against, in one run.

Read `config`, which has a class for each section, then `sections`, which runs them, and `bench`, what they share. The
sections: `ceilings`, `kernels`, `prompts`, `decoding`, `agreement`, `steps`, and `caches`, beside all of transformers'
own (`paged`, `quantized`). `contenders` are compared; `clocks` and `waits` measure; `book` keeps, `tables`, `plots` and
`page` show the results. `spread` is a command of its own, for several GPUs.
"""
