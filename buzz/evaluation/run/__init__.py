"""A run: its config, its folder, its loop, and the command line."""
