"""Copies of a prompt in fewer kernels: on a GPU where there is one, else interpreted."""

from __future__ import annotations

import pytest
import torch

import buzz
from buzz.kernels import device
from buzz.models import layer, norms
from tests.conftest import left_pad, tokens
from tests.models.tiny import tiny
from tests.policies.twice import Twice

pytest.importorskip("triton")

DEVICE = "cuda" if torch.cuda.is_available() else "cpu"


@pytest.mark.parametrize("keep", [0, 1])
@pytest.mark.parametrize("name", ["llama", "gemma3_text-mixed", "olmo2", "qwen3_moe"])
@torch.no_grad()
def test_copies_are_read_as_by_the_layers_themselves(monkeypatch, name, keep):
    """In bfloat16, so to within its rounding; of a copy the last layer's MLP computes one column a row."""
    model = tiny(name).bfloat16().to(DEVICE)
    ids, mask = (t.to(DEVICE) for t in left_pad([tokens(1, n, seed=n)[0] for n in (23, 30)]))
    embeds, widths, results, inner = model.get_input_embeddings()(ids), [], [], layer._inner
    before = embeds.clone()
    monkeypatch.setattr(layer, "_inner", lambda *a: widths.append(a[2].shape[1]) or inner(*a))
    with buzz.patch_model(model):
        for opened in (False, True):
            for module in (layer, norms):
                monkeypatch.setattr(module, "HALF", (torch.bfloat16,) if opened else ())
                monkeypatch.setattr(module, "runs_triton", lambda x: True)
            monkeypatch.setattr(device, "_LARGE", 0)
            cache = buzz.BeehiveCache(Twice(chunk=8), model, "original")
            logits = model(inputs_embeds=embeds, attention_mask=mask, past_key_values=cache, logits_to_keep=keep).logits
            assert cache.lengths == [8, 8]
            results.append(logits.float())
    assert torch.equal(embeds, before)  # nothing is written to what copies are made of
    assert (results[0] - results[1]).norm() < 5e-2 * results[0].norm()
    read = [[30, 30, 30, 1 if keep else 30], *([n, n, n, 1] for n in (8, 8, 8, 6))]
    assert widths == [width for call in read for width in call]
