"""The model families: what each does otherwise than Llama."""
