#!/usr/bin/env python3
"""Run an evaluation: python scripts/run_eval.py configs/xsum.yaml [key.sub=value ...]"""

import importlib.util
import os
import sys
from pathlib import Path

# On a CPU that others use too, OpenMP's threads wait for each other in a busy loop for so long that a step takes up
# to 40 times as long. A short loop costs nothing on an idle machine. Read once, when torch is loaded.
if "OMP_WAIT_POLICY" not in os.environ:
    os.environ.setdefault("GOMP_SPINCOUNT", "4000")

if importlib.util.find_spec("buzz") is None:  # a checkout that is not installed
    sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from buzz.evaluation.run.cli import main
from buzz.evaluation.run.distributed import leave

if __name__ == "__main__":
    leave(main())
