"""Records which slots the presses of kvpress keep of a prompt of a tiny random model, and what they looked at.

Not run by the tests, which read what it printed: kvpress pins other versions than this project. In a virtual
environment of its own:

    pip install torch==2.13.0 kvpress==0.5.4
    python tests/policies/recordings/record.py > tests/policies/recordings/kvpress.json
"""

from __future__ import annotations

import json
import tempfile
from importlib.metadata import version

import kvpress
import torch
from tokenizers import Tokenizer, models, pre_tokenizers
from transformers import DynamicCache, LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

TOKENS, LAYERS, HEADS, KV_HEADS, WIDTH, VOCABULARY = 48, 2, 4, 2, 4, 60
WINDOW, KERNEL, SINK = 4, 3, 4
KEPT = 12  # of 48, so that shares of it are whole


def tiny_model(folder: str) -> LlamaForCausalLM:
    """Its output projection is the identity, so that norms of projected values are norms of values."""
    torch.manual_seed(7)
    config = LlamaConfig(
        hidden_size=HEADS * WIDTH, intermediate_size=32, num_hidden_layers=LAYERS, num_attention_heads=HEADS,
        num_key_value_heads=KV_HEADS, vocab_size=VOCABULARY, initializer_range=0.6, max_position_embeddings=2048,
    )  # fmt: skip
    config._attn_implementation = "sdpa"
    model = LlamaForCausalLM(config).eval()
    for layer in model.model.layers:
        torch.nn.init.eye_(layer.self_attn.o_proj.weight)
    words = Tokenizer(models.WordLevel({"?": 0} | {str(n): n for n in range(1, VOCABULARY)}, unk_token="?"))
    words.pre_tokenizer = pre_tokenizers.Whitespace()
    PreTrainedTokenizerFast(tokenizer_object=words, unk_token="?").save_pretrained(folder)
    model.config.name_or_path = folder
    return model


