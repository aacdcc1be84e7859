"""What Triton's interpreter takes and its compiler would refuse is found without a GPU."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

pytest.importorskip("triton")
ROOT = Path(__file__).resolve().parents[2]


def test_every_kernel_passes_the_front_end():
    environment = {name: value for name, value in os.environ.items() if name != "TRITON_INTERPRET"}
    done = subprocess.run(
        [sys.executable, "-m", "tests.kernels.front_end"], cwd=ROOT, env=environment, capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr[-3000:]
    sources = "".join(path.read_text(encoding="utf-8") for path in (ROOT / "buzz" / "kernels").glob("*.py"))
    launched = set(re.findall(r"^ +(\w+)\[\(", sources, re.MULTILINE))
    seen = dict(re.findall(r"^(\w+) (\d+)$", done.stdout, re.MULTILINE))
    assert set(seen) == launched
    assert seen["attend_split"] == "80"  # each of the kinds that are launched is one to the compiler
