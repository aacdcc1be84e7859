"""A run, from its config to its report.

Read `runner`, the order of a run, then `work`, its methods and batches, and `budgets`, which policy a sample gets.
`config` composes the sections of all rooms, `store` is the run folder, `distributed` the processes. `grid` makes many
runs of one config and `sweep` does them. `cli` is the command line.
"""
