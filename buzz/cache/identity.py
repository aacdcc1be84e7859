"""Which model has filled a cache: what of it decides over keys and values, and where each layer's are."""

from __future__ import annotations

import hashlib
import json
from typing import Any

import torch

from buzz.cache.call import Shape

_SAMPLE = 64  # numbers of each weight that its digest reads


def decoder_of(model: Any) -> Any:
    """The module that has a model's layers, of a model or what it is wrapped in.

    Raises:
        TypeError: it is no model.
    """
    found = model
    while found is not None and not hasattr(found, "get_decoder"):
        found = getattr(found, "module", None)
    decoder = None if found is None else found.get_decoder()
    if not isinstance(getattr(decoder, "layers", None), torch.nn.ModuleList):
        raise TypeError(f"a saved cache belongs to a model, got {type(model).__name__} in its place")
    return decoder


def identity_of(decoder: Any) -> dict[str, Any]:
    """What a model must agree in with the one that filled a cache, as JSON takes it.

    Raises:
        ValueError: its weights are spread over processes.
    """
    config = decoder.config.get_text_config(decoder=True)
    shape = Shape.of(config)
    identity = {
        "model_type": config.model_type,
        "layers": shape.layers,
        "kv_heads": shape.heads,
        "head_dim": shape.head_dim,
        "sliding_windows": list(shape.windows),
        "hidden_size": config.hidden_size,
        "vocab_size": config.vocab_size,
        "rope_parameters": getattr(config, "rope_parameters", None),
        "dtype": str(next(decoder.parameters()).dtype).removeprefix("torch."),
        "weights": _digest(decoder),
    }
    return json.loads(json.dumps(identity))  # as it comes back


def devices_of(decoder: Any) -> list[torch.device]:
    """Where the keys and values of each layer are.

    Raises:
        ValueError: a layer is nowhere.
    """
    return [_device(layer) for layer in decoder.layers]


def _device(layer: torch.nn.Module) -> torch.device:
    device = next(layer.parameters()).device
    if device.type != "meta":
        return device
    for module in layer.modules():  # weights that accelerate keeps elsewhere until they are needed
        where = getattr(getattr(module, "_hf_hook", None), "execution_device", None)
        if where is not None:
            return torch.device(where)
    raise ValueError("the model's weights are on no device, so neither can be what a cache of it holds")


@torch.no_grad()
def _digest(decoder: Any) -> str:
    """Sixteen hexadecimal digits of some numbers of every weight, the same on every device."""
    digest = hashlib.sha256()
    for name, weight in sorted(decoder.named_parameters()):
        if hasattr(weight, "device_mesh"):
            raise ValueError(
                "the model's weights are spread over processes, each of which caches a part: such a cache can be "
                "neither saved nor loaded (docs/limits.md)"
            )
        digest.update(f"{name} {list(weight.shape)}".encode())
        if not weight.is_meta:  # offloaded ones are elsewhere
            some = weight.detach().reshape(-1)[:: max(1, weight.numel() // _SAMPLE)][:_SAMPLE]
            digest.update(some.contiguous().cpu().view(torch.uint8).numpy().tobytes())
    return digest.hexdigest()[:16]


__all__ = ["decoder_of", "devices_of", "identity_of"]
