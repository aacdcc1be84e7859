#!/usr/bin/env python3
"""Report runs: python scripts/report.py RUN... [--output DIR]"""

import importlib.util
import sys
from pathlib import Path

if importlib.util.find_spec("buzz") is None:  # a checkout that is not installed
    sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from buzz.evaluation.show.report.cli import main

if __name__ == "__main__":
    sys.exit(main())
