"""`import buzz` costs nothing and gives everything."""

from __future__ import annotations

import subprocess
import sys

import pytest

import buzz

IMPORT = """
import sys, time
start = time.perf_counter()
import buzz
print(time.perf_counter() - start, buzz.__version__, *{"torch", "transformers"} & set(sys.modules))
"""


def test_importing_buzz_takes_no_time_and_reads_no_torch():
    runs = [subprocess.check_output([sys.executable, "-c", IMPORT], text=True, timeout=60).split() for _ in range(5)]
    assert [rest for _, *rest in runs] == [[buzz.__version__]] * 5
    assert min(float(seconds) for seconds, *_ in runs) < 0.1


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
