"""Policies of rows: what they must agree in."""

from __future__ import annotations

import pytest

from buzz.cache.per_row import PerRow, policies_of_rows
from buzz.cache.schedule import Schedule
from buzz.policies import make_policy

LOCAL = make_policy("local", window=5)
WIDER = make_policy("local", window=6)


def test_rows_need_policies_of_one_family():
    rows = PerRow([LOCAL, WIDER])
    assert (rows.name, rows.logn_base, len(rows.per_layer(3))) == ("local", None, 3)
    with pytest.raises(ValueError, match="the call has 3 rows, got policies for 2"):
        Schedule(rows, 3)
    with pytest.raises(ValueError, match="got none"):
        PerRow([])
    with pytest.raises(TypeError, match="one family, got buzz, local"):
        PerRow([LOCAL, make_policy("buzz")])
    with pytest.raises(TypeError, match="PerRow takes a list of buzz policies"):
        PerRow(["buzz"])
    with pytest.raises(TypeError, match="PerRow takes a list of buzz policies"):
        PerRow(LOCAL)
    assert PerRow(iter([LOCAL, WIDER])) == rows
    with pytest.raises(ValueError, match="the same logn_base"):
        PerRow([LOCAL, make_policy("local", window=6, logn_base=512)])


def test_one_policy_is_for_all_rows():
    assert policies_of_rows(LOCAL, 2) == [LOCAL, LOCAL]
    assert policies_of_rows(PerRow([LOCAL, WIDER]), 2) == [LOCAL, WIDER]
