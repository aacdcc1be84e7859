"""Evaluation: configs, tasks, runs and reports; the only room that knows data sets.

Rooms, each importing only from those before it: `config`, the language of configs; `metrics`; `tasks`; `models`;
`measure`, one batch; `show`, tables, pictures and reports; `run`, which puts them together. Read `run/runner.py` first.
The files here belong to all of them: `errors`, `paths` and `files` for what users name and what is written,
`packaged`, the configs that come with buzz, `command_line`, `environment`, `memory`.
"""
