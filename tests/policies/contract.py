"""What every policy promises, checked without knowing its rule; see `Policy`."""

from __future__ import annotations

import copy
import pickle
from collections.abc import Sequence

import torch
from transformers import LlamaConfig

import buzz
from buzz.policies import Asked, HeadShares, Held, Places, Policy, RowPolicies
from buzz.rows import Rows
from tests.policies.naive import walked_peak, walked_steady

HEADS = 2


def scores_of(length: int, rows: int = 1, seed: int = 0) -> torch.Tensor:
    """Scores [rows, HEADS, length] of few values, so that ties are common, some of them no numbers."""
    scores = torch.randint(0, 5, (rows, HEADS, length), generator=torch.Generator().manual_seed(seed)).float()
    return scores.masked_fill(scores == 4, torch.nan)


def check_plan(policy: Policy, calls: list[int]) -> None:
    """Over a stream of calls of so many tokens: what is due is due at every greater length, and never more is kept."""
    length, sampled = 0, 0
    for tokens in calls:
        assert policy.plan(0, sampled) is None
        due = [policy.plan(n, sampled) is not None for n in range(max(1, length), length + tokens + 60)]
        assert due == sorted(due)
        plan = policy.plan(length + tokens, sampled)
        if plan is not None:
            assert 0 <= plan.kept <= length + tokens
        length, sampled = policy.advance(length + tokens, sampled)
    if policy.bounded:
        assert policy.plan(10**9, sampled) is not None


def due_states(policy: Policy, calls: list[int]) -> list[tuple[int, int]]:
    """The states `(length, sampled)` of a stream in which an eviction is due."""
    state, found = (0, 0), []
    for tokens in calls:
        during = state[0] + tokens
        if policy.plan(during, state[1]) is not None:
            found.append((during, state[1]))
        state = policy.advance(during, state[1])
    return found


def check_selection(policies: Sequence[Policy], calls: list[int], seed: int = 0) -> None:
    """The slots that stay are as many as planned, ascending, and the same for a row among others as for it alone.

    Args:
        policies: of one family.
    """
    rows = [(policy, *state) for policy in policies for state in due_states(policy, calls)]
    if not rows:
        return
    shown = held_of(policies[0], max(length for _, length, _ in rows) + 3, len(rows), seed)  # some to spare
    blind = all(policy.is_blind for policy in policies)
    of_rows, lengths, sampled = zip(*rows, strict=True)
    together = type(policies[0]).select_rows(RowPolicies(of_rows), shown, Rows(lengths), Rows(sampled))
    assert together.dtype == torch.int64
    for row, (policy, length, sample) in enumerate(rows):
        kept = policy.plan(length, sample).kept
        slots = policy.select(shown.rows(torch.tensor([row]), length), length, sample)
        assert slots.dtype == torch.int64
        assert slots.shape in ([(1, 1, kept)] if blind else [(1, HEADS, kept), (1, 1, kept)])
        assert (slots.diff(dim=-1) > 0).all()
        assert not kept or 0 <= slots.min() <= slots.max() < length
        assert torch.equal(together[row, :, :kept].expand(HEADS, -1), slots[0].expand(HEADS, -1))
    if blind:
        with torch.device("meta"):  # whatever the default device is
            assert policies[0].select(Held(), *due_states(policies[0], [10**4])[0]).device.type == "cpu"


def held_of(policy: Policy, length: int, rows: int = 1, seed: int = 0) -> Held:
    """What a policy is shown of rows of equal heads."""
    if policy.is_blind:
        return Held()
    generator = torch.Generator().manual_seed(seed)
    keys, values = torch.randn(2, rows, HEADS, length, 2, generator=generator)
    scored = policy.score_spec is not None or policy.echo_chunk is not None
    asked = asked_of(rows, HEADS, length, generator)
    return Held(scores_of(length, rows, seed) if scored else None, keys, values, asked)


def asked_of(rows: int, heads: int, length: int, generator: torch.Generator) -> Asked:
    """Moments of queries of two heads for each KV head, and norms of so many slots."""
    root = torch.randn(rows, 2 * heads, 2, 2, generator=generator)
    mean = torch.randn(rows, 2 * heads, 2, generator=generator)
    return Asked(mean, root @ root.mT, torch.rand(rows, heads, length, generator=generator))


def shares_of(layers: int, seed: int = 0) -> HeadShares:
    """Some shares of the heads of so many layers."""
    drawn = torch.rand(layers, HEADS, generator=torch.Generator().manual_seed(seed)) * 3 + 0.2
    return HeadShares(drawn.tolist())


