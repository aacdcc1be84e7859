"""The language of configs."""
