"""Shares of a model's heads: what they must be, the budgets that follow, and their file."""

from __future__ import annotations

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from buzz.policies import HeadShares

NUMBERS = st.floats(0.01, 20, allow_nan=False)


def shares(draw_from=NUMBERS):
    layers = st.integers(1, 3).flatmap(lambda heads: st.lists(st.lists(draw_from, min_size=heads, max_size=heads)))
    return layers.filter(bool).map(HeadShares)


@settings(max_examples=200, deadline=None)
@given(shares(), st.integers(1, 300), st.data())
def test_budgets_are_shares_within_their_bounds(some, kept, data):
    """A head within its bounds has its share of what those at their bounds leave; nothing is given twice."""
    least, most = data.draw(st.integers(1, kept)), data.draw(st.integers(kept, 9 * kept))
    flat = [share for of in some.shares for share in of]
    budgets = some.budgets(kept, least, most)
    assert all(least <= budget <= most for budget in budgets)
    assert kept * len(flat) - len(flat) <= sum(budgets) <= kept * len(flat)
    free = [(share, budget) for share, budget in zip(flat, budgets, strict=True) if least < budget < most - 1]
    scales = [((budget - 1e-3) / share, (budget + 1 + 1e-3) / share) for share, budget in free]
    assert not scales or max(low for low, _ in scales) <= min(high for _, high in scales)  # one scale explains all
    assert some.part(kept, least, most, None, 1, len(flat) - 1) == budgets[1:]
    times = data.draw(st.integers(1, 4))
    bounded = some.budgets(kept, least, most, times)
    for layer in range(some.layers):
        own = slice(layer * some.heads, (layer + 1) * some.heads)
        assert sum(bounded[own]) <= times * kept * some.heads
        assert bounded[own] == budgets[own] or sum(budgets[own]) > times * kept * some.heads


def test_equal_heads_have_what_is_kept():
    assert HeadShares([[3, 3], [3, 3]]).budgets(8, 1, 64) == (8, 8, 8, 8)
    assert HeadShares([[1, 3]]).shares == ((0.5, 1.5),)


def test_shares_may_be_far_apart():
    some = HeadShares([[1e-9, 1], [1, 1e9]])
    assert some.budgets(64, 20, 512) == (20, 20, 20, 196)
    assert some.budgets(64, 20, 128) == (20, 54, 54, 128)
    assert HeadShares([[1e-300, 1]]).budgets(64, 20, 512) == (20, 108)


@pytest.mark.parametrize("wrong", [[[1e-320, 1e10]], [[1e308, 1e308]]])
def test_shares_that_floats_cannot_compare_are_refused(wrong):
    with pytest.raises(ValueError, match=r"head shares are too far apart, or too large, from "):
        HeadShares(wrong)


@pytest.mark.parametrize(
    "wrong", [[], [[]], [[1.0], [1.0, 2.0]], [[0.0, 1.0]], [[float("nan")]], [["one"]], [[-1]], [[10**400, 1]]]
)
def test_what_are_no_shares_is_refused(wrong):
    with pytest.raises(ValueError, match="head shares"):
        HeadShares(wrong)


@pytest.mark.parametrize("wrong", [1.0, [1.0, 2.0], "ab"])
def test_what_is_no_table_is_refused(wrong):
    with pytest.raises(TypeError, match="head shares are a list for every layer"):
        HeadShares(wrong)


@settings(max_examples=50, deadline=None)
@given(shares(st.floats(1e-9, 1e9)))
def test_a_file_gives_them_back_to_the_last_bit(tmp_path_factory, some):
    path = tmp_path_factory.mktemp("shares") / "heads.json"
    some.save(path)
    found = HeadShares.load(path)
    assert (found.layers, found.heads) == (some.layers, some.heads)
    assert found == some


@pytest.mark.parametrize(
    ("text", "why"),
    [
        ("{}", "its version is None, this code reads 1"),
        ('{"version": 1}', "layers of equally many KV heads, got layers of none"),
        ("not json", "Expecting value"),
        ('{"version": 9, "head_shares": [[1]]}', "its version is 9, this code reads 1"),
        ('{"version": 1, "head_shares": [[1], [1, 2]]}', "layers of equally many KV heads"),
        ("[1]", "its version is None"),
        ('{"version": 1, "head_shares": [[1e999, 1]]}', "must be numbers above 0"),
        ("[" * 100_000, "recursion"),
    ],
)
def test_another_file_is_refused_in_one_line(tmp_path, text, why):
    path = tmp_path / "other.json"
    path.write_text(text)
    with pytest.raises(
        ValueError, match=rf"other.json: no file of head shares \(.*{why}.*\); HeadShares.save writes such"
    ):
        HeadShares.load(path)


def test_a_file_that_cannot_be_read_is_named(tmp_path):
    path = tmp_path / "heads.json"
    for error, why in ((FileNotFoundError, "No such file or directory"), (IsADirectoryError, "Is a directory")):
        with pytest.raises(error) as caught:
            HeadShares.load(path)
        assert str(caught.value) == f"{path}: it cannot be read ({why}); HeadShares.save writes such a file"
        path.mkdir(exist_ok=True)
    with pytest.raises(TypeError, match="not int"):
        HeadShares.load(3)
