"""Comb: what it asks for, and which slots it shares out."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from buzz.policies import POLICIES, HeadShares, Held, Places, ScoreSpec, make_policy
from tests.policies.contract import shares_of
from tests.policies.strategies import legal
from tests.policies.test_sharing import naive_share, places_of


@settings(max_examples=300, deadline=None)
@given(st.sampled_from(legal(POLICIES["comb"])), st.integers(0, 2**16), st.data())
def test_shares_equal_the_reference(policy, seed, data):
    """The worth of a slot is its score: in a stream times its place in its head, in a prompt times the norm of its
    value; after a prompt it is the score alone. In a stream the window is wider."""
    generator = torch.Generator().manual_seed(seed)
    more, sampled = data.draw(st.integers(0, 3)), data.draw(st.integers(0, 1))
    length = policy.capacity + policy.slack + 1 + more
    lengths = [length, length, length, length]
    for _ in range(2):
        off = data.draw(st.integers(0, length - 1))
        lengths = [lengths[0] + off, lengths[1] - off, *lengths[2:]][::-1] if lengths[1] > off else lengths
    places = places_of([lengths], [lengths], 2)
    scores = torch.randint(0, 4, (1, 4 * length), generator=generator).float()
    values = torch.randint(0, 3, (1, 4 * length, 1), generator=generator).half()
    shares = shares_of(2, seed) if policy.measured else None
    mask = policy.share(Held(scores, values=values, shares=shares), places, policy.capacity, length, sampled)
    worth = scores
    if more and policy.values:
        worth = scores * values[..., 0]
    elif not more and not sampled and policy.recency:
        worth = by_place(scores, lengths)
    window = policy.recent if more or sampled else policy.recent_of_streams
    rule = (policy.sink, window, policy.floor, policy.ceiling, policy.layer_ceiling, budgets_of(policy, shares, window))
    assert set(mask[0].nonzero()[:, 0].tolist()) == naive_share(worth, places, 0, policy.capacity, *rule)


def by_place(worth, lengths):
    """Worth [1, P] of heads without free places, times 1 / n of the oldest of n slots to 1 of the latest."""
    # In float32, and in this order, like the policy: products that round may tie.
    weights = [torch.arange(1, n + 1) for n in lengths], [(1 / torch.tensor(n)).expand(n) for n in lengths]
    return worth * torch.cat(weights[0]) * torch.cat(weights[1])


def budgets_of(policy, shares, window):
    """Found by trying: the largest scale at which all shares together fit, and again in layers that have too much."""
    if shares is None:
        return None
    kept, each = policy.capacity, len(shares.shares[0])
    least = max(1, policy.sink + window, int(policy.floor * kept))
    most = int(policy.ceiling * kept)

    def fitting(some, total):
        def at(scale):
            return [min(max(scale * share, least), most) for share in some]

        scale = 1e-6
        for step in (2.0, 1.1, 1.001, 1.00001, 1.0000001):
            while sum(at(scale * step)) <= total and scale < 1e6:
                scale *= step
        return [int(n + 1e-6) for n in at(scale)]

    budgets = fitting([share for of in shares.shares for share in of], kept * len(shares.shares) * each)
    for layer, of in enumerate(shares.shares):
        own = slice(layer * each, (layer + 1) * each)
        if policy.layer_ceiling and sum(budgets[own]) > policy.layer_ceiling * kept * each:
            budgets[own] = fitting(of, policy.layer_ceiling * kept * each)
    return budgets


def test_what_is_read():
    policy = make_policy("comb", beyond=40, echo=True, chunk=100)
    once = make_policy("comb", beyond=40)
    assert policy.score_spec == once.score_spec == ScoreSpec(True, None, "largest", 16)
    assert once.prompt_spec == ScoreSpec(True, None, "largest", 40, 50.0, 16)
    assert make_policy("comb", afar=0).prompt_spec == ScoreSpec(True, None, "largest", 48, 0.0, 16)
    assert policy.prompt_spec == ScoreSpec(True, None, "mean", 16)
    assert (once.echo_chunk, policy.echo_chunk) == (None, 100)
    assert make_policy("comb", budgets="worth").prompt_spec.mean == make_policy("comb", scope="head").weight == 5
    assert make_policy("comb", echo=True, afar=0).prompt_spec is None
    assert (make_policy("comb").reads, make_policy("comb", values=False).reads) == ({"values"}, frozenset())
    assert not policy.is_blind


def test_sums_are_of_one_reading_alone():
    policy = make_policy("comb", sums=True, near=7)
    assert policy.score_spec == policy.prompt_spec == ScoreSpec(True, None, "sum", 7)
    with pytest.raises(ValueError, match="sums are of one reading, and have no mean beside them: echo must be False"):
        make_policy("comb", sums=True, echo=True)
    with pytest.raises(ValueError, match="afar must be None"):
        make_policy("comb", sums=True, afar=0)


def test_what_is_heard_is_the_echo_and_some_of_the_first_reading():
    first, echo = torch.rand(2, 1, 2, 5, generator=torch.Generator().manual_seed(0))
    policy = make_policy("comb", echo=True, afar=2)
    assert torch.equal(policy.heard(first, echo), echo + 2 * first)
    assert policy.heard(None, echo) is echo


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32, torch.float64])
def test_values_of_any_type_have_norms(dtype):
    policy = make_policy("comb", capacity=3, sink=0, window=1, lazy=0, scope="head")
    values = torch.tensor([3.0, 1, 1, 2, 4, 1], dtype=dtype)[None, None, :, None]
    assert policy.select(Held(torch.ones(1, 1, 6), values=values), 6).tolist() == [[[0, 4, 5]]]


def test_it_keeps_original_positions_and_decays_scores():
    assert make_policy("comb").positions == "original"
    assert (make_policy("comb").decay, make_policy("comb", decay=1).decay) == (0.9, 1.0)
    assert {make_policy("comb", scope=scope).scope for scope in ("head", "layer", "model")} == {
        "head",
        "layer",
        "model",
    }


@pytest.mark.parametrize(
    ("params", "prompt", "stream"),
    [
        ({"capacity": 80}, 20, 40),
        ({"capacity": 9}, 2, 4),
        ({"capacity": 6}, 1, 2),  # what the sink leaves
        ({"capacity": 80, "sink": 60}, 20, 20),
        ({"capacity": 80, "window": 30}, 30, 30),
        ({"capacity": 1, "sink": 0}, 1, 1),
    ],
)
def test_the_window_of_a_stream_is_half_of_what_is_kept(params, prompt, stream):
    policy = make_policy("comb", scope="head", lazy=2, recency=False, values=False, **params)
    assert (policy.recent, policy.recent_of_streams) == (prompt, stream)
    for length, sampled, window in (
        (policy.capacity + 3, 0, stream),
        (policy.capacity + 3, 1, prompt),
        (policy.capacity + 4, 0, prompt),
    ):
        kept = policy.select(Held(torch.arange(length, 0, -1.0)[None, None]), length, sampled)[0, 0]
        assert kept.tolist() == [*range(policy.capacity - window), *range(length - window, length)]


@pytest.mark.parametrize(("lazy", "slack"), [(None, 10), (0, 0), (7, 7)])
def test_it_evicts_once_in_so_many_tokens(lazy, slack):
    policy = make_policy("comb", capacity=80, lazy=lazy)
    assert policy.slack == slack
    assert policy.plan(80 + slack) is None
    assert policy.plan(80 + slack + 1) == (80, 0)
    assert policy.trace(500, slack + 1) == [*range(80, 81 + slack), 80]
    assert make_policy("comb", capacity=1, sink=0, window=1).slack == 1


def test_slots_of_equal_worth_fall_to_the_lower_head_and_the_older_slot():
    # Evicts at 5, so norms do not count.
    policy = make_policy("comb", capacity=3, sink=0, window=1, floor=0, lazy=1, budgets="worth", recency=False)
    mask = policy.share(Held(torch.ones(1, 10)), Places.equal(2, 2, 5, torch.device("cpu")), 3, 5)
    assert mask.view(2, 5).tolist() == [[True] * 5, [False] * 4 + [True]]


def test_of_slots_looked_at_alike_the_later_one_stays_in_a_stream_and_the_older_one_of_a_prompt():
    policy = make_policy("comb", capacity=3, sink=0, window=1, lazy=1, scope="head", values=False)
    assert policy.select(Held(torch.ones(1, 1, 5)), 5).tolist() == [[[2, 3, 4]]]
    assert policy.select(Held(torch.tensor([[[7.0, 3, 1, 1, 1]]])), 5).tolist() == [[[0, 1, 4]]]  # 7/5 and 6/5 to 4/5
    assert policy.select(Held(torch.ones(1, 1, 5)), 5, sampled=1).tolist() == [[[0, 1, 4]]]  # there was a prompt
    assert policy.select(Held(torch.ones(1, 1, 6)), 6).tolist() == [[[0, 1, 5]]]  # this is one
    assert (policy.plan(5), policy.plan(6), policy.plan(5, 1)) == ((3, 0), (3, 1), (3, 1))


@pytest.mark.parametrize("scope", ["head", "model"])
def test_what_it_reads_must_be_there(scope):
    policy = make_policy("comb", capacity=3, sink=0, window=1, values=True, scope=scope, budgets="worth")
    places, scores = Places.equal(2, 2, 9, torch.device("cpu")), torch.ones(1, 2, 9)
    with pytest.raises(ValueError, match="comb: select needs values"):
        policy.select(Held(scores), 9)
    with pytest.raises(ValueError, match="comb: select needs values"):
        policy.share(Held(scores.view(1, 18)), places, 3, 9)
    with pytest.raises(ValueError, match="comb: select needs scores"):
        policy.share(Held(), places, 3, 9)
    measured = make_policy("comb", capacity=3, sink=0, window=1)
    with pytest.raises(ValueError, match=r"comb: share needs the shares of the model's heads \(buzz.head_shares\)"):
        measured.share(Held(scores.view(1, 18), values=torch.ones(1, 18, 1)), places, 3, 9)


def test_budgets_are_measured_with_one_reading_over_the_model_alone():
    assert make_policy("comb").measured
    for params in ({"echo": True}, {"scope": "layer"}, {"scope": "head"}, {"budgets": "worth"}):
        assert not make_policy("comb", **params).measured
    assert make_policy("comb", echo=True, budgets="measured").measured
    with pytest.raises(
        ValueError, match="comb: measured budgets are those of a model's heads, so scope must be model, got"
    ):
        make_policy("comb", scope="layer", budgets="measured")
    with pytest.raises(ValueError, match="comb: budgets must be one of measured, worth, got 'measure'"):
        make_policy("comb", budgets="measure")


def test_heads_have_their_budgets_and_what_is_left_goes_by_worth():
    """Four heads of 20 slots, three of which want 2, 4 and 12; the last wants more than it has."""
    policy = make_policy("comb", capacity=12, sink=0, window=1, lazy=0, floor=0, values=False)
    shares = HeadShares([[1.0, 2.0], [6.0, 15.0]])
    places, scores = Places.equal(4, 2, 20, torch.device("cpu")), torch.zeros(1, 80)
    scores[0, 3] = 1.0  # of the neediest least
    assert shares.budgets(12, 1, 96) == (2, 4, 12, 30)
    held = places.counted(policy.share(Held(scores, shares=shares), places, 12, 20))[0].tolist()
    assert held == [12, 4, 12, 20]  # on equal worth what is left goes to the first
    uneven = HeadShares([[1.0, 1.0], [98.0, 100.0]])
    assert uneven.budgets(12, 2, 96, 4) == (2, 2, 21, 22)
    assert uneven.budgets(12, 2, 96, 1) == (2, 2, 11, 12)
