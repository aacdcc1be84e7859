"""python -m buzz.harness --model_args pretrained=...,policy=comb,budget=0.4 --tasks ..."""

from buzz.harness.cli import main

if __name__ == "__main__":
    raise SystemExit(main())
