"""An endless stream is one: neither cache nor process grows with it."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]


@pytest.mark.slow
@pytest.mark.skipif(not Path("/proc/self/statm").exists(), reason="needs Linux's /proc")
@pytest.mark.parametrize("way", [[], ["--static"]], ids=["forward", "static"])
def test_a_stream_does_not_grow_the_process(way):
    """137 bytes a token, as lengths of all calls would take, are 1 MiB here. A million takes 20 minutes by hand."""
    command = [sys.executable, "-m", "tests.patching.endless", "--tokens", "9000", "--most", "0.7", *way]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=250)
    assert done.returncode == 0, done.stdout + done.stderr
    assert "logits finite" in done.stdout
