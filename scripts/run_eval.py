#!/usr/bin/env python3
"""Run an evaluation: python scripts/run_eval.py configs/xsum.yaml [key.sub=value ...]"""

import importlib.util
import sys
from pathlib import Path

if importlib.util.find_spec("buzz") is None:  # a checkout that is not installed
    sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from buzz.evaluation.command_line import spin_briefly
from buzz.evaluation.run.cli import main
from buzz.evaluation.run.distributed import leave

if __name__ == "__main__":
    spin_briefly()
    leave(main())
