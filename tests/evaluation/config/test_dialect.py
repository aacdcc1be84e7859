"""The YAML of configs: numbers are what they look like."""

from __future__ import annotations

import pytest
import yaml

from buzz.evaluation.config.dialect import StrictLoader


@pytest.mark.parametrize(
    ("written", "value"),
    [("1000", 1000), ("+5", 5), ("2.50", 2.5), ("1e1", 10.0), ("1.5e+3", 1500.0), (".5", 0.5), ("5.", 5.0), ("7", 7)],
)
def test_numbers_are_plain_decimals(written: str, value: float) -> None:
    found = yaml.load(written, StrictLoader)
    assert (found, type(found)) == (value, type(value))