def looked_at(model: LlamaForCausalLM, ids: torch.Tensor) -> dict:
    """Of each layer: keys and values as cached, [heads][slots][width], attention that slots got from the last queries
    (summed over queries and query heads), and the moments of queries (as buzz.policies.held.Asked)."""
    projected: list[torch.Tensor] = []
    hooks = [
        layer.self_attn.q_proj.register_forward_hook(lambda _module, _given, out: projected.append(out))
        for layer in model.model.layers
    ]
    cache = DynamicCache()
    model.set_attn_implementation("eager")
    attentions = model(ids, past_key_values=cache, output_attentions=True).attentions
    model.set_attn_implementation("sdpa")
    for hook in hooks:
        hook.remove()
    ahead = torch.arange(TOKENS, TOKENS + 512)[None]
    cos, sin = (t[0].mean(0) for t in model.model.rotary_emb(torch.zeros(1, 1, 512, WIDTH), ahead))
    half = WIDTH // 2
    turn = torch.diag(cos)
    for i in range(half):
        turn[i, i + half], turn[i + half, i] = -sin[i], sin[i + half]
    layers = []
    for layer in range(LAYERS):
        grouped = attentions[layer][0].view(KV_HEADS, HEADS // KV_HEADS, TOKENS, TOKENS)
        queries = projected[layer].view(TOKENS, HEADS, WIDTH).transpose(0, 1)[:, SINK:] / WIDTH**0.5
        mean = queries.mean(1)
        off = queries - mean[:, None]
        covariance = off.mT @ off / (TOKENS - SINK)
        layers.append(
            {
                "keys": cache.layers[layer].keys[0],
                "values": cache.layers[layer].values[0],
                "window": grouped[:, :, -WINDOW:].sum((1, 2)),
                "last": grouped[:, :, -1:].sum((1, 2)),
                "mean": mean @ turn.T,
                "covariance": turn @ covariance @ turn.T,
            }
        )
    return {"layers": [{name: short(tensor) for name, tensor in layer.items()} for layer in layers]}


def short(tensor: torch.Tensor) -> list:
    """Seven digits of each number."""
    return json.loads(json.dumps(tensor.tolist()), parse_float=lambda text: float(f"{float(text):.7g}"))


def kept_by(press: kvpress.BasePress, model: LlamaForCausalLM, ids: torch.Tensor, full: dict) -> list:
    """[layers][heads][slots], ascending."""
    for layer in model.model.layers:
        layer.self_attn.masked_key_indices = None
    cache = DynamicCache()
    with press(model):
        model.model(input_ids=ids, past_key_values=cache)
    found = []
    for number, layer in enumerate(model.model.layers):
        gone = layer.self_attn.masked_key_indices
        if gone is not None:  # the press hides slots from attention instead of dropping them
            _, heads, slots = gone
            dropped = set(zip(heads.tolist(), slots.tolist(), strict=True))
            found.append([[s for s in range(TOKENS) if (h, s) not in dropped] for h in range(KV_HEADS)])
        else:
            whole = torch.tensor(full["layers"][number]["keys"])
            distance = torch.cdist(cache.layers[number].keys[0], whole)  # [heads, kept, slots]
            found.append([sorted(row.argmin(-1).tolist()) for row in distance])
    return found


class Listened(kvpress.KVzipPress):
    """KVzip, whose scores are looked at before they are forgotten."""

    def compress_post(self, model):
        self.scores = self.score_val[:, 0].clone()
        super().compress_post(model)


@torch.no_grad()
def main() -> None:
    with tempfile.TemporaryDirectory() as folder:
        model = tiny_model(folder)
        ids = torch.randint(1, VOCABULARY, (1, TOKENS), generator=torch.Generator().manual_seed(7))
        full = looked_at(model, ids)
        ratio = 1 - KEPT / TOKENS

        def snapkv() -> kvpress.SnapKVPress:
            return kvpress.SnapKVPress(ratio, window_size=WINDOW, kernel_size=KERNEL)

        def expected() -> kvpress.ExpectedAttentionPress:
            return kvpress.ExpectedAttentionPress(ratio, n_future_positions=512, n_sink=SINK)

        presses = {
            "snapkv": snapkv(),
            "adakv_snapkv": kvpress.AdaKVPress(snapkv(), alpha_safeguard=0.2),
            "criticalkv_snapkv": kvpress.CriticalKVPress(snapkv()),
            "criticaladakv_snapkv": kvpress.CriticalAdaKVPress(snapkv(), alpha_safeguard=0.2),
            "pyramidkv": kvpress.PyramidKVPress(ratio, window_size=WINDOW, kernel_size=KERNEL, beta=2),
            "tova": kvpress.TOVAPress(ratio),
            "expected_attention": expected(),
            "adakv_expected_attention": kvpress.AdaKVPress(expected(), alpha_safeguard=0.2),
            "keydiff": kvpress.KeyDiffPress(ratio),
        }
        kept = {name: kept_by(press, model, ids, full) for name, press in presses.items()}
        zips = {scope: Listened(ratio, layerwise=scope == "layer") for scope in ("model", "layer")}
        for scope, press in zips.items():
            kept[f"kvzip_{scope}"] = kept_by(press, model, ids, full)
        header = {
            "made_by": {name: version(name) for name in ("kvpress", "transformers", "torch")},
            "command": "python tests/policies/recordings/record.py > tests/policies/recordings/kvpress.json",
            "what": "slots kept of a prompt, [layers][KV heads][slots], and what was looked at (see record.py)",
        }
        sizes = {"tokens": TOKENS, "capacity": KEPT, "window": WINDOW, "kernel": KERNEL, "sink": SINK}
        told = {"kvzip_scores": short(zips["model"].scores)}
        print(json.dumps({**header, **sizes, **full, **told, "kept_by": kept}))


if __name__ == "__main__":
    main()
