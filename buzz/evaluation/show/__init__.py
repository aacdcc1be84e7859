"""What is shown of runs.

Read `table`, the tables of one run, then `overview`, those of several, and `plot`. `report` makes report.md and
report.html of run folders; `tracking` and `wandb_log` tell Weights & Biases.
"""
