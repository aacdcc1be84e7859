"""`import buzz` costs nothing and gives everything."""

from __future__ import annotations

import subprocess
import sys

import pytest

import buzz


def test_importing_buzz_reads_no_torch():
    code = "import sys, buzz; buzz.__version__; sys.exit('torch' in sys.modules or 'transformers' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], timeout=60).returncode == 0


def test_every_public_name_is_there():
    assert set(buzz.__all__) <= set(dir(buzz))
    for name in buzz.__all__:
        assert getattr(buzz, name) is getattr(buzz, name)
    assert buzz.policies.make_policy is buzz.make_policy
    assert buzz.cache.BeehiveCache is buzz.BeehiveCache


def test_other_names_are_refused():
    with pytest.raises(AttributeError, match="'buzz' has no attribute 'BeeCache'"):
        _ = buzz.BeeCache
    with pytest.raises(ImportError, match="BeeCache"):
        from buzz import BeeCache  # noqa: F401