def check_share(policy: Policy, length: int, sampled: int, seed: int) -> None:
    """Heads that share keep as many places as planned, each head one at least, and a row what it keeps alone.

    Heads have lengths of their own, but for those policies that evict from a row's first call alone.
    """
    generator = torch.Generator().manual_seed(seed)
    layers = 2 if policy.scope == "model" else 1
    heads, rows, kept = HEADS * layers, 2, policy.plan(length, sampled).kept
    if kept == length:  # nothing has to go
        return
    cuts = torch.randint(0, (length - 1) * heads + 1, (rows, heads - 1), generator=generator).sort(dim=-1).values
    ends = torch.cat([torch.zeros(rows, 1), cuts, torch.full((rows, 1), (length - 1) * heads)], dim=-1)
    lengths = ends.diff(dim=-1).long() + 1  # [rows, heads], of `length` in the mean
    rooms = lengths.clone()
    rooms[:, -1] += 3  # some places are free
    if not policy.bounded:
        lengths = torch.full_like(lengths, length)
        rooms = lengths + 3
    head = torch.stack([torch.arange(heads).repeat_interleave(row) for row in rooms])
    begin = rooms.cumsum(dim=1) - rooms
    places = Places(heads, layers, head.shape[1], begin, lengths)
    keys, values = torch.randn(2, rows, head.shape[1], 2, generator=generator)
    asked = asked_of(rows, heads, length + 3, generator)
    shares = shares_of(layers, seed) if policy.measured else None
    held = Held(scores_of(head.shape[1], rows, seed)[:, 0], keys, values, asked, shares)
    mask = policy.share(held, places, kept, length)
    assert (mask.dtype, mask.shape) == (torch.bool, head.shape)
    assert mask.sum(-1).tolist() == [kept * heads] * rows
    assert not (mask & ~places.taken).any()
    for row in range(rows):
        assert set(head[row][mask[row]].tolist()) == set(range(heads))
        alone = places._replace(begin=begin[row : row + 1], length=lengths[row : row + 1])
        asked = held.asked.rows(torch.tensor([row]))
        one = held.each(lambda t, row=row: t[row : row + 1])._replace(asked=asked)
        assert torch.equal(policy.share(one, alone, kept, length)[0], mask[row])


def check_figures(policy: Policy, prompt: int) -> None:
    """Peak and steady length are what a walk finds token by token, which ends if the states come back."""
    state = policy.advance(prompt)
    if not policy.bounded:
        assert policy.peak(*state) is policy.steady() is None
        return
    during = [length + 1 for length in policy.trace(prompt, 300)[:-1]]
    assert max(during) <= policy.peak(*state)
    if type(policy).steady is Policy.steady:
        assert policy.peak(*state) == walked_peak(policy, *state)
        assert policy.steady() == walked_steady(policy)


def check_value(policy: Policy) -> None:
    """It is what it is made of, and says so."""
    assert eval(repr(policy), {type(policy).__name__: type(policy)}) == policy
    for twin in (copy.deepcopy(policy), pickle.loads(pickle.dumps(policy))):
        assert (twin, hash(twin), type(twin)) == (policy, hash(policy), type(policy))
    assert len(policy.per_layer(5)) == 5


def caches_hold(policy: Policy) -> bool:
    """Whether a cache that is driven by hand, as here, has equal heads and reads a call once."""
    return policy.scope == "head" and policy.echo_chunk is None


def check_cache(policy: Policy, calls: list[int]) -> None:
    """A cache holds what the plan says, layer by layer, and the slots that the selection names."""
    if not caches_hold(policy):
        return
    config = LlamaConfig(num_hidden_layers=2, num_attention_heads=2, num_key_value_heads=HEADS, hidden_size=4)
    cache, layers = buzz.BeehiveCache(policy, config), policy.per_layer(2)
    states, held = [(0, 0)] * 2, [torch.zeros(HEADS, 0)] * 2
    watched: dict[int, torch.Tensor] = {}
    cache.on_evict = lambda layer, eviction, slots: watched.__setitem__(layer, slots[0].expand(HEADS, -1))
    seen = 0
    for tokens in calls:
        new = torch.arange(seen, seen + tokens, dtype=torch.float32)
        keys = new[None, None, :, None].expand(1, HEADS, -1, 2)
        watched.clear()
        ends = [length + tokens for length, _ in states]
        for layer in range(2):
            slots = cache.append(keys, keys, layer)
            scores = None if slots.spec is None else scores_of(ends[layer], seed=seen).nan_to_num()
            asked = asked_of(1, HEADS, ends[layer], torch.Generator().manual_seed(seen))
            cache.observe(scores, layer, asked if cache.asked(layer) else None)
        seen += tokens
        for layer, rule in enumerate(layers):
            held[layer] = torch.cat([held[layer], new.expand(HEADS, -1)], dim=1)
            if layer in watched:
                held[layer] = held[layer].gather(1, watched[layer])
            states[layer] = rule.advance(ends[layer], states[layer][1])
            length = states[layer][0]
            assert cache.layer_lengths(layer) == [length] == [held[layer].shape[1]]
            assert torch.equal(cache.layers[layer].keys[0, :, :length, 0], held[layer])


def check_all(policies: Sequence[Policy], calls: list[int]) -> None:
    """All of it for the first of some policies of one family, beside the others where rows are taken together."""
    check_value(policies[0])
    check_plan(policies[0], calls)
    check_selection(policies, calls)
    check_figures(policies[0], calls[0])
    check_cache(policies[0], calls)
