"""The model of a run: where it is, and how it is loaded."""
