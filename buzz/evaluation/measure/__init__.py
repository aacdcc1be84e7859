"""What is measured of a batch, and what becomes of it.

Read `execute`, which runs a batch whatever its task, then `batch`, what all kinds share, and the kinds: `generation`,
`perplexity`, `likelihood`, `fidelity`; `hive` records evictions. From records (`records`) to a summary: `summary`,
`resampling` and `metric_info`; `best` says who is ahead.
"""
