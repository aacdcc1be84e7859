"""Between two steps in static memory, evictions included, the host neither reads the device nor copies so as to wait.

On a CPU nothing waits, so what would is forbidden: what brings a value to the host, and `torch.tensor`, whose copy to a
device waits for it (`buzz.rows` alone knows how to copy without), as does that of an index in a list, or of a number
that is set at an index.
"""

from __future__ import annotations

import sys

import pytest
import torch

import buzz
from buzz.cache.storage import Storage
from buzz.decoding.arena import Session
from tests.conftest import left_pad, tiny_llama, tokens
from tests.decoding.test_loop import GREEDY, POLICIES, static

READS = ("item", "tolist", "cpu", "numpy", "nonzero", "__bool__", "__int__", "__float__", "__index__")
MORE = {
    "keydiff": buzz.make_policy("keydiff", capacity=12),
    "keydiff-rows": buzz.PerRow([buzz.make_policy("keydiff", capacity=c) for c in (9, 12, 10)]),
    **{
        f"decays-{scope}": buzz.PerRow(
            [buzz.make_policy("comb", capacity=12, window=4, lazy=3, decay=d, scope=scope) for d in (0.5, 0.9, 1)]
        )
        for scope in ("head", "layer", "model")
    },
}


class WaitError(AssertionError):
    """Something that waits for a device."""


def forbid(patch):
    """Let everything that waits for a device raise."""

    def refuse(name):
        def read(*args, **kwargs):
            raise WaitError(name)

        return read

    def tensor(*args, own=torch.tensor, **kwargs):
        if sys._getframe(1).f_globals["__name__"] != "buzz.rows":
            raise WaitError("torch.tensor")
        return own(*args, **kwargs)

    def setitem(self, key, value, own=torch.Tensor.__setitem__):
        keys = key if isinstance(key, tuple) else (key,)
        number = not isinstance(value, torch.Tensor) and any(isinstance(k, torch.Tensor) for k in keys)
        if number or any(isinstance(k, list) for k in keys):
            raise WaitError("__setitem__")
        return own(self, key, value)

    for name in READS:
        patch.setattr(torch.Tensor, name, refuse(name))
    patch.setattr(torch.Tensor, "__setitem__", setitem)
    patch.setattr(torch, "tensor", tensor)


@pytest.mark.parametrize("name", [*POLICIES, *MORE])
def test_nothing_waits_for_the_device(monkeypatch, name):
    policy, evictions = {**POLICIES, **MORE}[name], []
    for method in ("feed", "finish"):
        own = getattr(Session, method)

        def guarded(session, *args, own=own):
            with monkeypatch.context() as patch:
                forbid(patch)
                due = own(session, *args)
            evictions.append(due)
            return due

        monkeypatch.setattr(Session, method, guarded)
    ids, mask = left_pad([tokens(1, n, seed=n)[0] for n in (31, 9, 22)])
    model = tiny_llama()
    with static(model):
        cache = buzz.BeehiveCache(policy, model)
        model.generate(ids, attention_mask=mask, past_key_values=cache, max_new_tokens=20, **GREEDY)
    assert len(evictions) == 2 * 19  # all steps
    assert any(evictions) or name in ("full", "snapkv", "pyramidkv")


@pytest.mark.parametrize("name", [f"decays-{scope}" for scope in ("head", "layer", "model")])
def test_an_eviction_from_a_prompt_waits_for_nothing(monkeypatch, name):
    """Nor does one that is read in chunks, or in a pool that has to grow."""
    model, calls = tiny_llama(), []
    with buzz.patch_model(model):
        buzz.head_shares(model)  # by calls of its own
    for owner, method in ((Storage, "pass_layer"), (Storage, "end")):
        own = getattr(owner, method)

        def guarded(storage, *args, own=own, method=method):
            with monkeypatch.context() as patch:
                forbid(patch)
                own(storage, *args)
            calls.append(method)

        monkeypatch.setattr(owner, method, guarded)
    ids, mask = left_pad([tokens(1, n, seed=n)[0] for n in (31, 18, 22)])
    with buzz.patch_model(model), torch.inference_mode():
        for chunks in ([31], [20, 11]):
            cache, end = buzz.BeehiveCache(MORE[name], model.config), 0
            for width in chunks:
                end += width
                model(ids[:, end - width : end], attention_mask=mask[:, :end], past_key_values=cache)
            assert cache.lengths == [12, 12, 12]
    assert calls.count("end") == 3
