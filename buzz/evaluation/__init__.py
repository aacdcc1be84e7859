"""Evaluation: configs, tasks, runs and reports; the only room that knows data sets."""
